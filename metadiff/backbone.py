"""The networks that turn an image into a feature vector, and the heads that train them.

Shapes: N images, H x W pixels, C channels, D features. A backbone takes uint8 NHWC images and carries the mean and
the deviation of its training images, so its weights alone are enough to use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from metadiff.errors import CorruptArtifactError
from metadiff.resnet101 import SIZE, ResNet101
from metadiff.rng import torch_stream

NAMES = ("conv4", "resnet12", "resnet101")
SMALLEST = 16  # four poolings halve the side
SLOPE = 0.1  # LeakyReLU of ResNet-12
GREY_LEVEL = 1 / 255


class Conv4Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        # pooling first gives the same values as ReLU first, on a quarter of the numbers
        return functional.relu(functional.max_pool2d(self.norm(self.conv(x_NCHW)), 2))


class Conv4(nn.Module):
    """MetaOptNet's ProtoNetEmbedding: the last feature map is flattened, not averaged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Conv4Block(c, 64) for c in (channels, 64, 64, 64)))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.blocks(x_NCHW)
        return out.flatten(1)


class ResNet12Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, *, activate: bool) -> None:
        super().__init__()
        sides = (channels_in, channels_out, channels_out)
        self.convs = nn.ModuleList(nn.Conv2d(c, channels_out, 3, padding=1, bias=False) for c in sides)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels_out) for _ in sides)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(channels_out)
        self.activate = activate

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out = x_NCHW
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            out = functional.leaky_relu(out, SLOPE) if i < 2 else out
        out = out + self.shortcut_norm(self.shortcut(x_NCHW))
        return functional.max_pool2d(functional.leaky_relu(out, SLOPE) if self.activate else out, 2)


class ResNet12(nn.Module):
    """The ResNet-12 of MetaDiff's code: no activation after the last block, so features can be negative."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sides = (channels, 64, 128, 256, 512)
        self.blocks = nn.Sequential(*(ResNet12Block(a, b, activate=b != 512) for a, b in pairwise(sides)))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.blocks(x_NCHW)
        return out.mean(dim=(2, 3))


class Backbone(nn.Module):
    """An encoder with the standardisation of its input; `embed` is for images that are floats in [0, 1] already."""

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, name: str, *, channels: int, image_size: int) -> None:
        super().__init__()
        self.name, self.channels, self.image_size = name, channels, image_size
        self.encoder: nn.Module
        if name == "conv4":
            self.encoder, self.feature_size = Conv4(channels), 64 * (image_size // 16) ** 2
        elif name == "resnet12":
            self.encoder, self.feature_size = ResNet12(channels), 512
        else:
            self.encoder, self.feature_size = ResNet101(), SIZE
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("std_C", torch.ones(channels))

    def forward(self, images_NHWC: Tensor) -> Tensor:
        return self.embed(to_unit(images_NHWC))

    def embed(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = (x_NCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        out: Tensor = self.encoder(x_NCHW.contiguous(memory_format=torch.channels_last))
        return out


class Heads(nn.Module):
    """What is on top of the backbone in training only: a linear classifier and, if wanted, one of the four rotations."""

    def __init__(self, feature_size: int, *, num_classes: int, rotation: bool) -> None:
        super().__init__()
        self.classes = nn.Linear(feature_size, num_classes)
        self.rotations = nn.Linear(feature_size, 4) if rotation else None


def to_unit(images_NHWC: Tensor) -> Tensor:
    """uint8 images as floats in [0, 1], in PyTorch's order of axes."""
    return images_NHWC.permute(0, 3, 1, 2).to(torch.float32) / 255


def channel_statistics(blocks: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over blocks of uint8 NHWC images, in [0, 1]; summed in integers, so exact."""
    count, total_C, square_C = 0, np.zeros(1, np.int64), np.zeros(1, np.int64)
    for block in blocks:
        levels = block.reshape(-1, block.shape[-1]).astype(np.int64)
        count += len(levels)
        total_C, square_C = total_C + levels.sum(axis=0), square_C + (levels**2).sum(axis=0)
    mean_C = total_C / count
    deviation_C = np.sqrt(np.maximum(square_C / count - mean_C**2, 0.0))
    return [float(v) for v in mean_C / 255], [float(v) for v in deviation_C / 255]


def build(
    name: str, *, channels: int, image_size: int, seed: int, mean_C: Sequence[float] = (), std_C: Sequence[float] = ()
) -> Backbone:
    """A fresh backbone. Without statistics the input is only brought to [0, 1]."""
    if name not in NAMES:
        raise ValueError(f"backbone: must be one of {', '.join(NAMES)}, not {name!r}")
    if image_size < SMALLEST:
        raise ValueError(f"image_size: {name} needs images of at least {SMALLEST} pixels a side, not {image_size}")
    with torch.device("meta"):  # no memory and, above all, no draw from the global generator
        backbone = Backbone(name, channels=channels, image_size=image_size)
    initialise(backbone.to_empty(device="cpu"), seed=seed, slope=SLOPE if name == "resnet12" else 0.0)
    with torch.no_grad():
        backbone.mean_C.copy_(torch.tensor(list(mean_C) or [0.0] * channels))
        # one grey level at least, or a constant channel would be divided by zero
        backbone.std_C.copy_(torch.tensor(list(std_C) or [1.0] * channels).clamp_min(GREY_LEVEL))
    return backbone.to(memory_format=torch.channels_last)  # about a quarter faster on a CPU, needed for tensor cores


def build_heads(feature_size: int, *, num_classes: int, rotation: bool, seed: int) -> Heads:
    with torch.device("meta"):
        heads = Heads(feature_size, num_classes=num_classes, rotation=rotation)
    initialise(heads.to_empty(device="cpu"), seed=seed, slope=0.0)
    return heads


def initialise(module: nn.Module, *, seed: int, slope: float) -> None:
    """Set every weight, each layer from a stream of its own; ``slope`` is that of the LeakyReLU, 0 for a ReLU."""
    for name, layer in module.named_modules():
        generator = torch_stream(seed, "init", name)
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=slope, mode="fan_out", nonlinearity="leaky_relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()


def dump(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the facts that `undump` needs to build the backbone again."""
    facts = {"backbone": backbone.name, "channels": backbone.channels, "image_size": backbone.image_size}
    return backbone.state_dict(), facts


def undump(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Backbone:
    """A backbone in evaluation mode; refuses weights of another architecture."""
    name, channels, image_size = facts["backbone"], facts["channels"], facts["image_size"]
    backbone = build(name, channels=channels, image_size=image_size, seed=0)
    want = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
    have = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = sorted(key for key in want.keys() | have.keys() if want.get(key) != have.get(key))
    if wrong:
        raise CorruptArtifactError(
            f"weights of another network than {name} for {channels} channels: {wrong[0]} "
            f"has shape {have.get(wrong[0])}, expected {want.get(wrong[0])}; run pretrain again"
        )
    backbone.load_state_dict(dict(tensors))
    return backbone.eval()
