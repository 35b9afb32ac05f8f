"""A trained generator of whole weights with its scales: what lies on disk, and what makes classifiers for new tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metadiff.baselines.gaussian import Posterior
from metadiff.baselines.start import Start, build_start
from metadiff.channels import ChannelDenoiser
from metadiff.checkpoint import under
from metadiff.consistency import Watch
from metadiff.denoiser import Condition
from metadiff.diffusion import Noise
from metadiff.generator import Kind, posterior_in, trained_tensors, trained_weights
from metadiff.inputs import Inputs
from metadiff.learner import BaseLearner
from metadiff.methods.mcdi import McDi, build_weights
from metadiff.paths import WeightScale, seen_of
from metadiff.pictures import Pictures

WEIGHTS = 600_000  # of all tasks and draws of one tensor program; of perceptrons more at a time are no quicker


@dataclass(frozen=True)
class WeightGenerator:
    method: McDi | Start
    inputs: Inputs
    scale: WeightScale
    start_std: float  # of the Gaussian weights that paths began with
    posterior: Posterior | None = None

    @property
    def learner(self) -> BaseLearner:
        return self.method.learner

    @property
    def turn_slope(self) -> Callable[[Tensor], Tensor] | None:
        """The map of slopes (E, P) that it has learnt, if it is of those that learn one."""
        net = self.method.net
        return net.turned if isinstance(net, ChannelDenoiser) and net.turns is not None else None

    def weights(self, support_EWS: Pictures, noise: Noise, *, watch: Watch | None = None) -> Tensor:
        """(E, P) for tasks with these supports; ``watch`` sees the states of a chain, standardised."""
        return self.scale.restore(self.method.sample(self._told(support_EWS), noise, watch=watch))

    def draws(self, support_EWS: Pictures, noises: Sequence[Noise]) -> Tensor:
        """(G, E, P): weights by each noise; several draws are one tensor program."""
        told, count, found = self._told(support_EWS), max(1, WEIGHTS // (len(support_EWS) * self.learner.size)), []
        for group in (noises[start : start + count] for start in range(0, len(noises), count)):
            drawn = self.scale.restore(self.method.sample(told.repeated(len(group)), partial(each_its_own, group)))
            found.append(drawn.view(len(group), len(support_EWS), -1))
        return torch.cat(found)

    def _told(self, support_EWS: Pictures) -> Condition:
        shown = self.inputs.seen(support_EWS) if self.inputs.of_pixels else None
        return seen_of(self.inputs.of(support_EWS.features), self.posterior, shown)

    def logits(self, theta_EP: Tensor, images_EN: Pictures) -> Tensor:
        return self.learner.logits(theta_EP, self.inputs.seen(images_EN))


def each_its_own(noises: Sequence[Noise], like: Tensor) -> Tensor:
    """Noise for the tasks of as many draws, one draw after the other."""
    return torch.cat([noise(part) for noise, part in zip(noises, like.chunk(len(noises)), strict=True)])


def dump_weights(best: Mapping[str, Mapping[str, Tensor]], made: WeightGenerator) -> dict[str, Tensor]:
    """The tensors of a checkpoint: both kinds of trained weights, and what stands about them."""
    tensors = trained_tensors(best, made.posterior)
    tensors |= {f"scale/{name}": value for name, value in vars(made.scale).items()}
    return tensors | {f"inputs/{name}": value for name, value in made.inputs.tensors().items()}


def undump_weights(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, kind: Kind = "average", device: str = "cpu"
) -> WeightGenerator:
    """The generator with one kind of its weights; refuses those of another network."""
    scale = WeightScale(**under(tensors, "scale", device=device))
    method = build_start(facts, device=device) if facts["model"] == "reptile" else build_weights(facts, scale, device=device)
    method.net.load_state_dict(
        trained_weights(tensors, method.net, kind, f"{facts['model']} of {facts['learner']['kind']} learners")
    )
    inputs = Inputs(**under(tensors, "inputs", device=device))
    return WeightGenerator(method, inputs, scale, facts["start_std"], posterior_in(tensors, device))
