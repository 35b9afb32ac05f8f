"""What needs no generator: the weights that were trained for the base tasks which look most like a new one.

Tasks look alike by their class means as the learner sees them, after the best order of their classes. Whoever generates weights
for a task has to do better than who looks them up, averages them or shakes them; how many and how much, validation says.
Shapes: N training tasks, E new ones, K neighbours, C base classes, W ways, S shots, D features, F inputs, P weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from metadiff.conditioning import BaseTasks
from metadiff.diffusion import gaussian_noise
from metadiff.evaluation import WeightsOf
from metadiff.inputs import Inputs, moved
from metadiff.learner import BaseLearner
from metadiff.matching import least_cost, pairing, smallest
from metadiff.memory import NUMBERS, Remembered, compared
from metadiff.paths import WeightScale
from metadiff.pictures import Pictures
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.symmetry import with_classes, with_units_of

if TYPE_CHECKING:
    from metadiff.trajectory_store import TrajectoryStore

NEIGHBOURS = (8, 32)  # whose weights are averaged; more are slowly better (64 by one point) and slowly found
NOISE = (0.1, 0.3, 1.0)  # in distances of the nearest training weights


@dataclass(frozen=True)
class PathEnds:
    """Where recorded paths ended, the classes of their tasks, and the share to which base classes had been moved together.

    Of very many paths the first ones, whose order means nothing: each is compared with each task.
    """

    end_NP: Tensor
    classes_NW: Tensor
    spread: float

    @classmethod
    def of(cls, store: TrajectoryStore) -> PathEnds:
        most = compared(store.size)
        ends_NP, classes_NW = (torch.from_numpy(values) for values in (store.end_points(most), store.classes[:most]))
        return cls(ends_NP, classes_NW, store.attributes["params"]["spread"])


class TrainingTasks:
    """The recorded tasks, told by the means of their classes over all images of each."""

    def __init__(self, ends: PathEnds, features_ND: Tensor, data: Rows, *, learner: BaseLearner, inputs: Inputs) -> None:
        self.ends, self.features_ND, self.data = ends, features_ND, data
        self.learner, self.inputs = learner, inputs
        self.end_NP = ends.end_NP.to(features_ND.device)

    @cached_property
    def images(self) -> BaseTasks:
        """The base images as the paths' learner saw them; most classifiers are judged without."""
        return BaseTasks(self.inputs.of(moved(self.features_ND, self.data, self.ends.spread)), self.data)

    @cached_property
    def classes_NW(self) -> Tensor:
        return self.images.numbers_of(self.ends.classes_NW).to(self.features_ND.device)

    def near(self, support_EWS: Pictures, count: int) -> Tensor:
        """(E, K, P): the weights of the most alike training tasks, the nearest first, their classes in the new task's order."""
        mean_EWF = self.inputs.of(support_EWS.features).mean(2)
        square_EWC = torch.cdist(mean_EWF, self.images.means_CD.expand(len(mean_EWF), -1, -1)).square()
        square_ENWW = square_EWC[:, :, self.classes_NW].permute(0, 2, 3, 1)  # a row a class of the training task
        bound_EN = torch.maximum(square_ENWW.amin(2).sum(-1), square_ENWW.amin(3).sum(-1))
        index_EK = smallest(bound_EN, lambda task, near: least_cost(square_ENWW[task, near]), count)[1]
        task_E1 = torch.arange(len(index_EK), device=index_EK.device)[:, None]
        order_IW = pairing(square_ENWW[task_E1, index_EK].flatten(0, 1))
        theta_IP = with_classes(self.end_NP[index_EK.flatten()], order_IW, self.learner)
        return theta_IP.view(*index_EK.shape, self.learner.size)

    @cached_property
    def deviation_P(self) -> Tensor:
        """Of noise that moves weights about as far as the nearest training weights lie apart, in each part by its own scale."""
        remembered = Remembered(self.end_NP, WeightScale.of(self.learner, self.end_NP), self.learner)
        each = float(np.median(remembered.apart)) / math.sqrt(self.learner.size)
        return each * remembered.scale.deviation_P


def nearest_weights(tasks: TrainingTasks, draws: int = 1) -> WeightsOf:
    """Those of as many of the most alike tasks, as if they were draws."""
    return lambda support_EWS, _batch: tasks.near(support_EWS, min(draws, len(tasks.end_NP))).transpose(0, 1)


def average_weights(tasks: TrainingTasks, neighbours: int) -> WeightsOf:
    """The mean over the most alike tasks, with hidden units in the order in which they lie nearest to those of the first.

    Units of random starts in any order would average out to nothing, which would prove nothing.
    """

    count = min(neighbours, len(tasks.end_NP))
    together = max(1, NUMBERS // (count * tasks.learner.size))

    def weights(support_EWS: Pictures, _batch: int) -> Tensor:
        groups = (support_EWS[start : start + together] for start in range(0, len(support_EWS), together))
        return torch.cat([average(group) for group in groups])[None]

    def average(support_EWS: Pictures) -> Tensor:
        theta_EKP = tasks.near(support_EWS, count)
        first_EKP = theta_EKP[:, :1].expand_as(theta_EKP)
        matched_IP = with_units_of(theta_EKP.flatten(0, 1), first_EKP.flatten(0, 1), tasks.learner)
        return matched_IP.view_as(theta_EKP).mean(1)

    return weights


def noisy_weights(tasks: TrainingTasks, seed: int, share: float) -> WeightsOf:
    """Those of the most alike task, moved by noise to this share of how far the nearest training weights lie apart."""

    def weights(support_EWS: Pictures, batch: int) -> Tensor:
        theta_EP = tasks.near(support_EWS, 1)[:, 0]
        noise = gaussian_noise(torch_stream(seed, "noisy-weights", batch))
        return (theta_EP + share * noise(theta_EP) * tasks.deviation_P)[None]

    return weights
