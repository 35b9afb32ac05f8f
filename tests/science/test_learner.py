"""Base learners: what a flat vector means, and gradients in closed form that are autograd's."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from metadiff.layout import tensors_of
from metadiff.learner import BaseLearner, Learner, Perceptron, build_learner
from metadiff.objectives import Objective, OnClasses, OnSupport

KINDS = ("cosine", "linear", "mlp")
CASES = [(kind, sees) for kind in KINDS for sees in ("support", "classes") if (kind, sees) != ("mlp", "classes")]
TASKS, WAY, SHOT, DIM, HIDDEN, CLASSES = 4, 3, 2, 5, 4, 6
NAMES = {"cosine": ["weight"], "linear": ["weight", "bias"]}
NAMES |= {"mlp": ["enter.weight", "enter.bias", "leave.weight", "leave.bias"]}


def learner(kind: str) -> BaseLearner:
    if kind == "mlp":
        return Perceptron("mlp", WAY, DIM, HIDDEN)
    return Learner(kind, WAY, DIM, scale=7.0)  # type: ignore[arg-type]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen() -> tuple[Tensor, Tensor, Tensor]:
    """Features and labels of classes of 1, 3, 5, ... images, in a mixed order; each task's classes."""
    label_N = torch.arange(CLASSES).repeat_interleave(1 + 2 * torch.arange(CLASSES))
    order = torch.randperm(len(label_N), generator=torch.Generator().manual_seed(1))
    classes_TW = torch.tensor([[0, 1, 2], [2, 1, 5], [5, 0, 4], [1, 2, 0]])
    return noise(len(label_N), DIM, seed=2), label_N[order], classes_TW


def objective(kind: str, sees: str) -> Objective:
    features_ND, label_N, classes_TW = seen()
    if sees == "support":
        return OnSupport(learner(kind), noise(TASKS, WAY, SHOT, DIM, seed=3))
    return OnClasses(learner(kind), features_ND, label_N, classes_TW)  # type: ignore[arg-type]


def data_of_task(task: int, sees: str) -> tuple[Tensor, Tensor, Tensor]:
    """What one task sees: features, targets and weights that give each class the same say."""
    if sees == "support":
        target_N = torch.arange(WAY).repeat_interleave(SHOT)
        weight_N = torch.full((WAY * SHOT,), 1 / (WAY * SHOT), dtype=torch.float64)
        return noise(TASKS, WAY, SHOT, DIM, seed=3)[task].flatten(0, 1), target_N, weight_N
    features_ND, label_N, classes_TW = seen()
    rows = [(label_N == label).nonzero()[:, 0] for label in classes_TW[task]]
    target_N = torch.cat([torch.full((len(part),), place) for place, part in enumerate(rows)])
    weight_N = torch.cat([torch.full((len(part),), 1 / (WAY * len(part)), dtype=torch.float64) for part in rows])
    return features_ND[torch.cat(rows)], target_N, weight_N


def plain_logits(kind: str, theta_P: Tensor, features_ND: Tensor) -> Tensor:
    """As a person would write it for one task."""
    if kind == "mlp":
        enter_HD, shift_H = theta_P[:20].reshape(HIDDEN, DIM), theta_P[20:24]
        leave_HW, shift_W = theta_P[24:36].reshape(HIDDEN, WAY), theta_P[36:]
        return (features_ND @ enter_HD.T + shift_H).relu() @ leave_HW + shift_W
    weight_WD = theta_P[: WAY * DIM].reshape(WAY, DIM)
    if kind == "cosine":
        return 7.0 * normalize(features_ND, dim=-1) @ normalize(weight_WD, dim=-1).T
    return features_ND @ weight_WD.T + theta_P[WAY * DIM :]


def plain_loss(kind: str, sees: str, task: int, theta_P: Tensor) -> Tensor:
    features_ND, target_N, weight_N = data_of_task(task, sees)
    return (weight_N * cross_entropy(plain_logits(kind, theta_P, features_ND), target_N, reduction="none")).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_definition(kind: str) -> None:
    theta_TP, features_TND = noise(TASKS, learner(kind).size), noise(TASKS, 8, DIM, seed=1)
    expected = [plain_logits(kind, theta_P, features_ND) for theta_P, features_ND in zip(theta_TP, features_TND, strict=True)]
    torch.testing.assert_close(learner(kind).logits(theta_TP, features_TND), torch.stack(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_covers_the_vector_once(kind: str) -> None:
    covered = []
    for part in learner(kind).layout():
        covered += range(part.offset, part.offset + torch.Size(part.shape).numel())
    assert covered == list(range(learner(kind).size))
    assert [part.name for part in learner(kind).layout()] == NAMES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_comes_back_from_its_facts(kind: str) -> None:
    assert build_learner(asdict(learner(kind))) == learner(kind)


def test_a_perceptron_starts_with_scores_of_one_size_whatever_its_width() -> None:
    """Weights of deviation std / sqrt(fan in), biases of 0."""
    for wide in (Perceptron("mlp", 50, 400, 100), Perceptron("mlp", 50, 100, 400)):
        start_P = wide.start(np.random.default_rng(0), 1.5)
        assert start_P.dtype == torch.float32
        parts = {part.name: start_P[part.offset :][: part.size] for part in wide.layout()}
        assert float(parts["enter.weight"].std()) * wide.dim**0.5 == pytest.approx(1.5, rel=0.03)
        assert float(parts["leave.weight"].std()) * wide.hidden**0.5 == pytest.approx(1.5, rel=0.03)
        assert not parts["enter.bias"].any()
        assert not parts["leave.bias"].any()


@pytest.mark.parametrize(("kind", "sees"), CASES)
def test_the_gradient_of_every_task_is_that_of_autograd(kind: str, sees: str) -> None:
    theta_TP = noise(TASKS, learner(kind).size)
    found = objective(kind, sees).gradient(theta_TP)
    for task, theta_P in enumerate(theta_TP):
        (expected,) = torch.autograd.grad(plain_loss(kind, sees, task, theta_P.requires_grad_()), theta_P)
        torch.testing.assert_close(found[task], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "sees"), CASES)
def test_loss_and_accuracy_weigh_each_class_the_same(kind: str, sees: str) -> None:
    theta_TP = noise(TASKS, learner(kind).size)
    loss_T, accuracy_T = objective(kind, sees).measure(theta_TP)
    for task, theta_P in enumerate(theta_TP):
        features_ND, target_N, weight_N = data_of_task(task, sees)
        right_N = plain_logits(kind, theta_P, features_ND).argmax(-1) == target_N
        torch.testing.assert_close(loss_T[task], plain_loss(kind, sees, task, theta_P))
        torch.testing.assert_close(accuracy_T[task], (weight_N * right_N).sum(), check_dtype=False)
    assert 0 < accuracy_T.mean() < 1


def test_a_cosine_learner_does_not_see_the_length_of_its_rows() -> None:
    theta_TP, features_TND = noise(TASKS, WAY * DIM), noise(TASKS, 8, DIM, seed=1)
    longer = learner("cosine").logits(3 * theta_TP, 5 * features_TND)
    torch.testing.assert_close(learner("cosine").logits(theta_TP, features_TND), longer)


def test_permuted_hidden_units_are_the_same_classifier() -> None:
    theta_TP, order = noise(TASKS, learner("mlp").size), torch.tensor([2, 0, 3, 1])
    enter_THD, shift_TH, leave_THW, shift_TW = tensors_of(theta_TP, learner("mlp").layout())
    parts = (enter_THD[:, order].flatten(1), shift_TH[:, order], leave_THW[:, order].flatten(1), shift_TW)
    features_TND = noise(TASKS, 8, DIM, seed=1)
    other_TNW = learner("mlp").logits(torch.cat(parts, dim=1), features_TND)
    torch.testing.assert_close(other_TNW, learner("mlp").logits(theta_TP, features_TND))
