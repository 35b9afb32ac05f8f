"""The tasks that whole weights are learnt from: the kept weights along a path, and a support of the path's classes.

Shapes: N paths (or images), K segments, P weights, B tasks, W ways, S shots, E inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Generator, Tensor

from metadiff.baselines.gaussian import Posterior
from metadiff.conditioning import BaseTasks, condition_on
from metadiff.denoiser import Condition
from metadiff.errors import DataError
from metadiff.inputs import moved
from metadiff.layout import tensors_of
from metadiff.learner import BaseLearner
from metadiff.objectives import OnSupport
from metadiff.pictures import Pictures
from metadiff.rows import Rows
from metadiff.trajectory import Rule, follow

if TYPE_CHECKING:
    from metadiff.trajectory_store import TrajectoryStore


@dataclass(frozen=True)
class WeightScale:
    """Weights are generated with deviation 1: a factor for each part, and a shift where the start of all paths is not 0."""

    shift_P: Tensor
    deviation_P: Tensor

    @classmethod
    def of(cls, learner: BaseLearner, end_NP: Tensor, shift_P: Tensor | None = None) -> WeightScale:
        """By the ends of paths, so that a path's own growth stays in its weights."""
        return cls.over(learner, [end_NP], shift_P)

    @classmethod
    def over(cls, learner: BaseLearner, ends: Iterable[Tensor], shift_P: Tensor | None = None) -> WeightScale:
        """The same of ends (n, P) that come in parts."""
        count, sums = 0, [torch.zeros(())] * len(learner.layout())
        for end_NP in ends:
            shift_P = torch.zeros_like(end_NP[0]) if shift_P is None else shift_P
            apart_NP = end_NP.double() - shift_P.double()
            squares = [part.square().sum() for part in tensors_of(apart_NP, learner.layout())]
            count, sums = count + len(end_NP), [found + one for found, one in zip(sums, squares, strict=True)]
        assert shift_P is not None, "a store has at least one path"
        deviation_P = torch.empty_like(shift_P)
        for part, found in zip(learner.layout(), sums, strict=True):
            deviation = (found / (count * part.size)).sqrt().clamp_min(1e-8)
            deviation_P[part.offset : part.offset + part.size] = deviation.float()
        return cls(shift_P, deviation_P)

    @property
    def base_P(self) -> Tensor:
        """The shift in the units of standardised weights."""
        return self.shift_P / self.deviation_P

    def standardise(self, theta: Tensor) -> Tensor:
        return (theta - self.shift_P) / self.deviation_P

    def restore(self, theta: Tensor) -> Tensor:
        return theta * self.deviation_P + self.shift_P


@dataclass(frozen=True)
class PathBatch:
    """Standardised weights at the end of each segment, and what is known of the task."""

    path_BKP: Tensor
    condition: Condition


@dataclass(frozen=True)
class PathImages:
    """What paths have seen: the rows of some images a class, or, without them, all images of their classes."""

    classes_NW: Tensor
    rows_NWS: Tensor | None = None

    @classmethod
    def of(cls, store: TrajectoryStore) -> PathImages:
        alone = store.attributes["params"]["sees"] == "support"
        return cls(torch.from_numpy(store.classes), torch.from_numpy(store.support).long() if alone else None)


class Paths(Protocol):
    """(N, K, P): a tensor, or what reads rows of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen_B: Tensor, /) -> Tensor: ...


class PathTasks:
    """Batches of paths, a function of the generator; a support is a few of the images that a path has seen."""

    def __init__(
        self,
        images: BaseTasks,
        paths: Paths,
        seen: PathImages,
        scale: WeightScale,
        *,
        posterior: Posterior | None = None,
        shown_NE: Tensor | None = None,
    ) -> None:
        """``shown_NE`` is what networks see of any image: then a generator is shown the support."""
        self.images, self.paths, self.seen, self.scale = images, paths, seen, scale
        self.posterior, self.shown_NE = posterior, shown_NE
        self.classes_NW = images.numbers_of(seen.classes_NW)

    def draw(self, generator: Generator, *, tasks: int, shots: Sequence[int]) -> PathBatch:
        chosen_B = torch.randint(len(self.paths), (tasks,), generator=generator)
        shot = shots[int(torch.randint(len(shots), (), generator=generator))]
        features_ND = self.images.features_ND
        rows_BWS = self._rows(chosen_B, shot, generator).to(features_ND.device)
        shown = None if self.shown_NE is None else self.shown_NE[rows_BWS]
        path_BKP = self.paths[chosen_B].to(features_ND.device)
        return PathBatch(self.scale.standardise(path_BKP), seen_of(features_ND[rows_BWS], self.posterior, shown))

    def _rows(self, chosen_B: Tensor, shot: int, generator: Generator) -> Tensor:
        """(B, W, S): images of the support."""
        rows_NWS = self.seen.rows_NWS
        there = int(self.images.counts_C.min()) if rows_NWS is None else rows_NWS.shape[2]
        if shot > there:
            raise DataError(f"train: {shot} shots, a path has seen {there} images of a class: lower mcdi.shots")
        if rows_NWS is None:
            return self.images.rows(self.classes_NW[chosen_B], shot, generator)
        order_BWS = torch.rand(rows_NWS[chosen_B].shape, generator=generator).topk(shot).indices
        return rows_NWS[chosen_B].gather(2, order_BWS)


def seen_of(support_EWSD: Tensor, posterior: Posterior | None = None, shown_EWSE: Tensor | None = None) -> Condition:
    """What a generator of whole weights is told of tasks: class means in the units of the inputs, and the number of shots; a
    generator of networks is shown what these see of the support."""
    return replace(condition_on(support_EWSD, None, posterior), support_BWSE=shown_EWSE)


def rule_of(about: Mapping[str, Any]) -> Rule:
    """How the optimiser of recorded paths was set, as their store says."""
    return Rule(about["optimizer"], about["lr"], about["momentum"], about["sam"], about["weight_decay"])


def as_shown(store: TrajectoryStore, pictures: Pictures, data: Rows) -> Pictures:
    """Images with base classes as near to each other as they were for the learner of recorded paths."""
    return replace(pictures, features=moved(pictures.features, data, store.attributes["params"]["spread"]))


def followed(
    store: TrajectoryStore,
    learner: BaseLearner,
    seen_NE: Tensor,
    start_P: Tensor,
    *,
    kept: tuple[int, ...],
    most: int | None = None,
) -> Tensor:
    """(N, K, P): the weights at these steps of the recorded optimiser from here, on the recorded supports, without noise; of very
    many tasks the first ones."""
    rule, found = rule_of(store.attributes["params"]), []
    for block in range(store.blocks_of(most)):
        support = torch.from_numpy(store.support[store.rows(block)]).long()
        objective = OnSupport(learner, seen_NE[support.to(seen_NE.device)])
        found.append(follow(objective, start_P.expand(len(support), -1), rule=rule, kept=kept)[0])
    return torch.cat(found)[:most]
