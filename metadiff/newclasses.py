"""New classes as a user gives them, as the tasks that `evaluate` knows: any labels, and as many images of each as there are.

Shapes: G draws, W classes, N images, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.episodes import Episodes
from metadiff.errors import DataError
from metadiff.evaluation import RowsOf, class_rows


def one_task(class_N: NDArray[np.int64]) -> Episodes:
    """All classes in one task; refuses those with different numbers of images."""
    counts = np.unique(np.bincount(class_N))
    if len(counts) > 1:
        raise DataError(
            f"classes have from {counts[0]} to {counts[-1]} images; this method makes the classifier of all classes together and "
            "needs equally many: leave some out, or choose another method"
        )
    return _task_of(np.arange(class_N.max() + 1), class_N)


def rows_by_count(rows_of: RowsOf, features_ND: Tensor, class_N: NDArray[np.int64]) -> Tensor:
    """(G, 1, W, D): classes with equally many images together, each such group with the noise of a batch of its own."""
    counts_W = np.bincount(class_N)
    parts, order = [], []
    for number, count in enumerate(np.unique(counts_W)):
        ways = np.flatnonzero(counts_W == count)
        parts.append(class_rows(with_noise_of(rows_of, number), features_ND, _task_of(ways, class_N)))
        order.append(ways)
    return torch.cat(parts, dim=2)[:, :, np.argsort(np.concatenate(order))]


def with_noise_of(rows_of: RowsOf, batch: int) -> RowsOf:
    return lambda support_EWSD, _batch: rows_of(support_EWSD, batch)


def queries(count: int) -> Episodes:
    """One task with images to classify and no others, whose classifier is made."""
    every_11N = np.arange(count, dtype=np.int32)[None, None]
    return Episodes(every_11N[0], every_11N, every_11N)


def _task_of(ways: NDArray[np.int64], class_N: NDArray[np.int64]) -> Episodes:
    """Of classes with equally many images."""
    support_1WS = np.stack([np.flatnonzero(class_N == way) for way in ways])[None].astype(np.int32)
    return Episodes(ways[None].astype(np.int32), support_1WS, support_1WS)
