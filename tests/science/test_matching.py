"""The cheapest pairing, against SciPy and against trying all."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from metadiff.matching import least_cost, pairing, smallest


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_the_cost_is_that_of_scipy(size: int) -> None:
    cost = drawn(50, size, size).numpy()
    expected = [one[linear_sum_assignment(one)].sum() for one in cost]
    np.testing.assert_allclose(least_cost(torch.from_numpy(cost)), expected, atol=1e-12)


def test_of_equal_costs_any_pairing_will_do() -> None:
    cost = torch.randint(0, 3, (60, 5, 5), generator=torch.Generator().manual_seed(1)).double()
    expected = [min(sum(one[row, column] for row, column in enumerate(p)) for p in permutations(range(5))) for one in cost]
    np.testing.assert_array_equal(least_cost(cost), torch.stack(expected))


def test_a_matrix_does_not_depend_on_the_others_of_its_batch() -> None:
    cost = drawn(30, 6, 6)
    alone = torch.cat([least_cost(one[None]) for one in cost])
    assert torch.equal(least_cost(cost), alone)


def test_what_is_cheapest_one_by_one_is_not_taken_first() -> None:
    assert least_cost(torch.tensor([[[0.0, 1.0], [1.0, 9.0]]])) == 2


@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_pairing_is_that_of_scipy(size: int) -> None:
    """For each column its row."""
    cost = drawn(20, size, size)
    expected = [linear_sum_assignment(one.T.numpy())[1] for one in cost]
    np.testing.assert_array_equal(pairing(cost), np.stack(expected))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("slack", [0.0, 0.1, 5.0])
def test_the_smallest_are_found_below_any_bound(count: int, slack: float) -> None:
    """Tight bounds, loose ones, and such that they say nothing: the same is found, at a lower or a higher cost."""
    cost, asked = drawn(7, 60).abs(), []
    bound = cost - slack * torch.rand(7, 60, generator=torch.Generator().manual_seed(1))

    def cost_of(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        asked.extend(zip(row.tolist(), column.tolist(), strict=True))
        return cost[row, column]

    values, indices = smallest(bound, cost_of, count)
    expected = cost.topk(count, largest=False)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)
    assert len(asked) == len(set(asked))
    assert len(asked) < {0.0: 80, 0.1: 120, 5.0: 421}[slack]


def test_what_an_infinite_bound_excludes_is_not_asked_for() -> None:
    cost = torch.arange(12.0).view(2, 6)
    bound = cost.clone()
    bound[:, 0] = torch.inf
    values, indices = smallest(bound, lambda row, column: cost[row, column], 2)
    assert values.tolist() == [[1, 2], [7, 8]]
    assert indices.tolist() == [[1, 2], [1, 2]]


def test_candidates_that_are_excluded_are_never_asked_for() -> None:
    """Not even where fewer than are wanted are left."""
    bound = torch.full((2, 20), torch.inf)
    bound[0, 3], bound[1, 5] = 1.0, 2.0
    asked: list[tuple[int, int]] = []

    def cost_of(thing: Tensor, candidate: Tensor) -> Tensor:
        asked.extend(zip(thing.tolist(), candidate.tolist(), strict=True))
        return torch.full((len(thing),), 7.0)

    values, numbers = smallest(bound, cost_of, 2)
    assert sorted(asked) == [(0, 3), (1, 5)]
    assert (values[:, 0].tolist(), numbers[:, 0].tolist()) == ([7, 7], [3, 5])
    assert values[:, 1].isinf().all()
