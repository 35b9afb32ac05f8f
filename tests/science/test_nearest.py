"""Weights that are looked up, against a search that tries every training task with every order of its classes."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metadiff.baselines.nearest import PathEnds, TrainingTasks, average_weights, nearest_weights, noisy_weights
from metadiff.inputs import Inputs, moved
from metadiff.learner import BaseLearner, Learner, Perceptron
from metadiff.memory import Remembered
from metadiff.paths import WeightScale
from metadiff.pictures import Pictures
from metadiff.rows import Rows
from metadiff.symmetry import with_classes, with_units_of

CLASSES, IMAGES, DIM, WAY, TASKS = 8, 5, 6, 3, 20
STREAM = torch.Generator().manual_seed(0)
LABEL = np.repeat(np.arange(CLASSES), IMAGES).astype(np.int32)
DATA = Rows(
    LABEL,
    np.where(LABEL % 4 == 3, 2, 0).astype(np.uint8),  # two classes of the test between the base classes
    np.arange(len(LABEL), dtype=np.int32),
    np.full(len(LABEL), b"x"),
    np.array([f"{number}".encode() for number in range(CLASSES)]),
    "generated",
)
FEATURES = 2 * torch.randn(CLASSES, DIM, generator=STREAM)[LABEL] + 0.3 * torch.randn(len(LABEL), DIM, generator=STREAM)
INPUTS = Inputs(torch.randn(DIM, generator=STREAM), torch.randn(DIM, 4, generator=STREAM))
BASE = torch.tensor([0, 1, 2, 4, 5, 6])
SETS = torch.combinations(BASE, WAY)  # each once, so that no two tasks look alike
PATH_CLASSES = SETS.gather(1, torch.rand(SETS.shape, generator=STREAM).argsort(1))
LINEAR, NET = Learner("linear", WAY, 4, scale=1.0), Perceptron("mlp", WAY, 4, hidden=5)
LEARNERS = pytest.mark.parametrize("learner", [LINEAR, NET], ids=lambda learner: learner.kind)
SPREAD, NEIGHBOURS = 0.7, 8


def ends_of(learner: BaseLearner) -> PathEnds:
    theta = torch.randn(TASKS, learner.size, generator=torch.Generator().manual_seed(1))
    return PathEnds(theta, PATH_CLASSES, SPREAD)


def tasks_of(learner: BaseLearner) -> TrainingTasks:
    return TrainingTasks(ends_of(learner), FEATURES, DATA, learner=learner, inputs=INPUTS)


def supports(count: int = 9) -> Pictures:
    """(E, W, S): of any classes, far from the means of base classes."""
    stream = torch.Generator().manual_seed(2)
    return Pictures(FEATURES)[torch.randint(len(FEATURES), (count, WAY, 2), generator=stream)]


def by_trying_all(support_EWS: Pictures) -> list[list[tuple[float, int, list[int]]]]:
    """Of each new task: all training tasks with the squared distance after the best order of their classes, the least first."""
    seen = INPUTS.of(moved(FEATURES, DATA, SPREAD))
    means = {int(label): seen[torch.from_numpy(label == LABEL)].mean(0) for label in BASE.tolist()}
    found = []
    for support in support_EWS.features:
        new, tried = INPUTS.of(support).mean(1), []
        for number, classes in enumerate(PATH_CLASSES.tolist()):
            rows = torch.stack([means[label] for label in classes])
            orders = [(float((rows[[*order]] - new).square().sum()), [*order]) for order in permutations(range(WAY))]
            tried.append((*min(orders), number))
        found.append([(cost, number, order) for cost, order, number in sorted(tried, key=lambda entry: entry[0])])
    return found


@LEARNERS
def test_the_nearest_are_those_of_the_most_alike_tasks_with_classes_in_order(learner: BaseLearner) -> None:
    ends, support = ends_of(learner).end_NP, supports()
    theta_EKP = tasks_of(learner).near(support, 4)
    for found_KP, expected in zip(theta_EKP, by_trying_all(support), strict=True):
        for theta_P, (_, number, order) in zip(found_KP, expected[:4], strict=True):
            torch.testing.assert_close(theta_P, with_classes(ends[number : number + 1], torch.tensor([order]), learner)[0])
    assert torch.equal(nearest_weights(tasks_of(learner))(support, 0), theta_EKP[None, :, 0])
    assert torch.equal(nearest_weights(tasks_of(learner), 4)(support, 0), theta_EKP.transpose(0, 1))


def test_classes_in_another_order_find_the_same_weights_in_that_order() -> None:
    support, order = supports(), [2, 0, 1]
    one, other = (tasks_of(NET).near(found, 1)[:, 0] for found in (support, Pictures(support.features[:, order])))
    assert torch.equal(with_classes(one, torch.tensor([order]).expand(len(one), -1), NET), other)
    x = torch.randn(len(one), 7, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(NET.logits(other, x), NET.logits(one, x)[..., order])


def test_units_are_put_where_they_lie_nearest() -> None:
    """They are the same classifiers, and no order of the units lies nearer."""
    theta, other = (torch.randn(6, NET.size, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    put = with_units_of(theta, other, NET)
    x = torch.randn(6, 7, 4, generator=STREAM)
    torch.testing.assert_close(NET.logits(put, x), NET.logits(theta, x))
    enter, shift, leave, rest = theta.split([20, 5, 15, 3], dim=1)
    orders = [[*order] for order in permutations(range(5))]
    moved_units = [
        torch.cat([enter.view(6, 5, 4)[:, o].flatten(1), shift[:, o], leave.view(6, 5, 3)[:, o].flatten(1), rest], 1)
        for o in orders
    ]
    least = torch.stack([(found - other).norm(dim=1) for found in moved_units]).amin(0)
    torch.testing.assert_close((put - other).norm(dim=1), least)
    linear = torch.randn(6, LINEAR.size, generator=STREAM)
    assert torch.equal(with_units_of(linear, linear.flip(0), LINEAR), linear)


@LEARNERS
def test_the_average_is_that_of_neighbours_with_their_units_in_one_order(learner: BaseLearner) -> None:
    tasks, support = tasks_of(learner), supports()
    theta_EKP = tasks.near(support, NEIGHBOURS)
    rest = [with_units_of(theta_EKP[:, number], theta_EKP[:, 0], learner) for number in range(1, NEIGHBOURS)]
    expected = (theta_EKP[:, 0] + sum(rest)) / NEIGHBOURS
    torch.testing.assert_close(average_weights(tasks, NEIGHBOURS)(support, 0)[0], expected)


def test_the_average_of_copies_with_units_in_any_order_is_the_copy() -> None:
    theta = torch.randn(1, NET.size, generator=torch.Generator().manual_seed(6))
    enter, shift, leave, rest = theta[0].split([20, 5, 15, 3])
    copies = []
    for number in range(TASKS):
        order = torch.rand(5, generator=torch.Generator().manual_seed(number)).argsort()
        copies.append(torch.cat([enter.view(5, 4)[order].flatten(), shift[order], leave.view(5, 3)[order].flatten(), rest]))
    ends = PathEnds(torch.stack(copies), PATH_CLASSES[:1].expand(TASKS, -1), SPREAD)
    tasks, x = TrainingTasks(ends, FEATURES, DATA, learner=NET, inputs=INPUTS), torch.randn(9, 7, 4, generator=STREAM)
    found = average_weights(tasks, NEIGHBOURS)(supports(), 0)[0]
    torch.testing.assert_close(NET.logits(found, x), NET.logits(tasks.near(supports(), 1)[:, 0], x))


def test_few_training_tasks_are_averaged_all() -> None:
    ends = ends_of(LINEAR)
    few = PathEnds(ends.end_NP[:2], ends.classes_NW[:2], SPREAD)
    tasks = TrainingTasks(few, FEATURES, DATA, learner=LINEAR, inputs=INPUTS)
    torch.testing.assert_close(average_weights(tasks, NEIGHBOURS)(supports(), 0)[0], tasks.near(supports(), 2).mean(1))


@LEARNERS
def test_noise_moves_weights_as_far_as_the_nearest_training_weights_lie_apart(learner: BaseLearner) -> None:
    """In units in which each part counts; it is the same in every run, and another for another batch or seed."""
    tasks, support = tasks_of(learner), supports(400)
    found = noisy_weights(tasks, 0, 1.0)(support, 0)
    assert torch.equal(found, noisy_weights(tasks_of(learner), 0, 1.0)(support, 0))
    assert not torch.allclose(found, noisy_weights(tasks, 0, 1.0)(support, 1))
    assert not torch.allclose(found, noisy_weights(tasks, 1, 1.0)(support, 0))
    scale = WeightScale.of(learner, tasks.end_NP)
    apart = np.median(Remembered(tasks.end_NP, scale, learner).apart)
    noise = (found[0] - tasks.near(support, 1)[:, 0]) / scale.deviation_P
    assert float(noise.norm(dim=1).square().mean().sqrt()) == pytest.approx(apart, rel=0.03)
    less = noisy_weights(tasks, 0, 0.1)(support, 0)[0] - tasks.near(support, 1)[:, 0]
    torch.testing.assert_close(less / scale.deviation_P, 0.1 * noise, atol=1e-5, rtol=1e-4)


def test_the_ends_of_a_store_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    theta, classes = np.arange(12.0, dtype=np.float32).reshape(4, 3), np.arange(8).reshape(4, 2)
    store = SimpleNamespace(size=3, end_points=lambda most: theta[:most], classes=classes, attributes={"params": {"spread": 0.3}})
    found = PathEnds.of(store)
    assert (found.end_NP.tolist(), found.classes_NW.tolist(), found.spread) == (theta.tolist(), classes.tolist(), 0.3)
    monkeypatch.setattr("metadiff.memory.MOST", 3)
    assert PathEnds.of(store).end_NP.shape == (3, 3)
    assert PathEnds.of(store).classes_NW.shape == (3, 2)
    monkeypatch.setattr("metadiff.memory.MOST_NUMBERS", 7)  # of three weights each
    assert PathEnds.of(store).end_NP.shape == (2, 3)
