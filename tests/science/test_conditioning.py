"""Training tasks: which images, which targets, on which scale."""

import numpy as np
import pytest
import torch

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.conditioning import BaseTasks, Ends, Scale, condition_on
from metadiff.errors import DataError
from metadiff.rows import Rows

CLASSES, D = 7, 6
COUNTS = (4, 9, 5, 12, 6, 8, 5)


def data() -> Rows:
    """Classes 0 to 4 are base classes, of different sizes and in mixed order; 5 is for validation, 6 for the test."""
    label = np.random.default_rng(0).permutation(np.repeat(range(CLASSES), COUNTS)).astype(np.int32)
    split = np.array([0, 0, 0, 0, 0, 1, 2], np.uint8)[label]
    names = np.array([f"class {i}".encode() for i in range(CLASSES)])
    source = np.array([f"{i}".encode() for i in range(len(label))])
    return Rows(label=label, split=split, group=np.arange(len(label), dtype=np.int32), source=source, classes=names, dataset="d")


DATA = data()
FEATURES = torch.randn(len(DATA.label), D, generator=torch.Generator().manual_seed(0)) + 5


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_scale_makes_mean_zero_and_deviation_one_and_goes_back() -> None:
    weights = 3 * torch.randn(500, D, generator=stream(1)) + torch.arange(D)
    scale = Scale.of(weights)
    unit = scale.standardise(weights)
    torch.testing.assert_close(unit.mean(0), torch.zeros(D), atol=1e-5, rtol=0)
    assert float(unit.square().mean()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(scale.restore(unit), weights, rtol=1e-6, atol=1e-5)


def test_targets_are_the_means_over_all_images_of_base_classes() -> None:
    tasks = BaseTasks(FEATURES, DATA)
    batch = tasks.draw(stream(), tasks=50, way=3, shots=(2,))
    means = {label: FEATURES[torch.from_numpy(DATA.label == label)].mean(0) for label in range(5)}
    seen = set()
    for task in tasks.scales.weights.restore(batch.target_BWD):
        found = [min(means, key=lambda label: float((means[label] - row).norm())) for row in task]
        assert len(set(found)) == 3
        seen |= set(found)
        torch.testing.assert_close(task, torch.stack([means[label] for label in found]), rtol=1e-4, atol=1e-4)
    assert seen == set(range(5))


def test_a_spread_moves_base_classes_as_wholes_and_nothing_else() -> None:
    tasks, moved = BaseTasks(FEATURES, DATA), BaseTasks(FEATURES, DATA, spread=0.25)
    centre = tasks.means_CD.mean(0)
    torch.testing.assert_close(moved.means_CD - centre, 0.25 * (tasks.means_CD - centre))
    torch.testing.assert_close(moved.scales.weights.deviation, 0.25 * tasks.scales.weights.deviation)
    for label in range(CLASSES):
        rows = torch.from_numpy(DATA.label == label)
        before, after = FEATURES[rows], moved.features_ND[rows]
        torch.testing.assert_close(after - after.mean(0), before - before.mean(0))
        assert torch.equal(before, after) == (label > 4)
    torch.testing.assert_close(moved.features_ND[torch.from_numpy(DATA.label == 0)].mean(0), moved.means_CD[0])


@pytest.mark.parametrize("shot", [1, 2, 4])
def test_the_support_is_of_the_class_and_without_repetition(shot: int) -> None:
    """Features that are powers of two a row: their mean says which images it is the mean of."""
    number = np.zeros(len(DATA.label), int)
    for label in range(CLASSES):
        number[DATA.label == label] = np.arange(COUNTS[label])
    x = torch.zeros(len(DATA.label), 2)
    x[:, 0], x[:, 1] = torch.from_numpy(DATA.label).float(), torch.from_numpy(2.0**number)
    tasks = BaseTasks(x, DATA)
    batch = tasks.draw(stream(), tasks=300, way=5, shots=(shot,))
    mean, target = (tasks.scales.weights.restore(part) for part in (batch.condition.mean_BWD, batch.target_BWD))
    torch.testing.assert_close(mean[..., 0], target[..., 0], rtol=1e-4, atol=1e-4)
    label = mean[..., 0].round().int().numpy().ravel()
    sums = (mean[..., 1] * shot).round().int().numpy().ravel()
    used = [set() for _ in range(5)]
    for which, total in zip(label, sums, strict=True):
        images = {bit for bit in range(12) if total >> bit & 1}
        assert len(images) == shot
        assert max(images) < COUNTS[which]
        used[which] |= images
    assert [len(images) for images in used] == list(COUNTS[:5])


def test_one_number_of_shots_a_batch_and_all_of_them_in_time() -> None:
    tasks, generator = BaseTasks(FEATURES, DATA), stream()
    found = [tasks.draw(generator, tasks=4, way=2, shots=(1, 3)).condition.shots_B for _ in range(30)]
    assert {tuple(set(shots.tolist())) for shots in found} == {(1.0,), (3.0,)}


def test_a_batch_is_a_function_of_its_generator() -> None:
    tasks = BaseTasks(FEATURES, DATA)
    one, two, other = (tasks.draw(stream(seed), tasks=4, way=3, shots=(1, 2)) for seed in (5, 5, 6))
    assert torch.equal(one.target_BWD, two.target_BWD)
    assert torch.equal(one.condition.mean_BWD, two.condition.mean_BWD)
    assert not torch.equal(one.target_BWD, other.target_BWD)


def test_trained_weights_as_targets_keep_their_rows_and_classes() -> None:
    classes = torch.tensor([[0, 3, 1], [4, 2, 0]])
    ends = Ends(torch.randn(2, 3, D, generator=stream(2)), classes)
    one_hot = torch.eye(CLASSES)[torch.from_numpy(DATA.label).long()]
    features = torch.cat([one_hot, torch.zeros(len(one_hot), 0)], dim=1)
    tasks = BaseTasks(features, DATA, ends=Ends(torch.cat([ends.weights_NWD, torch.zeros(2, 3, 1)], dim=2), classes))
    batch = tasks.draw(stream(), tasks=20, way=3, shots=(2,))
    rows = tasks.scales.weights.restore(batch.target_BWD)
    support = tasks.scales.features.restore(batch.condition.mean_BWD)
    for row, mean in zip(rows, support, strict=True):
        which = int((ends.weights_NWD - row[:, :D]).abs().sum((1, 2)).argmin())
        torch.testing.assert_close(row[:, :D], ends.weights_NWD[which], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean, torch.eye(CLASSES)[classes[which]], rtol=1e-3, atol=1e-3)


def test_what_a_generator_is_told_at_test_time_is_what_it_was_told_in_training() -> None:
    support, scale = FEATURES[:24].view(2, 3, 4, D), Scale(FEATURES.mean(0), torch.tensor(2.0))
    known = condition_on(support, scale)
    torch.testing.assert_close(known.mean_BWD, (support.mean(2) - FEATURES.mean(0)) / 2)
    assert known.shots_B.tolist() == [4.0]


def test_with_a_posterior_a_generator_is_told_what_that_expects_in_training_and_at_test_time() -> None:
    """On features moved together, whose classes are nearer to each other, and by their number of shots."""
    tasks = BaseTasks(FEATURES, DATA, spread=0.5)
    gaussian = GaussianPosterior(tasks.features_ND, DATA)
    tasks.posterior = gaussian.settled(ridge=0.3)
    plain = BaseTasks(FEATURES, DATA, spread=0.5)
    for shot in (1, 3):
        told, means = (one.draw(stream(), tasks=4, way=2, shots=(shot,)).condition.mean_BWD for one in (tasks, plain))
        support_BW1D = tasks.scales.features.restore(means)[:, :, None].repeat(1, 1, shot, 1)
        expected = gaussian.rows(support_BW1D, ridge=0.3)
        torch.testing.assert_close(tasks.scales.features.restore(told), expected, rtol=1e-4, atol=1e-4)
        known = condition_on(support_BW1D, tasks.scales.features, tasks.posterior)
        torch.testing.assert_close(known.mean_BWD, told, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("way", "shot", "message"), [(6, 1, "6-way tasks need 6 classes, there are 5"), (2, 5, "5 shots, a class has 4")]
)
def test_more_than_there_is_is_refused(way: int, shot: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        BaseTasks(FEATURES, DATA).draw(stream(), tasks=2, way=way, shots=(1, shot))
