"""Strokes to pixels, with the same bytes on every machine.

Curves become points by additions and multiplications alone, points become whole pixels of a finer grid, and from there on all is
integers: a round brush is stamped at each point and the grid is averaged down. No drawing library takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Curve = tuple[tuple[float, float], ...]  # 4 control points of a cubic, or the 2 ends of a line

FINER = 8  # pixels of the grid along one pixel of the image
STEPS = 128  # points along a curve; a power of two, so that the steps are exact


@cache
def _weights() -> NDArray[np.float64]:
    """(4, STEPS + 1): the Bernstein polynomials of degree three."""
    t = np.arange(STEPS + 1) * (1.0 / STEPS)
    s = 1.0 - t
    return np.stack([s * s * s, 3.0 * s * s * t, 3.0 * s * t * t, t * t * t])


def points_along(curves: Sequence[Curve]) -> NDArray[np.float64]:
    """(P, 2): points along all the curves. No matrix product: its order of additions is up to the library."""
    w = _weights()
    lines = [(curve[0], curve[0], curve[1], curve[1]) if len(curve) == 2 else curve for curve in curves]
    p_C42 = np.asarray(lines, dtype=np.float64)
    total = w[0][:, None] * p_C42[:, 0, None]
    for k in range(1, 4):
        total = total + w[k][:, None] * p_C42[:, k, None]
    return np.asarray(total.reshape(-1, 2))


def boxed(points_P2: NDArray[np.float64]) -> tuple[float, float, float]:
    """x, y and side of the square around the points that has them in its middle."""
    low, high = points_P2.min(axis=0), points_P2.max(axis=0)
    side = float((high - low).max())
    x, y = 0.5 * (low + high - side)
    return float(x), float(y), side


def paint(
    points_P2: NDArray[np.float64], *, box: tuple[float, float, float], image_size: int, margin: float, width: float
) -> NDArray[np.uint8]:
    """(image_size, image_size), ink 255: the square ``box`` of the plane, in a margin; margin, width are shares of the side."""
    fine = image_size * FINER
    radius = int(width * fine * 0.5 + 0.5)
    x, y, side = box
    scale = (1.0 - margin - margin) * fine / side
    at_P2 = np.floor((points_P2 - (x, y)) * scale + margin * fine).astype(np.int64).clip(0, fine - 1)
    wide = fine + radius + radius  # room for a brush at the edge
    starts = np.unique(at_P2[:, 1] * wide + at_P2[:, 0])
    grid = np.zeros(wide * wide, dtype=np.uint8)
    grid[starts[:, None] + _brush(radius, wide)] = 1
    inside = grid.reshape(wide, wide)[radius : radius + fine, radius : radius + fine]
    inked: NDArray[np.int64] = inside.reshape(image_size, FINER, image_size, FINER).sum(axis=(1, 3), dtype=np.int64)
    return ((inked * 255 + FINER * FINER // 2) // (FINER * FINER)).astype(np.uint8)


@cache
def _brush(radius: int, wide: int) -> NDArray[np.int64]:
    """Where a disc of 2 radius + 1 pixels across lies in a flat grid, seen from the corner of its square."""
    d = np.arange(-radius, radius + 1)
    rows, columns = np.nonzero(d[:, None] * d[:, None] + d * d <= radius * radius + radius)
    return np.asarray(rows * wide + columns)
