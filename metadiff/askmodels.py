"""A sentence made into weights: the trained models of a run, and the vectors of the sentences that it knows.

Shapes: G draws, N images, D numbers of a sentence's vector, P weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metadiff.asking import draw_noise
from metadiff.candidates import OfWeights
from metadiff.errors import DataError, NumericError, ParamsError
from metadiff.methods.hyperldm import HyperLDM
from metadiff.pictures import Pictures
from metadiff.text import Encoder, encoder_of
from metadiff.textmodels import Checkpoints, TextGenerators, undump_text
from metadiff.vectors import Vectors

MODEL = "hyperldm"
GAMMA, DRAWS = 1.5, 8
MOST_GAMMA, MOST_DRAWS = 100.0, 1000
NEAR = 3  # sentences that are offered in place of one that is not known


@dataclass(frozen=True)
class AskModels:
    """Checkpoints by model, of which hyperldm is one; of known sentences the vectors, and in ``about`` what made them."""

    checkpoints: Checkpoints
    known: Vectors

    @cached_property
    def made(self) -> TextGenerators:
        found = undump_text(self.checkpoints)
        assert found is not None, "whoever reads a run refuses one without models"
        return found

    @property
    def candidate(self) -> OfWeights:
        return OfWeights(_made_already, self._logits)

    @torch.no_grad()
    def weights(self, sentence: str, *, gamma: float, draws: int, seed: int, encoder: str | None = None) -> Tensor:
        """(G, 1, P): noise is a function of the seed and the draw alone, the same as in `evaluate`."""
        method = self.made.methods[MODEL]
        assert isinstance(method, HyperLDM)
        if not 0 <= gamma <= MOST_GAMMA:
            raise ParamsError(f"gamma: must be from 0 to {MOST_GAMMA:g}, got {gamma:g}")
        if not 1 <= draws <= MOST_DRAWS:
            raise ParamsError(f"draws: must be from 1 to {MOST_DRAWS}, got {draws}")
        told_1D = self.made.sentences.standardise(self.vector(sentence, encoder)[None])
        noises = [draw_noise(seed, draw) for draw in range(draws)]
        theta_G1P = torch.stack([method.weights(told_1D, noise, gamma=gamma) for noise in noises])
        if not bool(theta_G1P.isfinite().all()):
            raise NumericError(f"gamma {gamma:g}: generated weights are not finite; lower it")
        return theta_G1P

    def vector(self, sentence: str, encoder: str | None = None) -> Tensor:
        """(D,): as the run has it, or else by the encoder that made its vectors; ``encoder`` says where that one lies."""
        if not sentence:
            raise DataError("the sentence is empty")
        row = self.known.row_of.get(sentence)
        if row is not None:
            return torch.from_numpy(self.known.vectors_ND[row])
        (vector_D,) = self._encoder(sentence, encoder).encode([sentence])
        return torch.from_numpy(np.asarray(vector_D, np.float32))

    def _encoder(self, sentence: str, named: str | None) -> Encoder:
        maker = maker_of(self.known.about)
        try:
            found = encoder_of(named or str(maker.get("encoder")))
        except ParamsError as error:
            near = ", ".join(map(repr, nearest(sentence, self.known.names)))
            raise ParamsError(f"{sentence!r}: the run has no vector of it; {error}; or ask one that it has: {near}") from None
        if found.about.get("sha256") != maker.get("sha256"):
            raise DataError(
                f"text encoder {found.name}: another one than made the run's sentences, {maker.get('encoder')} of sha256 "
                f"{str(maker.get('sha256'))[:12]}; that has {str(found.about.get('sha256'))[:12]}"
            )
        return found

    def _logits(self, theta_EP: Tensor, images_EN: Pictures) -> Tensor:
        return self.made.learner.logits(theta_EP, self.made.inputs.seen(images_EN))


def maker_of(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What encoded the sentences in the first place, however often they were copied since."""
    while about.get("encoder") == "cached" and "made_by" in about:
        about = about["made_by"]
    return about


def nearest(sentence: str, known: tuple[str, ...], count: int = NEAR) -> list[str]:
    """Those that share most of their words with it; of equals the shorter, then the first by name."""
    asked = _words(sentence)

    def distance(other: str) -> tuple[float, int, str]:
        words = _words(other)
        return -len(asked & words) / max(1, len(asked | words)), len(other), other

    return sorted(known, key=distance)[:count]


def _words(sentence: str) -> set[str]:
    return set(re.findall(r"\w+", sentence.casefold()))


def _made_already(_support: Pictures, _batch: int) -> Tensor:
    raise AssertionError("the weights are made of a sentence alone")
