"""ResNet-101 from a file of its weights, against torchvision's own network and transforms."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import ResNet, resnet101
from torchvision.transforms.v2 import functional as oracle

from metadiff.backbone import build, dump, undump
from metadiff.errors import DataError
from metadiff.resnet101 import DEVIATION, MEAN, SHOWN, ResNet101


@pytest.fixture(scope="module")
def theirs() -> ResNet:
    """With the weights of no training, and moments as if there had been one."""
    stream = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        net = resnet101(weights=None)
    net = net.to_empty(device="cpu")
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=stream) if "var" in name or value.dim() == 1 else torch.zeros(()))
        if value.dim() > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=stream)
    return net.eval()


@pytest.fixture(scope="module")
def file(theirs: ResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet101.safetensors"
    save_file(theirs.state_dict(), path)
    return path


def images(*, channels: int) -> Tensor:
    return torch.randint(0, 256, (2, 48, 48, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_those_of_torchvision(theirs: ResNet, file: Path, channels: int) -> None:
    """And, as a checkpoint of the stage, they stay so."""
    backbone, shown = build("resnet101", channels=channels, image_size=48, seed=3), images(channels=channels)
    assert isinstance(backbone.encoder, ResNet101)
    backbone.encoder.read(file)
    seen = shown.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float() / 255
    seen = oracle.normalize(oracle.resize(seen, [SHOWN, SHOWN], antialias=True), [*MEAN], [*DEVIATION])
    theirs.fc = torch.nn.Identity()
    want, found = theirs(seen), undump(*dump(backbone))(shown)
    assert found.shape == (2, backbone.feature_size)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
    assert (found[0] - found[1]).abs().max() > 0.01 * found.abs().max()


def test_what_is_no_such_network_is_refused(tmp_path: Path) -> None:
    net, other = ResNet101(), tmp_path / "other.safetensors"
    other.write_bytes(b"PK\x03\x04 a zip, as a .pth is")
    with pytest.raises(
        DataError, match=r"other.safetensors: not a safetensors file .* docs/own-images.md says how one is made of a .pth"
    ):
        net.read(other)
    save_file({"bn1.bias": torch.zeros(64), "layer9.weight": torch.zeros(3)}, other)
    with pytest.raises(DataError, match=r": no ResNet-101: bn1.running_mean has no such tensor, expected shape \(64,\)$"):
        net.read(other)
    save_file({name: value[:3] for name, value in net.net.state_dict().items() if value.dim()}, other)
    with pytest.raises(DataError, match=r": no ResNet-101: bn1.bias has shape \(3,\), expected shape \(64,\)$"):
        net.read(other)
