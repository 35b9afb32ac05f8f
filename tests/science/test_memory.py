"""Diagnostics of memorising, against numpy that tries every order of the classes and of the hidden units."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from metadiff import memory
from metadiff.baselines.finetune import Course, adapted
from metadiff.errors import DataError
from metadiff.learner import BaseLearner, Learner, Perceptron
from metadiff.memory import Remembered, nearest, overlap, verdict
from metadiff.network import Network
from metadiff.objectives import OnSupport
from metadiff.paths import WeightScale
from metadiff.symmetry import with_classes

NET = Perceptron("mlp", way=3, dim=4, hidden=4)
LINEAR = Learner("linear", way=3, dim=4, scale=1.0)
COSINE = Learner("cosine", way=3, dim=4, scale=10.0)
CONV = Network("conv", way=3, side=28, colours=1, channels=4)
LEARNERS = pytest.mark.parametrize("learner", [NET, LINEAR, COSINE], ids=lambda learner: learner.kind)


def drawn(count: int, learner: BaseLearner, seed: int = 0) -> Tensor:
    return torch.randn(count, learner.size, generator=torch.Generator().manual_seed(seed))


def reordered(theta_P: Tensor, classes: list[int], units: list[int], learner: BaseLearner = NET) -> Tensor:
    """The same classifier with classes and hidden units in another order, as a person would write it."""
    if isinstance(learner, Learner):
        rows, bias = theta_P[:12].view(3, 4), theta_P[12:]
        return torch.cat([rows[classes].flatten(), bias[classes] if len(bias) else bias])
    enter, shift, leave, rest = theta_P.split([16, 4, 12, 3])
    leave = leave.view(4, 3)[units][:, classes].flatten()
    return torch.cat([enter.view(4, 4)[units].flatten(), shift[units], leave, rest[classes]])


def by_trying_all(one_AP: Tensor, other_BP: Tensor, learner: BaseLearner) -> np.ndarray:
    """(A, B): the least distance over all orders."""
    units = permutations(range(4)) if learner is NET else [range(4)]
    orders = [([*c], [*u]) for c, u in product(permutations(range(3)), units)]
    others = torch.stack([torch.stack([reordered(b, *order, learner) for order in orders]) for b in other_BP])
    return (one_AP[:, None, None] - others).double().norm(dim=-1).amin(-1).numpy()


@LEARNERS
def test_the_nearest_is_that_after_the_best_orders(learner: BaseLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = drawn(40, learner), drawn(30, learner, seed=1)
    expected, found = by_trying_all(one, other, learner), nearest(one, other, learner)
    least = expected.min(1)
    assert (least < torch.cdist(one, other).amin(1).numpy() - 1e-3).any()
    if learner is NET:  # of random weights, whose classes hardly differ, it may miss the best order of the classes
        assert (found.distance_A.numpy() > least - 1e-6).all()
        assert (found.distance_A.numpy() / least).mean() < 1.1
    else:
        np.testing.assert_allclose(found.distance_A, least, rtol=1e-6)
        np.testing.assert_array_equal(found.index_A, expected.argmin(1))
    monkeypatch.setattr(memory, "NUMBERS", 10 * learner.size)  # of ten pairs
    again = nearest(one, other, learner)
    assert all(torch.equal(*pair) for pair in zip(vars(found).values(), vars(again).values(), strict=True))


def test_of_trained_perceptrons_the_best_order_is_missed_seldom_and_by_little() -> None:
    centres, stream = 2 * drawn(12, LINEAR)[:, :4], torch.Generator().manual_seed(4)
    classes = torch.rand(60, 12, generator=stream).argsort(1)[:, :3]
    support = centres[classes][:, :, None] + 0.5 * torch.randn(60, 3, 5, 4, generator=stream)
    ends = adapted(OnSupport(NET, support), 0.5 * drawn(60, NET, seed=5), Course(lr=0.05, steps=100))
    least, found = by_trying_all(ends[:30], ends[30:], NET).min(1), nearest(ends[:30], ends[30:], NET).distance_A.numpy()
    assert (found > least - 1e-5).all()
    assert (found < least * 1.001).mean() > 0.8
    assert (found / least).mean() < 1.02


@LEARNERS
def test_a_distance_is_that_of_the_order_it_gives(learner: BaseLearner) -> None:
    one, other = drawn(20, learner), drawn(30, learner, seed=1)
    found = nearest(one, other, learner)
    put = with_classes(other[found.index_A], found.order_AW, learner)
    units = [[*order] for order in permutations(range(4))] if learner is NET else [[0, 1, 2, 3]]
    apart = torch.stack([torch.stack([reordered(p, [0, 1, 2], u, learner) for p in put]) - one for u in units])
    torch.testing.assert_close(found.distance_A, apart.double().norm(dim=-1).amin(0), rtol=1e-6, atol=0)


@LEARNERS
def test_classes_and_units_in_another_order_are_the_same_weights(learner: BaseLearner) -> None:
    training = drawn(6, learner)
    copies = torch.stack(
        [reordered(training[4], [1, 2, 0], [2, 0, 3, 1], learner), reordered(training[1], [2, 1, 0], [1, 0, 2, 3], learner)]
    )
    found = nearest(copies, training, learner)
    assert found.distance_A.max() < 1e-6
    assert found.index_A.tolist() == [4, 1]
    assert found.order_AW.tolist() == [[1, 2, 0], [2, 1, 0]]
    features = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(2))
    put = with_classes(training[found.index_A], found.order_AW, learner)
    torch.testing.assert_close(learner.logits(put, features), learner.logits(copies, features))


def reordered_network(theta_P: Tensor, channels: list[list[int]], classes: list[int]) -> Tensor:
    """The same network with the channels of its four layers and its classes in another order, as a person would write it."""
    layers, before = [theta_P[part.offset :][: part.size].view(part.shape) for part in CONV.layout()], [0]
    for number, order in enumerate(channels):
        layers[2 * number] = layers[2 * number][order][..., before]
        layers[2 * number + 1] = layers[2 * number + 1][order]
        before = order
    leave, rest = layers[-2][before][:, classes], layers[-1][classes]
    return torch.cat([part.flatten() for part in (*layers[:-2], leave, rest)])


def test_a_network_in_another_order_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PAIRS", 5)
    training = drawn(20, CONV)
    orders = [[1, 0, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [2, 3, 0, 1]]
    copies = torch.stack([reordered_network(training[number], orders, [1, 2, 0]) for number in (13, 4)])
    images = torch.rand(2, 6, 28 * 28, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(CONV.logits(copies, images), CONV.logits(training[[13, 4]], images)[..., [1, 2, 0]])
    found = nearest(copies + 1e-4, training, CONV)
    assert found.index_A.tolist() == [13, 4]
    assert found.order_AW.tolist() == [[1, 2, 0]] * 2
    torch.testing.assert_close(found.distance_A, torch.full((2,), 1e-4 * CONV.size**0.5).double(), rtol=1e-2, atol=0)
    apart = nearest(training[:3], training, CONV, among=True)
    assert (apart.index_A != torch.arange(3)).all()
    assert (apart.distance_A > 10 * found.distance_A.max()).all()


def test_a_network_that_is_nearly_a_copy_is_found_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far from its source as a copy may be: all others are compared, then those alone whose marks are alike."""
    training, orders = drawn(200, CONV), [[1, 0, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [2, 3, 0, 1]]
    copies = torch.stack([reordered_network(theta, orders, [1, 2, 0]) for theta in training[:20]])
    noise = drawn(20, CONV, seed=3)
    monkeypatch.setattr(memory, "LIKELY", 200)
    typical = nearest(training[:20], training, CONV, among=True).distance_A.median()
    generated = copies + 0.45 * typical.float() * noise / noise.norm(dim=1, keepdim=True)
    every = nearest(generated, training, CONV)
    monkeypatch.undo()
    likely = nearest(generated, training, CONV)
    assert (likely.index_A == torch.arange(20)).float().mean() > 0.9
    assert (likely.distance_A / every.distance_A).median() == 1


@LEARNERS
def test_the_nearest_other_is_not_the_vector_itself(learner: BaseLearner) -> None:
    training = drawn(9, learner)
    found = nearest(training[:5], training, learner, among=True)
    assert (found.index_A != torch.arange(5)).all()
    for number in range(5):
        rest = torch.cat([training[:number], training[number + 1 :]])
        alone = nearest(training[number : number + 1], rest, learner)
        torch.testing.assert_close(alone.distance_A[0], found.distance_A[number])
    assert found.distance_A.min() > 0.1


def test_each_part_counts_by_its_own_deviation() -> None:
    """A part of large weights does not drown the others; where a path starts means nothing for a distance."""
    plain, factor = drawn(12, NET), torch.cat([torch.full((16,), 100.0), torch.full((4,), 0.01), torch.ones(15)])
    training, generated = plain * factor, drawn(5, NET, seed=3) * factor
    scale = WeightScale.of(NET, training)
    found = Remembered(training, scale, NET)
    expected = nearest(generated / scale.deviation_P, training / scale.deviation_P, NET)
    torch.testing.assert_close(found.near(generated).distance_A, expected.distance_A)
    shifted = Remembered(training, WeightScale(training[0], scale.deviation_P), NET)
    assert torch.equal(shifted.near(generated).distance_A, found.near(generated).distance_A)
    same = Remembered(plain, WeightScale.of(NET, plain), NET)
    np.testing.assert_allclose(found.apart, same.apart, rtol=1e-5)


def test_of_many_training_weights_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    training = drawn(12, NET)
    scale = WeightScale(torch.zeros(NET.size), torch.ones(NET.size))
    whole = Remembered(training, scale, NET)
    monkeypatch.setattr(memory, "SAMPLE", 3)
    np.testing.assert_array_equal(Remembered(training, scale, NET).apart, whole.apart[:3])
    monkeypatch.setattr(memory, "MOST", 5)
    assert Remembered(training, scale, NET).near(training).index_A.max() < 5
    with pytest.raises(DataError, match=r"^data/trajectories: one path, .* raise collect\.tasks$"):
        Remembered(training[:1], scale, NET)


def test_the_overlap_is_that_of_the_sets_of_errors() -> None:
    rng = np.random.default_rng(0)
    target = np.repeat(range(5), 3)
    one, other = (np.where(rng.random((20, 15)) < 0.6, target, rng.integers(0, 5, (20, 15))) for _ in range(2))
    wrong = [{tuple(where) for where in np.argwhere(found != target)} for found in (one, other)]
    tensors = [torch.from_numpy(part) for part in (one, other, target)]
    assert overlap(*tensors) == len(wrong[0] & wrong[1]) / len(wrong[0] | wrong[1])
    assert overlap(tensors[0], tensors[0], tensors[2]) == 1
    right = tensors[2].expand(20, 15)
    assert overlap(tensors[0], right, tensors[2]) == 0
    assert overlap(right, right, tensors[2]) == 1


def test_the_verdict_goes_by_the_ratio_of_the_medians() -> None:
    assert verdict(np.array([0.0, 0.9, 500.0]), 2.0).startswith("by heart: generated weights lie 0.45 times as far")
    assert verdict(np.array([0.0, 1.0, 500.0]), 2.0).startswith("not by heart: generated weights lie 0.50 times as far")


def test_paths_that_end_where_others_do_are_no_measure() -> None:
    twice = drawn(3, NET).repeat(2, 1)
    with pytest.raises(DataError, match=r"^data/trajectories: half of the paths end where others do: raise collect\.tasks"):
        _ = Remembered(twice, WeightScale.of(NET, twice), NET).typical


@LEARNERS
@pytest.mark.parametrize(("noise", "word"), [(0.05, "by heart"), (1.0, "not by heart")])
def test_noisy_copies_in_any_order_are_by_heart_and_fresh_draws_are_not(learner: BaseLearner, noise: float, word: str) -> None:
    training = drawn(40, learner)
    mixed = torch.stack([reordered(theta, [2, 0, 1], [3, 1, 0, 2], learner) for theta in training[:20]])
    generated = (1 - noise) * mixed + noise * drawn(20, learner, seed=3)
    known = Remembered(training, WeightScale.of(learner, training), learner)
    assert verdict(known.near(generated).distance_A.numpy(), known.typical).startswith(word)
