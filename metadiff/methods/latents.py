"""Sources of latents as in the published code of HyperLDM, which know of no sentence: `maml` and `hvae`.

Both have the latents of concepts only when they are trained: a table that their checkpoint keeps. Shapes: B tasks, C concepts,
Z numbers of a latent, P weights, N images of a task (the first half wrong, the second right), E inputs of the base learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot

from metadiff.described import QuestionBatch, answers
from metadiff.hypernet import Decoder, LatentSource, Reader, decoder_of
from metadiff.learner import Perceptron
from metadiff.rng import torch_stream
from metadiff.standard import Standard

TABLE, SCALE = "latents/table_CZ", "weights"  # in a checkpoint


class LatentStart(nn.Module):
    """The latent that every task begins with."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent_Z = nn.Parameter(torch.zeros(latent))

    def begin(self, seed: int) -> None:
        with torch.no_grad():
            nn.init.normal_(self.latent_Z, generator=torch_stream(seed, "init", "start latent"))


class MAMLNet(nn.Module):
    def __init__(self, decoder: Decoder, start: LatentStart) -> None:
        super().__init__()
        self.decoder, self.start = decoder, start


class MAML(LatentSource):
    """The published HNet: a decoder, and a latent from which a few steps of SGD on some images of a task lead to its own.

    Learnt by MAML of first order: a task's steps change its latent alone; then the decoder and the common start follow the loss
    on other images of the task, as if the way between the two latents did not depend on them.
    """

    def __init__(self, learner: Perceptron, net: MAMLNet, table_CZ: Tensor | None, *, rate: float, steps: int) -> None:
        self.learner, self.rate, self.steps = learner, rate, steps
        self._net, self._table_CZ = net, table_CZ

    @property
    def net(self) -> MAMLNet:
        return self._net

    @property
    def latent_CZ(self) -> Tensor:
        return _trained(self._table_CZ)

    def decode(self, latent: Tensor) -> Tensor:
        theta: Tensor = self._net.decoder(latent)
        return theta

    def loss(self, batch: QuestionBatch, generator: Generator) -> Tensor:
        inner, outer = parted(batch)
        start_Z = self._net.start.latent_Z
        way_BZ = self.adapted(inner.inputs_BNE) - start_Z.detach()
        return outer.loss(self.learner, self.decode(start_Z + way_BZ))

    def adapted(self, inputs_BNE: Tensor) -> Tensor:
        """(B, Z): where the steps lead, each task's on its own images; without a slope."""
        latent_BZ = self._net.start.latent_Z.detach().expand(len(inputs_BNE), -1)
        hot_NW = one_hot(answers(inputs_BNE.shape[1] // 2), 2).to(inputs_BNE)
        for _ in range(self.steps):
            latent_BZ = latent_BZ - self.rate * self._slope(latent_BZ, inputs_BNE, hot_NW)
        return latent_BZ

    def _slope(self, latent_BZ: Tensor, inputs_BNE: Tensor, hot_NW: Tensor) -> Tensor:
        """Of each task's mean cross-entropy by its latent."""
        with torch.enable_grad():
            latent_BZ = latent_BZ.detach().requires_grad_()
            theta_BP = self.decode(latent_BZ)
        slope_BP = self.learner.slope(theta_BP.detach(), self.learner.inputs(inputs_BNE), hot_NW)
        (slope_BZ,) = torch.autograd.grad(theta_BP, [latent_BZ], slope_BP)
        return slope_BZ


class HVAENet(nn.Module):
    def __init__(self, encoder: Reader, decoder: Reader) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


class HVAE(LatentSource):
    """A variational auto-encoder of standardised weights: (squared error + kl * divergence from N(0, I)) / P."""

    def __init__(self, learner: Perceptron, net: HVAENet, table_CZ: Tensor | None, scale: Standard, *, kl: float) -> None:
        self.learner, self.scale, self.kl = learner, scale, kl
        self._net, self._table_CZ = net, table_CZ

    @property
    def net(self) -> HVAENet:
        return self._net

    @property
    def latent_CZ(self) -> Tensor:
        return _trained(self._table_CZ)

    def decode(self, latent: Tensor) -> Tensor:
        theta: Tensor = self.scale.restore(self._net.decoder(latent))
        return theta

    def encode(self, theta_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, Z) of the latent of weights."""
        mean_BZ, log_variance_BZ = self._net.encoder(self.scale.standardise(theta_BP)).chunk(2, dim=-1)
        return mean_BZ, log_variance_BZ

    def loss(self, theta_BP: Tensor, generator: Generator) -> Tensor:
        mean_BZ, log_variance_BZ = self.encode(theta_BP)
        noise_BZ = torch.randn(mean_BZ.shape, generator=generator).to(mean_BZ)
        found_BP = self._net.decoder(mean_BZ + noise_BZ * (0.5 * log_variance_BZ).exp())
        error_B = (found_BP - self.scale.standardise(theta_BP)).square().sum(1)
        loss: Tensor = (error_B + self.kl * divergence(mean_BZ, log_variance_BZ)).mean() / theta_BP.shape[1]
        return loss


def source_net(facts: Mapping[str, Any], learner: Perceptron) -> nn.Module:
    """Of `maml` or `hvae`."""
    latent, hidden = facts["latent"], facts["hidden"]
    if facts["model"] == "maml":
        return MAMLNet(decoder_of(facts, learner), LatentStart(latent))
    layers = partial(Reader, hidden=hidden, dropout=0.0)
    return HVAENet(layers(learner.size, out=2 * latent), layers(latent, out=learner.size))


def source_of(facts: Mapping[str, Any], learner: Perceptron, net: Any, known: Mapping[str, Tensor]) -> MAML | HVAE:  # noqa: ANN401 - one a model
    """``known``: the scale of weights of `hvae` and, of what is trained, the latents of concepts."""
    if facts["model"] == "maml":
        return MAML(learner, net, known.get(TABLE), rate=facts["inner_lr"], steps=facts["inner_steps"])
    scale = Standard(**{name: known[f"{SCALE}/{name}"] for name in ("mean_D", "deviation_D")})
    return HVAE(learner, net, known.get(TABLE), scale, kl=facts["kl"])


def divergence(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """(B,): of Kullback and Leibler, of a Gaussian from N(0, I)."""
    return 0.5 * (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ).sum(1)


def _trained(table_CZ: Tensor | None) -> Tensor:
    assert table_CZ is not None, "latents of concepts are there when their source is trained"
    return table_CZ


def parted(batch: QuestionBatch) -> tuple[QuestionBatch, QuestionBatch]:
    """Every second image of those that are wrong and of those that are right, and the others."""
    count, images = batch.inputs_BNE.shape[:2]
    inputs_BWSE = batch.inputs_BNE.view(count, 2, images // 2, -1)
    inner, outer = (replace(batch, inputs_BNE=inputs_BWSE[:, :, first::2].flatten(1, 2)) for first in (0, 1))
    return inner, outer
