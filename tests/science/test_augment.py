"""Augmentation against torchvision, image by image; its draws depend on nothing but the generator handed in."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from metadiff.augment import Draw, augment, draw, inverse_matrix, jitter, mirror, warp

OFF = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0, "flip": False, "jitter": 0.0}
ALL = {"degrees": 15.0, "translate": 0.1, "scale": 0.2, "shear": 10.0, "flip": True, "jitter": 0.4}


def settings(**changed: float) -> SimpleNamespace:
    return SimpleNamespace(**(OFF | changed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(count: int, *, channels: int, side: int = 24) -> Tensor:
    """Slow waves: interpolation at slightly different points gives nearly the same values."""
    at = torch.linspace(0, 3, side)
    phase_NC = torch.rand(count, channels, generator=generator(1)) * 6
    wave = torch.sin(at[:, None] + phase_NC[:, :, None, None]) + torch.cos(at[None, :] * 1.3 - phase_NC[:, :, None, None])
    return wave / 4 + 0.5


def test_nothing_changes_when_every_range_is_zero() -> None:
    x_NCHW = smooth_images(5, channels=3)
    assert torch.equal(augment(x_NCHW, settings=settings(), generator=generator()), x_NCHW)


@pytest.mark.parametrize("key", ["degrees", "translate", "scale", "shear", "flip", "jitter"])
def test_each_setting_changes_images(key: str) -> None:
    x_NCHW = smooth_images(16, channels=3)
    changed = augment(x_NCHW, settings=settings(**{key: ALL[key]}), generator=generator())
    assert changed.shape == x_NCHW.shape
    assert not torch.allclose(changed, x_NCHW, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_warp_agrees_with_torchvision_inside_the_image(channels: int) -> None:
    x_NCHW = smooth_images(12, channels=channels)
    side = x_NCHW.shape[-1]
    # whole pixels: torchvision rounds its translation
    change = draw(12, settings=settings(**ALL), generator=generator())
    change = replace(change, **{key: (getattr(change, key) * side).round() / side for key in ("move_x_N", "move_y_N")})
    ours = warp(x_NCHW, change)
    for i in range(12):
        theirs = oracle.affine(
            x_NCHW[i],
            angle=change.angle_N[i].item(),
            translate=[round(change.move_x_N[i].item() * side), round(change.move_y_N[i].item() * side)],
            scale=change.scale_N[i].item(),
            shear=[change.shear_N[i].item(), 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        whole = oracle.affine(
            torch.ones_like(x_NCHW[i]),
            angle=change.angle_N[i].item(),
            translate=[round(change.move_x_N[i].item() * side), round(change.move_y_N[i].item() * side)],
            scale=change.scale_N[i].item(),
            shear=[change.shear_N[i].item(), 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        inside = whole > 1 - 1e-4  # untouched by torchvision's black outside
        assert inside.float().mean() > 0.5
        torch.testing.assert_close(ours[i][inside], theirs[inside], rtol=0, atol=1e-4)


def test_outside_of_the_image_repeats_its_border() -> None:
    x_NCHW = torch.full((1, 1, 16, 16), 0.7)
    change = replace(draw(1, settings=settings(), generator=generator()), angle_N=torch.tensor([40.0]))
    torch.testing.assert_close(warp(x_NCHW, change), x_NCHW)


@given(st.floats(-180, 180), st.floats(0.5, 1.5), st.floats(-40, 40))
def test_inverse_matrix_undoes_rotation_scale_and_shear(angle: float, scale: float, shear: float) -> None:
    one = draw(1, settings=settings(), generator=generator())
    change = replace(one, angle_N=torch.tensor([angle]), scale_N=torch.tensor([scale]), shear_N=torch.tensor([shear]))
    a, tan = np.deg2rad(angle), np.tan(np.deg2rad(shear))
    forward = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ np.array([[1, -tan], [0, 1]])
    np.testing.assert_allclose(inverse_matrix(change)[0, :, :2].numpy() @ forward, np.eye(2), atol=1e-5)


def test_jitter_agrees_with_torchvision_for_colour() -> None:
    x_NCHW = torch.rand(8, 3, 10, 10, generator=generator(2))
    change = draw(8, settings=settings(jitter=0.8), generator=generator())
    ours = jitter(x_NCHW, change)
    for i in range(8):
        theirs = oracle.adjust_brightness(x_NCHW[i], change.brightness_N[i].item())
        theirs = oracle.adjust_contrast(theirs, change.contrast_N[i].item())
        theirs = oracle.adjust_saturation(theirs, change.saturation_N[i].item())
        torch.testing.assert_close(ours[i], theirs, rtol=1e-4, atol=1e-5)


def test_jitter_agrees_with_torchvision_for_grey() -> None:
    x_NCHW = torch.rand(8, 1, 10, 10, generator=generator(2))
    change = draw(8, settings=settings(jitter=0.8), generator=generator())
    ours = jitter(x_NCHW, change)
    for i in range(8):
        theirs = oracle.adjust_contrast(
            oracle.adjust_brightness(x_NCHW[i], change.brightness_N[i].item()), change.contrast_N[i].item()
        )
        torch.testing.assert_close(ours[i], theirs, rtol=1e-4, atol=1e-5)


def test_about_half_of_the_images_are_mirrored_and_exactly() -> None:
    x_NCHW = torch.rand(1000, 1, 3, 3, generator=generator(2))
    changed = mirror(x_NCHW, draw(1000, settings=settings(flip=True), generator=generator()))
    mirrored = (changed == x_NCHW.flip(-1)).flatten(1).all(1)
    kept = (changed == x_NCHW).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 430 < mirrored.sum() < 570  # six deviations of a fair coin would be 95


def test_draws_stay_in_their_ranges_and_reach_near_their_ends() -> None:
    change = draw(4000, settings=settings(**ALL), generator=generator())
    for values, middle, reach in [
        (change.angle_N, 0, 15),
        (change.move_x_N, 0, 0.1),
        (change.move_y_N, 0, 0.1),
        (change.scale_N, 1, 0.2),
        (change.shear_N, 0, 10),
        (change.brightness_N, 1, 0.4),
        (change.contrast_N, 1, 0.4),
        (change.saturation_N, 1, 0.4),
    ]:
        assert (values - middle).abs().max() <= reach * 1.0001
        assert (values - middle).min() < -0.95 * reach
        assert (values - middle).max() > 0.95 * reach


def test_same_generator_same_bytes_and_no_global_generator_is_touched() -> None:
    x_NCHW = smooth_images(6, channels=3)
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = augment(x_NCHW, settings=settings(**ALL), generator=generator(7))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])
    torch.rand(11)
    assert torch.equal(first, augment(x_NCHW, settings=settings(**ALL), generator=generator(7)))
    assert not torch.equal(first, augment(x_NCHW, settings=settings(**ALL), generator=generator(8)))


def test_changing_one_range_leaves_the_other_draws_alone() -> None:
    base = draw(5, settings=settings(**ALL), generator=generator())
    other = draw(5, settings=settings(**(ALL | {"degrees": 30.0})), generator=generator())
    same = [f.name for f in fields(Draw) if torch.equal(getattr(base, f.name), getattr(other, f.name))]
    assert same == [f.name for f in fields(Draw) if f.name != "angle_N"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="1 check of augmentation on a GPU skipped: no CUDA device")
def test_cuda_sees_the_same_draws() -> None:
    x_NCHW = smooth_images(6, channels=3)
    on_cpu, on_gpu = (augment(x.clone(), settings=settings(**ALL), generator=generator()) for x in (x_NCHW, x_NCHW.cuda()))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-5)
