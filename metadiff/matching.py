"""The cheapest pairing of two sets of equally many things, for many pairs of sets at once; and the cheapest of many pairings.

Shapes: B matrices, H rows and as many columns, J of them and one more; A things, N candidates of each, K of them wanted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LIKELY = 8  # candidates whose cost is found at first, beside as many as are wanted


def smallest(bound_AN: Tensor, cost_of: Callable[[Tensor, Tensor], Tensor], count: int = 1) -> tuple[Tensor, Tensor]:
    """(A, K): the ``count`` least costs, the least first, and whose they are.

    Exact, though ``cost_of``, given the numbers of things and of their candidates, finds a cost only where its lower bound leaves
    open whether it is among the least. An infinite bound excludes a candidate.
    """
    cost_AN, finite_AN = torch.full_like(bound_AN, torch.inf), bound_AN.isfinite()
    likely_AK = bound_AN.topk(min(count + LIKELY, bound_AN.shape[1]), largest=False).indices
    likely_AN = torch.zeros_like(finite_AN).scatter_(1, likely_AK, value=True) & finite_AN
    cost_AN[likely_AN] = cost_of(*likely_AN.nonzero(as_tuple=True))
    worst_A1 = cost_AN.topk(count, largest=False).values[:, -1:]
    open_AN = (bound_AN <= worst_A1) & finite_AN & ~likely_AN
    cost_AN[open_AN] = cost_of(*open_AN.nonzero(as_tuple=True))
    found = cost_AN.topk(count, largest=False)
    return found.values, found.indices


def least_cost(cost_BHH: Tensor) -> Tensor:
    """(B,): the least sum of costs over all pairings of rows with columns."""
    return cost_BHH.gather(1, pairing(cost_BHH)[:, None]).sum((1, 2))


def pairing(cost_BHH: Tensor) -> Tensor:
    """(B, H): which row each column has in a cheapest pairing.

    Exact: the Hungarian method. Each row in turn gets a column along a cheapest path of changes of those before it
    (Jonker and Volgenant, 1987), in every matrix of the batch at the same time.
    """
    size = cost_BHH.shape[-1]
    pairs = _Pairs(cost_BHH)
    for row in range(size):
        pairs.add(row)
    return pairs.row_BJ[:, :size]


class _Pairs:
    """Which row each column has (-1: none yet), and the prices of both. The last column is none of the matrix: the row that is
    being added stands there."""

    def __init__(self, cost_BHH: Tensor) -> None:
        batch, size = cost_BHH.shape[:2]
        self.cost_BHJ = torch.cat([cost_BHH, cost_BHH.new_full((batch, size, 1), torch.inf)], dim=2)
        self.row_BJ = torch.full((batch, size + 1), -1, device=cost_BHH.device)
        self.price_BH, self.price_BJ = cost_BHH.new_zeros(batch, size), cost_BHH.new_zeros(batch, size + 1)

    def add(self, row: int) -> None:
        self.row_BJ[:, -1] = row
        column_B1 = torch.full_like(self.row_BJ[:, :1], self.row_BJ.shape[1] - 1)
        slack_BJ, before_BJ = torch.full_like(self.price_BJ, torch.inf), torch.zeros_like(self.row_BJ)
        seen_BJ = torch.zeros_like(self.row_BJ, dtype=torch.bool)
        while (taken_B1 := self.row_BJ.gather(1, column_B1) >= 0).any():
            seen_BJ.scatter_(1, column_B1, seen_BJ.gather(1, column_B1) | taken_B1)
            reduced_BJ = self._reduced(column_B1)
            better_BJ = (reduced_BJ < slack_BJ) & taken_B1 & ~seen_BJ
            slack_BJ, before_BJ = slack_BJ.where(~better_BJ, reduced_BJ), before_BJ.where(~better_BJ, column_B1)
            least_B1, next_B1 = slack_BJ.masked_fill(seen_BJ, torch.inf).min(1, keepdim=True)
            least_B1 = least_B1.where(taken_B1, 0)
            self.price_BH.scatter_add_(1, self.row_BJ.clamp_min(0), least_B1 * seen_BJ)
            self.price_BJ -= least_B1 * seen_BJ
            slack_BJ = slack_BJ.where(seen_BJ, slack_BJ - least_B1)
            column_B1 = next_B1.where(taken_B1, column_B1)
        self._shift(column_B1, before_BJ)

    def _reduced(self, column_B1: Tensor) -> Tensor:
        """What a column costs above the prices, for the row that has the given column."""
        row_B1 = self.row_BJ.gather(1, column_B1).clamp_min(0)
        cost_BJ = self.cost_BHJ.gather(1, row_B1[..., None].expand(-1, -1, self.cost_BHJ.shape[2]))[:, 0]
        return cost_BJ - self.price_BH.gather(1, row_B1) - self.price_BJ

    def _shift(self, column_B1: Tensor, before_BJ: Tensor) -> None:
        """Along the path that ends in a free column, each column gets the row of the one before."""
        last = self.row_BJ.shape[1] - 1
        while (column_B1 != last).any():
            before_B1 = before_BJ.gather(1, column_B1).where(column_B1 != last, last)
            self.row_BJ.scatter_(1, column_B1, self.row_BJ.gather(1, before_B1))
            column_B1 = before_B1
