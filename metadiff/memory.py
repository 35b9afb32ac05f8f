"""Whether a generator of weights gives, for new classes, weights that it was trained on.

Weights that are repeated lie much nearer to some training weights than these lie to each other. The classes of a task
stand in any order, and so do the hidden units of a perceptron: a distance is that after both were put in order.
Shapes: A and B vectors of P weights, I pairs of them, W ways, H hidden units of U weights each, E episodes, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.errors import DataError
from metadiff.learner import BaseLearner
from metadiff.matching import least_cost, pairing, smallest
from metadiff.paths import WeightScale
from metadiff.symmetry import parts_of

NUMBERS = 25_000_000  # of the vectors that are matched at a time, of one of the two sides
MOST = 8192  # training vectors that are compared with, of more the first ones
SAMPLE = 200  # training vectors whose nearest other one is looked for, among all
BY_HEART = 0.5  # generated weights memorise below this share of the distance between training weights


@dataclass(frozen=True)
class Nearest:
    """Of each vector: how far the nearest one is, which it is, and its class for each class of the vector."""

    distance_A: Tensor
    index_A: Tensor
    order_AW: Tensor


class Remembered:
    """The weights that a generator learned from, in units in which each of their parts counts."""

    def __init__(self, end_BP: Tensor, scale: WeightScale, learner: BaseLearner) -> None:
        if len(end_BP) < 2:
            raise DataError("data/trajectories: one path, which has no other to be compared with: raise collect.tasks")
        self.learner, self.scale, self.end_BP = learner, scale, end_BP[:MOST]

    def near(self, theta_AP: Tensor) -> Nearest:
        return nearest(theta_AP / self.scale.deviation_P, self.end_BP / self.scale.deviation_P, self.learner)

    @cached_property
    def apart(self) -> NDArray[np.float64]:
        """The distances of the first training vectors, whose order means nothing, each to its nearest other one."""
        found_BP = self.end_BP / self.scale.deviation_P
        return np.asarray(nearest(found_BP[:SAMPLE], found_BP, self.learner, among=True).distance_A.cpu())


def nearest(one_AP: Tensor, other_BP: Tensor, learner: BaseLearner, *, among: bool = False) -> Nearest:
    """By the Euclidean distance, in float64; ``among``: the others begin with the same vectors, and none is its own nearest.

    At first classes are paired so that those of a pair are most alike: by the rows of a linear head, which gives the least
    distance of all orders of the classes; of a perceptron by the linear map that it would be if no unit were cut off at 0, which
    gives of trained heads the least or, seldom, one little above it. Then hidden units are in the best of all their orders.
    """
    one, other = (_heads(found.double(), learner) for found in (one_AP, other_BP))
    size = len(other_BP)
    first, second = (torch.arange(len(found), device=one_AP.device) for found in (one_AP, other_BP))
    count = max(1, NUMBERS // learner.size)
    pairs = torch.split(torch.cartesian_prod(first, second), count)
    orders, bounds = zip(*(_bound(one.take(pair_I2[:, 0]), other.take(pair_I2[:, 1])) for pair_I2 in pairs), strict=True)
    order_ABW, bound_AB = torch.cat(orders).view(-1, size, learner.way), torch.cat(bounds).view(-1, size)
    if among:
        bound_AB.fill_diagonal_(torch.inf)

    def cost_of(row: Tensor, column: Tensor) -> Tensor:
        parts = zip(torch.split(row, count), torch.split(column, count), strict=True)
        return torch.cat([_apart(one.take(a), other.take(b), order_ABW[a, b]) for a, b in parts])

    square_A, index_A = (found[:, 0] for found in smallest(bound_AB, cost_of))
    return Nearest(square_A.clamp_min(0).sqrt(), index_A, order_ABW[first, index_A])


def overlap(one_EQ: Tensor, other_EQ: Tensor, target_Q: Tensor) -> float:
    """How far two classifiers err on the same queries: those wrong in both over those wrong in either; 1 if there are none."""
    wrong_one_EQ, wrong_other_EQ = one_EQ != target_Q, other_EQ != target_Q
    either = int((wrong_one_EQ | wrong_other_EQ).sum())
    return int((wrong_one_EQ & wrong_other_EQ).sum()) / either if either else 1.0


def verdict(generated_A: NDArray[np.float64], training_B: NDArray[np.float64]) -> str:
    """In a sentence, from the distances of both to the nearest training weights: by the ratio of their medians."""
    apart = float(np.median(training_B))
    if apart <= 0:
        raise DataError("data/trajectories: half of the paths end where others do: raise collect.tasks or change collect.shot")
    ratio = float(np.median(generated_A)) / apart
    word = "by heart" if ratio < BY_HEART else "not by heart"
    return (
        f"{word}: generated weights lie {ratio:.2f} times as far from the nearest training weights as these from each other "
        f"(medians; below {BY_HEART:g} is by heart)"
    )


@dataclass(frozen=True)
class _Heads:
    """Vectors in parts: what is alone a class's, and what tells which class it is; what enters a hidden unit, and its links to
    classes. A linear head has one unit, which is nothing."""

    square_A: Tensor
    own_AWG: Tensor
    guide_AWF: Tensor
    enter_AHU: Tensor
    link_AHW: Tensor

    def take(self, chosen_I: Tensor) -> _Heads:
        return _Heads(*(values[chosen_I] for values in vars(self).values()))


def _heads(theta_AP: Tensor, learner: BaseLearner) -> _Heads:
    parts, square_A = parts_of(theta_AP, learner), theta_AP.square().sum(1)
    if "leave.weight" in parts:
        enter_AHU = torch.cat([parts["enter.weight"], parts["enter.bias"][..., None]], dim=-1)
        guide_AWF = parts["leave.weight"].mT @ enter_AHU
        return _Heads(square_A, parts["leave.bias"][..., None], guide_AWF, enter_AHU, parts["leave.weight"])
    own_AWG = torch.cat([part.flatten(2) if part.ndim > 2 else part[..., None] for part in parts.values()], dim=-1)
    blank_A1W = theta_AP.new_zeros(len(theta_AP), 1, learner.way)
    return _Heads(square_A, own_AWG, own_AWG, blank_A1W[..., :1], blank_A1W)


def _bound(one: _Heads, other: _Heads) -> tuple[Tensor, Tensor]:
    """(I, W): the order of the other's classes; (I,): what the squared distance is not below: each unit has its best partner."""
    order_IW = pairing(-other.guide_AWF @ one.guide_AWF.mT)
    own_I, alike_IHH = _products(one, other, order_IW)
    units_I = torch.minimum(alike_IHH.amax(1).sum(1), alike_IHH.amax(2).sum(1))
    return order_IW, one.square_A + other.square_A - 2 * (own_I + units_I)


def _apart(one: _Heads, other: _Heads, order_IW: Tensor) -> Tensor:
    """(I,): the squared distance."""
    own_I, alike_IHH = _products(one, other, order_IW)
    return one.square_A + other.square_A - 2 * (own_I - least_cost(-alike_IHH))


def _products(one: _Heads, other: _Heads, order_IW: Tensor) -> tuple[Tensor, Tensor]:
    """(I,): the inner product of what is alone a class's; (I, H, H): that of all units with all."""
    own_IWG = other.own_AWG.take_along_dim(order_IW[..., None], dim=1)
    link_IHW = other.link_AHW.take_along_dim(order_IW[:, None], dim=2)
    return (one.own_AWG * own_IWG).sum((1, 2)), one.enter_AHU @ other.enter_AHU.mT + one.link_AHW @ link_IHW.mT
