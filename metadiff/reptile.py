"""Reptile: copies take a few steps on tasks of their own, and the common weights follow where the copies went.

The slope that an outer optimiser gets is (phi - mean of the copies' weights), so with plain SGD of rate zeta it makes the
published step, phi <- phi + zeta (mean - phi). An adaptive optimiser gets it divided by the length of the inner road, rate times
steps, which makes it the slope of the loss where one inner step is taken. All copies are one tensor program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.func import functional_call, grad_and_value, vmap

from metadiff.denoiser import Condition
from metadiff.methods.mcdi import McDi, Samples
from metadiff.paths import PathBatch

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Reptile:
    """K inner steps on a task each; every inner step draws times and noise anew, a copy keeps its target."""

    inner: str  # sgd | adam
    lr: float
    steps: int
    literal: bool  # the outer optimiser gets the published difference, else a slope

    def slope(self, method: McDi, batch: PathBatch, generator: Generator) -> Tensor:
        if self.steps == 1 and self.inner == "sgd":  # the mean of the copies' steps is the step of their mean loss
            loss = method.loss(batch, generator)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.literal:
                for parameter in method.net.parameters():
                    assert parameter.grad is not None
                    parameter.grad *= self.lr
            return loss.detach()
        start = {name: value.detach() for name, value in method.net.named_parameters()}
        copies = {name: value.expand(len(batch.path_BKP), *value.shape).clone() for name, value in start.items()}
        step, first = self._inner(copies), None
        target_B = method.chain.draw(len(batch.path_BKP), generator)[0]
        for _ in range(self.steps):
            slopes, losses_B = self._slopes(method, copies, method.samples(batch, generator, target_B=target_B))
            first = losses_B.mean() if first is None else first
            step(slopes)
        scale = 1.0 if self.literal else 1 / (self.lr * self.steps)
        for name, parameter in method.net.named_parameters():
            parameter.grad = scale * (start[name] - copies[name].mean(0))
        assert first is not None
        return first

    def _slopes(self, method: McDi, copies: Params, samples: Samples) -> tuple[Params, Tensor]:
        told, shots_B = samples.condition, samples.condition.shots_B

        def of_copy(weights: Params, *parts: Tensor) -> Tensor:
            theta, end, eps, target, t, mean, *shown = (part[None] for part in parts)

            def net(theta_BP: Tensor, share_B: Tensor, condition: Condition) -> Tensor:
                out: Tensor = functional_call(method.net, weights, (theta_BP, share_B, condition))
                return out

            return method.errors(Samples(theta, end, eps, target, t, Condition(mean, shots_B, *shown)), net)[0]

        parts = [samples.theta_BP, samples.end_BP, samples.eps_BP, samples.target_B, samples.t_B, told.mean_BWD]
        shown = [] if told.support_BWSE is None else [told.support_BWSE]
        slopes, losses_B = vmap(grad_and_value(of_copy))(copies, *parts, *shown)
        return slopes, losses_B

    def _inner(self, copies: Params) -> Callable[[Params], None]:
        """An optimiser that works element by element, so that one over the stacked copies is one of its own for each."""
        values = [*copies.values()]
        made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[self.inner](values, lr=self.lr)

        def step(slopes: Params) -> None:
            for name, value in copies.items():
                value.grad = slopes[name]
            made.step()

        return step
