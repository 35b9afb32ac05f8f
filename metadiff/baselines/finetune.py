"""Fine-tuning: a base learner's weights, optimised on a new task's few images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metadiff.errors import NumericError
from metadiff.inputs import Inputs
from metadiff.learner import BaseLearner
from metadiff.objectives import Objective, OnSupport
from metadiff.pictures import Pictures
from metadiff.trajectory import Rule, follow


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


def finetune(learner: BaseLearner, inputs: Inputs, support_EWS: Pictures, start_EP: Tensor, course: Course) -> Tensor:
    """On the whole support of each task at every step; NumericError where it diverges."""
    theta_EP = adapted(OnSupport(learner, inputs.seen(support_EWS)), start_EP, course)
    if not bool(theta_EP.isfinite().all()):
        rates = "evaluate.finetune_lrs" if course.optimizer == "adam" else "evaluate.finetune_sgd_lrs"
        raise NumericError(f"fine-tuning by {course}: weights are not finite; lower {rates}")
    return theta_EP
