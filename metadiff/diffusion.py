"""Gaussian diffusion as small pure functions: schedules, exact conversions between what a network may predict, samplers.

    w_t = a_t w_0 + s_t eps,   a_t = sqrt(abar_t),   s_t = sqrt(1 - abar_t),   t = 0 .. T-1

Tables are float64. A sampler takes ``denoise(w_t, t) -> estimate of w_0``, so it knows nothing of networks, tasks or what the
network predicts; it walks ``steps`` of the T times, evenly spaced from the last, and ends on the clean weights. Noise comes from
``noise(like)``, which the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["eps", "x0", "v"]  # what a network predicts
Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[Tensor], Tensor]
Watch = Callable[[Tensor, Tensor], None]  # the weights before a step and the estimate of the clean ones there


@dataclass(frozen=True)
class Schedule:
    abar_T: Tensor  # float64, falling from almost 1 to almost 0

    @property
    def a_T(self) -> Tensor:
        return self.abar_T.sqrt()

    @property
    def s_T(self) -> Tensor:
        return (1 - self.abar_T).sqrt()

    def __len__(self) -> int:
        return len(self.abar_T)


def given(betas_T: Tensor) -> Schedule:
    """Any schedule by its betas, the share of noise added at each time."""
    betas_T = betas_T.to(torch.float64)
    if betas_T.ndim != 1 or not bool(((betas_T > 0) & (betas_T < 1)).all()):
        raise ValueError("a schedule is one beta a time, each between 0 and 1")
    return Schedule((1 - betas_T).cumprod(0))


def linear(steps: int, *, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """DDPM's schedule, defined for 1000 times; with others the betas grow so that as much noise is added in all."""
    grow = 1000 / steps
    if last * grow >= 1:
        raise ValueError(f"a linear schedule needs more than {math.floor(1000 * last)} times, not {steps}")
    return given(torch.linspace(first * grow, last * grow, steps, dtype=torch.float64))


def cosine(steps: int, *, offset: float = 0.008, cap: float = 0.999) -> Schedule:
    """Nichol and Dhariwal's schedule."""
    level = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset) * math.pi / 2) ** 2
    return given((1 - level[1:] / level[:-1]).clamp_max(cap))


def add_noise(schedule: Schedule, w0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """The weights of each task at its time t; leading axis B is that of the tasks."""
    a, s = scales(schedule, t_B, w0)
    return a * w0 + s * eps


def scales(schedule: Schedule, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """a_t and s_t of each task, shaped to multiply ``like``."""
    shape = (-1, *(1,) * (like.ndim - 1))
    a_B, s_B = schedule.a_T.to(like.device)[t_B], schedule.s_T.to(like.device)[t_B]
    return a_B.to(like.dtype).view(shape), s_B.to(like.dtype).view(shape)


def target(kind: Kind, w0: Tensor, eps: Tensor, a: Tensor | float, s: Tensor | float) -> Tensor:
    """What a network of this kind has to predict."""
    return {"eps": eps, "x0": w0, "v": a * eps - s * w0}[kind]


def to_x0(kind: Kind, predicted: Tensor, w_t: Tensor, a: Tensor | float, s: Tensor | float) -> Tensor:
    if kind == "x0":
        return predicted
    return (w_t - s * predicted) / a if kind == "eps" else a * w_t - s * predicted


def to_eps(x0: Tensor, w_t: Tensor, a: Tensor | float, s: Tensor | float) -> Tensor:
    return (w_t - a * x0) / s


def to_v(x0: Tensor, w_t: Tensor, a: Tensor | float, s: Tensor | float) -> Tensor:
    return (a * w_t - x0) / s


def times(schedule: Schedule, steps: int) -> list[int]:
    """``steps`` times, evenly spaced, from the last down."""
    total = len(schedule)
    if not 1 <= steps <= total:
        raise ValueError(f"sampling steps must be 1 to {total}, the number of times, not {steps}")
    return [round(total * (steps - i) / steps) - 1 for i in range(steps)]


def walk(schedule: Schedule, steps: int) -> Iterator[tuple[int, float, float, float, float]]:
    """(t, a, s, a next, s next) of each step; next to the last stand the clean weights, a = 1 and s = 0."""
    points = [(t, float(schedule.a_T[t]), float(schedule.s_T[t])) for t in times(schedule, steps)]
    for (t, a, s), (_, a_next, s_next) in pairwise([*points, (-1, 1.0, 0.0)]):
        yield t, a, s, a_next, s_next


def ancestral(
    denoise: Denoise, w: Tensor, schedule: Schedule, *, steps: int, noise: Noise | None, watch: Watch | None = None
) -> Tensor:
    """DDPM (Ho et al. 2020, algorithm 2) with sigma_t = sqrt(beta_t); without ``noise`` the mean step of MetaDiff's code.

    w' = (w - beta_t / s_t eps) / sqrt(alpha_t) + sqrt(beta_t) z, where alpha_t = abar_t / abar_next; no z in the last step.
    """
    for t, a, s, a_next, s_next in walk(schedule, steps):
        x0 = denoise(w, t)
        if watch:
            watch(w, x0)
        root_alpha = a / a_next
        beta = 1 - root_alpha**2
        w = (w - beta / s * to_eps(x0, w, a, s)) / root_alpha
        if noise and s_next > 0:
            w = w + math.sqrt(beta) * noise(w)
    return w


def ddim(denoise: Denoise, w: Tensor, schedule: Schedule, *, steps: int, watch: Watch | None = None) -> Tensor:
    """DDIM with eta = 0 (Song et al. 2021, equation 12)."""
    for t, a, s, a_next, s_next in walk(schedule, steps):
        x0 = denoise(w, t)
        if watch:
            watch(w, x0)
        w = a_next * x0 + s_next * to_eps(x0, w, a, s)
    return w


def dpm_solver_2m(denoise: Denoise, w: Tensor, schedule: Schedule, *, steps: int, watch: Watch | None = None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2); the first step and the last, to no noise at all, are of first order."""
    before: tuple[Tensor, float] | None = None  # the last estimate and the last step in the logarithm of a / s
    for t, a, s, a_next, s_next in walk(schedule, steps):
        x0 = denoise(w, t)
        if watch:
            watch(w, x0)
        if s_next == 0:
            return x0
        h = math.log(a_next / s_next) - math.log(a / s)
        share = h / before[1] / 2 if before else 0.0
        blend = (1 + share) * x0 - share * before[0] if before else x0
        w = s_next / s * w - a_next * math.expm1(-h) * blend
        before = x0, h
    return w


def gaussian_noise(generator: torch.Generator) -> Noise:
    """Noise from a stream on the CPU: the same numbers whatever device they are moved to."""

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

    return draw
