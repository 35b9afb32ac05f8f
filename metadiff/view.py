"""From where features are looked at, and in which units.

Shapes: D features, E directions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class View:
    """A centre and a linear map, or none: then features are taken as they are."""

    mean_D: Tensor | None = None
    basis_DE: Tensor | None = None

    def of(self, features: Tensor) -> Tensor:
        """(..., E) of features (..., D)."""
        seen = features if self.mean_D is None else features - self.mean_D
        return seen if self.basis_DE is None else seen @ self.basis_DE

    def back(self, seen: Tensor) -> Tensor:
        """(..., D) of (..., E): the features that are seen so. The map must have an inverse."""
        features = seen if self.basis_DE is None else seen @ self._inverse_ED
        return features if self.mean_D is None else features + self.mean_D

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @cached_property
    def _inverse_ED(self) -> Tensor:
        assert self.basis_DE is not None
        found: Tensor = torch.linalg.inv(self.basis_DE.double()).to(self.basis_DE.dtype)
        return found


FROM_ORIGIN = View()


def whitener(covariance_DD: Tensor, *, least: float = 0.0) -> Tensor:
    """(D, D), symmetric (ZCA): maps what varies so to what varies by 1 in all directions.

    A direction with less than ``least`` of the largest variance is taken to have that.
    """
    variance_D, turn_DD = torch.linalg.eigh(covariance_DD)
    found: Tensor = (turn_DD * variance_D.clamp_min(least * variance_D[-1]).rsqrt()) @ turn_DD.T
    return found
