"""Random changes of training images: turn, move, scale, shear, mirror, brightness, contrast, saturation.

Every image has its own draw, made on the CPU from the generator that is handed in: the CPU and the GPU see the same numbers,
and no global generator is touched. Shapes: N images, C channels, H x W pixels, values in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from metadiff.params import Pretrain

GREY_OF_RGB = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision and PIL have it


@dataclass(frozen=True)
class Draw:
    """What happens to each image; angles in degrees, moves in shares of the side, the last three are factors."""

    angle_N: Tensor
    move_x_N: Tensor
    move_y_N: Tensor
    scale_N: Tensor
    shear_N: Tensor
    mirror_N: Tensor
    brightness_N: Tensor
    contrast_N: Tensor
    saturation_N: Tensor


def augment(x_NCHW: Tensor, *, settings: Pretrain, generator: torch.Generator) -> Tensor:
    """A changed copy of each image; exactly the image itself where every range is zero."""
    change = draw(len(x_NCHW), settings=settings, generator=generator)
    if settings.degrees or settings.translate or settings.scale or settings.shear:
        x_NCHW = warp(x_NCHW, change)
    if settings.flip:
        x_NCHW = mirror(x_NCHW, change)
    return jitter(x_NCHW, change) if settings.jitter else x_NCHW


def draw(count: int, *, settings: Pretrain, generator: torch.Generator) -> Draw:
    """Always nine numbers an image, so that changing one range leaves the others' draws alone."""
    u = torch.rand(9, count, generator=generator) * 2 - 1
    return Draw(
        angle_N=u[0] * settings.degrees,
        move_x_N=u[1] * settings.translate,
        move_y_N=u[2] * settings.translate,
        scale_N=1 + u[3] * settings.scale,
        shear_N=u[4] * settings.shear,
        mirror_N=u[5] < 0,
        brightness_N=1 + u[6] * settings.jitter,
        contrast_N=1 + u[7] * settings.jitter,
        saturation_N=1 + u[8] * settings.jitter,
    )


def warp(x_NCHW: Tensor, change: Draw) -> Tensor:
    """Bilinear; what comes in from outside the image repeats its border. The images are square."""
    grid_NHW2 = functional.affine_grid(inverse_matrix(change).to(x_NCHW.device), list(x_NCHW.shape), align_corners=False)
    return functional.grid_sample(x_NCHW, grid_NHW2, mode="bilinear", padding_mode="border", align_corners=False)


def inverse_matrix(change: Draw) -> Tensor:
    """(N, 2, 3): where each output pixel comes from, in coordinates from -1 to 1.

    The change itself is p -> scale * R(angle) * [[1, -tan(shear)], [0, 1]] * p + move, as in torchvision.
    """
    angle_N, tan_N = change.angle_N.deg2rad(), change.shear_N.deg2rad().tan()
    cos_N, sin_N = angle_N.cos(), angle_N.sin()
    # the determinant of rotation and shear is 1, so their inverse is the adjugate
    rows = [cos_N - sin_N * tan_N, cos_N * tan_N + sin_N, -sin_N, cos_N]
    inverse_N22 = (torch.stack(rows, dim=1) / change.scale_N[:, None]).view(-1, 2, 2)
    move_N2 = 2 * torch.stack([change.move_x_N, change.move_y_N], dim=1)
    return torch.cat([inverse_N22, -inverse_N22 @ move_N2[:, :, None]], dim=2)


def mirror(x_NCHW: Tensor, change: Draw) -> Tensor:
    return torch.where(per_image(change.mirror_N, x_NCHW), x_NCHW.flip(-1), x_NCHW)


def jitter(x_NCHW: Tensor, change: Draw) -> Tensor:
    """Brightness, contrast, then saturation; an image of one channel has no saturation to change."""
    x_NCHW = (x_NCHW * per_image(change.brightness_N, x_NCHW)).clamp(0, 1)
    x_NCHW = blend(x_NCHW, grey(x_NCHW).mean(dim=(1, 2, 3), keepdim=True), change.contrast_N)
    return blend(x_NCHW, grey(x_NCHW), change.saturation_N) if x_NCHW.shape[1] == 3 else x_NCHW


def grey(x_NCHW: Tensor) -> Tensor:
    """One channel of brightness; without exactly three channels it is their mean."""
    if x_NCHW.shape[1] != 3:
        return x_NCHW.mean(dim=1, keepdim=True)
    weight_C = torch.tensor(GREY_OF_RGB, device=x_NCHW.device)
    return (x_NCHW * weight_C[:, None, None]).sum(dim=1, keepdim=True)


def blend(x_NCHW: Tensor, towards: Tensor, factor_N: Tensor) -> Tensor:
    """Factor 1 keeps the image, 0 gives ``towards``, above 1 moves away from it."""
    factor = per_image(factor_N, x_NCHW)
    return (factor * x_NCHW + (1 - factor) * towards).clamp(0, 1)


def per_image(value_N: Tensor, x_NCHW: Tensor) -> Tensor:
    return value_N.to(x_NCHW.device).view(-1, 1, 1, 1)
