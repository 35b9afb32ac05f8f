"""The denoiser of whole networks keeps their symmetries, is told of a task by true slopes, and treats each task by itself."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metadiff.channels import NETWORKS, ChannelDenoiser, answers
from metadiff.denoiser import Condition, initialise
from metadiff.layout import tensors_of
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


def net_of(learner: Network, *, turned: bool = False) -> ChannelDenoiser:
    """With weights in what wires say and in turns too, which begin as none."""
    net = ChannelDenoiser(learner, hidden=8, layers=2, turned=turned).double()
    initialise(net, seed=0)
    net.weigh(deviation(learner)[:1].expand(learner.size), torch.full((learner.size,), 0.3))  # the same for all channels
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "leave" in name:
                parameter.add_(drawn(*parameter.shape, seed=3), alpha=0.2)
    return net


@torch.no_grad()
def answer(learner: Network, theta_BP: Tensor, support_BWSE: Tensor, *, net: ChannelDenoiser | None = None) -> Tensor:
    condition = Condition(torch.zeros(len(theta_BP), WAY, 1), torch.full((1,), float(SHOT)), support_BWSE)
    found: Tensor = (net or net_of(learner))(theta_BP, torch.full((1,), 0.3, dtype=torch.float64), condition)
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


@pytest.mark.parametrize("turned", [False, True])
def test_classes_in_another_order_give_the_network_in_that_order(turned: bool) -> None:
    learner, order, same = network(), torch.tensor([2, 0, 1]), torch.arange(CHANNELS)
    theta_BP, support, net = drawn(2, learner.size), supports(learner, 2), net_of(learner, turned=turned)
    orders = (same, same, same, same, order)
    mixed = answer(learner, reordered(learner, theta_BP, *orders), support[:, order], net=net)
    plain = answer(learner, theta_BP, support, net=net)
    torch.testing.assert_close(mixed, reordered(learner, plain, *orders))
    assert not torch.allclose(answer(learner, theta_BP, support[:, order], net=net), plain)


@pytest.mark.parametrize("colours", [1, 3])
def test_slopes_are_turned_by_what_a_kernel_sees(colours: int) -> None:
    """By a matrix over all that the kernel of a channel sees, the same for all channels; of a fresh network by none."""
    learner = network(60, colours)
    slopes, turns = wires_of(learner, drawn(2, learner.size)), net_of(learner, turned=True).turns or ()
    for slope, turn in zip(slopes, turns, strict=True):
        found, (size, ends, origins, numbers) = turn(slope), slope.kernel_BOCJ.shape
        map_ST = np.eye(origins * numbers) + turn.leave.weight.detach().numpy()
        want = np.einsum("ts,bos->bot", map_ST, slope.kernel_BOCJ.numpy().reshape(size, ends, -1))
        np.testing.assert_allclose(found.kernel_BOCJ.detach().numpy(), want.reshape(slope.kernel_BOCJ.shape))
        assert found.bias_BO is slope.bias_BO
    fresh = ChannelDenoiser(learner, hidden=8, layers=2, turned=True).double()
    initialise(fresh, seed=0)
    for slope, turn in zip(slopes, fresh.turns or (), strict=True):
        assert torch.equal(turn(slope).kernel_BOCJ, slope.kernel_BOCJ)


def test_a_turned_slope_is_as_long_in_each_part_as_it_was() -> None:
    """And has the direction that the map gives; without a map it is what it was."""
    learner = network()
    slope_BP, net = drawn(2, learner.size), net_of(learner, turned=True)
    found, mapped = net.turned(slope_BP).detach(), []
    for wires, turn in zip(wires_of(learner, slope_BP), net.turns or (), strict=True):
        mapped.append(turn(wires))
    parts = (tensors_of(slopes, learner.layout()) for slopes in (found, network_of(mapped).detach(), slope_BP))
    for got, want, before in zip(*parts, strict=True):
        for one, along, plain in zip(*(part.flatten(1).numpy() for part in (got, want, before)), strict=True):
            np.testing.assert_allclose(np.linalg.norm(one), np.linalg.norm(plain))
            np.testing.assert_allclose(one / np.linalg.norm(one), along / np.linalg.norm(along), atol=1e-12)
    assert (found - slope_BP).abs().max() > 0.1
    torch.testing.assert_close(net_of(learner).turned(slope_BP), slope_BP)


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


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_reach_every_weight(turned: bool) -> None:
    learner, net = network(), net_of(network(), turned=turned)
    condition = Condition(torch.zeros(2, WAY, 1), torch.full((1,), float(SHOT)), supports(learner, 2))
    net(drawn(2, learner.size), torch.tensor([0.5], dtype=torch.float64), condition).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
