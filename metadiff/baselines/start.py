"""Reptile on the base learner itself (Nichol et al. 2018): one start for all tasks, from which few steps on a support go far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from metadiff.baselines.finetune import Course, adapted
from metadiff.conditioning import BaseTasks
from metadiff.consistency import Watch
from metadiff.denoiser import Condition
from metadiff.diffusion import Noise
from metadiff.learner import BaseLearner, build_learner
from metadiff.objectives import OnSupport
from metadiff.rng import numpy_stream


class Weights(nn.Module):
    """One vector of weights."""

    def __init__(self, theta_P: Tensor) -> None:
        super().__init__()
        self.theta_P = nn.Parameter(theta_P)


class Start:
    """A start as a generator: the same weights for every task."""

    def __init__(self, learner: BaseLearner, theta_P: Tensor) -> None:
        self.learner = learner
        self._net = Weights(theta_P)

    @property
    def net(self) -> Weights:
        return self._net

    def sample(self, condition: Condition, noise: Noise, *, watch: Watch | None = None) -> Tensor:
        return self._net.theta_P.detach().expand(len(condition.mean_BWD), -1)


class InTurn:
    """Some images a class of each task's own at every step, in turn.

    What Reptile learns beyond the sum of all tasks it learns from steps that see different images of a task (Nichol et al.,
    section 5.1): where all see the same few, a start is learnt from which these are soon known by heart, and new ones are not.
    """

    def __init__(self, whole: OnSupport, shot: int) -> None:
        self.whole, self.shot = whole, shot

    def at(self, step: int) -> OnSupport:
        """The first step is 1."""
        support_TWSE = self.whole.support_TWSD
        seen = (torch.arange(self.shot) + (step - 1) * self.shot) % support_TWSE.shape[2]
        return OnSupport(self.whole.learner, support_TWSE[:, :, seen])

    def gradient(self, theta_TP: Tensor) -> Tensor:
        return self.at(1).gradient(theta_TP)

    def measure(self, theta_TP: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.measure(theta_TP)


@dataclass(frozen=True)
class Tour:
    """What a copy does with its task: a course whose steps see its whole support or, given ``turn``, as many images a class."""

    course: Course
    turn: int = 0

    def slope(self, method: Start, support_BWSE: Tensor, generator: Generator) -> Tensor:
        """The loss after the tour; the gradient holds what a rate of 1 takes away to end where the copies do on average."""
        theta_P = method.net.theta_P
        start_BP = theta_P.detach().expand(len(support_BWSE), -1)
        whole = OnSupport(method.learner, support_BWSE)
        end_BP = adapted(InTurn(whole, self.turn) if self.turn else whole, start_BP, self.course)
        theta_P.grad = theta_P.detach() - end_BP.mean(0)
        return whole.measure(end_BP)[0].mean()


def start_tasks(
    images: BaseTasks, seen_NE: Tensor, *, tasks: int, way: int, shots: Sequence[int]
) -> Callable[[Generator], Tensor]:
    """Supports (B, W, S, E) of random base classes as a learner sees them, by a stream; one number of shots a batch."""

    def draw(generator: Generator) -> Tensor:
        shot = shots[int(torch.randint(len(shots), (), generator=generator))]
        rows_BWS = images.rows(images.classes(generator, tasks=tasks, way=way), shot, generator)
        return seen_NE[rows_BWS.to(seen_NE.device)]

    return draw


def build_start(facts: Mapping[str, Any], *, device: str = "cpu") -> Start:
    learner = build_learner(facts["learner"])
    return Start(learner, learner.start(numpy_stream(facts["seed"], "reptile", "start"), facts["start_std"]).to(device))
