"""The denoiser of whole networks keeps their symmetries, is told of a task by true slopes, and treats each task by itself."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metadiff.channels import NETWORKS, ChannelDenoiser, answers
from metadiff.denoiser import Condition, initialise
from metadiff.network import Network, Wires, network_of, wires_of

WAY, SHOT, CHANNELS = 3, 2, 4
SIDES = {"one place left": 28, "four places left": 60}


def network(side: int = 28, colours: int = 1) -> Network:
    return Network("conv", WAY, side, colours, CHANNELS)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def supports(learner: Network, tasks: int) -> Tensor:
    return drawn(tasks, WAY, SHOT, learner.side**2 * learner.colours, seed=1)


def deviation(learner: Network) -> Tensor:
    return 0.2 + 0.1 * drawn(learner.size, seed=2).abs()


def net_of(learner: Network) -> ChannelDenoiser:
    """With weights in what wires say too, which begin as none."""
    net = ChannelDenoiser(learner, hidden=8, layers=2).double()
    initialise(net, seed=0)
    net.weigh(deviation(learner)[:1].expand(learner.size), torch.full((learner.size,), 0.3))  # the same for all channels
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "leave" in name:
                parameter.add_(drawn(*parameter.shape, seed=3), alpha=0.2)
    return net


@torch.no_grad()
def answer(learner: Network, theta_BP: Tensor, support_BWSE: Tensor, t: float = 0.3) -> Tensor:
    condition = Condition(torch.zeros(len(theta_BP), WAY, 1), torch.full((1,), float(SHOT)), support_BWSE)
    found: Tensor = net_of(learner)(theta_BP, torch.full((1,), t, dtype=torch.float64), condition)
    return found


def reordered(learner: Network, theta_BP: Tensor, *orders: Tensor) -> Tensor:
    """With the channels of each layer, and the classes last, in these orders."""
    before = torch.arange(learner.colours)
    found = []
    for wires, order in zip(wires_of(learner, theta_BP), orders, strict=True):
        found.append(Wires(wires.kernel_BOCJ[:, order][:, :, before], wires.bias_BO[:, order]))
        before = order
    return network_of(found)


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_wires_and_back(side: int) -> None:
    theta_BP = drawn(2, network(side).size)
    assert torch.equal(network_of(wires_of(network(side), theta_BP)), theta_BP)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_the_order_of_channels_means_nothing(side: int, colours: int) -> None:
    learner = network(side, colours)
    theta_BP, support = drawn(2, learner.size), supports(learner, 2)
    orders = [torch.tensor(order) for order in ([2, 0, 3, 1], [1, 0, 3, 2], [3, 2, 1, 0], [0, 2, 1, 3], [0, 1, 2])]
    mixed_BP = reordered(learner, theta_BP, *orders)
    images = support.flatten(1, 2)
    torch.testing.assert_close(learner.scores(mixed_BP, images), learner.scores(theta_BP, images))  # it is the same network
    assert not torch.allclose(mixed_BP, theta_BP)
    torch.testing.assert_close(
        answer(learner, mixed_BP, support), reordered(learner, answer(learner, theta_BP, support), *orders)
    )


def test_classes_in_another_order_give_the_network_in_that_order() -> None:
    learner, order, same = network(), torch.tensor([2, 0, 1]), torch.arange(CHANNELS)
    theta_BP, support = drawn(2, learner.size), supports(learner, 2)
    orders = (same, same, same, same, order)
    mixed = answer(learner, reordered(learner, theta_BP, *orders), support[:, order])
    torch.testing.assert_close(mixed, reordered(learner, answer(learner, theta_BP, support), *orders))
    assert not torch.allclose(answer(learner, theta_BP, support[:, order]), answer(learner, theta_BP, support))


def test_a_network_in_a_batch_gets_what_it_gets_alone() -> None:
    learner, tasks = network(), NETWORKS + 3
    theta_BP, support = drawn(tasks, learner.size), supports(learner, tasks)
    together = answer(learner, theta_BP, support)
    alone = torch.cat([answer(learner, theta_BP[n : n + 1], support[n : n + 1]) for n in range(tasks)])
    torch.testing.assert_close(together, alone)


def test_slopes_are_those_of_the_loss() -> None:
    learner = network()
    deviation_P, support = deviation(learner), supports(learner, 2)
    theta_BP = drawn(2, learner.size).requires_grad_()
    target_N = torch.arange(WAY).repeat_interleave(SHOT)
    scores_BNW = learner.scores(theta_BP * deviation_P, support.flatten(1, 2))
    loss_B = torch.stack([cross_entropy(scores_NW, target_N) for scores_NW in scores_BNW])
    (slope_BP,) = torch.autograd.grad(loss_B.sum(), theta_BP)
    told = answers(learner, theta_BP.detach(), deviation_P, support)
    torch.testing.assert_close(told.loss_B, loss_B.detach())
    for number, part in enumerate(learner.layout()):
        place = slice(part.offset, part.offset + part.size)
        torch.testing.assert_close(told.slope_BP[:, place] * told.length_BK[:, number : number + 1], slope_BP[:, place])


def test_a_network_without_any_slope_has_an_answer() -> None:
    learner = network()
    assert answer(learner, torch.zeros(1, learner.size, dtype=torch.float64), supports(learner, 1)).isfinite().all()


def test_gradients_reach_every_weight() -> None:
    learner, net = network(), net_of(network())
    condition = Condition(torch.zeros(2, WAY, 1), torch.full((1,), float(SHOT)), supports(learner, 2))
    net(drawn(2, learner.size), torch.tensor([0.5], dtype=torch.float64), condition).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
