"""The cheapest pairing, against SciPy and against trying all."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from metadiff.matching import least_cost


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
