"""Accuracy on fixed episodes, with its interval."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.episodes import Episodes

Classifier = Callable[[Tensor, Tensor], Tensor]  # support (E, W, S, D), query (E, Q, D) -> scores (E, Q, W)
BATCH = 250  # episodes at a time


@torch.no_grad()
def correct_counts(classifier: Classifier, features_ND: Tensor, episodes: Episodes) -> NDArray[np.int64]:
    """For each episode the number of query images whose class gets the highest score."""
    way, query = episodes.query_EWQ.shape[1:]
    target_Q = torch.arange(way, device=features_ND.device).repeat_interleave(query)
    counts = []
    for start in range(0, len(episodes.query_EWQ), BATCH):
        support = torch.from_numpy(episodes.support_EWS[start : start + BATCH]).long().to(features_ND.device)
        queries = torch.from_numpy(episodes.query_EWQ[start : start + BATCH]).long().to(features_ND.device)
        scores_EQW = classifier(features_ND[support], features_ND[queries.flatten(1)])
        counts.append((scores_EQW.argmax(-1) == target_Q).sum(1).cpu())
    return torch.cat(counts).numpy()


def mean_and_ci95(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean over episodes and the half width of its 95 % interval, 1.96 standard errors (sample standard deviation)."""
    if len(values) < 2:
        raise ValueError("an interval needs at least two episodes")
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
