"""The start that Reptile learns, against a loop over tasks and steps with torch's own optimisers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metadiff.baselines.finetune import Course
from metadiff.baselines.start import Start, Tour
from metadiff.learner import Perceptron
from metadiff.objectives import OnSupport

LEARNER = Perceptron("mlp", way=3, dim=4, hidden=5)
OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SUPPORT_BWSE = noise(2, 3, 5, 4, seed=1)


def walked(start_P: Tensor, course: Course, shown: list[list[int]]) -> Tensor:
    """(B, P): from one start with these images of every class at each step."""
    ends = []
    for support_WSE in SUPPORT_BWSE:
        theta = start_P.clone().requires_grad_()
        stepped = OPTIMIZERS[course.optimizer]([theta], lr=course.lr)
        for images in shown:
            stepped.zero_grad()
            logits_NW = LEARNER.logits(theta[None], support_WSE[:, images].reshape(1, -1, 4))[0]
            cross_entropy(logits_NW, torch.arange(3).repeat_interleave(len(images))).backward()
            stepped.step()
        ends.append(theta.detach())
    return torch.stack(ends)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("turn", "shown"),
    [(0, 4 * [[0, 1, 2, 3, 4]]), (2, [[0, 1], [2, 3], [4, 0], [1, 2]])],
    ids=["all at every step", "two in turn"],
)
def test_a_tour_ends_where_its_optimiser_does(optimizer: str, turn: int, shown: list[list[int]]) -> None:
    start_P, course = noise(LEARNER.size, seed=2), Course(0.1, len(shown), optimizer)
    start = Start(LEARNER, start_P.clone())
    loss = Tour(course, turn).slope(start, SUPPORT_BWSE, torch.Generator())
    end_BP = walked(start_P, course, shown)
    assert start.net.theta_P.grad is not None
    torch.testing.assert_close(start_P - start.net.theta_P.grad, end_BP.mean(0))
    torch.testing.assert_close(loss, OnSupport(LEARNER, SUPPORT_BWSE).measure(end_BP)[0].mean())
    assert torch.equal(start.net.theta_P.detach(), start_P)
