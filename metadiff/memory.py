"""Whether a generator of weights has learned the weights it was trained on by heart.

Weights that were learned by heart lie much nearer to some training weights than these lie to each other. Hidden units of a
perceptron have no order, so a distance is that after the best permutation of them.
Shapes: A and B vectors of P weights, H hidden units of U weights each, R weights that belong to no unit, E episodes, Q queries.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.learner import BaseLearner, Learner, Perceptron
from metadiff.matching import least_cost

PAIRS = 10_000  # of vectors, matched at a time
BY_HEART = 0.5  # generated weights memorise below this share of the distance between training weights


def to_training(generated_AP: Tensor, training_BP: Tensor, learner: BaseLearner) -> Tensor:
    """(A,): the distance of each generated vector to its nearest training vector."""
    return distances(generated_AP, training_BP, learner).amin(1)


def among_training(training_BP: Tensor, learner: BaseLearner) -> Tensor:
    """(B,): the distance of each training vector to its nearest other one."""
    if len(training_BP) < 2:
        raise ValueError("a nearest other one needs at least two training vectors")
    return distances(training_BP, training_BP, learner).fill_diagonal_(torch.inf).amin(1)


def distances(one_AP: Tensor, other_BP: Tensor, learner: BaseLearner) -> Tensor:
    """(A, B) in float64: Euclidean, exactly that after the best permutation of hidden units, not only one that is good."""
    one_AP, other_BP = one_AP.double(), other_BP.double()
    count = max(1, PAIRS // len(other_BP))
    parts = (one_AP[start : start + count] for start in range(0, len(one_AP), count))
    products_AB = torch.cat([_products(part, other_BP, learner) for part in parts])
    square_AB = one_AP.square().sum(1)[:, None] + other_BP.square().sum(1) - 2 * products_AB
    return square_AB.clamp_min(0).sqrt()


def overlap(one_EQ: Tensor, other_EQ: Tensor, target_Q: Tensor) -> float:
    """How far two classifiers err on the same queries: those wrong in both over those wrong in either; 1 if there are none."""
    wrong_one_EQ, wrong_other_EQ = one_EQ != target_Q, other_EQ != target_Q
    either = int((wrong_one_EQ | wrong_other_EQ).sum())
    return int((wrong_one_EQ & wrong_other_EQ).sum()) / either if either else 1.0


def verdict(generated_A: NDArray[np.float64], training_B: NDArray[np.float64]) -> str:
    """In a sentence, from the distances of both to the nearest training weights: by the ratio of their medians."""
    apart = float(np.median(training_B))
    if apart <= 0:
        raise ValueError("half of the training weights are copies of others: nothing can be told of generated ones")
    ratio = float(np.median(generated_A)) / apart
    word = "memorises" if ratio < BY_HEART else "generalises"
    return (
        f"{word}: generated weights lie {ratio:.2f} times as far from the nearest training weights as these from each other "
        f"(medians; below {BY_HEART:g} is by heart)"
    )


def _products(one_AP: Tensor, other_BP: Tensor, learner: BaseLearner) -> Tensor:
    """(A, B): the largest inner products over permutations."""
    if isinstance(learner, Learner):
        return one_AP @ other_BP.T
    one_AHU, one_AR = _units(one_AP, learner)
    other_BHU, other_BR = _units(other_BP, learner)
    cost_ABHH = -torch.einsum("ahu,bku->abhk", one_AHU, other_BHU)
    return one_AR @ other_BR.T - least_cost(cost_ABHH.flatten(0, 1)).view(len(one_AP), len(other_BP))


def _units(theta_AP: Tensor, learner: Perceptron) -> tuple[Tensor, Tensor]:
    """(A, H, U): what enters and leaves each hidden unit; (A, R): the rest."""
    enter_AHD, shift_AH, leave_AHW, rest_AW = (
        theta_AP[:, part.offset : part.offset + part.size].reshape(-1, *part.shape) for part in learner.layout()
    )
    return torch.cat([enter_AHD, shift_AH[..., None], leave_AHW], dim=-1), rest_AW
