"""A denoiser of whole heads that has their symmetries built in.

A head is a set of units, each with a vector in the space of what the head sees, and numbers between units and classes: the rows
of a linear head are units of their own classes, the units of an `mlp` are its hidden ones. The order of hidden units means
nothing, the order of classes is that of the support, and, once inputs are centred and whitened, no direction is special. So the
network is equivariant to permutations of units and classes and to rotations: it sees vectors by their products with the class
means alone, and what it gives for a vector is a share of that vector and of each class mean. It cannot learn the directions of
base classes by heart.
Shapes: B tasks, U units, W classes, E inputs, F width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from metadiff.denoiser import Condition
from metadiff.learner import BaseLearner, Perceptron

FREQUENCIES = 32


@dataclass(frozen=True)
class Units:
    """A batch of heads in parts."""

    vector_BUE: Tensor
    bias_BU: Tensor
    link_BUW: Tensor  # of a linear head: which unit is whose
    bias_BW: Tensor


def units_of(learner: BaseLearner, theta_BP: Tensor) -> Units:
    size = len(theta_BP)
    parts = {part.name: theta_BP[:, part.offset : part.offset + part.size].view(size, *part.shape) for part in learner.layout()}
    blank_BW = theta_BP.new_zeros(size, learner.way)
    if isinstance(learner, Perceptron):
        return Units(parts["enter.weight"], parts["enter.bias"], parts["leave.weight"], parts["leave.bias"])
    own_BWW = torch.eye(learner.way, dtype=theta_BP.dtype, device=theta_BP.device).expand(size, -1, -1)
    return Units(parts["weight"], parts.get("bias", blank_BW), own_BWW, blank_BW)


def theta_of(learner: BaseLearner, units: Units) -> Tensor:
    if isinstance(learner, Perceptron):
        parts = [units.vector_BUE, units.bias_BU, units.link_BUW, units.bias_BW]
    else:
        parts = [units.vector_BUE, units.bias_BU][: len(learner.layout())]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


class UnitDenoiser(nn.Module):
    """Gives an estimate of the weights that a time leads to, from noisy ones and the class means of the support."""

    def __init__(self, learner: BaseLearner, *, hidden: int, layers: int) -> None:
        super().__init__()
        self.learner = learner
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.enter = nn.Linear(8, hidden)
        self.layers = nn.ModuleList(Exchange(hidden) for _ in range(layers))
        self.of_unit = nn.Linear(hidden, 2)
        self.of_link = nn.Linear(hidden, 2)
        self.of_class = nn.Linear(hidden, 1) if isinstance(learner, Perceptron) else None

    def forward(self, theta_BP: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """``t_B`` is the share of the chain that has been walked."""
        x, mean_BWE = units_of(self.learner, theta_BP), condition.mean_BWD
        known = torch.cat(
            [time_features(t_B).expand(len(theta_BP), -1), (1 / condition.shots_B[:, None]).expand(len(theta_BP), 1)], 1
        )
        known_B11F = self.time(known)[:, None, None]
        gram_BWW = mean_BWE @ mean_BWE.mT / mean_BWE.shape[-1]
        length_B11 = mean_BWE.norm(dim=-1).mean(-1)[:, None, None].clamp_min(1e-6)
        product_BUW = x.vector_BUE @ mean_BWE.mT / length_B11
        length_BU = x.vector_BUE.square().mean(-1)
        seen = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
            product_BUW,
            x.link_BUW,
            length_BU[..., None],
            x.bias_BU[..., None],
            x.bias_BW[:, None],
            gram_BWW.diagonal(dim1=1, dim2=2)[:, None],
            gram_BWW.mean(2)[:, None],
            gram_BWW.mean((1, 2))[:, None, None],
        )
        e_BUWF = self.enter(torch.stack(seen, dim=-1))
        for layer in self.layers:
            e_BUWF = layer(e_BUWF, gram_BWW, known_B11F)
        keep_BU, bias_BU = self.of_unit(e_BUWF.mean(2)).unbind(-1)
        share_BUW, link_BUW = self.of_link(e_BUWF).unbind(-1)
        vector_BUE = keep_BU[..., None] * x.vector_BUE + share_BUW @ mean_BWE
        bias_BW = x.bias_BW if self.of_class is None else self.of_class(e_BUWF.mean(1))[..., 0]
        return theta_of(self.learner, Units(vector_BUE, bias_BU, link_BUW, bias_BW))


class Exchange(nn.Module):
    """Each pair of a unit and a class hears of itself, of its unit and class on average, of like classes, and of like units."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.own, self.classes, self.units = (nn.Linear(hidden, 2 * hidden) for _ in range(3))
        self.over_units, self.over_classes = (nn.Linear(hidden, 2 * hidden, bias=False) for _ in range(2))
        self.like = nn.Linear(hidden, 2 * hidden, bias=False)
        self.known = nn.Linear(hidden, 4 * hidden)
        self.leave = nn.Linear(2 * hidden, hidden)

    def forward(self, e_BUWF: Tensor, gram_BWW: Tensor, known_B11F: Tensor) -> Tensor:
        x = layer_norm(e_BUWF, e_BUWF.shape[-1:])
        query, key = self.like(x).chunk(2, dim=-1)
        score_BUU = torch.einsum("buwf,bvwf->buv", query, key) / math.sqrt(query.shape[-1] * query.shape[2])
        alike = torch.einsum("buv,bvwf->buwf", score_BUU.softmax(-1), x)
        near = torch.einsum("bwk,bukf->buwf", gram_BWW, x)
        mixed = self.own(x) + self.classes(near) + self.units(alike)
        mixed = mixed + self.over_units(x.mean(1, keepdim=True)) + self.over_classes(x.mean(2, keepdim=True))
        gain, shift = self.known(known_B11F).chunk(2, dim=-1)
        out: Tensor = e_BUWF + self.leave(silu(mixed * (1 + gain) + shift))
        return out


def time_features(t_B: Tensor) -> Tensor:
    angle_BF = t_B[:, None] * torch.exp(torch.linspace(0, math.log(1000), FREQUENCIES, device=t_B.device))
    return torch.cat([angle_BF.sin(), angle_BF.cos()], dim=1)
