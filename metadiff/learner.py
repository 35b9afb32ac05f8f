"""The base learners: classifiers whose weights are optimised, recorded and, later, generated. Heads see
frozen features, a whole network (metadiff/network.py) sees images.

A task's weights are one flat vector; `layout` says what lies where in it. All functions take a batch of such vectors, theta_TP,
one a task. Gradients are in closed form, so they need no autograd.

Shapes: T tasks, N images of each, W ways, D features, E of them as inputs, H hidden units, P weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from metadiff.layout import Part, parts_in_order, tensors_of
from metadiff.network import Network


@dataclass(frozen=True)
class Learner:
    """A row a class and, for `linear`, a bias a class after them.

    `cosine`: scale times the cosine of feature and row (Gidaris and Komodakis, 2018); `linear`: their product plus a bias.
    """

    kind: Literal["cosine", "linear"]
    way: int
    dim: int
    scale: float  # of the cosine; `linear` has none

    @property
    def size(self) -> int:
        return self.way * self.dim + (self.way if self.kind == "linear" else 0)

    def layout(self) -> tuple[Part, ...]:
        weight = {"weight": (self.way, self.dim)}
        return parts_in_order(weight if self.kind == "cosine" else weight | {"bias": (self.way,)})

    def start(self, stream: np.random.Generator, std: float) -> Tensor:
        """(P,): Gaussian, the bias too."""
        return std * torch.from_numpy(stream.standard_normal(self.size, dtype=np.float32))

    def inputs(self, features: Tensor) -> Tensor:
        """What the logits are linear in: unit vectors, or the features with a 1 for the bias."""
        return normalize(features, dim=-1) if self.kind == "cosine" else pad(features, (0, 1), value=1.0)

    def rows(self, theta_TP: Tensor) -> Tensor:
        """What the inputs are multiplied with, a row a class: logits = inputs @ rows.mT."""
        weight_TWD = self._weight(theta_TP)
        if self.kind == "cosine":
            return self.scale * normalize(weight_TWD, dim=-1)
        return torch.cat([weight_TWD, theta_TP[:, self.way * self.dim :, None]], dim=-1)

    def logits(self, theta_TP: Tensor, features_TND: Tensor) -> Tensor:
        """Scores (T, N, W) of each task's own N images."""
        return self.scores(theta_TP, self.inputs(features_TND))

    def scores(self, theta_TP: Tensor, inputs_TNE: Tensor) -> Tensor:
        """The logits of what `inputs` gave."""
        return inputs_TNE @ self.rows(theta_TP).mT

    def slope(self, theta_TP: Tensor, inputs_TNE: Tensor, hot_NW: Tensor) -> Tensor:
        """(T, P): of each task's cross-entropy, the mean over its images, whose classes are ``hot_NW`` in every task."""
        error_TNW = self.scores(theta_TP, inputs_TNE).softmax(-1).sub_(hot_NW)
        return self.gradient(theta_TP, error_TNW.mT @ inputs_TNE / len(hot_NW))

    def gradient(self, theta_TP: Tensor, slope_TWE: Tensor) -> Tensor:
        """The chain rule: a slope by the rows becomes one by the vector."""
        if self.kind == "linear":
            return torch.cat([slope_TWE[..., :-1].flatten(1), slope_TWE[..., -1]], dim=-1)
        weight_TWD = self._weight(theta_TP)
        length_TW1 = weight_TWD.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        unit_TWD = weight_TWD / length_TW1
        across_TWD = slope_TWE - (slope_TWE * unit_TWD).sum(-1, keepdim=True) * unit_TWD
        slope_TWD: Tensor = self.scale * across_TWD / length_TW1
        return slope_TWD.flatten(1)

    def _weight(self, theta_TP: Tensor) -> Tensor:
        return theta_TP[:, : self.way * self.dim].reshape(-1, self.way, self.dim)


@dataclass(frozen=True)
class Perceptron:
    """Two layers: relu(features @ enter.weight.T + enter.bias) @ leave.weight + leave.bias.

    Its hidden units can be permuted, so a task has many vectors that are equally good.
    """

    kind: Literal["mlp"]
    way: int
    dim: int
    hidden: int

    outputs_axis: ClassVar = -1  # of leave.weight

    @property
    def size(self) -> int:
        return sum(part.size for part in self.layout())

    def layout(self) -> tuple[Part, ...]:
        enter = {"enter.weight": (self.hidden, self.dim), "enter.bias": (self.hidden,)}
        return parts_in_order(enter | {"leave.weight": (self.hidden, self.way), "leave.bias": (self.way,)})

    def start(self, stream: np.random.Generator, std: float) -> Tensor:
        """(P,): weights are Gaussian of deviation std / sqrt(fan in), biases 0."""
        fans = {"enter.weight": self.dim, "leave.weight": self.hidden}
        start_P = torch.zeros(self.size)
        for part in self.layout():
            if part.name in fans:
                drawn = torch.from_numpy(stream.standard_normal(part.size, dtype=np.float32))
                start_P[part.offset :][: part.size] = std / math.sqrt(fans[part.name]) * drawn
        return start_P

    def inputs(self, features: Tensor) -> Tensor:
        """What the first layer sees: the features themselves."""
        return features

    def logits(self, theta_TP: Tensor, features_TND: Tensor) -> Tensor:
        """Scores (T, N, W) of each task's own N images."""
        return self.scores(theta_TP, self.inputs(features_TND))

    def scores(self, theta_TP: Tensor, inputs_TND: Tensor) -> Tensor:
        return self._layers(theta_TP, inputs_TND)[1].mT

    def slope(self, theta_TP: Tensor, inputs_TND: Tensor, hot_NW: Tensor) -> Tensor:
        """(T, P): of each task's cross-entropy, the mean over its images, whose classes are ``hot_NW`` in every task."""
        hidden_THN, logits_TWN = self._layers(theta_TP, inputs_TND)
        error_TWN = logits_TWN.softmax(1).sub_(hot_NW.T).div_(len(hot_NW))
        back_THN = (tensors_of(theta_TP, self.layout())[2] @ error_TWN).mul_(hidden_THN > 0)
        slopes = (back_THN @ inputs_TND, back_THN.sum(-1), hidden_THN @ error_TWN.mT, error_TWN.sum(-1))
        return torch.cat([slope.flatten(1) for slope in slopes], dim=-1)

    def _layers(self, theta_TP: Tensor, inputs_TND: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden units (T, H, N) and logits (T, W, N): images last, in which order the products are quickest."""
        enter_THD, shift_TH, leave_THW, shift_TW = tensors_of(theta_TP, self.layout())
        hidden_THN = torch.baddbmm(shift_TH[..., None], enter_THD, inputs_TND.mT).relu_()
        return hidden_THN, torch.baddbmm(shift_TW[..., None], leave_THW.mT, hidden_THN)


Head = Learner | Perceptron
BaseLearner = Head | Network
KINDS: dict[str, Callable[..., BaseLearner]] = {"cosine": Learner, "linear": Learner, "mlp": Perceptron, "conv": Network}


def build_learner(facts: Mapping[str, Any]) -> BaseLearner:
    """The inverse of dataclasses.asdict."""
    return KINDS[facts["kind"]](**facts)
