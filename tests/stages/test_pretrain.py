"""The stage pretrain with a backbone whose weights lie on the disk: nothing is trained, and all else is as with others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metadiff.artifact import seal, verify
from metadiff.backbone import undump
from metadiff.checkpoint import load_checkpoint
from metadiff.resnet101 import ResNet101
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.store import image_blocks, read_features, write_images
from stages import pretrain
from stages.imports import ROOT
from stages.runner import Exit, _guarded
from tests import repository

CLASSES, IMAGES, SIDE = 9, 4, 16
FILE = Path("resnet101.safetensors")


@pytest.fixture
def checkout(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with prepared images, shown no larger than the network can see."""
    monkeypatch.setattr("metadiff.resnet101.SHOWN", 32)
    label = np.repeat(np.arange(CLASSES), IMAGES).astype(np.int32)
    names = np.array([f"class {number}".encode() for number in range(CLASSES)])
    split = (label % 3).astype(np.uint8)
    rows = Rows(label, split, np.arange(len(label), dtype=np.int32), np.full(len(label), b"x"), names, "generated")
    path = workplace / "data/prepared/images.h5"
    path.parent.mkdir(parents=True)
    images_NHWC = np.random.default_rng(0).integers(0, 256, (len(label), SIDE, SIDE, 1), dtype=np.uint8)
    write_images(path, [images_NHWC], shape=(SIDE, SIDE, 1), rows=rows)
    seal(path.parent)
    tiny = {"backbone": "resnet101", "weights": str(FILE), "val_way": 2, "val_shot": 1, "val_query": 2, "val_episodes": 5}
    repository.set_params(Path(), {"shared": {"threads": 1}, "pretrain": tiny}, base=ROOT)
    return workplace


def weights(*, seed: int) -> ResNet101:
    """Of no training, but with norms that have learnt what there is to level."""
    torch.manual_seed(seed)
    net = ResNet101()
    net(torch.rand(72, 1, SIDE, SIDE, generator=torch_stream(seed, "images")))
    return net.eval()


def test_features_are_those_of_the_weights_given(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another file under the same name is another backbone: nothing of a run with the former one is published again."""
    net = weights(seed=0)
    save_file(net.net.state_dict(), FILE)
    assert _guarded(pretrain.STAGE) is Exit.OK
    verify(checkout / "data/backbone")
    (images_NHWC,) = image_blocks(Path("data/prepared/images.h5"), np.arange(5))
    shown, found_ND = torch.from_numpy(images_NHWC), read_features(Path("data/backbone/features.h5"))[:5]
    with torch.no_grad():
        want_ND = net(shown.permute(0, 3, 1, 2) / 255).numpy()
        again_ND = undump(*load_checkpoint(checkout / "data/backbone/backbone.safetensors"))(shown).numpy()
    for got_ND in (found_ND, again_ND):
        np.testing.assert_allclose(got_ND, want_ND, rtol=1e-3, atol=1e-3 * np.abs(want_ND).max())
    said = capsys.readouterr().err
    assert f"pretrain: ResNet-101 of {FILE}, to which the classes that it was trained on are not new, " in said
    assert " % on validation episodes" in said
    save_file(weights(seed=1).net.state_dict(), FILE)
    assert _guarded(pretrain.STAGE) is Exit.OK
    assert "finished before" not in capsys.readouterr().err
    assert np.abs(read_features(Path("data/backbone/features.h5"))[:5] - found_ND).max() > 0.1
    assert _guarded(pretrain.STAGE) is Exit.OK
    assert "finished before" in capsys.readouterr().err


def test_without_its_file_nothing_is_begun(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _guarded(pretrain.STAGE) is Exit.PARAMS
    assert f"params.yaml: pretrain.weights: no such file: {FILE}" in capsys.readouterr().err
    assert not (checkout / "data/backbone").exists()
