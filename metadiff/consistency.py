"""Local consistency diffusion (Mc-Di): a chain of T steps from noise, over the kept weights of an optimiser's path, to their end.

    x_t = sqrt(abar^i_t) theta_i + sqrt(1 - abar^i_t) eps,   abar^i_t = alpha_t alpha_(t+1) ... alpha_(b_i - 1),   0 <= t < b_i

Time runs in the direction of generation: noise at t = 0, the path's i-th kept weights theta_i at its boundary t = b_i, their end
theta_k at t = b_k = T. Without i stands i = k. A network gives f(x_t, t), and the chain walks by the mean step, without noise,

    x_(t+1) = (x_t - (1 - alpha_t) / sqrt(1 - abar_t) f) / sqrt(alpha_t),

which lands on theta_i if sqrt(1 - abar^i_t) f = sqrt(1 - abar_t) eps: that is what the loss asks for. Tables are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from metadiff import diffusion

Rule = Literal["vanilla", "naive", "local"]
Window = Literal["overlap", "disjoint"]
SCHEDULES = ("gentle", "cosine", "linear")
NOISE_LEFT = 1e-3  # abar of a first segment that starts from noise is at most this
Watch = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Chain:
    """`vanilla` knows the end alone; `naive` has all kept weights as targets of the whole chain; `local` is Mc-Di.

    A `local` target i is trained on all t before its boundary (`overlap`, as in the paper) or on its own segment (`disjoint`).
    """

    alpha_T: Tensor
    bounds: tuple[int, ...]
    rule: Rule
    window: Window

    def __post_init__(self) -> None:
        assert self.bounds[-1] == len(self.alpha_T)
        assert all(first < second for first, second in zip((0, *self.bounds), self.bounds, strict=False))

    def __len__(self) -> int:
        return len(self.alpha_T)

    @cached_property
    def abar_KT(self) -> Tensor:
        """By target i and time t; 1 from the target's boundary on."""
        shares = [torch.cat([self.alpha_T[:bound], torch.ones(len(self) - bound, dtype=torch.float64)]) for bound in self.bounds]
        return torch.stack([share.flip(0).cumprod(0).flip(0) for share in shares])

    @property
    def starts(self) -> tuple[int, ...]:
        """The first time of each target's window."""
        return (0, *self.bounds[:-1]) if self.rule == "local" and self.window == "disjoint" else (0,) * len(self.bounds)

    def draw(self, number: int, generator: torch.Generator, *, target_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(target i, time t) of as many samples: any target, unless they are given, and any time of its window."""
        if target_B is None:
            first = len(self.bounds) - 1 if self.rule == "vanilla" else 0
            target_B = torch.randint(first, len(self.bounds), (number,), generator=generator)
        last = (len(self),) * len(self.bounds) if self.rule == "naive" else self.bounds
        first_B, last_B = torch.tensor(self.starts)[target_B], torch.tensor(last)[target_B]
        share_B = torch.rand(number, generator=generator, dtype=torch.float64)
        return target_B, first_B + (share_B * (last_B - first_B)).long()

    def level(self, target_B: Tensor, t_B: Tensor) -> Tensor:
        """abar^i_t of each sample; `naive` noises every target by the whole chain."""
        chosen_B = torch.full_like(target_B, len(self.bounds) - 1) if self.rule == "naive" else target_B
        return self.abar_KT[chosen_B, t_B]

    def factors(self, target_B: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """What multiplies f and eps in the loss: sqrt(1 - abar^i_t) and sqrt(1 - abar_t)."""
        return (1 - self.level(target_B, t_B)).sqrt(), (1 - self.abar_KT[-1, t_B]).sqrt()

    def own(self, t: int | Tensor) -> Tensor:
        """The target that a time leads to first: the next boundary's, for `local`, else the end's."""
        if self.rule != "local":
            return torch.full_like(torch.as_tensor(t), len(self.bounds) - 1)
        return torch.bucketize(torch.as_tensor(t), torch.tensor(self.bounds), right=True)

    def f_of(self, estimate: Tensor, x: Tensor, t_B: Tensor) -> Tensor:
        """f from an estimate of the weights that a time leads to, for a network that gives those."""
        abar_B = self.level(self.own(t_B), t_B)
        scale_B = (1 - self.abar_KT[-1, t_B]).sqrt() / (1 - abar_B)
        return _per_sample(scale_B, x) * (x - _per_sample(abar_B.sqrt(), x) * estimate)


def chain(schedule: str, *, times: int, segments: int, rule: Rule, window: Window) -> Chain:
    """The boundaries of equal segments, rounded to whole times; ValueError if the first segment would not start from noise."""
    bounds = tuple(round(times * (number + 1) / segments) for number in range(segments))
    found = Chain(alphas(schedule, times, first=bounds[0]), bounds, rule, window)
    left = float(found.level(found.own(0), torch.tensor(0)))
    if left > NOISE_LEFT:
        raise ValueError(
            f"schedule {schedule} with {times} times and {segments} segments does not start from noise: {left:.2g} of the "
            f"variance of what it leads to is there at the start, at most {NOISE_LEFT:g} may be; gentle does for any"
        )
    return found


def alphas(schedule: str, times: int, *, first: int) -> Tensor:
    """By time, in the direction of generation.

    `gentle` has as much noise in the first segment as it needs (0.37 a step for 7 steps), so that with a few long segments no
    step amplifies the denoiser's errors much, by 1 / sqrt(alpha); `cosine` and `linear` are those of diffusion models, the
    latter with betas as they are.
    """
    if schedule == "gentle":
        noisy = first if first < times else max(1, round(times / 3))
        rest = torch.linspace(0.5, 0.995, times - noisy, dtype=torch.float64) if times > noisy else torch.ones(0).double()
        return torch.cat([torch.full((noisy,), 9.5e-4 ** (1 / noisy), dtype=torch.float64), rest])
    if schedule == "cosine":
        abar_T = diffusion.cosine(times).abar_T
        return (abar_T / torch.cat([torch.ones(1, dtype=torch.float64), abar_T[:-1]])).flip(0)
    if schedule == "linear":
        return 1 - torch.linspace(0.02, 1e-4, times, dtype=torch.float64)
    raise ValueError(f"schedule {schedule}; there are {', '.join(SCHEDULES)}")


def add_noise(chain: Chain, theta: Tensor, eps: Tensor, target_B: Tensor, t_B: Tensor) -> Tensor:
    abar_B = chain.level(target_B, t_B)
    return _per_sample(abar_B.sqrt(), theta) * theta + _per_sample((1 - abar_B).sqrt(), theta) * eps


def squared_errors(chain: Chain, f: Tensor, eps: Tensor, target_B: Tensor, t_B: Tensor) -> Tensor:
    """The square of sqrt(1 - abar^i_t) f - sqrt(1 - abar_t) eps, element by element; of `naive` both factors are the latter."""
    of_f, of_eps = chain.factors(target_B, t_B)
    return (_per_sample(of_f, f) * f - _per_sample(of_eps, eps) * eps).square()


def ddim(estimate: Callable[[Tensor, int], Tensor], x: Tensor, chain: Chain, *, watch: Watch | None = None) -> Tensor:
    """From noise to the end by what each time leads to, with as much noise left in the first segment as there was in training.

    The mean step leaves less and less, so a network that has to choose between equally good ends sees too little of what it
    could choose by. A further segment begins on the weights that the one before has led to either way, where training had noise.
    """
    own_T, level_KT = chain.own(torch.arange(len(chain))).tolist(), chain.abar_KT.tolist()  # numbers: one task is walked fast
    for t, own in enumerate(own_T):
        if watch:
            watch(t, x)
        now, then = level_KT[own][t], level_KT[own][t + 1] if t + 1 < chain.bounds[own] else 1.0
        found = estimate(x, t)
        x = then**0.5 * found + ((1 - then) / (1 - now)) ** 0.5 * (x - now**0.5 * found)
    if watch:
        watch(len(chain), x)
    return x


def mean_steps(f_of: Callable[[Tensor, int], Tensor], x: Tensor, chain: Chain, *, watch: Watch | None = None) -> Tensor:
    """From noise to the end; ``watch(t, x)`` sees every state, the start and the end among them."""
    level_T = chain.abar_KT[-1].tolist()
    for t, alpha in enumerate(chain.alpha_T.tolist()):
        if watch:
            watch(t, x)
        x = (x - (1 - alpha) / (1 - level_T[t]) ** 0.5 * f_of(x, t)) / alpha**0.5
    if watch:
        watch(len(chain), x)
    return x


def _per_sample(value_B: Tensor, like: Tensor) -> Tensor:
    return value_B.to(like.device, like.dtype).view(-1, *(1,) * (like.ndim - 1))
