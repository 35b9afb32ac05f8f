"""Fine-tuning: what a person would write for one task, with torch's own optimiser and autograd."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from metadiff.baselines.finetune import Course, finetune
from metadiff.errors import NumericError
from metadiff.inputs import Inputs
from metadiff.learner import BaseLearner, Learner, Perceptron
from metadiff.objectives import OnSupport
from metadiff.pictures import Pictures

LEARNERS = [Learner("linear", way=3, dim=4, scale=1.0), Perceptron("mlp", way=3, dim=4, hidden=5)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SUPPORT = noise(6, 3, 2, 9, seed=1)
INPUTS = Inputs(noise(9, seed=2), noise(9, 4, seed=3))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.kind)
def test_each_task_is_fine_tuned_on_its_own_support(learner: BaseLearner, optimizer: str) -> None:
    start = noise(6, learner.size, seed=4)
    found = finetune(learner, INPUTS, Pictures(SUPPORT), start, Course(0.02, 7, optimizer))
    target = torch.arange(3).repeat_interleave(2)
    for task in range(6):
        theta = start[task : task + 1].clone().requires_grad_()
        stepped = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]([theta], lr=0.02)
        seen = (SUPPORT[task].flatten(0, 1) - INPUTS.mean_D) @ INPUTS.basis_DE
        for _ in range(7):
            stepped.zero_grad()
            cross_entropy(learner.logits(theta, seen[None])[0], target).backward()
            stepped.step()
        torch.testing.assert_close(found[task], theta[0].detach())
    assert torch.equal(start, noise(6, learner.size, seed=4))


def test_slopes_may_go_through_a_map() -> None:
    """Half as long slopes are a rate half as high; ones turned back take the loss up."""
    start, support = noise(6, LEARNERS[0].size, seed=4), Pictures(SUPPORT)
    tune = partial(finetune, LEARNERS[0], INPUTS, support, start)
    torch.testing.assert_close(tune(Course(0.2, 7, "sgd"), lambda slope: slope / 2), tune(Course(0.1, 7, "sgd")))
    seen = OnSupport(LEARNERS[0], INPUTS.seen(support))
    before, after = (seen.measure(theta)[0] for theta in (start, tune(Course(0.1, 7, "sgd"), torch.neg)))
    assert (after > before).all()


@pytest.mark.parametrize(
    ("course", "said"),
    [
        (Course(0.5, 3), "lr 0.5, 3 steps: weights are not finite; lower evaluate.finetune_lrs"),
        (Course(0.5, 3, "sgd"), "sgd, lr 0.5, 3 steps: weights are not finite; lower evaluate.finetune_sgd_lrs"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(course: Course, said: str) -> None:
    start = torch.full((6, LEARNERS[0].size), torch.inf, dtype=torch.float64)
    with pytest.raises(NumericError, match=f"^fine-tuning by {said}$"):
        finetune(LEARNERS[0], INPUTS, Pictures(SUPPORT), start, course)
