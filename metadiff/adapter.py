"""CLIP-Adapter, the base learner of Meta-VQA: a few weights turn an image's features before they are held against answers.

    o = v + relu(v @ enter.weight.T + enter.bias) @ leave.weight.T + leave.bias       score of an answer: 100 cos(o, sentence)

As in the code of HyperLDM (model/custom_hnet.py), in its order of weights. The 1 / sqrt(fan in) that it has in the network is
here where weights are generated (hypernet.py). Shapes: T tasks, N images of each, A answers, D features, H hidden units, P
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import normalize

from metadiff.layout import Part, parts_in_order, tensors_of
from metadiff.learner import Perceptron

SCALE = 100.0  # of cosines, as CLIP has it
NONE = -1  # in place of a number, where a task has fewer answers or images than others


@dataclass(frozen=True)
class Adapter:
    kind: Literal["adapter"]
    dim: int
    hidden: int

    outputs_axis: ClassVar = -2  # of leave.weight
    adds: ClassVar = ("leave.weight", "leave.bias")  # nothing to the features, where these are zero

    @property
    def size(self) -> int:
        return sum(part.size for part in self.layout())

    def layout(self) -> tuple[Part, ...]:
        weights = {"enter.weight": (self.hidden, self.dim), "leave.weight": (self.dim, self.hidden)}
        return parts_in_order(weights | {"enter.bias": (self.hidden,), "leave.bias": (self.dim,)})

    def scores(self, theta_TP: Tensor, images_TND: Tensor, answers_TAD: Tensor, there_TA: Tensor) -> Tensor:
        """(T, N, A), minus infinity for an answer that is not there."""
        turned_TND = normalize(self._turned(theta_TP, images_TND), dim=-1)
        cosine_TNA = turned_TND @ normalize(answers_TAD, dim=-1).mT
        return (SCALE * cosine_TNA).masked_fill(~there_TA[:, None], -float("inf"))

    def _turned(self, theta_TP: Tensor, images_TND: Tensor) -> Tensor:
        enter_THD, leave_TDH, shift_TH, last_TD = tensors_of(theta_TP, self.layout())
        hidden_TNH = (images_TND @ enter_THD.mT + shift_TH[:, None]).relu()
        return images_TND + hidden_TNH @ leave_TDH.mT + last_TD[:, None]


Generated = Perceptron | Adapter  # whose weights sentences may give
