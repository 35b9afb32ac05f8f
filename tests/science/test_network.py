"""The whole small network: torch's own layers are its oracle, in float64."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metadiff import network
from metadiff.baselines.finetune import Course, finetune
from metadiff.baselines.start import Start, Tour, start_tasks
from metadiff.conditioning import BaseTasks
from metadiff.inputs import Inputs, with_pixels
from metadiff.layout import tensors_of
from metadiff.learner import build_learner
from metadiff.network import Network
from metadiff.objectives import OnSupport
from metadiff.pictures import Pictures
from tests.science.test_episodes import rows

TASKS, WAY, SHOT = 3, 4, 2
SMALL = Network("conv", way=WAY, side=11, colours=3, channels=5)
SIDES = [*range(8, 40), 84]  # the least that images may have, and a photo's


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images_of(learner: Network, tasks: int = TASKS) -> Tensor:
    return noise(tasks, WAY, SHOT, learner.side**2 * learner.colours, seed=1)


def as_modules(learner: Network, theta_P: Tensor) -> nn.Sequential:
    """The network as its paper's code has it, with these weights."""
    channels = learner.channels
    sizes = [(learner.colours, 3, 2), (channels, 3, 2), (channels, 3, 2), (channels, 2, 0)]
    layers: list[nn.Module] = []
    for seen, width, border in sizes:
        layers += [nn.Conv2d(seen, channels, width, stride=width, padding=border), nn.ReLU()]
    *convolutions, leave_FW, shift_W = (part[0] for part in tensors_of(theta_P[None], learner.layout()))
    layers += [nn.Flatten(), nn.Linear(*leave_FW.shape)]
    with torch.no_grad():
        for number, layer in enumerate(layers[:-2:2]):
            layer.weight = nn.Parameter(convolutions[2 * number].permute(0, 3, 1, 2))
            layer.bias = nn.Parameter(convolutions[2 * number + 1])
        height = math.isqrt(len(leave_FW) // channels)
        by_channel_FW = leave_FW.view(height, height, channels, -1).permute(2, 0, 1, 3).flatten(0, 2)
        layers[-1].weight, layers[-1].bias = nn.Parameter(by_channel_FW.T), nn.Parameter(shift_W)
    return nn.Sequential(*layers)


def module_logits(learner: Network, theta_P: Tensor, pixels_NQ: Tensor) -> Tensor:
    x_NCHW = pixels_NQ.view(-1, learner.side, learner.side, learner.colours).permute(0, 3, 1, 2)
    logits_NW: Tensor = as_modules(learner, theta_P)(x_NCHW)
    return logits_NW


def test_the_network_of_omniglot_has_91_269_weights() -> None:
    assert Network("conv", way=5, side=28, colours=1, channels=64).size == 91_269


def test_the_layout_covers_the_vector_once() -> None:
    layout, end = SMALL.layout(), 0
    for part in layout:
        assert part.offset == end
        end += math.prod(part.shape)
    assert end == SMALL.size
    names = [f"conv{number}.{kind}" for number in (1, 2, 3, 4) for kind in ("weight", "bias")]
    assert [part.name for part in layout] == [*names, "leave.weight", "leave.bias"]


def test_a_network_comes_back_from_its_facts() -> None:
    assert build_learner(asdict(SMALL)) == SMALL


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("side", SIDES)
def test_logits_are_those_of_the_modules_for_images_of_any_side(side: int, colours: int) -> None:
    learner = Network("conv", WAY, side, colours, channels=4)
    theta_TP, pixels_TNQ = noise(TASKS, learner.size), images_of(learner).flatten(1, 2)
    expected = [module_logits(learner, *task) for task in zip(theta_TP, pixels_TNQ, strict=True)]
    torch.testing.assert_close(learner.logits(theta_TP, pixels_TNQ), torch.stack(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", [8, 9, 10, 11, 28, 40])
def test_the_slope_of_every_task_is_that_of_autograd_through_the_modules(side: int) -> None:
    learner = Network("conv", WAY, side, colours=2, channels=4)
    theta_TP, support_TWSQ = noise(TASKS, learner.size), images_of(learner)
    found_TP = OnSupport(learner, support_TWSQ).gradient(theta_TP)
    target_N = torch.arange(WAY).repeat_interleave(SHOT)
    for theta_P, pixels_NQ, slope_P in zip(theta_TP, support_TWSQ.flatten(1, 2), found_TP, strict=True):
        modules = as_modules(learner, theta_P)
        x_NCHW = pixels_NQ.view(-1, side, side, 2).permute(0, 3, 1, 2)
        cross_entropy(modules(x_NCHW), target_N).backward()
        slopes = [value.grad for value in modules.parameters()]
        parts = [part[0] for part in tensors_of(slope_P[None], learner.layout())]
        for found, expected in zip(parts[:-2], slopes[:-2], strict=True):
            plain = found.permute(0, 3, 1, 2) if found.ndim == 4 else found
            torch.testing.assert_close(plain, expected, rtol=1e-9, atol=1e-12)
        height = learner.layers[-1].places
        leave_WF = parts[-2].view(height, height, 4, WAY).permute(3, 2, 0, 1).flatten(1)
        torch.testing.assert_close(leave_WF, slopes[-2], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(parts[-1], slopes[-1], rtol=1e-9, atol=1e-12)


def test_how_many_tasks_go_through_together_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    theta_TP, support_TWSQ = noise(5, SMALL.size), images_of(SMALL, tasks=5)
    whole = OnSupport(SMALL, support_TWSQ)
    expected = whole.gradient(theta_TP), *whole.measure(theta_TP)
    monkeypatch.setattr(network, "IMAGES", 2 * WAY * SHOT)
    assert [len(group[0]) for group in network._groups(theta_TP, whole.inputs_TNE)] == [2, 2, 1]
    for found, value in zip((whole.gradient(theta_TP), *whole.measure(theta_TP)), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_a_start_has_the_deviations_that_keep_signals_their_size() -> None:
    learner = Network("conv", way=50, side=28, colours=3, channels=64)
    start_P = learner.start(np.random.default_rng(0), 1.5)
    assert start_P.dtype == torch.float32
    fans = {"conv1": 27, "conv2": 576, "conv3": 576, "conv4": 256, "leave": 64}
    for part in learner.layout():
        values, (name, kind) = start_P[part.offset :][: part.size], part.name.split(".")
        if kind == "bias":
            assert not values.any()
        else:
            assert float(values.std()) == pytest.approx(1.5 * math.sqrt(2 / fans[name]), rel=0.06)


def test_permuted_channels_are_the_same_classifier() -> None:
    theta_TP, order = noise(TASKS, SMALL.size), torch.tensor([3, 0, 4, 1, 2])
    parts = tensors_of(theta_TP, SMALL.layout())
    parts[2], parts[3], parts[4] = parts[2][:, order], parts[3][:, order], parts[4][..., order]
    other_TP = torch.cat([part.flatten(1) for part in parts], dim=1)
    pixels_TNQ = images_of(SMALL).flatten(1, 2)
    assert not torch.equal(other_TP, theta_TP)
    torch.testing.assert_close(SMALL.logits(other_TP, pixels_TNQ), SMALL.logits(theta_TP, pixels_TNQ))


DATA = rows([6] * 5, split=0)


def shown() -> tuple[Inputs, Pictures]:
    """Of each class a pattern of its own, with noise; features that are only the number of the row."""
    rng = np.random.default_rng(0)
    pattern_CQ = rng.integers(50, 200, (5, SMALL.side**2 * SMALL.colours))
    pixels_NQ = torch.from_numpy((pattern_CQ[DATA.label] + rng.integers(-50, 50, (30, pattern_CQ.shape[1]))).astype(np.uint8))
    features_N1 = torch.arange(30.0)[:, None]
    return with_pixels(Inputs(), pixels_NQ, DATA, SMALL.colours), Pictures(features_N1, pixels_NQ)


def test_a_network_is_fine_tuned_on_the_pixels_of_its_support() -> None:
    inputs, pictures = shown()
    support_EWS = pictures[torch.arange(24).view(1, WAY, 6)]
    start_P = SMALL.start(np.random.default_rng(0), 1.0)
    theta_EP = finetune(SMALL, inputs, support_EWS, start_P[None], Course(lr=0.01, steps=60))
    loss_E, accuracy_E = OnSupport(SMALL, inputs.seen(support_EWS)).measure(theta_EP)
    assert float(loss_E) < 0.5  # chance is log 4
    assert float(accuracy_E) == 1


def test_reptile_shows_networks_the_pixels_of_tasks_that_are_drawn_by_their_features() -> None:
    inputs, pictures = shown()
    images, seen_NQ = BaseTasks(pictures.features, DATA), inputs.seen(pictures)
    draw = start_tasks(images, seen_NQ, tasks=3, way=WAY, shots=(2,))
    support_BWSQ, generator = draw(torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0)
    torch.randint(1, (), generator=generator)  # which number of shots
    classes_BW = images.classes(generator, tasks=3, way=WAY)
    rows_BWS = images.support(classes_BW, 2, generator)[..., 0].long()
    assert torch.equal(support_BWSQ, seen_NQ[rows_BWS])
    assert torch.equal(torch.from_numpy(DATA.label)[rows_BWS], classes_BW[..., None].expand(-1, -1, 2).int())
    start = Start(SMALL, SMALL.start(np.random.default_rng(0), 1.0))
    before = OnSupport(SMALL, support_BWSQ).measure(start.net.theta_P.detach().expand(3, -1))[0].mean()
    assert Tour(Course(lr=0.01, steps=20)).slope(start, support_BWSQ, generator) < 0.5 * before
    assert start.net.theta_P.grad is not None
