"""Classifiers on fixed episodes: accuracy, likelihood and calibration, each with what was chosen on validation.

Shapes: G draws, E episodes, W ways, S shots, Q queries of an episode, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from metadiff.episodes import Episodes
from metadiff.errors import NumericError
from metadiff.pictures import Pictures
from metadiff.view import FROM_ORIGIN, View

BATCH = 250  # episodes at a time
BINS = 15  # of the calibration error
TYPICAL = 10.0  # temperature with which draws are averaged before one is chosen
TEMPERATURES: tuple[float, ...] = tuple(2.0 ** (step / 4) for step in range(37))  # 1 to 512
COARSE = 4  # steps of temperatures at first, then those around the best

RowsOf = Callable[[Tensor, int], Tensor]  # support (E, W, S, D) and the number of the batch -> class rows (G, E, W, D)
WeightsOf = Callable[[Pictures, int], Tensor]  # pictures (E, W, S) and that number -> weights (G, E, P) of a base learner
LogitsOf = Callable[[Tensor, Pictures], Tensor]  # weights (E, P) and pictures (E, N) -> logits (E, N, W)
Images = TypeVar("Images", Tensor, Pictures)


@torch.no_grad()
def class_rows(rows_of: RowsOf, features_ND: Tensor, episodes: Episodes) -> Tensor:
    """(G, E, W, D): the rows of each episode's classifier, from its support alone."""
    rows_GEWD = torch.cat([*_by_batch(rows_of, features_ND, episodes)], dim=1)
    if not bool(rows_GEWD.norm(dim=-1).isfinite().all()):
        raise NumericError("generated rows are not finite: the sampler diverged; take more sampling steps or lower metatrain.lr")
    return rows_GEWD


@torch.no_grad()
def learner_weights(weights_of: WeightsOf, pictures: Pictures, episodes: Episodes) -> Iterator[Tensor]:
    """(G, E, P) of each batch: the weights of each episode's base learner, from its support alone."""
    for theta_GEP in _by_batch(weights_of, pictures, episodes):
        if not bool(theta_GEP.norm(dim=-1).isfinite().all()):
            raise NumericError("generated weights are not finite: the sampler diverged; train their generator with a lower lr")
        yield theta_GEP


@torch.no_grad()
def learner_scores(theta: Iterable[Tensor], logits_of: LogitsOf, pictures: Pictures, episodes: Episodes) -> Tensor:
    """(G, E, Q, W) on the CPU: of each query the logits in such a unit that the typical temperature gives them back.

    ``theta`` are the weights (G, E, P) of one batch after the other: those of whole networks need no memory together.
    """
    parts = []
    for batch, theta_GEP in enumerate(theta):
        query_EWQ = torch.from_numpy(episodes.query_EWQ[batch * BATCH :][:BATCH]).long().to(pictures.device)
        query_EN = pictures[query_EWQ.flatten(1)]
        parts.append(torch.stack([logits_of(theta_EP, query_EN) for theta_EP in theta_GEP]).cpu() / TYPICAL)
    return torch.cat(parts, dim=1)


def _by_batch(of_support: Callable[[Images, int], Tensor], images: Images, episodes: Episodes) -> Iterator[Tensor]:
    """What is made of the supports of one batch after the other."""
    for batch, start in enumerate(range(0, len(episodes.support_EWS), BATCH)):
        support_EWS = torch.from_numpy(episodes.support_EWS[start : start + BATCH]).long().to(images.device)
        yield of_support(images[support_EWS], batch)


@torch.no_grad()
def cosines(rows_GEWD: Tensor, features_ND: Tensor, episodes: Episodes, *, view: View = FROM_ORIGIN) -> Tensor:
    """(G, E, Q, W) on the CPU: the cosine between each query and each class row, as a view has them."""
    rows_GEWD, features_ND = (normalize(view.of(features), dim=-1) for features in (rows_GEWD, features_ND))
    parts = []
    for start in range(0, len(episodes.query_EWQ), BATCH):
        queries = torch.from_numpy(episodes.query_EWQ[start : start + BATCH]).long().to(features_ND.device)
        parts.append((features_ND[queries.flatten(1)] @ rows_GEWD[:, start : start + BATCH].transpose(-1, -2)).cpu())
    return torch.cat(parts, dim=1)


def accuracy(rows_of: RowsOf, features_ND: Tensor, episodes: Episodes, *, view: View = FROM_ORIGIN) -> float:
    """Per cent of all queries that a classifier with one draw gets right."""
    cosines_EQW = cosines(class_rows(rows_of, features_ND, episodes), features_ND, episodes, view=view)[0]
    right = int(correct_counts(cosines_EQW, targets(episodes)).sum())
    return 100 * right / (len(cosines_EQW) * len(targets(episodes)))


def log_probabilities(scores_GEQW: Tensor, temperature: float) -> Tensor:
    """(E, Q, W): the logarithm of the class probabilities averaged over draws."""
    log_GEQW = (temperature * scores_GEQW.double()).log_softmax(-1)
    return log_GEQW.logsumexp(0) - math.log(len(log_GEQW))


def targets(episodes: Episodes) -> Tensor:
    """(Q,): which way each query of an episode belongs to; the same for all."""
    way, query = episodes.query_EWQ.shape[1:]
    return torch.arange(way).repeat_interleave(query)


def correct_counts(log_EQW: Tensor, target_Q: Tensor) -> NDArray[np.int64]:
    """For each episode the number of query images whose class gets the highest score."""
    return np.asarray((log_EQW.argmax(-1) == target_Q).sum(1))


def negative_log_likelihood(log_EQW: Tensor, target_Q: Tensor) -> NDArray[np.float64]:
    """For each episode the mean over its queries, in nats."""
    return np.asarray(-log_EQW[:, torch.arange(len(target_Q)), target_Q].mean(1))


def best_temperature(scores_GEQW: Tensor, target_Q: Tensor) -> float:
    """The factor on the scores with the best likelihood; to be chosen on validation episodes.

    The likelihood has one peak, so few temperatures show where it is. Only the class of each query is looked at.
    """
    at_target_GEQ = scores_GEQW[..., torch.arange(len(target_Q)), target_Q]

    def loss(temperature: float) -> float:
        log_GEQ = temperature * at_target_GEQ - (temperature * scores_GEQW).logsumexp(-1)
        return -float(log_GEQ.logsumexp(0).mean(dtype=torch.float64))

    best = min(range(0, len(TEMPERATURES), COARSE), key=lambda step: loss(TEMPERATURES[step]))
    return min(TEMPERATURES[max(0, best - COARSE + 1) : best + COARSE], key=loss)


@dataclass(frozen=True)
class Calibration:
    """How often the predictions of each bin of confidence are right: bins of equal width over (0, 1]."""

    count_B: NDArray[np.int64]
    confidence_B: NDArray[np.float64]  # sums
    correct_B: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over predictions of |confidence - accuracy| of their bin."""
        return float(np.abs(self.confidence_B - self.correct_B).sum()) / float(self.count_B.sum())


def calibration(log_EQW: Tensor, target_Q: Tensor) -> Calibration:
    confidence, predicted = log_EQW.exp().max(-1)
    right = (predicted == target_Q).numpy().ravel()
    confidences: NDArray[np.float64] = confidence.numpy().ravel()
    bins = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    count_B, correct_B = np.bincount(bins, minlength=BINS), np.bincount(bins[right], minlength=BINS)
    confidence_B = np.bincount(bins, weights=confidences, minlength=BINS).astype(np.float64)
    return Calibration(count_B, confidence_B, correct_B)


def mean_and_ci95(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean over episodes and the half width of its 95 % interval, 1.96 standard errors (sample standard deviation)."""
    if len(values) < 2:
        raise ValueError("an interval needs at least two episodes")
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
