"""Rows of numbers as networks like them: each number with mean 0 and deviation 1 over some rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LEAST = 1e-6  # a deviation


@dataclass(frozen=True)
class Standard:
    mean_D: Tensor
    deviation_D: Tensor

    @classmethod
    def of(cls, rows_ND: Tensor, *, least: float = LEAST) -> Standard:
        return cls(rows_ND.mean(0), rows_ND.std(0, correction=0).clamp_min(least))

    def standardise(self, rows: Tensor) -> Tensor:
        return (rows - self.mean_D) / self.deviation_D

    def restore(self, rows: Tensor) -> Tensor:
        return rows * self.deviation_D + self.mean_D
