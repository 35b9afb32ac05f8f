"""Which classes are for training, validation and testing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from metadiff.errors import DataError
from metadiff.rng import numpy_stream
from metadiff.rows import SPLITS


def split_classes(
    labels: Collection[str], *, shares: tuple[float, float, float], seed: int, nested: Mapping[tuple[str, str], int]
) -> dict[str, str]:
    """A seeded shuffle cut by the shares; then classes are exchanged while that leaves less of one split drawn in another."""
    ordered = sorted(labels)
    sizes = split_sizes(len(ordered), shares)
    order = numpy_stream(seed, "split_classes").permutation(len(ordered))
    shuffled = [ordered[i] for i in order]
    split_N = np.repeat(np.arange(len(SPLITS)), sizes)
    weights_NN = _weights(shuffled, nested)
    if weights_NN.any():
        split_N = _exchange(split_N, weights_NN)
    return dict(sorted((label, SPLITS[number]) for label, number in zip(shuffled, split_N.tolist(), strict=True)))


def split_sizes(num_classes: int, shares: tuple[float, float, float]) -> tuple[int, ...]:
    """By the largest remainder; of equal remainders the earlier split gets the class."""
    exact = [share / sum(shares) * num_classes for share in shares]
    sizes = [int(amount + 1e-9) for amount in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda k: (-round(exact[k] - sizes[k], 9), k))
    for k in by_remainder[: num_classes - sum(sizes)]:
        sizes[k] += 1
    for name, size in zip(SPLITS, sizes, strict=True):
        if size < 1:
            got = ", ".join(f"{split} {count}" for split, count in zip(SPLITS, sizes, strict=True))
            raise DataError(
                f"prepare.split {list(shares)} of {num_classes} classes gives {got}; {name} needs at least 1: "
                "add classes, lower prepare.min_images, or change the shares"
            )
    return tuple(sizes)


def crossing(nested: Mapping[tuple[str, str], int], split: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """The pairs (outer class, class inside it, how often) whose two sides are in different splits, most frequent first."""
    found = [(outer, inner, count) for (outer, inner), count in nested.items() if split[outer] != split[inner]]
    return sorted(found, key=lambda pair: (-pair[2], pair))


def _weights(labels: list[str], nested: Mapping[tuple[str, str], int]) -> NDArray[np.int64]:
    place = {label: i for i, label in enumerate(labels)}
    size = len(labels) if nested else 0
    weights_NN = np.zeros((size, size), dtype=np.int64)
    for (outer, inner), count in nested.items():
        weights_NN[place[outer], place[inner]] += count
        weights_NN[place[inner], place[outer]] += count
    return weights_NN


def _exchange(split_N: NDArray[np.int64], weights_NN: NDArray[np.int64]) -> NDArray[np.int64]:
    """The best exchange of two classes again and again, until none helps, with sizes unchanged (Kernighan and Lin 1970)."""
    split_N = split_N.copy()
    rows = np.arange(len(split_N))
    while True:
        near_NS = weights_NN @ np.eye(len(SPLITS), dtype=np.int64)[split_N]  # overlap of each class with each split
        move_NN = near_NS[:, split_N] - near_NS[rows, split_N][:, None]
        gain_NN = move_NN + move_NN.T - 2 * weights_NN
        gain_NN[split_N[:, None] == split_N] = 0
        i, j = divmod(int(gain_NN.argmax()), len(rows))
        if gain_NN[i, j] <= 0:
            return split_N
        split_N[i], split_N[j] = split_N[j], split_N[i]
