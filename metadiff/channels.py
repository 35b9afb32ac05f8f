"""A denoiser of whole networks of convolutions that has their symmetries built in.

A network is taken for a graph: a node a channel, the classes at its end, and a wire for each kernel from channel to channel. The
order of classes is that of the support; that of channels means nothing, but where `Turn` knows them by their places in a base. So
each step is the same for all wires of a layer, and wires hear of each other through the channels they meet in (Lim et al. 2024,
Kofinas et al. 2024). Of its task the denoiser knows what the noisy network itself makes of the support: the loss and its slope by
each weight, and how the last channels answer to each class. So it is told by images, not by frozen features.
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
from metadiff.network import Network, Wires, by_channel, network_of, wires_of
from metadiff.rng import torch_stream
from metadiff.units import FREQUENCIES, time_features

NETWORKS = 16  # of one tensor program: more leave the cache and are slower
LEAST = 1e-8  # of a length that is divided by


@dataclass(frozen=True)
class Whole:
    """Networks as they are: a chain has no smaller space to walk in, as heads have in their frame."""

    def enter(self, theta_BP: Tensor, number: int = 0) -> Tensor:
        return theta_BP

    def leave(self, theta_BP: Tensor) -> Tensor:
        return theta_BP


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
    last_BWCJ, apart_BWCJ = (by_channel(learner, part) for part in (last_BWQ, apart_BWQ))
    return Answers(slope_BP, torch.cat(lengths, dim=1), loss_B, last_BWCJ, apart_BWCJ)


class ChannelDenoiser(nn.Module):
    """Gives an estimate of the network that a time leads to, from a noisy one and what that makes of the support."""

    deviation_P: Tensor
    base_P: Tensor

    def __init__(self, learner: Network, *, hidden: int, layers: int, turned: bool = False) -> None:
        """``turned``: slopes are, by `Turn`, for networks about a base, which gives each channel a place of its own."""
        super().__init__()
        self.learner = learner
        kernels = [*(layer.kernel**2 for layer in learner.layers), learner.layers[-1].places ** 2]
        known = 2 * FREQUENCIES + 2 + len(learner.layout())
        self.time = nn.Sequential(nn.Linear(known, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        seen = [3 * size for size in kernels[:-1]] + [5 * kernels[-1]]
        self.of_wires = nn.ModuleList(nn.Linear(size, hidden) for size in seen)
        self.of_channels = nn.ModuleList(nn.Linear(3, hidden) for _ in kernels)
        self.layers = nn.ModuleList(
            nn.ModuleList(Meeting(hidden, first=number == 0) for number in range(len(kernels))) for _ in range(layers)
        )
        self.shares = nn.ModuleList(nn.Linear(2 * hidden, 4) for _ in kernels)
        self.to_wires = nn.ModuleList(nn.Linear(hidden, size) for size in kernels)
        self.to_channels = nn.ModuleList(nn.Linear(hidden, 1) for _ in kernels)
        origins = [learner.colours, *len(learner.layers) * [learner.channels]]
        sizes = [origin * size for origin, size in zip(origins, kernels, strict=True)]
        self.turns = nn.ModuleList(Turn(size) for size in sizes) if turned else None

    def weigh(self, deviation_P: Tensor, base_P: Tensor) -> None:
        """What a unit of each weight is, for a network at work has weights as they are; and the base that all are near to, if not
        0: noise is about it, and in these units it is long."""
        self.register_buffer("deviation_P", deviation_P, persistent=False)
        self.register_buffer("base_P", base_P, persistent=False)

    def blank(self, like_BP: Tensor) -> Tensor:
        """What a generator starts with that has no noise: one draw for all, as a network of zeros has no answer to any image."""
        start_P = torch.randn(like_BP.shape[1], generator=torch_stream(0, "blank"))
        return self.base_P + start_P.to(like_BP).expand_as(like_BP)

    def frame(self, condition: Condition, *_networks: Tensor) -> Whole:
        return Whole()

    def told(self, share_T: Tensor, condition: Condition) -> list[tuple[Tensor, Condition]]:
        """What it is told at each of these times: all else it learns from the networks themselves."""
        return [(share_1, condition) for share_1 in torch.split(share_T, 1)]

    def within(self, _frame: Whole, theta_BP: Tensor, told: tuple[Tensor, Condition]) -> Tensor:
        return self.forward(theta_BP, *told)

    def forward(self, theta_BP: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """``t_B`` is the share of the chain that has been walked."""
        assert condition.support_BWSE is not None, "whoever tells networks of a task shows it"
        size = len(theta_BP)
        one_each = (t_B.expand(size), condition.shots_B.to(theta_BP.dtype).expand(size))
        groups = (torch.split(part, NETWORKS) for part in (theta_BP, *one_each, condition.support_BWSE))
        return torch.cat([self._some(*group) for group in zip(*groups, strict=True)])

    def _some(self, theta_BP: Tensor, t_B: Tensor, shots_B: Tensor, support_BWSE: Tensor) -> Tensor:
        told = answers(self.learner, theta_BP, self.deviation_P, support_BWSE)
        numbers_BK = torch.cat([1 / shots_B[:, None], told.loss_B[:, None], told.length_BK.log() / 4], dim=1)
        known_BF = self.time(torch.cat([time_features(t_B), numbers_BK], dim=1))
        base_BP = self.base_P.expand_as(theta_BP)
        there, bases, slopes = (wires_of(self.learner, part) for part in (theta_BP - base_BP, base_BP, told.slope_BP))
        slopes = self._turned(slopes)
        layers = [*zip(there, bases, slopes, strict=True)]
        seen = [[part.kernel_BOCJ for part in layer] for layer in layers]
        seen[-1] += [told.last_BWCJ, told.apart_BWCJ]
        wires = [enter(torch.cat(parts, dim=-1)) for enter, parts in zip(self.of_wires, seen, strict=True)]
        biases = [torch.stack([part.bias_BO for part in layer], dim=-1) for layer in layers]
        channels = [enter(bias_BO3) for enter, bias_BO3 in zip(self.of_channels, biases, strict=True)]
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            origins = [None, *channels[:-1]]
            met = [meet(*parts, known_BF) for meet, *parts in zip(layer, wires, origins, channels, strict=True)]
            wires = [wire_BOCF for wire_BOCF, _, _ in met]
            said = [*(of_wires for _, of_wires, _ in met[1:]), None]  # by the wires that leave a channel
            heard = [channel + end for channel, (_, _, end) in zip(channels, met, strict=True)]
            channels = [channel if to is None else channel + to for channel, to in zip(heard, said, strict=True)]
        parts = zip(there, slopes, wires, channels, strict=True)
        return base_BP + network_of([self._layer(number, *part, known_BF) for number, part in enumerate(parts)])

    def turned(self, slope_BP: Tensor) -> Tensor:
        """Slopes along what `Turn` has learnt, each part of the length that it had."""
        turned_BP = network_of(self._turned(wires_of(self.learner, slope_BP)))
        found = zip(*(tensors_of(slopes, self.learner.layout()) for slopes in (slope_BP, turned_BP)), strict=True)
        return torch.cat([(turned * _length(part) / _length(turned)).flatten(1) for part, turned in found], dim=1)

    def _turned(self, slopes: list[Wires]) -> list[Wires]:
        if self.turns is None:
            return slopes
        return [turn(slope) for turn, slope in zip(self.turns, slopes, strict=True)]

    def _layer(self, number: int, x: Wires, slope: Wires, wire_BOCF: Tensor, channel_BOF: Tensor, known_BF: Tensor) -> Wires:
        """A share of what is there, a step down the slope, and what the wires say."""
        own_BOF = _levelled(channel_BOF)
        share_BO4 = self.shares[number](torch.cat([own_BOF, known_BF[:, None].expand_as(own_BOF)], dim=-1))
        keep_BO, step_BO, keep_bias_BO, step_bias_BO = share_BO4.unbind(-1)
        said_BOCJ, said_BO = self.to_wires[number](wire_BOCF), self.to_channels[number](channel_BOF)[..., 0]
        kept_BOCJ = keep_BO[..., None, None] * x.kernel_BOCJ + step_BO[..., None, None] * slope.kernel_BOCJ
        return Wires(kept_BOCJ + said_BOCJ, keep_bias_BO * x.bias_BO + step_bias_BO * slope.bias_BO + said_BO)


class Turn(nn.Module):
    """A linear map of slopes by what their kernels see, which a layer learns for all tasks: along what of it steps should go, for
    a few images do not tell (Meta-Curvature, Park and Oliva 2019). It is given as a difference to slopes as they are."""

    def __init__(self, seen: int) -> None:
        super().__init__()
        self.leave = nn.Linear(seen, seen, bias=False)

    def forward(self, slope: Wires) -> Wires:
        kernel_BOS = slope.kernel_BOCJ.flatten(2)
        return Wires((kernel_BOS + self.leave(kernel_BOS)).view_as(slope.kernel_BOCJ), slope.bias_BO)


class Meeting(nn.Module):
    """Each wire of a layer hears of itself and of both its channels; what it says to them is the mean over their wires.

    A colour of the image is no channel: it has nothing to tell and nobody asks it.
    """

    def __init__(self, hidden: int, *, first: bool) -> None:
        super().__init__()
        self.own, self.of_end = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.known = nn.Linear(hidden, 2 * hidden)
        self.leave, self.to_end = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.of_origin = None if first else nn.Linear(hidden, hidden, bias=False)
        self.to_origin = None if first else nn.Linear(hidden, hidden)

    def forward(
        self, wire_BOCF: Tensor, origin_BCF: Tensor | None, end_BOF: Tensor, known_BF: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The wires, and what their origins and ends hear."""
        mixed = self.own(_levelled(wire_BOCF)) + self.of_end(_levelled(end_BOF))[:, :, None]
        if self.of_origin is not None and origin_BCF is not None:
            mixed = mixed + self.of_origin(_levelled(origin_BCF))[:, None]
        gain, shift = self.known(known_BF)[:, None, None].chunk(2, dim=-1)
        found = silu(mixed * (1 + gain) + shift)
        to_origin = None if self.to_origin is None else self.to_origin(found.mean(1))
        return wire_BOCF + self.leave(found), to_origin, self.to_end(found.mean(2))


def _length(part_BX: Tensor) -> Tensor:
    """Of each network's part, to be divided by."""
    over = tuple(range(1, part_BX.dim()))
    return part_BX.square().sum(over, keepdim=True).sqrt().clamp_min(LEAST)


def _levelled(x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:])
