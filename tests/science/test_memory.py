"""Diagnostics of memorising, against numpy that tries every permutation."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from metadiff import memory
from metadiff.learner import BaseLearner, Learner, Perceptron
from metadiff.memory import among_training, distances, overlap, to_training, verdict

NET = Perceptron("mlp", way=3, dim=4, hidden=4)
LINEAR = Learner("linear", way=3, dim=4, scale=1.0)


def drawn(count: int, learner: BaseLearner, seed: int = 0) -> Tensor:
    return torch.randn(count, learner.size, generator=torch.Generator().manual_seed(seed))


def permuted(theta_P: Tensor, order: list[int]) -> Tensor:
    """The same function: hidden units in another order, as a person would write it."""
    enter, shift, leave, rest = theta_P.split([16, 4, 12, 3])
    return torch.cat([enter.view(4, 4)[order].flatten(), shift[order], leave.view(4, 3)[order].flatten(), rest])


def by_trying_all(one_AP: Tensor, other_BP: Tensor) -> np.ndarray:
    orders = [list(order) for order in permutations(range(4))]
    return np.array([[min(float((a - permuted(b, o)).norm()) for o in orders) for b in other_BP] for a in one_AP])


def test_a_distance_is_that_after_the_best_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = drawn(5, NET), drawn(7, NET, seed=1)
    expected = by_trying_all(one, other)
    np.testing.assert_allclose(distances(one, other, NET), expected, rtol=1e-6)
    assert (expected < torch.cdist(one, other).numpy() - 1e-3).any()
    monkeypatch.setattr(memory, "PAIRS", 10)
    np.testing.assert_allclose(distances(one, other, NET), expected, rtol=1e-6)


def test_without_hidden_units_it_is_the_plain_one() -> None:
    one, other = drawn(5, LINEAR), drawn(7, LINEAR, seed=1)
    np.testing.assert_allclose(
        distances(one, other, LINEAR), np.linalg.norm(one.numpy()[:, None] - other.numpy(), axis=-1), rtol=1e-6
    )


def test_units_in_another_order_are_the_same_weights() -> None:
    training = drawn(6, NET)
    copies = torch.stack([permuted(training[4], [2, 0, 3, 1]), permuted(training[1], [1, 0, 2, 3])])
    features = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(NET.logits(copies, features), NET.logits(training[[4, 1]], features))
    assert to_training(copies, training, NET).max() < 1e-6
    assert (distances(copies, training, NET).argmin(1) == torch.tensor([4, 1])).all()


@pytest.mark.parametrize("learner", [NET, LINEAR])
def test_the_nearest_other_is_not_the_vector_itself(learner: BaseLearner) -> None:
    training = drawn(6, learner)
    apart = distances(training, training, learner).numpy()
    expected = [min(apart[i, j] for j in range(6) if j != i) for i in range(6)]
    np.testing.assert_array_equal(among_training(training, learner), expected)
    assert min(expected) > 0.1
    with pytest.raises(ValueError, match="at least two"):
        among_training(training[:1], learner)


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
    training = np.array([1.0, 2.0, 300.0])
    assert verdict(np.array([0.0, 0.9, 500.0]), training).startswith("memorises: generated weights lie 0.45 times as far")
    assert verdict(np.array([0.0, 1.0, 500.0]), training).startswith("generalises: generated weights lie 0.50 times as far")
    with pytest.raises(ValueError, match="copies of others"):
        verdict(training, np.array([0.0, 0.0, 1.0]))


@pytest.mark.parametrize(("noise", "word"), [(0.05, "memorises"), (1.0, "generalises")])
def test_noisy_copies_in_any_order_of_units_are_by_heart_and_fresh_draws_are_not(noise: float, word: str) -> None:
    training = drawn(40, NET)
    mixed = torch.stack([permuted(theta, [3, 1, 0, 2]) for theta in training[:20]])
    generated = (1 - noise) * mixed + noise * drawn(20, NET, seed=3)
    found = verdict(to_training(generated, training, NET).numpy(), among_training(training, NET).numpy())
    assert found.startswith(word)
