"""Denoisers for a set of class rows: any number of ways, any feature size, every class treated alike.

Shapes: B tasks, W ways, D features. Weights and support means are standardised; t counts from 0; shots is K of each task.
Where all tasks have the same time, or the same number of shots, one may stand for all of them.
A generator given to `forward` is what dropout draws from; without one nothing is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import silu, softplus

from metadiff.diffusion import Kind
from metadiff.rng import torch_stream

FREQUENCIES = 160
BLANK = "leave"  # the last layer of a correction


@dataclass(frozen=True)
class Condition:
    """What is known of a task: the mean of each class's support, and how many images that is.

    A generator of whole networks is shown the support too, as these see it.
    """

    mean_BWD: Tensor
    shots_B: Tensor
    support_BWSE: Tensor | None = None

    def repeated(self, times: int) -> Condition:
        """The same tasks, as many times over."""
        shown = None if self.support_BWSE is None else self.support_BWSE.repeat(times, 1, 1, 1)
        return Condition(self.mean_BWD.repeat(times, 1, 1), self.shots_B, shown)


class GradientDenoiser(nn.Module):
    """The network of MetaDiff's code: it sees the gradient of the support loss and the time, nothing else.

    The loss is the squared distance of a row to its support images, so its gradient is 2 (w - mean), taken as the mean over
    shots; ``sum_over_shots`` is the code's 2 K (w - mean), with which training at 5 shots diverges. The estimate of the noise
    is s g + (1 - s) (h + g) with a gate s that depends on the time: the gate can switch the correction h off, never g.
    """

    kind: Kind = "eps"

    def __init__(self, feature_size: int, *, sum_over_shots: bool = False) -> None:
        super().__init__()
        half, quarter = max(1, feature_size // 2), max(1, feature_size // 4)
        sizes = (feature_size, half, quarter, quarter, half, feature_size)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.times = nn.ModuleList(nn.Linear(2 * FREQUENCIES, b) for b in sizes[1:])
        self.gate = nn.Sequential(nn.Linear(2 * FREQUENCIES, FREQUENCIES), nn.ReLU(), nn.Linear(FREQUENCIES, 1))
        self.sum_over_shots = sum_over_shots

    def forward(self, w_BWD: Tensor, t_B: Tensor, condition: Condition, generator: Generator | None = None) -> Tensor:
        te_B1F = time_features(t_B)[:, None]
        g = 2 * (w_BWD - condition.mean_BWD)
        if self.sum_over_shots:
            g = g * condition.shots_B[:, None, None]

        def modulated(number: int, x: Tensor) -> Tensor:
            out: Tensor = self.layers[number](x) * self.times[number](te_B1F)
            return out

        x1 = softplus(modulated(0, g))
        x2 = softplus(modulated(1, x1))
        x3 = softplus(modulated(2, x2)) + x2
        x4 = softplus(modulated(3, x3)) + x1
        x5 = modulated(4, x4) + g
        s_B11 = self.gate(te_B1F).sigmoid()
        out: Tensor = s_B11 * g + (1 - s_B11) * x5
        return out


class TaskDenoiser(nn.Module):
    """Sees what the gradient throws away: the weights themselves, the support means and the number of shots.

    It predicts the clean weights as the support mean plus a correction that starts at zero, so before training it is
    nearest-class-mean. Dropout on its input and inside keeps it from learning the few base classes by heart.
    With ``joint`` each row also sees the mean over the rows of its task, so rows are generated together.
    """

    kind: Kind = "x0"

    def __init__(self, feature_size: int, *, hidden: int, dropout: float, joint: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(2 * feature_size, hidden)
        self.middle = nn.Linear(hidden, hidden)
        self.leave = nn.Linear(hidden, feature_size)
        self.modulate = nn.Sequential(nn.Linear(2 * FREQUENCIES + 1, hidden), nn.SiLU(), nn.Linear(hidden, 4 * hidden))
        self.others = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(2)) if joint else None
        self.dropout = dropout

    def forward(self, w_BWD: Tensor, t_B: Tensor, condition: Condition, generator: Generator | None = None) -> Tensor:
        parts, size = (time_features(t_B), 1 / condition.shots_B[:, None]), max(len(t_B), len(condition.shots_B))
        known_B1F = torch.cat([part.expand(size, -1) for part in parts], dim=1)[:, None]
        gain1, shift1, gain2, shift2 = self.modulate(known_B1F).chunk(4, dim=-1)
        x = self.drop(torch.cat([w_BWD, condition.mean_BWD], dim=-1), generator)
        for number, (layer, gain, shift) in enumerate(((self.enter, gain1, shift1), (self.middle, gain2, shift2))):
            x = layer(x)
            if self.others is not None:
                x = x + self.others[number](silu(x).mean(dim=1, keepdim=True))
            x = self.drop(silu(x * (1 + gain) + shift), generator)
        out: Tensor = condition.mean_BWD + self.leave(x)
        return out

    def drop(self, x: Tensor, generator: Generator | None) -> Tensor:
        if generator is None or self.dropout == 0:
            return x
        kept = torch.rand(x.shape, generator=generator) >= self.dropout
        return x * kept.to(x.device) / (1 - self.dropout)


def initialise(net: nn.Module, *, seed: int) -> None:
    """PyTorch's default for linear layers, each from a stream of its own; but what is to start at zero, `BLANK`, does."""
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                if name.endswith(BLANK):
                    nn.init.zeros_(parameter)
                else:
                    nn.init.uniform_(parameter, -bound, bound, generator=torch_stream(seed, "init", name, parameter.ndim))


def time_features(t_B: Tensor) -> Tensor:
    """(B, 320): cosines, then sines, of the time at 160 frequencies from 1 down to 1 / 10000."""
    frequency_F = torch.exp(-math.log(10_000) / FREQUENCIES * torch.arange(FREQUENCIES, device=t_B.device))
    angle_BF = t_B[:, None] * frequency_F
    return torch.cat([angle_BF.cos(), angle_BF.sin()], dim=1)
