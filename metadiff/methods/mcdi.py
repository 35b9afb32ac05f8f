"""Mc-Di: whole weights by local consistency diffusion over the paths that optimisers take (`metadiff.consistency`).

`vanilla` (Mv-Di) knows the ends of paths alone, `naive` (Tw-Di) takes all kept weights as if they were ends, `local` is Mc-Di;
`ocd` is `vanilla` for the difference to fixed base weights, as the others may be; `weights-regression` is the control:
the same network gives the end in one step, from the support alone. Everything here is in standardised weights, and
`metadiff.weightgenerator` has the way back.
Shapes: B tasks, P weights, K segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from metadiff.channels import ChannelDenoiser
from metadiff.consistency import Chain, Rule, Watch, add_noise, chain, ddim, mean_steps, squared_errors
from metadiff.denoiser import Condition, initialise
from metadiff.diffusion import Noise
from metadiff.layout import tensors_of
from metadiff.learner import BaseLearner, build_learner
from metadiff.network import Network
from metadiff.paths import PathBatch, WeightScale
from metadiff.units import UnitDenoiser

if TYPE_CHECKING:
    from metadiff.params import McDi as Section

WEIGHT_MODELS = ("local", "vanilla", "naive", "ocd", "weights-regression", "reptile")
RULES: dict[str, Rule] = {"local": "local", "naive": "naive"}  # of all others vanilla
Net = Callable[[Tensor, Tensor, Condition], Tensor]
WeightDenoiser = UnitDenoiser | ChannelDenoiser


@dataclass(frozen=True)
class Samples:
    """Noisy weights to learn from: a target and a time of each task, and the noise."""

    theta_BP: Tensor
    end_BP: Tensor
    eps_BP: Tensor
    target_B: Tensor
    t_B: Tensor
    condition: Condition


class McDi:
    """A network that gives the weights that a time of the chain leads to; it sees and gives them as distances from a base."""

    def __init__(
        self, learner: BaseLearner, net: WeightDenoiser, steps: Chain, base_P: Tensor, *, sampler: str, weighted: bool
    ) -> None:
        """``weighted``: with the paper's loss; else with that of the estimate itself, at every time the same."""
        self.learner, self.chain, self.base_P, self.sampler, self.weighted = learner, steps, base_P, sampler, weighted
        self._net = net

    @property
    def net(self) -> WeightDenoiser:
        return self._net

    def samples(self, batch: PathBatch, generator: Generator, *, target_B: Tensor | None = None) -> Samples:
        target_B, t_B = self.chain.draw(len(batch.path_BKP), generator, target_B=target_B)
        end_BP = batch.path_BKP[torch.arange(len(target_B)), target_B]
        eps_BP = torch.randn(end_BP.shape, generator=generator, dtype=end_BP.dtype).to(end_BP.device)
        theta_BP = add_noise(self.chain, end_BP, eps_BP, target_B, t_B)
        return Samples(theta_BP, end_BP, eps_BP, target_B, t_B, batch.condition)

    def errors(self, samples: Samples, net: Net | None = None) -> Tensor:
        """(B,): every part of the weights counts the same, however many numbers it has."""
        if not self.weighted:
            estimate_BP = self.estimate(samples.theta_BP, samples.t_B, samples.condition, net)
            return self.over_parts((estimate_BP - samples.end_BP).square())
        f_BP = self.f(samples.theta_BP, samples.t_B, samples.condition, net)
        errors_BP = squared_errors(self.chain, f_BP, samples.eps_BP, samples.target_B, samples.t_B)
        return self.over_parts(errors_BP)

    def loss(self, batch: PathBatch, generator: Generator) -> Tensor:
        return self.errors(self.samples(batch, generator)).mean()

    def f(self, theta_BP: Tensor, t_B: Tensor, condition: Condition, net: Net | None = None) -> Tensor:
        return self.chain.f_of(self.estimate(theta_BP, t_B, condition, net), theta_BP, t_B)

    def estimate(self, theta_BP: Tensor, t_B: Tensor, condition: Condition, net: Net | None = None) -> Tensor:
        """Of the weights that each time leads to."""
        share_B = t_B.to(theta_BP) / len(self.chain)
        found: Tensor = (net or self._net)(theta_BP + self.base_P, share_B, condition)
        return found - self.base_P

    def sample(self, condition: Condition, noise: Noise, *, watch: Watch | None = None) -> Tensor:
        start_BP = noise(condition.mean_BWD.new_empty(len(condition.mean_BWD), self.learner.size))
        base_BP = self.base_P.expand_as(start_BP)
        frame: Any = self._net.frame(condition, start_BP, base_BP)
        base_BC: Tensor = frame.enter(base_BP, 1)

        told: Any = self._net.told(torch.arange(len(self.chain)).to(start_BP) / len(self.chain), condition)

        def estimate(c_BC: Tensor, t: int) -> Tensor:
            found: Tensor = self._net.within(frame, c_BC + base_BC, told[t])
            return found - base_BC

        def f(c_BC: Tensor, t: int) -> Tensor:
            return self.chain.f_of(estimate(c_BC, t), c_BC, torch.tensor([t]))

        seen = (lambda t, c_BC: watch(t, frame.leave(c_BC))) if watch else None
        c_BC = frame.enter(start_BP)
        end_BC = (
            ddim(estimate, c_BC, self.chain, watch=seen)
            if self.sampler == "ddim"
            else mean_steps(f, c_BC, self.chain, watch=seen)
        )
        found: Tensor = frame.leave(end_BC)
        return found

    def over_parts(self, values_BP: Tensor) -> Tensor:
        parts = [part.flatten(1).mean(1) for part in tensors_of(values_BP, self.learner.layout())]
        return torch.stack(parts).mean(0)


class WeightRegression(McDi):
    """The control: the end of the path at once, from the support alone."""

    def loss(self, batch: PathBatch, generator: Generator) -> Tensor:
        end_BP = batch.path_BKP[:, -1]
        return self.over_parts((self._estimate(batch.condition, end_BP) - end_BP).square()).mean()

    def sample(self, condition: Condition, noise: Noise, *, watch: Watch | None = None) -> Tensor:
        return self._estimate(condition, condition.mean_BWD.new_empty(len(condition.mean_BWD), self.learner.size))

    def _estimate(self, condition: Condition, like_BP: Tensor) -> Tensor:
        blank_BP = self.base_P.expand_as(like_BP) if self.base_P.any() else self._net.blank(like_BP)
        out: Tensor = self._net(blank_BP, torch.zeros(1, device=like_BP.device), condition)
        return out - self.base_P


def weight_facts(section: Section, model: str, *, learner: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """All that `build_weights` needs; a checkpoint carries it."""
    names = {"hidden", "layers", "turned", "segments", "window", "schedule", "times", "sampler", "weighted"}
    chosen = section.model_dump(include=names)
    return chosen | {"model": model, "learner": dict(learner), "seed": seed}


def chain_of(facts: Mapping[str, Any]) -> Chain:
    """ValueError if it would not begin with noise."""
    shape = {name: facts[name] for name in ("times", "segments", "window")}
    return chain(facts["schedule"], rule=RULES.get(facts["model"], "vanilla"), **shape)


def build_weights(facts: Mapping[str, Any], scale: WeightScale, *, device: str = "cpu") -> McDi:
    """A method with the weights that its seed gives, from facts that JSON can hold."""
    learner, model, steps = build_learner(facts["learner"]), facts["model"], chain_of(facts)
    sizes = {"hidden": facts["hidden"], "layers": facts["layers"]}
    turned = facts.get("turned", False)  # of which those of an older time say nothing
    net: WeightDenoiser
    with torch.device("meta"):  # no memory and, above all, no draw from the global generator
        net = ChannelDenoiser(learner, turned=turned, **sizes) if isinstance(learner, Network) else UnitDenoiser(learner, **sizes)
    net = net.to_empty(device="cpu")
    initialise(net, seed=facts["seed"])
    if isinstance(net, ChannelDenoiser):
        net.weigh(scale.deviation_P, scale.base_P)
    return (WeightRegression if model == "weights-regression" else McDi)(
        learner, net.to(device), steps, scale.base_P, sampler=facts["sampler"], weighted=facts["weighted"]
    )
