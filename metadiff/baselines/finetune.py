"""Fine-tuning: a base learner's weights, optimised on a new task's few images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from metadiff.errors import NumericError
from metadiff.inputs import Inputs
from metadiff.learner import BaseLearner
from metadiff.objectives import Objective, OnSupport
from metadiff.pictures import Pictures
from metadiff.trajectory import Rule, follow

SlopeMap = Callable[[Tensor], Tensor]  # of slopes (E, P)


@dataclass(frozen=True)
class Course:
    """How far weights are optimised: plain SGD, without momentum, or Adam."""

    lr: float
    steps: int
    optimizer: str = "adam"

    def __str__(self) -> str:
        return f"{'' if self.optimizer == 'adam' else f'{self.optimizer}, '}lr {self.lr:g}, {self.steps} steps"


def adapted(objective: Objective, start_EP: Tensor, course: Course) -> Tensor:
    """(E, P): where a course ends."""
    rule = Rule(course.optimizer, course.lr, momentum=0.9 if course.optimizer == "adam" else 0.0, sam=0.0)
    return follow(objective, start_EP, rule=rule, kept=(course.steps,))[0][:, 0]


@dataclass(frozen=True)
class Mapped:
    """An objective whose slopes go through a map."""

    whole: Objective
    turn: SlopeMap

    def at(self, step: int) -> Mapped:
        return Mapped(self.whole.at(step), self.turn)

    def gradient(self, theta_TP: Tensor) -> Tensor:
        return self.turn(self.whole.gradient(theta_TP))

    def measure(self, theta_TP: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.measure(theta_TP)


def finetune(
    learner: BaseLearner, inputs: Inputs, support_EWS: Pictures, start_EP: Tensor, course: Course, turn: SlopeMap | None = None
) -> Tensor:
    """On the whole support of each task at every step; NumericError where it diverges."""
    support: Objective = OnSupport(learner, inputs.seen(support_EWS))
    theta_EP = adapted(Mapped(support, turn) if turn else support, start_EP, course)
    if not bool(theta_EP.isfinite().all()):
        rates = "evaluate.finetune_lrs" if course.optimizer == "adam" else "evaluate.finetune_sgd_lrs"
        raise NumericError(f"fine-tuning by {course}: weights are not finite; lower {rates}")
    return theta_EP
