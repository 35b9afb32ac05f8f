"""MetaDiff (AAAI 2024): the rows of a classifier by diffusion, conditioned on a task's support set.

A method says its loss on a batch of training tasks and how rows are sampled for a new task. Everything here
is in standardised weights; `metadiff.generator` has the way there and back.
Shapes: B tasks, W ways, S shots, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, normalize

from metadiff import diffusion
from metadiff.conditioning import Batch, Scale
from metadiff.denoiser import Condition, GradientDenoiser, TaskDenoiser, initialise
from metadiff.diffusion import Denoise, Noise, Schedule
from metadiff.methods import Guide, Sampling

if TYPE_CHECKING:
    from metadiff.params import Metatrain

SCHEDULES: dict[str, Callable[[int], Schedule]] = {"linear": diffusion.linear, "cosine": diffusion.cosine}
MODELS = ("task", "regression", "gradient")


class MetaDiff:
    """A denoiser with its schedule: learns to undo noise on the target rows, samples from noise alone."""

    def __init__(self, net: GradientDenoiser | TaskDenoiser, schedule: Schedule) -> None:
        self._net, self.schedule = net, schedule

    @property
    def net(self) -> GradientDenoiser | TaskDenoiser:
        return self._net

    def loss(self, batch: Batch, generator: Generator) -> Tensor:
        """Mean squared error of what the network predicts, at one time a task and with one noise a task."""
        w0 = batch.target_BWD
        t_B = torch.randint(len(self.schedule), (len(w0),), generator=generator).to(w0.device)
        eps = torch.randn(w0.shape, generator=generator).to(w0.device)
        a, s = diffusion.scales(self.schedule, t_B, w0)
        predicted: Tensor = self.net(a * w0 + s * eps, t_B, batch.condition, generator)
        return (predicted - diffusion.target(self.net.kind, w0, eps, a, s)).square().mean()

    def sample(self, condition: Condition, sampling: Sampling, noise: Noise) -> Tensor:
        start = noise(condition.mean_BWD)
        denoise, steps, watch = self.denoise(condition, sampling.guide), sampling.steps, sampling.watch
        if sampling.sampler == "ddim":
            return diffusion.ddim(denoise, start, self.schedule, steps=steps, watch=watch)
        if sampling.sampler == "dpm-solver":
            return diffusion.dpm_solver_2m(denoise, start, self.schedule, steps=steps, watch=watch)
        noisy = noise if sampling.sampler == "ancestral" else None
        return diffusion.ancestral(denoise, start, self.schedule, steps=steps, noise=noisy, watch=watch)

    def denoise(self, condition: Condition, guide: Guide | None = None) -> Denoise:
        """The network as samplers want it: for one time, giving the clean rows."""
        a_T, s_T = self.schedule.a_T.tolist(), self.schedule.s_T.tolist()

        def estimate(w: Tensor, t: int) -> Tensor:
            t_B = torch.full((1,), t, device=w.device)
            x0 = diffusion.to_x0(self.net.kind, self.net(w, t_B, condition), w, a_T[t], s_T[t])
            return guide(x0) if guide else x0

        return estimate


class Regression(MetaDiff):
    """The control: the same network, trained to give the target at once from the support, with no noise and in one step."""

    def loss(self, batch: Batch, generator: Generator) -> Tensor:
        return (self._predict(batch.condition, generator) - batch.target_BWD).square().mean()

    def sample(self, condition: Condition, sampling: Sampling, noise: Noise) -> Tensor:
        x0 = self._predict(condition, None)
        return sampling.guide(x0) if sampling.guide else x0

    def _predict(self, condition: Condition, generator: Generator | None) -> Tensor:
        blank = torch.zeros_like(condition.mean_BWD)
        t_B = torch.full((1,), len(self.schedule) - 1, device=blank.device)
        out: Tensor = self.net(blank, t_B, condition, generator)
        return out


def support_guide(support_BWSD: Tensor, scale: Scale, *, strength: float, temperature: float = 10.0) -> Guide:
    """Push every estimate down the slope of the support set's cross-entropy under the cosine classifier."""
    target_N = torch.arange(support_BWSD.shape[1], device=support_BWSD.device).repeat_interleave(support_BWSD.shape[2])
    unit_BND = normalize(support_BWSD.flatten(1, 2), dim=-1)

    def guide(x0_BWD: Tensor) -> Tensor:
        with torch.enable_grad():
            rows = x0_BWD.detach().requires_grad_()
            logits_BNW = temperature * unit_BND @ normalize(scale.restore(rows), dim=-1).transpose(1, 2)
            loss = cross_entropy(logits_BNW.flatten(0, 1), target_N.repeat(len(rows)), reduction="sum")
            (slope,) = torch.autograd.grad(loss / target_N.numel(), rows)
        return x0_BWD - strength * slope

    return guide


def sampling_of(model: str, sampler: str, steps: int) -> Sampling:
    """The gradient denoiser is sampled as in the reference, by mean steps, whatever the others are."""
    return Sampling("mean-step" if model == "gradient" else sampler, steps)


def network_facts(section: Metatrain, model: str, *, feature_size: int, seed: int) -> dict[str, Any]:
    """All that `build` needs; a checkpoint carries it."""
    chosen = section.model_dump(include={"hidden", "dropout", "joint", "sum_over_shots", "schedule", "times"})
    return chosen | {"model": model, "feature_size": feature_size, "seed": seed}


def build(facts: Mapping[str, Any], *, device: str = "cpu") -> MetaDiff:
    """A method with the weights that its seed gives, from facts that JSON can hold: they are kept beside the trained weights."""
    model, size = facts["model"], facts["feature_size"]
    schedule = SCHEDULES[facts["schedule"]](facts["times"])
    with torch.device("meta"):  # no memory and, above all, no draw from the global generator
        if model == "gradient":
            net: GradientDenoiser | TaskDenoiser = GradientDenoiser(size, sum_over_shots=facts["sum_over_shots"])
        else:
            net = TaskDenoiser(size, hidden=facts["hidden"], dropout=facts["dropout"], joint=facts["joint"])
    net = net.to_empty(device="cpu")
    initialise(net, seed=facts["seed"])
    return (Regression if model == "regression" else MetaDiff)(net.to(device), schedule)
