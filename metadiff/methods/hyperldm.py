"""Weights from a sentence (HyperCLIP and HyperLDM, Nava et al. 2023): ways from a sentence to a latent that a network decodes.

`hyperldm` is diffusion of latents that is told a sentence, with classifier-free guidance; `hyperclip` tells which sentence
weights are of, and climbs its own likelihood. Both are of the latents of a trained source (metadiff/hypernet.py and latents.py),
standardised.

Shapes: B tasks, Z numbers of a latent, P weights, D numbers of a sentence's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize, silu

from metadiff import diffusion
from metadiff.denoiser import FREQUENCIES, time_features
from metadiff.described import SentenceBatch
from metadiff.diffusion import Noise, Schedule
from metadiff.errors import NumericError
from metadiff.hypernet import LatentSource, Reader, descend, drop
from metadiff.standard import Standard

MANY = 50  # latents, of whose deviation something can be said
EXPLODED = 3.0  # a deviation of sampled latents, where those of training have 1
SCALE = 10.0  # of cosines in HyperCLIP's loss, to begin with


class LatentDenoiser(nn.Module):
    """Sees a noisy latent, the time and, unless it is withheld, a sentence; two residual blocks."""

    def __init__(self, latent: int, sentence: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.reader = Reader(sentence, hidden=hidden, out=hidden, dropout=dropout)
        self.nothing_H = nn.Parameter(torch.zeros(hidden))
        self.enter, self.time = nn.Linear(latent, hidden), nn.Linear(2 * FREQUENCIES, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.wide = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(2))
        self.leave = nn.Linear(hidden, latent)
        self.dropout = dropout

    def forward(
        self, latent_BZ: Tensor, t_B: Tensor, sentence_BD: Tensor, told_B: Tensor, generator: Generator | None = None
    ) -> Tensor:
        known_BH = torch.where(told_B[:, None], self.reader(sentence_BD, generator), self.nothing_H)
        x_BH = self.enter(latent_BZ) + self.time(time_features(t_B)) + known_BH
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=False):
            x_BH = x_BH + narrow(drop(silu(wide(norm(x_BH) + known_BH)), self.dropout, generator))
        out: Tensor = self.leave(self.norms[2](x_BH))
        return out


class HyperLDM:
    """Diffusion of standardised latents, told a sentence."""

    def __init__(self, source: LatentSource, net: LatentDenoiser, schedule: Schedule, how: Mapping[str, Any]) -> None:
        self.source, self.schedule, self.how, self._net = source, schedule, how, net
        self.scale = Standard.of(source.latent_CZ.detach())

    @property
    def net(self) -> LatentDenoiser:
        return self._net

    def loss(self, batch: SentenceBatch, generator: Generator) -> Tensor:
        batch = batch.with_noise(self.how["text_noise"], generator)
        clean_BZ = self.scale.standardise(self.source.drawn(batch, generator))
        drawn = partial(torch.randn, clean_BZ.shape, generator=generator)
        clean_BZ = clean_BZ + self.how["latent_noise"] * drawn().to(clean_BZ.device)
        eps_BZ = drawn().to(clean_BZ.device)
        t_B = torch.randint(len(self.schedule), (len(clean_BZ),), generator=generator).to(clean_BZ.device)
        told_B = (torch.rand(len(clean_BZ), generator=generator) >= self.how["without_text"]).to(clean_BZ.device)
        a, s = diffusion.scales(self.schedule, t_B, clean_BZ)
        found_BZ = self._predict(a * clean_BZ + s * eps_BZ, t_B, batch.sentence_BD, told_B, generator)
        return (found_BZ - diffusion.target(self.how["predicts"], clean_BZ, eps_BZ, a, s)).square().mean()

    def latents(self, sentence_BD: Tensor, noise: Noise, *, gamma: float = 1.0) -> Tensor:
        """A draw a sentence; NumericError if the sampler exploded, as the published one does."""
        start_BZ = noise(sentence_BD.new_empty(len(sentence_BD), len(self.scale.mean_D)))
        told_B, untold_B = (torch.full((len(sentence_BD),), told, device=sentence_BD.device) for told in (True, False))

        def denoise(w_BZ: Tensor, t: int) -> Tensor:
            t_B = torch.full((len(w_BZ),), t, device=w_BZ.device)
            found = self._predict(w_BZ, t_B, sentence_BD, told_B)
            if gamma != 1:
                found = (1 - gamma) * self._predict(w_BZ, t_B, sentence_BD, untold_B) + gamma * found
            a, s = float(self.schedule.a_T[t]), float(self.schedule.s_T[t])
            estimate = diffusion.to_x0(self.how["predicts"], found, w_BZ, a, s)
            return estimate.clamp(-self.how["clip"], self.how["clip"]) if self.how["clip"] else estimate

        walks: dict[str, Callable[..., Tensor]] = {
            "ddim": diffusion.ddim,
            "dpm-solver": diffusion.dpm_solver_2m,
            "ancestral": partial(diffusion.ancestral, noise=noise),
        }
        found_BZ = walks[self.how["sampler"]](denoise, start_BZ, self.schedule, steps=self.how["sampling_steps"])
        refuse_exploded(found_BZ)
        return self.scale.restore(found_BZ)

    def weights(self, sentence_BD: Tensor, noise: Noise, *, gamma: float = 1.0) -> Tensor:
        return self.source.decode(self.latents(sentence_BD, noise, gamma=gamma))

    def _predict(
        self, w_BZ: Tensor, t_B: Tensor, sentence_BD: Tensor, told_B: Tensor, generator: Generator | None = None
    ) -> Tensor:
        found: Tensor = self._net(w_BZ, t_B, sentence_BD, told_B, generator)
        return found


def refuse_exploded(latent_BZ: Tensor) -> None:
    """Of standardised latents."""
    deviation = float(latent_BZ.std())
    if not latent_BZ.isfinite().all() or (len(latent_BZ) >= MANY and deviation > EXPLODED):
        raise NumericError(
            f"sampled latents have a deviation of {deviation:.3g}, those of training have 1: the sampler has exploded; let "
            "hyperldm.predicts be x0, or set hyperldm.clip to 4"
        )


class WeightEncoder(nn.Module):
    """Weights to the space of sentences."""

    def __init__(self, weights: int, sentence: int, *, hidden: int) -> None:
        super().__init__()
        self.enter, self.middle, self.give = nn.Linear(weights, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, sentence)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, theta_BP: Tensor) -> Tensor:
        out: Tensor = self.give(silu(self.middle(silu(self.enter(theta_BP)))))
        return out


class HyperCLIP:
    """Contrastive: weights of a batch's concepts and their sentences find each other; its scale is learnt.

    A sentence's latent is where the cosine of its weights to the sentence is highest, not too far from the mean of latents.
    """

    def __init__(self, source: LatentSource, net: WeightEncoder, how: Mapping[str, Any]) -> None:
        self.source, self.how, self._net = source, how, net
        with torch.no_grad():
            latent_CZ = source.latent_CZ
            self.scale, self.of_weights = Standard.of(latent_CZ), Standard.of(source.decode(latent_CZ))

    @property
    def net(self) -> WeightEncoder:
        return self._net

    def loss(self, batch: SentenceBatch, generator: Generator) -> Tensor:
        batch = batch.with_noise(self.how["text_noise"], generator)
        latent_BZ = self.source.latent_CZ.detach()[batch.concept_B]
        noise_BZ = torch.randn(latent_BZ.shape, generator=generator).to(latent_BZ.device)
        latent_BZ = latent_BZ + self.how["encoder_noise"] * noise_BZ * self.scale.deviation_D
        found_BD, told_BD = normalize(self._seen(self.source.decode(latent_BZ)), dim=-1), normalize(batch.sentence_BD, dim=-1)
        logits_BB = SCALE * self._net.log_scale.exp() * found_BD @ told_BD.T
        same_BB = batch.concept_B[:, None] == batch.concept_B  # what a concept's other sentences say is no mistake
        logits_BB = logits_BB.masked_fill(same_BB & ~torch.eye(len(same_BB), dtype=torch.bool, device=same_BB.device), -1e4)
        own_B = torch.arange(len(logits_BB), device=logits_BB.device)
        return cross_entropy(logits_BB, own_B) + cross_entropy(logits_BB.T, own_B)

    def latents(self, sentence_BD: Tensor, noise: Noise, *, pull: float = 0.1) -> Tensor:
        """By Adam from the mean of latents, each sentence its own."""

        def loss_of(offset_BZ: Tensor) -> Tensor:
            likeness_B = cosine_similarity(self._seen(self.source.decode(self.scale.restore(offset_BZ))), sentence_BD)
            return -likeness_B + pull / 2 * offset_BZ.square().mean(1)

        start_BZ = torch.zeros(len(sentence_BD), len(self.scale.mean_D), device=sentence_BD.device)
        return self.scale.restore(descend(start_BZ, loss_of, lr=self.how["guide_lr"], steps=self.how["guide_steps"]))

    def weights(self, sentence_BD: Tensor, noise: Noise, *, pull: float = 0.1) -> Tensor:
        return self.source.decode(self.latents(sentence_BD, noise, pull=pull))

    def _seen(self, theta_BP: Tensor) -> Tensor:
        found: Tensor = self._net(self.of_weights.standardise(theta_BP))
        return found
