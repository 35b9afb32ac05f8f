"""The base learners: classifiers over frozen features whose weights are optimised, recorded and, later, generated.

A task's weights are one flat vector: a row a class and, for `linear`, a bias a class after them; `layout` says what lies where.
All functions take a batch of such vectors, theta_TP, one a task. Gradients are in closed form, so they need no autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad


@dataclass(frozen=True)
class Part:
    """A named tensor inside the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Learner:
    """`cosine`: scale times the cosine of feature and row (Gidaris and Komodakis, 2018); `linear`: their product plus a bias."""

    kind: Literal["cosine", "linear"]
    way: int
    dim: int
    scale: float  # of the cosine; `linear` has none

    @property
    def size(self) -> int:
        return self.way * self.dim + (self.way if self.kind == "linear" else 0)

    def layout(self) -> tuple[Part, ...]:
        weight = Part("weight", (self.way, self.dim), 0)
        return (weight,) if self.kind == "cosine" else (weight, Part("bias", (self.way,), self.way * self.dim))

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
        return self.inputs(features_TND) @ self.rows(theta_TP).mT

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
