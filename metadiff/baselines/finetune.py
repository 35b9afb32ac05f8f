"""Fine-tuning: a base learner's weights, optimised on a new task's few images."""

from __future__ import annotations

from torch import Tensor

from metadiff.errors import NumericError
from metadiff.inputs import Inputs
from metadiff.learner import BaseLearner
from metadiff.objectives import OnSupport
from metadiff.trajectory import Rule, follow


def finetune(learner: BaseLearner, inputs: Inputs, support_EWSD: Tensor, start_EP: Tensor, *, lr: float, steps: int) -> Tensor:
    """(E, P): after as many steps of Adam, each on the whole support of its task."""
    rule = Rule("adam", lr, momentum=0.9, sam=0.0)
    weights_E1P, _, _ = follow(OnSupport(learner, inputs.of(support_EWSD)), start_EP, rule=rule, kept=(steps,))
    if not bool(weights_E1P.isfinite().all()):
        raise NumericError(f"fine-tuning: weights are not finite after {steps} steps with lr {lr:g}; lower evaluate.finetune_lrs")
    return weights_E1P[:, 0]
