"""Backbones: sizes counted by hand, input standardisation, initialisation that leaves global generators alone."""

import numpy as np
import pytest
import torch
from torch import nn

from metadiff.backbone import Backbone, build, build_heads, channel_statistics, dump, to_unit, undump
from metadiff.errors import CorruptArtifactError


def images(count: int = 3, *, side: int = 32, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8))


def count_parameters(backbone: Backbone) -> int:
    return sum(p.numel() for p in backbone.parameters())


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_conv4_has_the_parameters_counted_by_hand(channels: int) -> None:
    norm = 2 * 64  # scale and shift
    expected = 9 * channels * 64 + norm + 3 * (9 * 64 * 64 + norm)
    assert count_parameters(build("conv4", channels=channels, image_size=32, seed=0)) == expected


@pytest.mark.parametrize(("channels", "expected"), [(3, 7_996_800), (1, 7_996_800 - 2 * 64 * (9 + 1))])
def test_resnet12_has_the_parameters_of_the_paper(channels: int, expected: int) -> None:
    assert count_parameters(build("resnet12", channels=channels, image_size=32, seed=0)) == expected


@pytest.mark.parametrize(
    ("name", "side", "channels", "size"),
    [
        ("conv4", 16, 1, 64),
        ("conv4", 32, 1, 256),
        ("conv4", 32, 3, 256),
        ("conv4", 84, 3, 1600),
        ("resnet12", 32, 1, 512),
        ("resnet12", 84, 3, 512),
    ],
)
def test_features_have_the_stated_size(name: str, side: int, channels: int, size: int) -> None:
    backbone = build(name, channels=channels, image_size=side, seed=0).eval()
    features_ND = backbone(images(2, side=side, channels=channels))
    assert backbone.feature_size == size
    assert features_ND.shape == (2, size)
    assert features_ND.dtype == torch.float32


def test_conv4_is_the_sequence_of_textbook_layers() -> None:
    backbone = build("conv4", channels=3, image_size=32, seed=3)
    layers: list[nn.Module] = []
    for block in backbone.encoder.blocks:
        layers += [block.conv, block.norm, nn.ReLU(), nn.MaxPool2d(2)]
    oracle = nn.Sequential(*layers, nn.Flatten()).eval()
    x_NHWC = images(4, channels=3)
    expected = oracle(x_NHWC.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(backbone.eval()(x_NHWC), expected)


def test_resnet12_has_negative_features_because_the_last_block_is_not_activated() -> None:
    backbone = build("resnet12", channels=1, image_size=32, seed=0).eval()
    features_ND = backbone(images())
    assert (features_ND < -0.1 * features_ND.max()).any()


def test_resnet12_block_is_three_convolutions_and_a_shortcut() -> None:
    block = build("resnet12", channels=1, image_size=32, seed=1).encoder.blocks[0].eval()
    x_NCHW = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    relu = nn.LeakyReLU(0.1)
    main = x_NCHW
    main = relu(block.norms[0](block.convs[0](main)))
    main = relu(block.norms[1](block.convs[1](main)))
    main = block.norms[2](block.convs[2](main))
    expected = nn.MaxPool2d(2)(relu(main + block.shortcut_norm(block.shortcut(x_NCHW))))
    torch.testing.assert_close(block(x_NCHW), expected)


@pytest.mark.parametrize(("name", "slope"), [("conv4", 0.0), ("resnet12", 0.1)])
def test_weights_have_the_kaiming_deviation_of_fan_out(name: str, slope: float) -> None:
    backbone = build(name, channels=3, image_size=32, seed=0)
    for layer in (m for m in backbone.modules() if isinstance(m, nn.Conv2d)):
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        expected = (2 / (1 + slope**2) / fan_out) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=6 * layer.weight.numel() ** -0.5)
    for layer in (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)):
        assert layer.weight.eq(1).all()
        assert layer.bias.eq(0).all()
        assert layer.running_var.eq(1).all()


def test_initialisation_depends_on_the_seed_only_and_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = build("conv4", channels=1, image_size=32, seed=0)
    head = build_heads(256, num_classes=5, rotation=True, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])
    torch.rand(3)
    again, other = (build("conv4", channels=1, image_size=32, seed=seed) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.encoder.blocks[0].conv.weight, other.encoder.blocks[0].conv.weight)
    same_head = build_heads(256, num_classes=5, rotation=True, seed=0)
    assert torch.equal(head.classes.weight, same_head.classes.weight)
    assert torch.equal(head.rotations.weight, same_head.rotations.weight)


def test_input_is_standardised_inside() -> None:
    x_NHWC = images(6, channels=3)
    mean_C, std_C = channel_statistics([x_NHWC[:2].numpy(), x_NHWC[2:].numpy()])
    plain = build("conv4", channels=3, image_size=32, seed=0).eval()
    inside = build("conv4", channels=3, image_size=32, seed=0, mean_C=mean_C, std_C=std_C).eval()
    by_hand = (to_unit(x_NHWC) - to_unit(x_NHWC).mean((0, 2, 3), keepdim=True)) / to_unit(x_NHWC).std(
        (0, 2, 3), keepdim=True, correction=0
    )
    torch.testing.assert_close(inside(x_NHWC), plain.embed(by_hand), rtol=1e-4, atol=1e-5)


def test_channel_statistics_agree_with_numpy() -> None:
    x_NHWC = images(7, channels=3).numpy()
    mean_C, std_C = channel_statistics([x_NHWC[:1], x_NHWC[1:]])
    np.testing.assert_allclose(mean_C, (x_NHWC / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std_C, (x_NHWC / 255).std((0, 1, 2)), rtol=1e-12)


def test_a_constant_channel_gives_finite_features() -> None:
    blank = np.full((4, 32, 32, 1), 255, dtype=np.uint8)
    mean_C, std_C = channel_statistics([blank])
    assert std_C == [0.0]
    backbone = build("conv4", channels=1, image_size=32, seed=0, mean_C=mean_C, std_C=std_C).eval()
    assert backbone(torch.from_numpy(blank)).isfinite().all()


def test_batch_normalisation_learns_in_training_and_is_frozen_in_evaluation() -> None:
    backbone = build("conv4", channels=1, image_size=32, seed=0)
    running = backbone.encoder.blocks[0].norm.running_mean
    fresh = running.clone()
    alone = backbone.eval()(images(4))[:1]
    assert torch.equal(running, fresh)
    torch.testing.assert_close(alone, backbone(images(4)[:1]))  # the other images of the batch do not matter
    in_training = backbone.train()(images(4))[:1]
    assert not torch.equal(running, fresh)
    assert not torch.allclose(in_training, alone)


@pytest.mark.parametrize("name", ["conv4", "resnet12"])
def test_dump_and_undump_give_the_same_features(name: str) -> None:
    backbone = build(name, channels=1, image_size=32, seed=2, mean_C=[0.3], std_C=[0.2])
    backbone.train()(images(8))
    tensors, facts = dump(backbone)
    assert torch.equal(undump(tensors, facts)(images()), backbone.eval()(images()))


def test_undump_refuses_another_network_and_names_both_shapes() -> None:
    tensors, facts = dump(build("conv4", channels=3, image_size=32, seed=0))
    with pytest.raises(CorruptArtifactError, match=r"conv\.weight has shape \(64, 3, 3, 3\), expected \(64, 1, 3, 3\)"):
        undump(tensors, facts | {"channels": 1})
    with pytest.raises(CorruptArtifactError, match="mean_C has shape None"):
        undump({name: value for name, value in tensors.items() if name != "mean_C"}, facts)


@pytest.mark.parametrize(("name", "side", "message"), [("conv5", 32, "conv5"), ("conv4", 15, "image_size: .* 16 pixels.* 15")])
def test_impossible_backbones_are_refused(name: str, side: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, channels=1, image_size=side, seed=0)
