"""What a base learner sees of an image: whitened by base classes alone, the same whatever signs an eigensolver gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metadiff.checkpoint import save_checkpoint
from metadiff.errors import CorruptArtifactError, DataError
from metadiff.inputs import LEAST, Inputs, load_inputs, moved, save_inputs, whitened, with_pixels
from metadiff.pictures import Pictures
from tests.science.test_conditioning import COUNTS, data

DATA, D, E = data(), 6, 4
BASE = torch.from_numpy(DATA.of("train"))


def features(seed: int = 0) -> torch.Tensor:
    """Classes that lie apart; each feature varies as much more than the last, and they hang together."""
    stream = torch.Generator().manual_seed(seed)
    mix_DD = torch.linalg.qr(torch.randn(D, D, generator=stream))[0] * 2.0 ** torch.arange(D)
    means_CD = 3 * torch.randn(len(COUNTS), D, generator=stream)
    labels = torch.from_numpy(DATA.label).long()
    return (means_CD[labels] + torch.randn(len(labels), D, generator=stream)) @ mix_DD.T + 5


def plain_within(x_ND: np.ndarray) -> np.ndarray:
    """Pooled over base classes, as the textbook writes it."""
    scatter = np.zeros((x_ND.shape[1], x_ND.shape[1]))
    for label in range(5):
        apart = x_ND[DATA.label == label] - x_ND[DATA.label == label].mean(0)
        scatter += apart.T @ apart
    return scatter / (sum(COUNTS[:5]) - 5)


def test_base_classes_vary_within_as_a_unit_gaussian_does_about_a_mean_of_zero() -> None:
    seen_NE = whitened(features(), DATA, E).of(features())
    assert seen_NE.shape == (sum(COUNTS), E)
    assert seen_NE.dtype == torch.float32
    np.testing.assert_allclose(plain_within(seen_NE.double().numpy()), np.eye(E), atol=1e-4)
    torch.testing.assert_close(seen_NE[BASE].mean(0), torch.zeros(E), atol=1e-4, rtol=0)


def test_the_directions_are_those_in_which_base_images_vary_most() -> None:
    x_ND = features().double().numpy()[BASE]
    leading_ED = np.linalg.svd(x_ND - x_ND.mean(0))[2][:E]
    inputs = whitened(features(), DATA, E)
    assert inputs.basis_DE is not None
    inside = inputs.basis_DE.double().numpy() @ np.linalg.pinv(inputs.basis_DE.double().numpy())  # the projection on its span
    np.testing.assert_allclose(inside, leading_ED.T @ leading_ED, atol=1e-5)


def test_the_map_is_the_same_whatever_signs_an_eigensolver_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, eigh = whitened(features(), DATA, E), torch.linalg.eigh

    def flipped(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = eigh(matrix)
        return torch.return_types.linalg_eigh((values, vectors * (1 - 2 * (torch.arange(len(values)) % 2))))

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    torch.testing.assert_close(whitened(features(), DATA, E).basis_DE, expected.basis_DE)


def test_other_classes_are_seen_by_the_map_of_the_base_classes() -> None:
    x_ND, changed_ND = features(), features()
    others = torch.from_numpy(DATA.split != 0)
    changed_ND[others] += 100
    before, after = whitened(x_ND, DATA, E), whitened(changed_ND, DATA, E)
    assert torch.equal(before.basis_DE, after.basis_DE)  # type: ignore[arg-type]
    assert torch.equal(before.mean_D, after.mean_D)  # type: ignore[arg-type]
    single = torch.stack([after.of(x_D) for x_D in x_ND.view(-1, 7, D)])
    torch.testing.assert_close(single.flatten(0, 1), before.of(x_ND), rtol=1e-4, atol=1e-4)


def test_a_direction_in_which_classes_hardly_vary_is_not_blown_up() -> None:
    """Its images are scaled as if they varied by the least share of the largest variance, and no more."""
    x_ND = features()
    x_ND[:, 0] = torch.from_numpy(DATA.label).float() + 1e-6 * x_ND[:, 0]  # tells classes apart, and nothing else
    scale = float(np.linalg.norm(whitened(x_ND, DATA, D).basis_DE, ord=2))  # type: ignore[arg-type, call-overload]
    assert scale == pytest.approx((LEAST * np.linalg.eigvalsh(plain_within(x_ND.double().numpy()))[-1]) ** -0.5, rel=1e-3)


def test_without_a_map_features_are_seen_as_they_are() -> None:
    x_ND = features()
    assert Inputs().of(x_ND) is x_ND
    assert moved(x_ND, DATA, 1.0) is x_ND


def pixels() -> torch.Tensor:
    """Of 4 places and 3 colours, the last of which is the same everywhere."""
    levels = np.random.default_rng(3).integers(0, 256, (len(DATA.label), 4, 3))
    levels[..., 2] = 7
    return torch.from_numpy(levels.astype(np.uint8).reshape(len(levels), -1))


def test_pixels_are_standardised_by_those_of_base_images_colour_by_colour() -> None:
    inputs = with_pixels(whitened(features(), DATA, E), pixels(), DATA, colours=3)
    seen_NQ, base = inputs.seen(Pictures(features(), pixels())), torch.from_numpy(DATA.split == 0)
    levels = pixels().numpy().reshape(len(DATA.label), 4, 3).astype(np.float64)
    mean, deviation = levels[base].mean((0, 1)), np.maximum(levels[base].std((0, 1)), 1.0)
    expected = ((levels - mean) / deviation).reshape(len(levels), -1)
    torch.testing.assert_close(seen_NQ, torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(inputs.of(features()), whitened(features(), DATA, E).of(features()))  # what is told of a task


def test_heads_see_what_a_generator_is_told() -> None:
    inputs = whitened(features(), DATA, E)
    assert torch.equal(inputs.seen(Pictures(features())), inputs.of(features()))


SHOWN = with_pixels(whitened(features(), DATA, E), pixels(), DATA, colours=3)


@pytest.mark.parametrize("inputs", [Inputs(), whitened(features(), DATA, E), SHOWN])
def test_the_map_comes_back_exactly(tmp_path: Path, inputs: Inputs) -> None:
    save_inputs(tmp_path / "inputs.safetensors", inputs, {"dim": 4})
    found, pictures = load_inputs(tmp_path / "inputs.safetensors"), Pictures(features(), pixels())
    assert found.of_pixels == inputs.of_pixels
    assert torch.equal(found.of(features()), inputs.of(features()))
    assert torch.equal(found.seen(pictures), inputs.seen(pictures))


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({}, "generator"),
        ({"mean_D": torch.zeros(3)}, "inputs"),
        ({"mean_D": torch.zeros(3), "basis_DE": torch.zeros(4, 2)}, "inputs"),
        ({"mean_D": torch.zeros(3), "basis_DE": torch.zeros(3)}, "inputs"),
        ({"mean_Q": torch.zeros(3)}, "inputs"),
        ({"mean_Q": torch.zeros(3), "deviation_Q": torch.zeros(4)}, "inputs"),
        ({"mean_Q": torch.tensor(0.0), "deviation_Q": torch.tensor(1.0)}, "inputs"),
        ({"mean_D": torch.zeros(3), "basis_DE": torch.zeros(3, 2), "more": torch.zeros(1)}, "inputs"),
    ],
)
def test_what_is_no_map_of_features_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], kind: str) -> None:
    save_checkpoint(tmp_path / "a.safetensors", tensors, {"kind": kind})
    with pytest.raises(CorruptArtifactError, match=r"a\.safetensors: does not say what .*dvc repro collect"):
        load_inputs(tmp_path / "a.safetensors")


def test_features_without_such_directions_are_refused() -> None:
    with pytest.raises(DataError, match=r"images have 6 features, which have no 7 directions: lower collect\.dim"):
        whitened(features(), DATA, D + 1)
    x_ND = features()
    x_ND[BASE[3], 1] = torch.inf
    with pytest.raises(DataError, match=r"train: features that are no finite numbers .* collect\.dim 0"):
        whitened(x_ND, DATA, E)
    same_ND = torch.from_numpy(DATA.label).float()[:, None].expand(-1, D)
    with pytest.raises(DataError, match=r"train: all images of a class have the same features.* collect\.dim 0"):
        whitened(same_ND, DATA, E)
