"""The denoiser of heads keeps the symmetries of what it generates, and says the same of one head in a batch as alone."""

import pytest
import torch
from torch import Tensor

from metadiff.denoiser import Condition, initialise
from metadiff.learner import BaseLearner, Learner, Perceptron
from metadiff.units import UnitDenoiser, Units, theta_of, units_of

E, WAY, HIDDEN, TASKS = 6, 3, 4, 5
LEARNERS: list[BaseLearner] = [
    Perceptron("mlp", WAY, E, HIDDEN),
    Learner("linear", WAY, E, 1.0),
    Learner("cosine", WAY, E, 10.0),
]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def net_of(learner: BaseLearner) -> UnitDenoiser:
    """With weights in its corrections too, which begin as none."""
    net = UnitDenoiser(learner, hidden=16, layers=2).double()
    initialise(net, seed=0)
    with torch.no_grad():
        for layer in net.layers:
            for parameter in layer.leave.parameters():  # type: ignore[union-attr, operator]
                parameter += 0.2 * drawn(*parameter.shape)
    return net


def told(mean_BWE: Tensor) -> Condition:
    return Condition(mean_BWE, torch.full((1,), 5.0, dtype=torch.float64))


def answer(learner: BaseLearner, theta_BP: Tensor, mean_BWE: Tensor, t: float = 0.3) -> Tensor:
    with torch.no_grad():
        found: Tensor = net_of(learner)(theta_BP, torch.full((1,), t, dtype=torch.float64), told(mean_BWE))
    return found


def changed(learner: BaseLearner, theta_BP: Tensor, **by: Tensor) -> Tensor:
    """The same heads with units or classes in another order, or vectors turned."""
    x = units_of(learner, theta_BP)
    vector, bias, link, out = x.vector_BUE, x.bias_BU, x.link_BUW, x.bias_BW
    if "units" in by:
        vector, bias, link = vector[:, by["units"]], bias[:, by["units"]], link[:, by["units"]]
    if "classes" in by:
        link, out = link[:, :, by["classes"]], out[:, by["classes"]]
        if not isinstance(learner, Perceptron):
            vector, bias = vector[:, by["classes"]], bias[:, by["classes"]]
    if "turn" in by:
        vector = vector @ by["turn"]
    return theta_of(learner, Units(vector, bias, link, out))


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.kind)
def test_parts_and_back(learner: BaseLearner) -> None:
    theta_BP = drawn(TASKS, learner.size)
    assert torch.equal(theta_of(learner, units_of(learner, theta_BP)), theta_BP)


def test_the_order_of_hidden_units_means_nothing() -> None:
    learner = LEARNERS[0]
    theta_BP, mean_BWE, order = drawn(TASKS, learner.size), drawn(TASKS, WAY, E), torch.tensor([2, 0, 3, 1])
    mixed = answer(learner, changed(learner, theta_BP, units=order), mean_BWE)
    torch.testing.assert_close(mixed, changed(learner, answer(learner, theta_BP, mean_BWE), units=order))


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.kind)
def test_classes_in_another_order_give_the_head_in_that_order(learner: BaseLearner) -> None:
    theta_BP, mean_BWE, order = drawn(TASKS, learner.size), drawn(TASKS, WAY, E), torch.tensor([2, 0, 1])
    mixed = answer(learner, changed(learner, theta_BP, classes=order), mean_BWE[:, order])
    torch.testing.assert_close(mixed, changed(learner, answer(learner, theta_BP, mean_BWE), classes=order))
    assert not torch.allclose(mixed, answer(learner, theta_BP, mean_BWE))


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.kind)
def test_inputs_that_are_turned_turn_the_head(learner: BaseLearner) -> None:
    theta_BP, mean_BWE, turn = drawn(TASKS, learner.size), drawn(TASKS, WAY, E), torch.linalg.qr(drawn(E, E))[0]
    turned = answer(learner, changed(learner, theta_BP, turn=turn), mean_BWE @ turn)
    torch.testing.assert_close(turned, changed(learner, answer(learner, theta_BP, mean_BWE), turn=turn))


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.kind)
def test_it_sees_the_weights_the_task_the_time_and_nothing_of_other_tasks(learner: BaseLearner) -> None:
    theta_BP, mean_BWE = drawn(TASKS, learner.size), drawn(TASKS, WAY, E)
    found = answer(learner, theta_BP, mean_BWE)
    torch.testing.assert_close(answer(learner, theta_BP[:1], mean_BWE[:1]), found[:1])
    for other in (
        answer(learner, theta_BP * 2, mean_BWE),
        answer(learner, theta_BP, mean_BWE * 2),
        answer(learner, theta_BP, mean_BWE, 0.6),
    ):
        assert (other - found).abs().max() > 1e-4
