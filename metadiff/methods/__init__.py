"""One file a method of generating class rows; what training and evaluation need of any of them stands here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor, nn

from metadiff.conditioning import Batch
from metadiff.denoiser import Condition
from metadiff.diffusion import Noise, Watch

SAMPLERS = ("ddim", "dpm-solver", "ancestral", "mean-step")
Guide = Callable[[Tensor], Tensor]  # an estimate of the clean rows -> a better one


class Method(Protocol):
    """What training and evaluation need of a method."""

    @property
    def net(self) -> nn.Module: ...

    def loss(self, batch: Batch, generator: Generator) -> Tensor: ...

    def sample(self, condition: Condition, sampling: Sampling, noise: Noise) -> Tensor: ...


@dataclass(frozen=True)
class Sampling:
    """How rows are drawn: the sampler (one of SAMPLERS), its number of steps, and what may steer it or look on."""

    sampler: str
    steps: int
    guide: Guide | None = None
    watch: Watch | None = None
