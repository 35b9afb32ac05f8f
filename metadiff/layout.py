"""What lies where in a flat vector of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A named tensor inside the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def parts_in_order(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Part, ...]:
    """One after the other."""
    parts, offset = [], 0
    for name, shape in shapes.items():
        parts.append(Part(name, shape, offset))
        offset += parts[-1].size
    return tuple(parts)


def tensors_of(theta_TP: Tensor, layout: tuple[Part, ...]) -> list[Tensor]:
    """The parts of the vectors, each in its own shape."""
    return [theta_TP[:, part.offset : part.offset + part.size].reshape(-1, *part.shape) for part in layout]


def parts_of(theta_TP: Tensor, layout: tuple[Part, ...]) -> dict[str, Tensor]:
    """The same by name."""
    return {part.name: value for part, value in zip(layout, tensors_of(theta_TP, layout), strict=True)}
