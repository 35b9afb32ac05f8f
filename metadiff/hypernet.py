"""What weights from sentences are made of: a decoder of latents, a reader of sentences, and `hnet`, which learns both.

A latent is a short vector that stands for a task; other sources of latents are in metadiff/methods/latents.py. A generator given
to `forward` is what dropout draws from; without one nothing is dropped. Shapes: B tasks, Z numbers of a latent, P weights, H
hidden units, O outputs of the base learner, D numbers of a sentence's vector, C concepts (what sentences may ask for).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import silu

from metadiff.adapter import Adapter, Generated
from metadiff.denoiser import initialise
from metadiff.described import SentenceBatch
from metadiff.diffusion import Noise
from metadiff.layout import parts_of
from metadiff.rng import torch_stream
from metadiff.standard import Standard

SHORT = 1e-3  # how much long latents cost: none would be too long for the decoder
TOLD = 0.5  # share of latents to learn from that are what a sentence tells
STEP = 5.0  # of a free latent against that of a weight of a network, at the same rate


class LatentSource(ABC):
    """A model that has a latent for every concept of training, and decodes any latent to weights."""

    @property
    @abstractmethod
    def net(self) -> nn.Module: ...

    @property
    @abstractmethod
    def latent_CZ(self) -> Tensor:
        """Of all concepts of training."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """(B, Z) to weights (B, P)."""

    @torch.no_grad()
    def drawn(self, batch: SentenceBatch, generator: Generator) -> Tensor:
        """(B, Z), for others to learn from."""
        return self.latent_CZ[batch.concept_B]

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device


class ModulatedDecoder(nn.Module):
    """Latent to weights: those of a network that all tasks share; a linear map of the latent scales and shifts what enters its
    hidden units, scales what leaves them, and shifts its outputs.
    """

    def __init__(self, learner: Generated, *, latent: int) -> None:
        super().__init__()
        (outputs,) = next(part.shape for part in learner.layout() if part.name == "leave.bias")
        self.sizes = [learner.hidden, learner.hidden, learner.hidden, outputs]
        self.give = nn.Linear(latent, sum(self.sizes))
        self.start_P = nn.Parameter(torch.zeros(learner.size))
        self.learner = learner

    def forward(self, latent_BZ: Tensor) -> Tensor:
        gain_BH, shift_BH, weigh_BH, last_BO = self.give(latent_BZ).split(self.sizes, dim=-1)
        shared = parts_of(self.start_P[None], self.learner.layout())
        given = {
            "enter.weight": shared["enter.weight"] * (1 + gain_BH[:, :, None]),
            "enter.bias": shared["enter.bias"] * (1 + gain_BH) + shift_BH,
            "leave.weight": shared["leave.weight"] * (1 + weigh_BH.unsqueeze(self.learner.outputs_axis)),
            "leave.bias": shared["leave.bias"] + last_BO,
        }
        return torch.cat([given[part.name].flatten(1) for part in self.learner.layout()], dim=1)

    def begin(self, seed: int) -> None:
        with torch.no_grad():
            self.start_P.copy_(unit_of(self.learner) * start_of(self.learner, seed))


class FreeDecoder(nn.Module):
    """Latent to weights: those of a start, and what a network of three layers adds, each in units of its fan in."""

    def __init__(self, learner: Generated, *, latent: int, hidden: int) -> None:
        super().__init__()
        self.enter, self.middle, self.give = (
            nn.Linear(a, b) for a, b in ((latent, hidden), (hidden, hidden), (hidden, learner.size))
        )
        self.start_P = nn.Parameter(torch.zeros(learner.size))
        self.unit_P: Tensor
        self.register_buffer("unit_P", torch.zeros(learner.size), persistent=False)  # follows from the learner
        self.learner = learner

    def forward(self, latent_BZ: Tensor) -> Tensor:
        x = silu(self.middle(silu(self.enter(latent_BZ))))
        out: Tensor = (self.start_P + self.give(x)) * self.unit_P
        return out

    def begin(self, seed: int) -> None:
        with torch.no_grad():
            self.start_P.copy_(start_of(self.learner, seed))
            self.unit_P.copy_(unit_of(self.learner))


Decoder = ModulatedDecoder | FreeDecoder


def decoder_of(how: Mapping[str, Any], learner: Generated) -> Decoder:
    """By the facts of a checkpoint; those of a time that knew one decoder alone say nothing of it."""
    if how.get("decoder", "free") == "modulated":
        return ModulatedDecoder(learner, latent=how["latent"])
    return FreeDecoder(learner, latent=how["latent"], hidden=how["hidden"])


def start_of(learner: Generated, seed: int) -> Tensor:
    """(P,): standard Gaussian; what an adapter starts with adds nothing."""
    start_P = torch.randn(learner.size, generator=torch_stream(seed, "init", "start"))
    for part in learner.layout():
        if isinstance(learner, Adapter) and part.name in learner.adds:
            start_P[part.offset :][: part.size] = 0
    return start_P


def unit_of(learner: Generated) -> Tensor:
    """(P,): of a weight one over the root of its fan in, of a bias 1."""
    fans = {"enter.weight": learner.dim, "leave.weight": learner.hidden}
    return torch.cat([torch.full((part.size,), fans.get(part.name, 1) ** -0.5) for part in learner.layout()])


class Reader(nn.Module):
    """A sentence's vector to whatever of this size; what it has learnt of few sentences is kept general by dropout."""

    def __init__(self, size: int, *, hidden: int, out: int, dropout: float) -> None:
        super().__init__()
        self.enter, self.middle, self.give = (nn.Linear(a, b) for a, b in ((size, hidden), (hidden, hidden), (hidden, out)))
        self.dropout = dropout

    def forward(self, sentence_BD: Tensor, generator: Generator | None = None) -> Tensor:
        x = drop(silu(self.enter(sentence_BD)), self.dropout, generator)
        out: Tensor = self.give(drop(silu(self.middle(x)), self.dropout, generator))
        return out


class Latents(nn.Module):
    """A free latent a concept; in units in which a step of the optimiser is as long as it should be."""

    def __init__(self, concepts: int, latent: int) -> None:
        super().__init__()
        self.table_CZ = nn.Parameter(torch.zeros(concepts, latent))

    def forward(self, concept_B: Tensor) -> Tensor:
        return STEP * self.table_CZ[concept_B]

    def begin(self, seed: int) -> None:
        with torch.no_grad():
            nn.init.normal_(self.table_CZ, std=0.1 / STEP, generator=torch_stream(seed, "init", "latents"))


def drop(x: Tensor, share: float, generator: Generator | None) -> Tensor:
    if generator is None or share == 0:
        return x
    kept = torch.rand(x.shape, generator=generator) >= share
    return x * kept.to(x.device) / (1 - share)


def begin(net: nn.Module, *, seed: int) -> None:
    """Every weight from a stream of its own; what is no weight of a layer begins at zero, unless it says otherwise."""
    initialise(net, seed=seed)
    for module in net.modules():
        own = getattr(module, "begin", None)
        if own is not None:
            own(seed)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif not isinstance(module, nn.Linear):
            for parameter in module.parameters(recurse=False):
                nn.init.zeros_(parameter)


def descend(start_BZ: Tensor, loss_of: Callable[[Tensor], Tensor], *, lr: float, steps: int) -> Tensor:
    """Latents by Adam from these, each by its own loss, of which there are B."""
    latent_BZ = start_BZ.clone().requires_grad_()
    optimizer = torch.optim.Adam([latent_BZ], lr=lr)
    for _ in range(steps):
        with torch.enable_grad():
            (latent_BZ.grad,) = torch.autograd.grad(loss_of(latent_BZ).sum(), [latent_BZ])
        optimizer.step()
    return latent_BZ.detach()


def fitted(
    source: LatentSource, start_BZ: Tensor, loss_of: Callable[[Tensor], Tensor], *, pull: float, lr: float, steps: int
) -> Tensor:
    """Latents whose weights (B, P) have a low loss (B,), and which are not far from where they started, in deviations of all."""
    deviation_Z = Standard.of(source.latent_CZ.detach()).deviation_D

    def loss(latent_BZ: Tensor) -> Tensor:
        away_BZ = (latent_BZ - start_BZ) / deviation_Z
        return loss_of(source.decode(latent_BZ)) + pull / 2 * away_BZ.square().mean(1)

    return descend(start_BZ, loss, lr=lr, steps=steps)


class HNetNet(nn.Module):
    def __init__(self, decoder: Decoder, latents: Latents, reader: Reader) -> None:
        super().__init__()
        self.decoder, self.latents, self.reader = decoder, latents, reader


class HNet(LatentSource):
    """An auto-decoder: every concept's free latent decodes to weights that answer it, and so does what its sentences tell of it.

    The two are drawn to each other, so that latents are such as sentences can tell; without that (`match` 0 and no reader) it is
    a plain auto-decoder, from whose latents nothing new is generalised as well (docs/deviations.md).
    """

    def __init__(self, learner: Generated, net: HNetNet, *, match: float, latent_noise: float, text_noise: float) -> None:
        self.learner, self.match, self.latent_noise, self.text_noise = learner, match, latent_noise, text_noise
        self._net = net

    @property
    def net(self) -> HNetNet:
        return self._net

    def loss(self, batch: SentenceBatch, generator: Generator) -> Tensor:
        told_BZ = self._net.reader(batch.with_noise(self.text_noise, generator).sentence_BD, generator)
        free_BZ = self._net.latents(batch.concept_B)
        noise_BZ = self.latent_noise * torch.randn(free_BZ.shape, generator=generator).to(free_BZ.device)
        weights = (self._net.decoder(latent_BZ) for latent_BZ in (free_BZ + noise_BZ, told_BZ))
        losses = torch.stack([batch.loss(self.learner, theta_BP) for theta_BP in weights])
        apart = (free_BZ - told_BZ.detach()).square().sum(1).mean()
        loss: Tensor = losses.sum() + self.match * apart + SHORT * told_BZ.square().sum(1).mean()
        return loss

    def latent_of(self, sentence_BD: Tensor) -> Tensor:
        """What a sentence tells of a latent."""
        told: Tensor = self._net.reader(sentence_BD)
        return told

    def decode(self, latent: Tensor) -> Tensor:
        theta: Tensor = self._net.decoder(latent)
        return theta

    @torch.no_grad()
    def drawn(self, batch: SentenceBatch, generator: Generator) -> Tensor:
        """Free ones and, where a sentence has one right answer, as often what it tells: its noise makes ever other ones."""
        told_B = (torch.rand(len(batch.concept_B), generator=generator) < TOLD).to(batch.plain_B.device) & batch.plain_B
        return torch.where(told_B[:, None], self.latent_of(batch.sentence_BD), super().drawn(batch, generator))

    @property
    def latent_CZ(self) -> Tensor:
        found: Tensor = self._net.latents(torch.arange(len(self._net.latents.table_CZ), device=self.device))
        return found

    def weights(self, sentence_BD: Tensor, noise: Noise) -> Tensor:
        return self.decode(self.latent_of(sentence_BD))
