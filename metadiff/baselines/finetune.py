"""Fine-tuning: a base learner's weights, optimised on a new task's few images."""

from __future__ import annotations

from torch import Tensor

from metadiff.errors import NumericError
from metadiff.inputs import Inputs
from metadiff.learner import BaseLearner
from metadiff.objectives import OnSupport
from metadiff.pictures import Pictures
from metadiff.trajectory import Rule, follow


def adapted(learner: BaseLearner, seen_EWSE: Tensor, start_EP: Tensor, *, lr: float, steps: int) -> Tensor:
    """(E, P): after as many steps of Adam, each on the whole support of its task, as the learner sees it."""
    rule = Rule("adam", lr, momentum=0.9, sam=0.0)
    return follow(OnSupport(learner, seen_EWSE), start_EP, rule=rule, kept=(steps,))[0][:, 0]


def finetune(learner: BaseLearner, inputs: Inputs, support_EWS: Pictures, start_EP: Tensor, *, lr: float, steps: int) -> Tensor:
    """The same from pictures; NumericError where it diverges."""
    theta_EP = adapted(learner, inputs.seen(support_EWS), start_EP, lr=lr, steps=steps)
    if not bool(theta_EP.isfinite().all()):
        raise NumericError(f"fine-tuning: weights are not finite after {steps} steps with lr {lr:g}; lower evaluate.finetune_lrs")
    return theta_EP
