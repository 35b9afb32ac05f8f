"""The Gaussian posterior against Bayes' rule written out, and on data where it is the optimum."""

import numpy as np
import pytest
import torch

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.errors import DataError
from metadiff.rows import Rows

D = 4


def rows(label: np.ndarray) -> Rows:
    names = np.array([f"{i}".encode() for i in range(int(label.max()) + 1)])
    zeros = np.zeros(len(label))
    return Rows(
        label=label.astype(np.int32),
        split=zeros.astype(np.uint8),
        group=np.arange(len(label), dtype=np.int32),
        source=zeros.astype("S1"),
        classes=names,
        dataset="d",
    )


def sample(classes: int, images: int) -> tuple[torch.Tensor, Rows, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    between, within = np.diag([4.0, 1.0, 0.2, 0.05]), np.diag([0.1, 1.0, 2.0, 3.0])
    means = rng.multivariate_normal(np.ones(D), between, size=classes)
    label = np.repeat(np.arange(classes), images)
    x = means[label] + rng.multivariate_normal(np.zeros(D), within, size=len(label))
    return torch.from_numpy(x).float(), rows(label), between, within


def test_the_statistics_are_those_of_numpy() -> None:
    x, data, _, _ = sample(12, 9)
    found = GaussianPosterior(x, data)
    values = x.double().numpy().reshape(12, 9, D)
    means = values.mean(1)
    apart = (values - means[:, None]).reshape(-1, D)
    np.testing.assert_allclose(found.mean_D, means.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.between_DD, np.cov(means.T), rtol=1e-6)
    np.testing.assert_allclose(found.within_DD, apart.T @ apart / (12 * 9 - 12), rtol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_whitened_features_vary_within_classes_in_all_directions_alike(ridge: float) -> None:
    x, data, _, _ = sample(12, 9)
    gaussian = GaussianPosterior(x, data)
    view, within_DD = gaussian.whitened(ridge=ridge), gaussian.within_DD
    basis_DD = view.basis_DE.double()
    seen_DD = basis_DD @ (within_DD + ridge * within_DD.trace() / D * torch.eye(D, dtype=torch.float64)) @ basis_DD
    np.testing.assert_allclose(seen_DD, np.eye(D), atol=1e-5)
    np.testing.assert_allclose(basis_DD, basis_DD.T, atol=1e-6)
    np.testing.assert_allclose(view.of(gaussian.mean_D.float()), np.zeros(D), atol=1e-6)
    np.testing.assert_allclose(view.back(view.of(x)), x, atol=1e-5)


def test_images_that_are_all_the_same_have_no_units() -> None:
    x, data, _, _ = sample(12, 9)
    alike = x.view(12, 9, D).mean(1, keepdim=True).expand(12, 9, D).reshape(-1, D)
    with pytest.raises(DataError, match=r"write metatrain\.whitened 0 and evaluate\.whitened"):
        GaussianPosterior(alike.round(), data).whitened(ridge=0.3)


@pytest.mark.parametrize(("shot", "spread"), [(1, 1.0), (5, 1.0), (5, 0.3)])
def test_rows_are_the_posterior_mean_of_a_gaussian_model(shot: int, spread: float) -> None:
    """With precisions instead of covariances: another way to the same number."""
    x, data, _, _ = sample(40, 30)
    found = GaussianPosterior(x, data)
    support = x[: 2 * 3 * shot].view(2, 3, shot, D)
    ridge = 0.2
    apart = spread**2 * found.between_DD.numpy()
    between = apart + ridge * np.trace(apart) / D * np.eye(D)
    within = found.within_DD.numpy() + ridge * np.trace(found.within_DD) / D * np.eye(D)
    prior, data_precision = np.linalg.inv(between), shot * np.linalg.inv(within)
    mean = support.double().numpy().mean(2)
    expected = (mean @ data_precision + found.mean_D.numpy() @ prior) @ np.linalg.inv(prior + data_precision)
    np.testing.assert_allclose(found.rows(support, ridge=ridge, spread=spread), expected, rtol=1e-4, atol=1e-5)


def test_it_comes_nearer_to_the_class_mean_than_the_support_mean_does() -> None:
    x, data, between, within = sample(400, 40)
    found = GaussianPosterior(x, data)
    rng = np.random.default_rng(1)
    truth = rng.multivariate_normal(np.ones(D), between, size=(500, 5))
    support = torch.from_numpy(truth[:, :, None] + rng.multivariate_normal(np.zeros(D), within, size=(500, 5, 1))).float()
    error = (found.rows(support, ridge=1e-6).numpy() - truth) ** 2
    best = np.diag(np.linalg.inv(np.linalg.inv(between) + np.linalg.inv(within)))
    np.testing.assert_allclose(error.mean((0, 1)), best, rtol=0.15)
    assert error.mean() < 0.5 * ((support.numpy()[:, :, 0] - truth) ** 2).mean()
