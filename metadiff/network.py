"""A whole small network on images as a base learner: four layers of convolution, as the author of Mc-Di has them for Omniglot in
later code (arXiv 2410.02267).

Its kernels lie side by side, since each moves by its own width. So a convolution is a matrix product of images that were cut into
patches, for all tasks of a batch at once, as quick as a grouped convolution or up to 2.8 times quicker (bench/network.py).
The gradient is in closed form, as that of the other learners.

Shapes: T tasks, N images of each, W ways, P weights, Q numbers of an image (height, width, colour); of a layer C channels of its
input, O of its output, M places where its kernel stands, in all images, J numbers that it sees at one (height, width, channel);
F numbers that are left of an image. As wires: B networks, of a layer O channels that it leads to, C that it comes from, J numbers
of a kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from metadiff.layout import Part, parts_in_order, tensors_of

KERNELS = ((3, 2), (3, 2), (3, 2), (2, 0))  # of each layer the width and stride of its kernel, and the border of zeros
IMAGES = 400  # of all tasks of one tensor program: more need more memory and are no quicker


@dataclass(frozen=True)
class Layer:
    """A convolution of square images of this side."""

    side: int
    kernel: int
    border: int

    @property
    def places(self) -> int:
        """Along one side."""
        return (self.side + 2 * self.border - self.kernel) // self.kernel + 1

    @property
    def beyond(self) -> int:
        """Zeros after the last row: less than none, if no kernel reaches it."""
        return self.places * self.kernel - self.side - self.border

    def patches(self, x_TNQ: Tensor, channels: int) -> Tensor:
        """(T, M, J): what the kernel sees at each of its places."""
        ends = (self.border, self.beyond)
        x_TNHWC = pad(x_TNQ.view(*x_TNQ.shape[:2], self.side, self.side, channels), (0, 0, *ends, *ends))
        rows_and_columns = 2 * (self.places, self.kernel)
        cut = x_TNHWC.reshape(*x_TNQ.shape[:2], *rows_and_columns, channels).transpose(3, 4)
        return cut.reshape(len(x_TNQ), -1, self.kernel**2 * channels)

    def joined(self, slope_TMJ: Tensor, images: int) -> Tensor:
        """(T, N * H * W, C): the slope by an image from that by its patches, which have no place in common."""
        cut = slope_TMJ.view(len(slope_TMJ), images, self.places, self.places, self.kernel, self.kernel, -1)
        x_TNHWC = cut.transpose(3, 4).flatten(4, 5).flatten(2, 3)
        ends = (-self.border, -self.beyond)
        return pad(x_TNHWC, (0, 0, *ends, *ends)).flatten(1, 3)


@dataclass(frozen=True)
class Look:
    """At images by networks: what the last layer and the classes answer, and the slope of each task's loss."""

    last_TNF: Tensor
    logits_TNW: Tensor
    slope_TP: Tensor


@dataclass(frozen=True)
class Network:
    """Convolutions with their biases, each cut off below 0, then a linear map of what is left of the image.

    A convolution's weights are a row an output channel (height, width, input channel), as images lie in their file.
    Its channels can be permuted like the hidden units of a perceptron.
    """

    kind: Literal["conv"]
    way: int
    side: int
    colours: int
    channels: int

    @property
    def size(self) -> int:
        return sum(part.size for part in self.layout())

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        layers, side = [], self.side
        for kernel, border in KERNELS:
            layers.append(Layer(side, kernel, border))
            side = layers[-1].places
        return tuple(layers)

    def layout(self) -> tuple[Part, ...]:
        shapes: dict[str, tuple[int, ...]] = {}
        for number, layer in enumerate(self.layers):
            seen = self.channels if number else self.colours
            shapes[f"conv{number + 1}.weight"] = (self.channels, layer.kernel, layer.kernel, seen)
            shapes[f"conv{number + 1}.bias"] = (self.channels,)
        left = self.channels * self.layers[-1].places ** 2
        return parts_in_order(shapes | {"leave.weight": (left, self.way), "leave.bias": (self.way,)})

    def start(self, stream: np.random.Generator, std: float) -> Tensor:
        """(P,): weights are Gaussian of deviation std * sqrt(2 / fan in) (He et al. 2015, for std 1), biases 0."""
        start_P = torch.zeros(self.size)
        for part in self.layout():
            if part.name.endswith("weight"):
                fan = part.shape[0] if part.name == "leave.weight" else math.prod(part.shape[1:])
                drawn = torch.from_numpy(stream.standard_normal(part.size, dtype=np.float32))
                start_P[part.offset :][: part.size] = std * math.sqrt(2 / fan) * drawn
        return start_P

    def inputs(self, pixels: Tensor) -> Tensor:
        """What the first layer sees: the pixels themselves."""
        return pixels

    def logits(self, theta_TP: Tensor, pixels_TNQ: Tensor) -> Tensor:
        """Scores (T, N, W) of each task's own N images."""
        return self.scores(theta_TP, pixels_TNQ)

    def scores(self, theta_TP: Tensor, pixels_TNQ: Tensor) -> Tensor:
        return torch.cat([self._forward(*group)[1] for group in _groups(theta_TP, pixels_TNQ)])

    def slope(self, theta_TP: Tensor, pixels_TNQ: Tensor, hot_NW: Tensor) -> Tensor:
        """(T, P): of each task's cross-entropy, the mean over its images, whose classes are ``hot_NW`` in every task."""
        return torch.cat([self.look(*group, hot_NW).slope_TP for group in _groups(theta_TP, pixels_TNQ)])

    def _forward(self, theta_TP: Tensor, pixels_TNQ: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """The patches (T, M, J) and the output (T, M, O) of each layer, and the logits (T, N, W)."""
        *convolutions, leave_TFW, shift_TW = tensors_of(theta_TP, self.layout())
        seen_TNQ, passed = pixels_TNQ, []
        for layer, weight, bias_TO in zip(self.layers, convolutions[::2], convolutions[1::2], strict=True):
            patch_TMJ = layer.patches(seen_TNQ, weight.shape[-1])
            out_TMO = torch.baddbmm(bias_TO[:, None], patch_TMJ, weight.flatten(2).mT).relu_()
            passed.append((patch_TMJ, out_TMO))
            seen_TNQ = out_TMO.view(*pixels_TNQ.shape[:2], -1)
        return passed, torch.baddbmm(shift_TW[:, None], seen_TNQ, leave_TFW)

    def look(self, theta_TP: Tensor, pixels_TNQ: Tensor, hot_NW: Tensor) -> Look:
        """All in one go, of as many tasks as go through the network together."""
        passed, logits_TNW = self._forward(theta_TP, pixels_TNQ)
        *convolutions, leave_TFW, _ = tensors_of(theta_TP, self.layout())
        error_TNW = logits_TNW.softmax(-1).sub_(hot_NW).div_(len(hot_NW))
        last_TNF = passed[-1][1].view(*error_TNW.shape[:2], -1)
        slopes = [error_TNW.sum(1), last_TNF.mT @ error_TNW]  # from the last part to the first
        back = error_TNW @ leave_TFW.mT
        for number in reversed(range(len(self.layers))):
            patch_TMJ, out_TMO = passed[number]
            back_TMO = back.view_as(out_TMO) * (out_TMO > 0)
            slopes += [back_TMO.sum(1), back_TMO.mT @ patch_TMJ]
            if number:
                back = self.layers[number].joined(back_TMO @ convolutions[2 * number].flatten(2), pixels_TNQ.shape[1])
        return Look(last_TNF, logits_TNW, torch.cat([slope.flatten(1) for slope in reversed(slopes)], dim=1))


@dataclass(frozen=True)
class Wires:
    """A layer of a batch of networks: a kernel from each channel to each, and a bias of each that it leads to."""

    kernel_BOCJ: Tensor
    bias_BO: Tensor


def wires_of(learner: Network, theta_BP: Tensor) -> list[Wires]:
    *convolutions, leave_BQW, shift_BW = tensors_of(theta_BP, learner.layout())
    kernels = [weight.flatten(2, 3).mT for weight in convolutions[::2]]
    kernels.append(by_channel(learner, leave_BQW.mT.contiguous()))
    return [Wires(*layer) for layer in zip(kernels, (*convolutions[1::2], shift_BW), strict=True)]


def network_of(wires: list[Wires]) -> Tensor:
    """The inverse."""
    *before, last = wires
    parts = [part for layer in before for part in (layer.kernel_BOCJ.mT, layer.bias_BO)]
    return torch.cat([part.flatten(1) for part in (*parts, last.kernel_BOCJ.permute(0, 3, 2, 1), last.bias_BO)], dim=1)


def by_channel(learner: Network, left_BWQ: Tensor) -> Tensor:
    """(B, W, C, J) of what is left of an image, whose places come before its channels."""
    return left_BWQ.view(*left_BWQ.shape[:2], -1, learner.channels).mT


def _groups(theta_TP: Tensor, pixels_TNQ: Tensor) -> list[tuple[Tensor, Tensor]]:
    """As many tasks as go through the network together."""
    tasks = max(1, IMAGES // pixels_TNQ.shape[1])
    return list(zip(torch.split(theta_TP, tasks), torch.split(pixels_TNQ, tasks), strict=True))
