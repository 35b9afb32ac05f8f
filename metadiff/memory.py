"""Whether a generator of weights gives, for new classes, weights that it was trained on.

Weights that are repeated lie much nearer to some training weights than these lie to each other. The classes of a task
stand in any order, and so do the hidden units of a perceptron or the channels of a network: a distance is that after both were
put in order.
Shapes: A and B vectors of P weights, I pairs of them, W ways, H hidden units of U weights each, E episodes, Q queries, K
candidates, M marks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.errors import DataError
from metadiff.layout import parts_of
from metadiff.learner import BaseLearner, Head
from metadiff.matching import least_cost, pairing, smallest
from metadiff.network import Network, wires_of
from metadiff.paths import WeightScale
from metadiff.symmetry import with_classes, with_units_of

NUMBERS = 25_000_000  # of the vectors that are matched at a time, of one of the two sides
MOST = 8192  # training vectors that are compared with, of more the first ones,
MOST_NUMBERS = 50_000_000  #   and of networks no more than have as many weights
SAMPLE = 200  # training vectors whose nearest other one is looked for, among all
PAIRS = 64  # of networks, that are put in order at a time
LIKELY = 8  # training networks that each is compared with, of them all those with the most alike marks
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
        self.learner, self.scale, self.end_BP = learner, scale, end_BP[: compared(learner.size)]

    def near(self, theta_AP: Tensor) -> Nearest:
        return nearest(theta_AP / self.scale.deviation_P, self.end_BP / self.scale.deviation_P, self.learner)

    def distances(self, theta_AP: Tensor, other_AP: Tensor) -> Tensor:
        """(A,): of pairs of vectors with their classes in the same order."""
        one, other = (found.double() / self.scale.deviation_P for found in (theta_AP, other_AP))
        ordered_AP = with_units_of(one, other, self.learner)
        found: Tensor = torch.linalg.vector_norm(ordered_AP - other, dim=1)
        return found

    @cached_property
    def typical(self) -> float:
        """The median of `apart`."""
        found = float(np.median(self.apart))
        if found <= 0:
            raise DataError(
                "data/trajectories: half of the paths end where others do: raise collect.tasks or change collect.shot"
            )
        return found

    @cached_property
    def apart(self) -> NDArray[np.float64]:
        """The distances of the first training vectors, whose order means nothing, each to its nearest other one."""
        found_BP = self.end_BP / self.scale.deviation_P
        return np.asarray(nearest(found_BP[:SAMPLE], found_BP, self.learner, among=True).distance_A.cpu())


def compared(size: int) -> int:
    """With how many training vectors of this many weights generated ones are compared."""
    return min(MOST, max(2, MOST_NUMBERS // size))


def nearest(one_AP: Tensor, other_BP: Tensor, learner: BaseLearner, *, among: bool = False) -> Nearest:
    """By the Euclidean distance, in float64; ``among``: the others begin with the same vectors, and none is its own nearest.

    At first classes are paired so that those of a pair are most alike: by the rows of a linear head, which gives the least
    distance of all orders of the classes; of a perceptron by the linear map that it would be if no unit were cut off at 0, which
    gives of trained heads the least or, seldom, one little above it. Then hidden units are in the best of all their orders.
    """
    if isinstance(learner, Network):
        return _nearest_network(one_AP, other_BP, learner, among=among)
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


def _nearest_network(one_AP: Tensor, other_BP: Tensor, learner: Network, *, among: bool) -> Nearest:
    """Of the others with the most alike marks, which are the same in any order: those of a copy are the same as its own. Channels
    are put in order layer by layer, then classes; so the distance is that of a good order, of copies the best."""
    one_AM, other_BM = (_marks(found.double(), learner) for found in (one_AP, other_BP))
    apart_AB = torch.cdist(one_AM, other_BM)
    if among:
        apart_AB.fill_diagonal_(torch.inf)
    likely_AK = apart_AB.topk(min(LIKELY, len(other_BP) - among), largest=False).indices
    first_I = torch.arange(len(one_AP), device=one_AP.device).repeat_interleave(likely_AK.shape[1])
    orders, distances = [], []
    for row_I, likely_I in zip(*(torch.split(found, PAIRS) for found in (first_I, likely_AK.flatten())), strict=True):
        mine_IP = one_AP[row_I].double()
        theirs_IP = with_units_of(other_BP[likely_I].double(), mine_IP, learner)
        mine, theirs = (wires_of(learner, found)[-1].kernel_BOCJ.flatten(2) for found in (mine_IP, theirs_IP))
        orders.append(pairing(-theirs @ mine.mT))
        distances.append(torch.linalg.vector_norm(with_classes(theirs_IP, orders[-1], learner) - mine_IP, dim=1))
    distance_A, best_A = torch.cat(distances).view_as(likely_AK).min(1)
    every_A = torch.arange(len(one_AP), device=one_AP.device)
    order_AKW = torch.cat(orders).view(*likely_AK.shape, learner.way)
    return Nearest(distance_A, likely_AK[every_A, best_A], order_AKW[every_A, best_A])


def _marks(theta_AP: Tensor, learner: Network) -> Tensor:
    """(A, M): of each layer the sum over all its wires, by place in the kernel, and over its channels.

    These are projections on directions that no order changes. So they show the difference of two networks in whatever orders, the
    nearest ones among them, from a few sides: a copy that is much nearer than others has marks that are much nearer.
    """
    found = []
    for wires in wires_of(learner, theta_AP):
        count = wires.kernel_BOCJ.shape[1] * wires.kernel_BOCJ.shape[2]
        found += [wires.kernel_BOCJ.sum((1, 2)) / count**0.5, wires.bias_BO.sum(1, keepdim=True) / wires.bias_BO.shape[1] ** 0.5]
    return torch.cat(found, dim=1)


def overlap(one_EQ: Tensor, other_EQ: Tensor, target_Q: Tensor) -> float:
    """How far two classifiers err on the same queries: those wrong in both over those wrong in either; 1 if there are none."""
    wrong_one_EQ, wrong_other_EQ = one_EQ != target_Q, other_EQ != target_Q
    either = int((wrong_one_EQ | wrong_other_EQ).sum())
    return int((wrong_one_EQ & wrong_other_EQ).sum()) / either if either else 1.0


def verdict(generated_A: NDArray[np.float64], apart: float) -> str:
    """In a sentence, from the distances to the nearest training weights, and how far these typically lie from each other."""
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


def _heads(theta_AP: Tensor, learner: Head) -> _Heads:
    parts, square_A = parts_of(theta_AP, learner.layout()), theta_AP.square().sum(1)
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
