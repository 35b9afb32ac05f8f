"""The stage collect on generated features: what it makes, what it refuses, how it goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torch.nn.functional import conv2d, cross_entropy

from metadiff.artifact import file_sha256, seal, verify
from metadiff.inputs import load_inputs, moved
from metadiff.layout import tensors_of
from metadiff.learner import Perceptron, build_learner
from metadiff.network import Network
from metadiff.rows import Rows
from metadiff.store import image_blocks, read_features, read_rows, write_features, write_images
from metadiff.trajectory_store import TrajectoryStore, open_trajectories
from stages.collect import STAGE
from stages.imports import ROOT
from stages.runner import Exit, _guarded

CLASSES, IMAGES, DIM, SHAPE = 9, 12, 16, (10, 10, 3)
TINY = {"tasks": 20, "block": 8, "way": 3, "shot": 2, "steps": 12, "keep": 4, "lr": 0.05}
MLP = {"learner": "mlp", "hidden": 8, "dim": 6, "spread": 0.5, "sees": "support", "shot": 4, "init_std": 1.0, "noise": 0.2}
MLP |= {"weight_decay": 0.01, "steps": 60}
CONV = {"learner": "conv", "channels": 6, "sees": "support", "dim": 6, "init_std": 1.0, "lr": 0.02, "steps": 30}


def generated_features(path: Path) -> None:
    """Classes that lie apart, a third of them in each split, their rows in a mixed order."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(CLASSES), IMAGES)).astype(np.int32)
    names = np.array([f"class {i}".encode() for i in range(CLASSES)])
    count = len(label)
    split = (label % 2).astype(np.uint8)  # five base classes
    rows = Rows(label, split, np.arange(count, dtype=np.int32), np.full(count, b"x"), names, "generated")
    features_ND = rng.normal(size=(CLASSES, DIM))[label] + 0.5 * rng.normal(size=(count, DIM))
    path.parent.mkdir(parents=True)
    write_features(path, features_ND.astype(np.float32), rows=rows)
    seal(path.parent)
    draw_images(path.parents[1] / "prepared/images.h5", rows)


def draw_images(path: Path, rows: Rows) -> None:
    """Of each class a pattern of its own, of colours, with noise."""
    rng = np.random.default_rng(1)
    pattern_CHWC = rng.integers(40, 200, (CLASSES, *SHAPE))
    images_NHWC = (pattern_CHWC[rows.label] + rng.integers(-40, 40, (len(rows.label), *SHAPE))).astype(np.uint8)
    path.parent.mkdir(parents=True)
    write_images(path, [images_NHWC], shape=SHAPE, rows=rows)
    seal(path.parent)


def set_collect(**changes: object) -> None:
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["shared"]["threads"] = 1
    params["collect"].update(TINY | changes)
    yaml.dump(params, Path("params.yaml"))


@pytest.fixture
def checkout(workplace: Path) -> Path:
    """A folder with features to run the stage in."""
    generated_features(workplace / "data/backbone/features.h5")
    set_collect()
    return workplace


def published() -> TrajectoryStore:
    verify(Path("data/trajectories"))
    return open_trajectories(Path("data/trajectories/trajectories.zarr"))


def units() -> list[str]:
    return [line.split()[-1] for line in Path("data/.work/collect/log").read_text().splitlines() if " unit " in line]


@pytest.mark.parametrize("sees", ["support", "classes"])
def test_the_store_holds_what_was_asked_for(checkout: Path, capsys: pytest.CaptureFixture[str], sees: str) -> None:
    set_collect(sees=sees)
    assert _guarded(STAGE) is Exit.OK
    store, rows = published(), read_rows(checkout / "data/backbone/features.h5")
    assert units() == ["block-00000", "block-00001", "block-00002"]
    assert store.task.tolist() == [*range(20)]
    assert store.steps.tolist() == [0, 4, 8, 12]
    assert store.end_points().shape == (20, 3 * DIM)
    assert set(rows.split[store.support].flat) == {0}
    assert (rows.label[store.support] == store.classes[:, :, None]).all()
    assert store.attributes["refused"] == {"not finite": 0, "not improved": 0}
    assert store.attributes["layout"] == [{"name": "weight", "shape": [3, DIM], "offset": 0}]
    assert "20 tasks: 20 accepted, 0 not finite, 0 not improved" in capsys.readouterr().err


def test_end_points_classify_the_images_that_they_were_trained_for(checkout: Path) -> None:
    """Read as the attributes say, without the code that made them: of features, class ids and support ids alone."""
    assert _guarded(STAGE) is Exit.OK
    store = published()
    features_ND = read_features(checkout / "data/backbone/features.h5")
    unit_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    (part,) = store.attributes["layout"]
    weight_NWD = store.end_points()[:, part["offset"] :].reshape(-1, *part["shape"])
    scores_NWSV = np.einsum(
        "nwsd,nvd->nwsv", unit_ND[store.support], weight_NWD / np.linalg.norm(weight_NWD, axis=2, keepdims=True)
    )
    right = scores_NWSV.argmax(-1) == np.arange(3)[:, None]
    assert right.mean() > 0.95


def test_perceptrons_classify_new_images_of_their_classes_as_the_file_of_inputs_shows_them(checkout: Path) -> None:
    """Read by numpy alone from what lies beside them: the map of features, and the parts of the vector."""
    set_collect(**MLP)
    assert _guarded(STAGE) is Exit.OK
    store, rows = published(), read_rows(checkout / "data/backbone/features.h5")
    about = store.attributes["inputs"]
    assert about["sha256"] == file_sha256(Path("data/trajectories") / about["file"])
    assert (about["dim"], about["spread"]) == (6, 0.5)
    assert build_learner(store.attributes["learner"]) == Perceptron("mlp", 3, 6, 8)
    features_ND = torch.from_numpy(read_features(checkout / "data/backbone/features.h5"))
    inputs = load_inputs(Path("data/trajectories") / about["file"])
    seen_NE = inputs.of(moved(features_ND, rows, about["spread"])).numpy()
    base = np.isin(rows.label, rows.label[rows.split == 0])
    np.testing.assert_allclose(seen_NE[base].mean(0), 0, atol=1e-4)
    named = {part["name"]: part for part in store.attributes["layout"]}
    assert [*named] == ["enter.weight", "enter.bias", "leave.weight", "leave.bias"]
    ends, right = store.end_points(), []
    for number, (vector, classes) in enumerate(zip(ends, store.classes, strict=True)):
        enter, shift, leave, last = (vector[p["offset"] :][: np.prod(p["shape"])].reshape(p["shape"]) for p in named.values())
        scores_NW = np.maximum(seen_NE @ enter.T + shift, 0) @ leave + last
        support_WS, mine = store.support[number], np.isin(rows.label, classes)
        shown_WSW = torch.from_numpy(scores_NW[support_WS]).log_softmax(-1).numpy()
        assert store.loss[number, -1] == pytest.approx(-np.einsum("wsw->ws", shown_WSW).mean(), rel=1e-3, abs=1e-5)
        right.append((classes[scores_NW[mine].argmax(1)] == rows.label[mine]).mean())
    assert np.mean(right) > 0.9
    weights_TKP = store.paths(0, 3)
    assert np.isfinite(weights_TKP).all()
    assert (weights_TKP[:, 0, named["enter.bias"]["offset"] :][:, :8] == 0).all()


def test_networks_classify_new_images_of_their_classes_as_the_file_of_inputs_shows_them(checkout: Path) -> None:
    """Of the prepared images themselves; torch's convolutions give the losses that stand beside the weights."""
    set_collect(**CONV)
    assert _guarded(STAGE) is Exit.OK
    store, rows = published(), read_rows(checkout / "data/backbone/features.h5")
    learner = build_learner(store.attributes["learner"])
    assert learner == Network("conv", 3, 10, 3, 6)
    inputs = load_inputs(Path("data/trajectories") / store.attributes["inputs"]["file"])
    images_NHWC = torch.from_numpy(np.concatenate([*image_blocks(checkout / "data/prepared/images.h5")]))
    assert inputs.mean_Q is not None
    assert inputs.deviation_Q is not None
    x_NCHW = ((images_NHWC.flatten(1) - inputs.mean_Q) / inputs.deviation_Q).view(-1, *SHAPE).permute(0, 3, 1, 2)
    base = torch.from_numpy(rows.split == 0)
    torch.testing.assert_close(x_NCHW[base].mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(x_NCHW[base].square().mean((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    right = []
    for number, (theta_P, classes) in enumerate(zip(torch.from_numpy(store.end_points()), store.classes, strict=True)):
        *convolutions, leave_FW, shift_W = (part[0] for part in tensors_of(theta_P[None], learner.layout()))
        seen = x_NCHW
        for layer, weight, bias in zip(learner.layers, convolutions[::2], convolutions[1::2], strict=True):
            seen = conv2d(seen, weight.permute(0, 3, 1, 2), bias, stride=layer.kernel, padding=layer.border).relu()
        scores_NW = seen.permute(0, 2, 3, 1).flatten(1) @ leave_FW + shift_W
        support_N = torch.from_numpy(store.support[number].ravel()).long()
        loss = cross_entropy(scores_NW[support_N], torch.arange(3).repeat_interleave(store.support.shape[2]))
        assert store.loss[number, -1] == pytest.approx(float(loss), rel=1e-3, abs=1e-5)
        mine = np.isin(rows.label, classes)
        right.append((classes[scores_NW[mine].argmax(1).numpy()] == rows.label[mine]).mean())
    assert np.mean(right) > 0.8  # chance is a third


def test_a_run_without_a_map_of_features_says_so(checkout: Path) -> None:
    assert _guarded(STAGE) is Exit.OK
    about = published().attributes["inputs"]
    assert (about["dim"], about["spread"]) == (0, 1.0)
    features_ND = torch.from_numpy(read_features(checkout / "data/backbone/features.h5"))
    assert load_inputs(Path("data/trajectories") / about["file"]).of(features_ND) is features_ND


def test_more_directions_than_features_is_said(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_collect(dim=17)
    assert _guarded(STAGE) is Exit.DATA
    assert "images have 16 features, which have no 17 directions: lower collect.dim" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_stopped_between_blocks_goes_on_to_the_same_bytes(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    set_collect(tasks=64, steps=400)
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.collect"], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log, deadline = Path("data/.work/collect/log"), time.monotonic() + 60
    while not (log.exists() and " unit " in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == Exit.TERMINATED, printed
    done = len(units())
    assert 1 <= done < 8
    assert _guarded(STAGE) is Exit.OK
    assert units() == [f"block-{n:05d}" for n in range(8)]
    stopped = verify(Path("data/trajectories"))
    shutil.rmtree("data/.work")
    assert _guarded(STAGE) is Exit.OK
    assert verify(Path("data/trajectories")) == stopped


def with_features(features_ND: np.ndarray) -> None:
    path = Path("data/backbone/features.h5")
    rows = read_rows(path)
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    write_features(path, features_ND.astype(np.float32), rows=rows)
    seal(path.parent)


def test_paths_that_are_not_finite_are_refused_counted_and_left_out(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One image of one base class has no finite features: whichever task sees it is lost, and no other."""
    rows, features_ND = read_rows(Path("data/backbone/features.h5")), read_features(Path("data/backbone/features.h5"))
    bad = int(np.flatnonzero(rows.label == 4)[0])
    features_ND[bad] = np.inf
    with_features(features_ND)
    set_collect(sees="support", tasks=40)
    assert _guarded(STAGE) is Exit.OK
    store = published()
    lost = 40 - len(store)
    assert 0 < lost < 20
    assert store.attributes["refused"] == {"not finite": lost, "not improved": 0}
    assert bad not in store.support
    assert len(store) == len(set(store.task)) == len(store.end_points())
    assert f"{40 - lost} accepted, {lost} not finite, 0 not improved" in capsys.readouterr().err


def test_settings_that_spoil_most_tasks_end_with_70_and_name_the_learning_rate(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    with_features(rng.normal(size=(CLASSES * IMAGES, DIM)))  # nothing to learn
    set_collect(learner="linear", optimizer="sgd", lr=1000.0)
    assert _guarded(STAGE) is Exit.NUMERIC
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("collect: of 20 trajectories 0 not finite, ")
    assert said.endswith("not improved; lower collect.lr, which is 1000")
    assert not Path("data/trajectories").exists()


def test_more_ways_than_base_classes_is_said(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_collect(way=6)
    assert _guarded(STAGE) is Exit.DATA
    assert "train: 6-way episodes need 6 classes, there are 5" in capsys.readouterr().err
