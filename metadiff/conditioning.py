"""The tasks a generator learns from: class rows to generate, and what it is told of each task.

Shapes: B tasks, W ways, S shots, D features, C base classes, M images of the largest class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metadiff.baselines.gaussian import Posterior
from metadiff.denoiser import Condition
from metadiff.errors import DataError
from metadiff.inputs import base_classes, class_means, moved, moves
from metadiff.rows import Rows


@dataclass(frozen=True)
class Scale:
    """Weights are generated with mean 0 and deviation 1, as diffusion supposes: one shift a feature, one factor in all."""

    mean_D: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, weights_ND: Tensor) -> Scale:
        mean_D = weights_ND.double().mean(0)
        return cls(mean_D.float(), (weights_ND.double() - mean_D).square().mean().sqrt().float())

    def standardise(self, weights: Tensor) -> Tensor:
        return (weights - self.mean_D) / self.deviation

    def restore(self, weights: Tensor) -> Tensor:
        return weights * self.deviation + self.mean_D


@dataclass(frozen=True)
class Scales:
    """That of the weights to generate, and that of the features they are conditioned on: one and the same for class means."""

    weights: Scale
    features: Scale


@dataclass(frozen=True)
class Batch:
    """Tasks to learn from, standardised: the rows to generate and what is known of the task."""

    target_BWD: Tensor
    condition: Condition


@dataclass(frozen=True)
class Ends:
    """Trained weights of many tasks, as `collect` recorded them: N tasks of W classes, rows in the order of classes."""

    weights_NWD: Tensor
    classes_NW: Tensor


class BaseTasks:
    """Batches of training tasks: any W base classes, S random images of each as support; a function of the generator alone."""

    posterior: Posterior | None = None  # then a task is told by what that expects of its classes, not by the means of supports

    def __init__(self, features_ND: Tensor, data: Rows, *, spread: float = 1.0, ends: Ends | None = None) -> None:
        """Targets are the means over all images of a class or, given ``ends``, trained weights.

        Base classes are moved towards their common mean, until they are ``spread`` times as far from it.
        """
        members = base_classes(data)
        self.labels = [int(data.label[rows[0]]) for rows in members]
        self.counts_C = torch.tensor([len(rows) for rows in members])
        self.rows_CM = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
        means_CD = class_means(features_ND, members)
        self.means_CD = (means_CD + moves(means_CD, spread)).float()
        self.features_ND = moved(features_ND, data, spread)
        self.ends = ends
        self.scales = Scales(Scale.of(self.means_CD if ends is None else ends.weights_NWD.flatten(0, 1)), Scale.of(self.means_CD))
        if ends is not None:
            self.ends_NW = self.numbers_of(ends.classes_NW)

    def draw(self, generator: Generator, *, tasks: int, way: int, shots: Sequence[int]) -> Batch:
        """One number of shots a batch, so that the supports are one rectangular tensor."""
        if max(shots) > int(self.counts_C.min()):
            raise DataError(f"train: {max(shots)} shots, a class has {int(self.counts_C.min())} images: lower metatrain.shots")
        shot = shots[int(torch.randint(len(shots), (), generator=generator))]
        if self.ends is None:
            classes_BW = self.classes(generator, tasks=tasks, way=way)
            target_BWD = self.means_CD[classes_BW.to(self.means_CD.device)]
        else:
            chosen_B = torch.randint(len(self.ends_NW), (tasks,), generator=generator)
            classes_BW = self.ends_NW[chosen_B]
            target_BWD = self.ends.weights_NWD[chosen_B.to(self.features_ND.device)]
        support_BWSD = self.support(classes_BW, shot, generator)
        condition = condition_on(support_BWSD, self.scales.features, self.posterior)
        return Batch(self.scales.weights.standardise(target_BWD), condition)

    def classes(self, generator: Generator, *, tasks: int, way: int) -> Tensor:
        """(B, W) any base classes, by their number among them."""
        if way > len(self.counts_C):
            raise DataError(f"train: {way}-way tasks need {way} classes, there are {len(self.counts_C)}: lower metatrain.way")
        return torch.rand(tasks, len(self.counts_C), generator=generator).argsort(dim=1)[:, :way]

    def numbers_of(self, classes_NW: Tensor) -> Tensor:
        """Classes by their number among the base classes, from that in the features' table."""
        number_of = {label: number for number, label in enumerate(self.labels)}
        return torch.tensor([[number_of[int(label)] for label in task] for task in classes_NW])

    def support(self, classes_BW: Tensor, shot: int, generator: Generator) -> Tensor:
        """(B, W, S, D) features of some images of each class."""
        return self.features_ND[self.rows(classes_BW, shot, generator).to(self.features_ND.device)]

    def rows(self, classes_BW: Tensor, shot: int, generator: Generator) -> Tensor:
        """(B, W, S): the images with the smallest of random keys, padding never."""
        keys_BWM = torch.rand(*classes_BW.shape, self.rows_CM.shape[1], generator=generator)
        padding_BWM = torch.arange(self.rows_CM.shape[1]) >= self.counts_C[classes_BW][..., None]
        chosen_BWS = keys_BWM.masked_fill(padding_BWM, 2.0).topk(shot, largest=False).indices
        return self.rows_CM[classes_BW].gather(2, chosen_BWS)


def condition_on(support_EWSD: Tensor, features: Scale | None, posterior: Posterior | None = None) -> Condition:
    """What a generator is told of the tasks with these support features; without a scale they have one of their own."""
    shot, mean_EWD = support_EWSD.shape[2], support_EWSD.mean(2)
    if posterior is not None:
        mean_EWD = posterior.expect(mean_EWD, shot).to(mean_EWD.dtype)
    seen_EWD = features.standardise(mean_EWD) if features else mean_EWD
    return Condition(seen_EWD, torch.full((1,), float(shot), device=mean_EWD.device))
