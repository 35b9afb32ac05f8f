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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad, silu

from metadiff.denoiser import Condition
from metadiff.layout import parts_of
from metadiff.learner import Head, Perceptron

FREQUENCIES = 32
TOGETHER = 64  # heads of one tensor program on a processor: more leave its cache and are slower
Modulation = Sequence[Tensor]  # by layer (B, 1, 1, 4 F), or of one row for all tasks: gain and shift


@dataclass(frozen=True)
class Units:
    """A batch of heads in parts."""

    vector_BUE: Tensor
    bias_BU: Tensor
    link_BUW: Tensor  # of a linear head: which unit is whose
    bias_BW: Tensor


def units_of(learner: Head, theta_BP: Tensor) -> Units:
    size, parts = len(theta_BP), parts_of(theta_BP, learner.layout())
    blank_BW = theta_BP.new_zeros(size, learner.way)
    if isinstance(learner, Perceptron):
        return Units(parts["enter.weight"], parts["enter.bias"], parts["leave.weight"], parts["leave.bias"])
    own_BWW = torch.eye(learner.way, dtype=theta_BP.dtype, device=theta_BP.device).expand(size, -1, -1)
    return Units(parts["weight"], parts.get("bias", blank_BW), own_BWW, blank_BW)


def theta_of(learner: Head, units: Units) -> Tensor:
    if isinstance(learner, Perceptron):
        parts = [units.vector_BUE, units.bias_BU, units.link_BUW, units.bias_BW]
    else:
        parts = [units.vector_BUE, units.bias_BU][: len(learner.layout())]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


@dataclass(frozen=True)
class Frame:
    """The directions that the vectors of a task's heads are made of: one of each unit from every given head, then class means.

    A head in a frame is one of `inner`, the same learner in a space of as many dimensions. Whatever a chain without fresh noise
    makes of a head stays in the frame of its start, so a chain costs the same however many inputs there are.
    """

    learner: Head
    basis_BUKE: Tensor
    gram_BUKK: Tensor  # products of directions, over the number of inputs
    gram_BWW: Tensor
    length_B11: Tensor  # of class means

    @classmethod
    def of(cls, learner: Head, mean_BWE: Tensor, *heads_BP: Tensor) -> Frame:
        vectors_BUE = [units_of(learner, theta_BP).vector_BUE for theta_BP in heads_BP]
        units = vectors_BUE[0].shape[1]
        mean_BUWE = mean_BWE[:, None].expand(-1, units, -1, -1)
        basis_BUKE = torch.cat([torch.stack(vectors_BUE, dim=2), mean_BUWE], dim=2)
        size = mean_BWE.shape[-1]
        length_B11 = mean_BWE.norm(dim=-1).mean(-1)[:, None, None].clamp_min(1e-6)
        return cls(learner, basis_BUKE, basis_BUKE @ basis_BUKE.mT / size, mean_BWE @ mean_BWE.mT / size, length_B11)

    @cached_property
    def inner(self) -> Head:
        return replace(self.learner, dim=self.basis_BUKE.shape[2])

    @cached_property
    def classes_BW3(self) -> Tensor:
        """Of each class mean its own length, and how near it is to the others and they all to each other."""
        near_BW = self.gram_BWW.mean(2)
        far_BW, all_BW = self.gram_BWW.diagonal(dim1=1, dim2=2), near_BW.mean(1, keepdim=True).expand_as(near_BW)
        return torch.stack([far_BW, near_BW, all_BW], dim=-1)

    @cached_property
    def parts(self) -> list[Frame]:
        """Of few tasks each."""
        tensors = (self.basis_BUKE, self.gram_BUKK, self.gram_BWW, self.length_B11)
        split = zip(*(torch.split(tensor, TOGETHER) for tensor in tensors), strict=True)
        return [Frame(self.learner, *some) for some in split]

    def enter(self, theta_BP: Tensor, number: int = 0) -> Tensor:
        """(B, C): the head that was given as this one."""
        x = units_of(self.learner, theta_BP)
        own_BUK = torch.zeros_like(self.gram_BUKK[..., 0])
        own_BUK[..., number] = 1
        return theta_of(self.learner, replace(x, vector_BUE=own_BUK))

    def leave(self, c_BC: Tensor) -> Tensor:
        x = units_of(self.inner, c_BC)
        vector_BUE = torch.einsum("buk,buke->bue", x.vector_BUE, self.basis_BUKE)
        return theta_of(self.learner, replace(x, vector_BUE=vector_BUE))


class UnitDenoiser(nn.Module):
    """Gives an estimate of the weights that a time leads to, from noisy ones and the class means of the support."""

    def __init__(self, learner: Head, *, hidden: int, layers: int) -> None:
        super().__init__()
        self.learner = learner
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.of_pairs, self.of_units, self.of_classes = nn.Linear(2, hidden), nn.Linear(2, hidden), nn.Linear(4, hidden)
        self.layers = nn.ModuleList(Exchange(hidden) for _ in range(layers))
        self.keep, self.to_units = nn.Linear(hidden, 1), nn.Linear(hidden, 1)
        self.to_pairs = nn.Linear(hidden, 2)
        self.to_classes = nn.Linear(hidden, 1) if isinstance(learner, Perceptron) else None

    def forward(self, theta_BP: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """``t_B`` is the share of the chain that has been walked."""
        frame = self.frame(condition, theta_BP)
        return frame.leave(self.within(frame, frame.enter(theta_BP), self._told(t_B, condition.shots_B)))

    def blank(self, like_BP: Tensor) -> Tensor:
        """What a network starts with that has no noise."""
        return torch.zeros_like(like_BP)

    def frame(self, condition: Condition, *heads_BP: Tensor) -> Frame:
        return Frame.of(self.learner, condition.mean_BWD, *heads_BP)

    def told(self, share_T: Tensor, condition: Condition) -> list[Modulation]:
        """What the layers are told at each of these times of a chain, whatever weights it has come to."""
        times, tasks = len(share_T), len(condition.shots_B)
        told = self._told(share_T.repeat_interleave(tasks), condition.shots_B.repeat(times))
        return [*zip(*(torch.split(part, tasks) for part in told), strict=True)]

    def within(self, frame: Frame, c_BC: Tensor, told: Modulation) -> Tensor:
        """What `forward` does, of and as heads in a frame."""
        if len(c_BC) <= TOGETHER or c_BC.is_cuda:
            return self._some(frame, c_BC, told)
        each = (torch.split(part.expand(len(c_BC), -1, -1, -1), TOGETHER) for part in told)
        groups = zip(frame.parts, torch.split(c_BC, TOGETHER), zip(*each, strict=True), strict=True)
        return torch.cat([self._some(*group) for group in groups])

    def _told(self, share_B: Tensor, shots_B: Tensor) -> Modulation:
        size = max(len(share_B), len(shots_B))
        known = torch.cat([time_features(share_B).expand(size, -1), (1 / shots_B[:, None]).expand(size, 1)], 1)
        known_B11F = self.time(known)[:, None, None]
        return [layer.known(known_B11F) for layer in self.layers if isinstance(layer, Exchange)]

    def _some(self, frame: Frame, c_BC: Tensor, told: Modulation) -> Tensor:
        x, way = units_of(frame.inner, c_BC), self.learner.way
        met_BUK = (x.vector_BUE[..., None] * frame.gram_BUKK).sum(2)
        product_BUW = met_BUK[..., -way:] * (frame.basis_BUKE.shape[-1] / frame.length_B11)
        pairs_BUW2 = torch.stack([product_BUW, x.link_BUW], dim=-1)
        length_BU = (met_BUK * x.vector_BUE).sum(-1).clamp_min(1e-12).sqrt()
        units_BU2 = torch.stack([length_BU, x.bias_BU], dim=-1)
        classes_BW4 = torch.cat([x.bias_BW[..., None], frame.classes_BW3], dim=-1)
        e_BUWF = self.of_pairs(pairs_BUW2) + self.of_units(units_BU2)[:, :, None] + self.of_classes(classes_BW4)[:, None]
        for layer, known_B11G in zip(self.layers, told, strict=True):
            e_BUWF = layer(e_BUWF, frame.gram_BWW, known_B11G)
        e_BUF = e_BUWF.mean(2)
        keep_BU1 = self.keep(layer_norm(e_BUF, e_BUF.shape[-1:]))  # within bounds: a share of what itself may be large
        share_BUW, link_BUW = self.to_pairs(e_BUWF).unbind(-1)
        vector_BUK = keep_BU1 * x.vector_BUE + pad(share_BUW, (x.vector_BUE.shape[-1] - way, 0))
        bias_BW = x.bias_BW if self.to_classes is None else self.to_classes(e_BUWF.mean(1))[..., 0]
        return theta_of(self.learner, Units(vector_BUK, self.to_units(e_BUF)[..., 0], link_BUW, bias_BW))


class Exchange(nn.Module):
    """Each pair of a unit and a class hears of itself, of its unit and its class on average, and of like classes."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.own = nn.Linear(2 * hidden, 2 * hidden)
        self.over_units, self.over_classes = (nn.Linear(hidden, 2 * hidden, bias=False) for _ in range(2))
        self.known = nn.Linear(hidden, 4 * hidden)
        self.leave = nn.Linear(2 * hidden, hidden)

    def forward(self, e_BUWF: Tensor, gram_BWW: Tensor, known_B11G: Tensor) -> Tensor:
        x = layer_norm(e_BUWF, e_BUWF.shape[-1:])
        mixed = self.own(torch.cat([x, gram_BWW[:, None] @ x], dim=-1))
        mixed = mixed + self.over_units(x.mean(1, keepdim=True)) + self.over_classes(x.mean(2, keepdim=True))
        gain, shift = known_B11G.chunk(2, dim=-1)
        out: Tensor = e_BUWF + self.leave(silu(mixed * (1 + gain) + shift))
        return out


def time_features(t_B: Tensor) -> Tensor:
    angle_BF = t_B[:, None] * torch.exp(torch.linspace(0, math.log(1000), FREQUENCIES, device=t_B.device))
    return torch.cat([angle_BF.sin(), angle_BF.cos()], dim=1)
