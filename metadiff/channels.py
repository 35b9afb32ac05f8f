"""A denoiser of whole networks of convolutions that has their symmetries built in.

A network is taken for a graph: a node a channel, the classes at its end, and a wire for each kernel from channel to channel. The
order of channels means nothing and that of classes is that of the support, so each step is the same for all wires of a layer, and
wires hear of each other through the channels they meet in (Lim et al. 2024, Kofinas et al. 2024). Of its task the denoiser knows
what the noisy network itself makes of the support: the loss and its slope by each weight, and how the last channels answer to
each class. So it is told by images, not by frozen features.
Shapes: B tasks, W classes, S shots, P weights, K parts of the layout, N images, F width, Q numbers that are left of an image; of
a layer O channels that it leads to, C that it comes from, J numbers of a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from metadiff.denoiser import Condition
from metadiff.layout import tensors_of
from metadiff.network import Network
from metadiff.units import FREQUENCIES, time_features

TOGETHER = 16  # networks of one tensor program: more leave the cache and are slower
LEAST = 1e-8  # of a length that is divided by


@dataclass(frozen=True)
class Wires:
    """A layer of a batch of networks: a kernel from each channel to each, and a bias of each that it leads to."""

    kernel_BOCJ: Tensor
    bias_BO: Tensor


@dataclass(frozen=True)
class Whole:
    """Networks as they are: a chain has no smaller space to walk in, as heads have in their frame."""

    def enter(self, theta_BP: Tensor, number: int = 0) -> Tensor:
        return theta_BP

    def leave(self, theta_BP: Tensor) -> Tensor:
        return theta_BP


def wires_of(learner: Network, theta_BP: Tensor) -> list[Wires]:
    *convolutions, leave_BQW, shift_BW = tensors_of(theta_BP, learner.layout())
    kernels = [weight.flatten(2, 3).mT for weight in convolutions[::2]]
    kernels.append(_by_channel(learner, leave_BQW.mT.contiguous()))
    return [Wires(*layer) for layer in zip(kernels, (*convolutions[1::2], shift_BW), strict=True)]


def network_of(wires: list[Wires]) -> Tensor:
    """The inverse."""
    *before, last = wires
    parts = [part for layer in before for part in (layer.kernel_BOCJ.mT, layer.bias_BO)]
    return torch.cat([part.flatten(1) for part in (*parts, last.kernel_BOCJ.permute(0, 3, 2, 1), last.bias_BO)], dim=1)


def _by_channel(learner: Network, left_BWQ: Tensor) -> Tensor:
    """(B, W, C, J) of what is left of an image, whose places come before its channels."""
    return left_BWQ.view(*left_BWQ.shape[:2], -1, learner.channels).mT


@dataclass(frozen=True)
class Answers:
    """What noisy networks make of their supports: slopes of length 1 in each part, and all else as numbers of about 1."""

    slope_BP: Tensor
    length_BK: Tensor
    loss_B: Tensor
    last_BWCJ: Tensor
    apart_BWCJ: Tensor  # from the mean over classes


@torch.no_grad()
def answers(learner: Network, theta_BP: Tensor, deviation_P: Tensor, support_BWSE: Tensor) -> Answers:
    """``theta_BP`` in units of deviations, by which the slopes are too."""
    way, shot = support_BWSE.shape[1:3]
    hot_NW = torch.eye(way, dtype=theta_BP.dtype, device=theta_BP.device).repeat_interleave(shot, dim=0)
    seen = learner.look(theta_BP * deviation_P, support_BWSE.flatten(1, 2).to(theta_BP.dtype), hot_NW)
    slopes = [part.flatten(1) for part in tensors_of(seen.slope_TP * deviation_P, learner.layout())]
    lengths = [part.square().mean(1, keepdim=True).sqrt().clamp_min(LEAST) for part in slopes]
    slope_BP = torch.cat([part / length for part, length in zip(slopes, lengths, strict=True)], dim=1)
    last_BWQ = seen.last_TNF.view(len(theta_BP), way, shot, -1).mean(2)
    last_BWQ = last_BWQ / last_BWQ.square().mean((1, 2), keepdim=True).sqrt().clamp_min(LEAST)
    apart_BWQ = last_BWQ - last_BWQ.mean(1, keepdim=True)
    apart_BWQ = apart_BWQ / apart_BWQ.square().mean((1, 2), keepdim=True).sqrt().clamp_min(LEAST)
    loss_B = -(seen.logits_TNW.log_softmax(-1) * hot_NW).sum(-1).mean(-1)
    last_BWCJ, apart_BWCJ = (_by_channel(learner, part) for part in (last_BWQ, apart_BWQ))
    return Answers(slope_BP, torch.cat(lengths, dim=1), loss_B, last_BWCJ, apart_BWCJ)


class ChannelDenoiser(nn.Module):
    """Gives an estimate of the network that a time leads to, from a noisy one and what that makes of the support."""

    deviation_P: Tensor
    base_P: Tensor

    def __init__(self, learner: Network, *, hidden: int, layers: int) -> None:
        super().__init__()
        self.learner = learner
        kernels = [*(layer.kernel**2 for layer in learner.layers), learner.layers[-1].places ** 2]
        known = 2 * FREQUENCIES + 2 + len(learner.layout())
        self.time = nn.Sequential(nn.Linear(known, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        seen = [3 * size for size in kernels[:-1]] + [5 * kernels[-1]]
        self.of_wires = nn.ModuleList(nn.Linear(size, hidden) for size in seen)
        self.of_channels = nn.ModuleList(nn.Linear(3, hidden) for _ in kernels)
        self.layers = nn.ModuleList(nn.ModuleList(Meeting(hidden) for _ in kernels) for _ in range(layers))
        self.shares = nn.ModuleList(nn.Linear(2 * hidden, 4) for _ in kernels)
        self.to_wires = nn.ModuleList(nn.Linear(hidden, size) for size in kernels)
        self.to_channels = nn.ModuleList(nn.Linear(hidden, 1) for _ in kernels)

    def weigh(self, deviation_P: Tensor, base_P: Tensor) -> None:
        """What a unit of each weight is, for a network at work has weights as they are; and the base that all are near to, if not
        0: noise is about it, and in these units it is long."""
        self.register_buffer("deviation_P", deviation_P, persistent=False)
        self.register_buffer("base_P", base_P, persistent=False)

    def frame(self, condition: Condition, *_networks: Tensor) -> Whole:
        return Whole()

    def within(self, _frame: Whole, theta_BP: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        return self.forward(theta_BP, t_B, condition)

    def forward(self, theta_BP: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """``t_B`` is the share of the chain that has been walked."""
        assert condition.support_BWSE is not None, "whoever tells networks of a task shows it"
        size = len(theta_BP)
        one_each = (t_B.expand(size), condition.shots_B.to(theta_BP.dtype).expand(size))
        groups = (torch.split(part, TOGETHER) for part in (theta_BP, *one_each, condition.support_BWSE))
        return torch.cat([self._some(*group) for group in zip(*groups, strict=True)])

    def _some(self, theta_BP: Tensor, t_B: Tensor, shots_B: Tensor, support_BWSE: Tensor) -> Tensor:
        told = answers(self.learner, theta_BP, self.deviation_P, support_BWSE)
        numbers_BK = torch.cat([1 / shots_B[:, None], told.loss_B[:, None], told.length_BK.log() / 4], dim=1)
        known_BF = self.time(torch.cat([time_features(t_B), numbers_BK], dim=1))
        base_BP = self.base_P.expand_as(theta_BP)
        there, bases, slopes = (wires_of(self.learner, part) for part in (theta_BP - base_BP, base_BP, told.slope_BP))
        layers = [*zip(there, bases, slopes, strict=True)]
        seen = [[part.kernel_BOCJ for part in layer] for layer in layers]
        seen[-1] += [told.last_BWCJ, told.apart_BWCJ]
        wires = [enter(torch.cat(parts, dim=-1)) for enter, parts in zip(self.of_wires, seen, strict=True)]
        biases = [torch.stack([part.bias_BO for part in layer], dim=-1) for layer in layers]
        channels = [wires[0].new_zeros(len(theta_BP), self.learner.colours, known_BF.shape[-1])]
        channels += [enter(bias_BO3) for enter, bias_BO3 in zip(self.of_channels, biases, strict=True)]
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            met = [meet(wires[n], channels[n], channels[n + 1], known_BF) for n, meet in enumerate(layer)]
            wires = [wire_BOCF for wire_BOCF, _, _ in met]
            channels = _heard(channels, [into for _, into, _ in met], [out for _, _, out in met])
        parts = zip(there, slopes, wires, channels[1:], strict=True)
        return base_BP + network_of([self._layer(number, *part, known_BF) for number, part in enumerate(parts)])

    def _layer(self, number: int, x: Wires, slope: Wires, wire_BOCF: Tensor, channel_BOF: Tensor, known_BF: Tensor) -> Wires:
        """A share of what is there, a step down the slope, and what the wires say."""
        own_BOF = layer_norm(channel_BOF, channel_BOF.shape[-1:])
        share_BO4 = self.shares[number](torch.cat([own_BOF, known_BF[:, None].expand_as(own_BOF)], dim=-1))
        keep_BO, step_BO, keep_bias_BO, step_bias_BO = share_BO4.unbind(-1)
        said_BOCJ, said_BO = self.to_wires[number](wire_BOCF), self.to_channels[number](channel_BOF)[..., 0]
        kept_BOCJ = keep_BO[..., None, None] * x.kernel_BOCJ + step_BO[..., None, None] * slope.kernel_BOCJ
        return Wires(kept_BOCJ + said_BOCJ, keep_bias_BO * x.bias_BO + step_bias_BO * slope.bias_BO + said_BO)


class Meeting(nn.Module):
    """Each wire of a layer hears of itself and of both its channels; what it says to them is the mean over their wires."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.own = nn.Linear(hidden, hidden)
        self.of_origin, self.of_end = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.known = nn.Linear(hidden, 2 * hidden)
        self.leave = nn.Linear(hidden, hidden)
        self.to_origin, self.to_end = (nn.Linear(hidden, hidden) for _ in range(2))

    def forward(self, wire_BOCF: Tensor, origin_BCF: Tensor, end_BOF: Tensor, known_BF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The wires, and what their origins and ends hear."""
        x, origin, end = (layer_norm(part, part.shape[-1:]) for part in (wire_BOCF, origin_BCF, end_BOF))
        mixed = self.own(x) + self.of_origin(origin)[:, None] + self.of_end(end)[:, :, None]
        gain, shift = self.known(known_BF)[:, None, None].chunk(2, dim=-1)
        found = silu(mixed * (1 + gain) + shift)
        return wire_BOCF + self.leave(found), self.to_origin(found.mean(1)), self.to_end(found.mean(2))


def _heard(channels: list[Tensor], by_origin: list[Tensor], by_end: list[Tensor]) -> list[Tensor]:
    """Channels, from those of the image to the classes, with what the wires that leave and reach them said."""
    found = list(channels)
    for number, (origin_BCF, end_BOF) in enumerate(zip(by_origin, by_end, strict=True)):
        found[number] = found[number] + origin_BCF
        found[number + 1] = found[number + 1] + end_BOF
    return found
