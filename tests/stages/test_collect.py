"""The stage collect on generated features: what it makes, what it refuses, how it goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv2d, cross_entropy

from metadiff.artifact import file_sha256, seal, verify, write_array
from metadiff.cli import main
from metadiff.concepts import DescribedTask
from metadiff.errors import DataError
from metadiff.inputs import load_inputs, moved
from metadiff.layout import tensors_of
from metadiff.learner import Perceptron, build_learner
from metadiff.network import Network
from metadiff.rows import Rows
from metadiff.store import image_blocks, read_features, read_rows, write_features, write_images
from metadiff.tasks import write_tasks
from metadiff.trajectory import Trajectories
from metadiff.trajectory_store import TrajectoryStore, open_trajectories
from stages import collect
from stages.collect import STAGE
from stages.executors import VARIABLE
from stages.imports import ROOT
from stages.runner import Exit, _guarded
from tests import repository

CLASSES, IMAGES, DIM, SHAPE = 9, 12, 16, (10, 10, 3)
TINY = {"tasks": 20, "block": 8, "way": 3, "shot": 2, "steps": 12, "keep": 4, "lr": 0.05}
MLP = {"learner": "mlp", "hidden": 8, "dim": 6, "spread": 0.5, "sees": "support", "shot": 4, "init_std": 1.0, "noise": 0.2}
MLP |= {"weight_decay": 0.01, "steps": 60}
SENTENCES = MLP | {"tasks_of": "sentences", "way": 2, "shot": 6, "noise": 0.0}
CONV = {"learner": "conv", "channels": 6, "sees": "support", "dim": 6, "init_std": 1.0, "lr": 0.02, "steps": 30}


def generated_features(path: Path, tasks: Sequence[DescribedTask] = ()) -> None:
    """Classes that lie apart, their rows in a mixed order; with described tasks it is images that are split, not classes."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(CLASSES), IMAGES)).astype(np.int32)
    names = np.array([f"class {i}".encode() for i in range(CLASSES)])
    count = len(label)
    split = (label % 2).astype(np.uint8)  # five base classes
    if tasks:
        place = np.array([np.sum(label[:row] == label[row]) for row in range(count)])
        split = np.where(label % 2, 1 + place % 2, place % 3).astype(np.uint8)
    rows = Rows(label, split, np.arange(count, dtype=np.int32), np.full(count, b"x"), names, "generated")
    features_ND = rng.normal(size=(CLASSES, DIM))[label] + 0.5 * rng.normal(size=(count, DIM))
    path.parent.mkdir(parents=True)
    write_features(path, features_ND.astype(np.float32), rows=rows)
    seal(path.parent)
    draw_images(path.parents[1] / "prepared/images.h5", rows, tasks)


def draw_images(path: Path, rows: Rows, tasks: Sequence[DescribedTask]) -> None:
    """Of each class a pattern of its own, of colours, with noise."""
    rng = np.random.default_rng(1)
    pattern_CHWC = rng.integers(40, 200, (CLASSES, *SHAPE))
    images_NHWC = (pattern_CHWC[rows.label] + rng.integers(-40, 40, (len(rows.label), *SHAPE))).astype(np.uint8)
    path.parent.mkdir(parents=True)
    write_images(path, [images_NHWC], shape=SHAPE, rows=rows)
    if tasks:
        write_tasks(path.with_name("tasks.json"), tasks)
    seal(path.parent)


def set_collect(**changes: object) -> None:
    repository.set_params(Path(), {"shared": {"threads": 1}, "collect": TINY | changes}, base=ROOT)


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


def others(*classes: int) -> tuple[int, ...]:
    return tuple(label for label in range(CLASSES) if label not in classes)


def told() -> list[DescribedTask]:
    """Only even classes have train images. Those of training are the second task, the third and the fifth."""
    first, second = (
        DescribedTask(name, name, "or", "train", (name, f"is it {name}?"), classes, (), others(*classes))
        for name, classes in (("0 or 2", (0, 2)), ("4 or 7", (4, 7)))
    )
    near = DescribedTask("2 and 4", "2 and 4", "two", "train", ("2 and 4", "is it 2 and 4?"), (2,), (4, 1), others(2, 4, 1))
    return [replace(near, name="later", split="val"), first, second, replace(near, name="last", split="test"), near]


@pytest.mark.parametrize("start", ["own", "common"])
def test_the_store_says_where_its_paths_began(checkout: Path, start: str) -> None:
    set_collect(**MLP, start=start)
    assert _guarded(STAGE) is Exit.OK
    store = published()
    assert store.attributes["params"]["start"] == start
    begun_NP = np.concatenate([store.weights(block)[:, 0] for block in range(store.blocks)])
    assert len(np.unique(begun_NP, axis=0)) == (1 if start == "common" else len(store))
    assert len(np.unique(store.end_points(), axis=0)) == len(store)


@pytest.fixture
def asked(workplace: Path) -> Path:
    """A folder with images of every class in val and test, and what sentences ask of them."""
    generated_features(workplace / "data/backbone/features.h5", told())
    set_collect(**SENTENCES)
    return workplace


def test_paths_of_sentences_are_of_the_training_tasks_in_turn(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _guarded(STAGE) is Exit.OK
    store, rows, tasks = published(), read_rows(asked / "data/backbone/features.h5"), told()
    assert store.described.tolist() == [[1, 2, 4][number % 3] for number in range(20)]
    assert store.attributes["tasks_of"] == "sentences"
    assert store.attributes["descriptions"] == [
        {"number": number} | {key: asdict(tasks[number])[key] for key in ("name", "kind")} | {"texts": list(tasks[number].texts)}
        for number in (1, 2, 4)
    ]
    assert {*rows.split[store.support].flat} == {0, 1}
    for number, support_WS in zip(store.described, store.support, strict=True):
        assert np.isin(rows.label[support_WS[1]], tasks[number].yes).all()
        assert not np.isin(rows.label[support_WS[0]], tasks[number].yes).any()
        assert len({*support_WS.flat}) == 12
        assert np.isin(rows.label[support_WS[0, 1::2]], tasks[number].near).all() or not tasks[number].near
    assert (store.support[0] != store.support[3]).any()  # the same task again
    with pytest.raises(DataError, match="its paths are of sentences, not of classes"):
        _ = store.classes
    capsys.readouterr()
    assert main(["inspect"]) == 0
    assert "yes or no to 6 sentences of 3 tasks, 6 images that are right and as many that are wrong" in capsys.readouterr().out


def test_perceptrons_answer_of_new_images(asked: Path) -> None:
    """Way 1 is yes; read by numpy alone."""
    assert _guarded(STAGE) is Exit.OK
    store, rows, tasks = published(), read_rows(asked / "data/backbone/features.h5"), told()
    features_ND = torch.from_numpy(read_features(asked / "data/backbone/features.h5"))
    seen_NE = load_inputs(Path("data/trajectories/inputs.safetensors")).of(moved(features_ND, rows, 0.5)).numpy()
    parts = [(part["offset"], part["shape"]) for part in store.attributes["layout"]]
    test, right = rows.split == 2, []
    for vector, number in zip(store.end_points(), store.described, strict=True):
        enter, shift, leave, last = (vector[start:][: np.prod(shape)].reshape(shape) for start, shape in parts)
        answer_N = (np.maximum(seen_NE @ enter.T + shift, 0) @ leave + last).argmax(1)
        right.append((answer_N == np.isin(rows.label, tasks[number].yes))[test].mean())
    assert np.mean(right) > 0.8


def test_episodes_say_so_and_describe_nothing(checkout: Path) -> None:
    assert _guarded(STAGE) is Exit.OK
    about = published().attributes
    assert about["tasks_of"] == "episodes"
    assert "descriptions" not in about


def test_a_stopped_run_of_sentences_goes_on_to_the_same_bytes(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, computed = collect.collect_block, []

    def twice(*args: object, **kwargs: object) -> object:
        computed.append(args[2])
        if len(computed) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(collect, "collect_block", twice)
    with pytest.raises(KeyboardInterrupt):
        _guarded(STAGE)
    assert units() == ["block-00000"]
    assert _guarded(STAGE) is Exit.OK
    assert computed == [range(8), range(8, 16), range(8, 16), range(16, 20)]
    stopped = verify(Path("data/trajectories"))
    shutil.rmtree("data/.work")
    assert _guarded(STAGE) is Exit.OK
    assert verify(Path("data/trajectories")) == stopped


def collect_twice(monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    """Here and by an executor: the same bytes."""
    assert _guarded(STAGE) is Exit.OK
    serial = verify(Path("data/trajectories"))
    shutil.rmtree("data/.work")
    monkeypatch.setenv(VARIABLE, executor)
    assert _guarded(STAGE) is Exit.OK
    assert sorted(units()) == ["block-00000", "block-00001", "block-00002"]
    assert verify(Path("data/trajectories")) == serial


@pytest.mark.slow  # processes import torch
@pytest.mark.parametrize("executor", ["processes:2", "dask"])
def test_workers_give_the_same_paths_of_sentences(asked: Path, monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    collect_twice(monkeypatch, executor)


@pytest.mark.parametrize("fault", ["a wrong image", "a test image", "an image twice", "a val task"])
def test_wrong_paths_of_sentences_are_not_published(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    rows = read_rows(asked / "data/backbone/features.h5")
    whole = collect.save_unit

    def spoilt(folder: Path, found: Trajectories, **others: NDArray[np.int64]) -> None:
        whole(folder, found, **others)
        support_TWS, classes_TW = (np.load(folder / f"{name}.npy") for name in ("support_TWS", "classes_TW"))
        if fault == "a wrong image":
            support_TWS[1, 1, 2] = np.flatnonzero((rows.label == 8) & (rows.split == 1))[0]
        elif fault == "a test image":
            support_TWS[1, 1, 2] = np.flatnonzero((rows.label == 4) & (rows.split == 2))[0]
        elif fault == "an image twice":
            support_TWS[1, 1, 2] = support_TWS[1, 1, 3]
        else:
            classes_TW[4] = 0
        write_array(folder / "support_TWS.npy", support_TWS)
        write_array(folder / "classes_TW.npy", classes_TW)

    monkeypatch.setattr(collect, "save_unit", spoilt)
    set_collect(**SENTENCES | {"tasks": 8})
    assert _guarded(STAGE) is Exit.DATA
    said = capsys.readouterr().err
    assert ("column training_task: must be true" if fault == "a val task" else "column support: must be 12; 1 of 8 rows") in said
    assert not Path("data/trajectories").exists()


def test_a_task_with_too_few_images_is_named(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_collect(**SENTENCES | {"shot": 9})
    assert _guarded(STAGE) is Exit.DATA
    said = "task '2 and 4': 9 images of train and val must be right for it, there are 8: lower the shots or queries"
    assert said in capsys.readouterr().err


def test_without_sentences_it_says_what_has_some(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_collect(**SENTENCES)
    (checkout / "data/prepared/classes.csv").write_text(
        "id,name,split,count,description\n" + "".join(f"{n},class {n},train,12,\n" for n in range(CLASSES))
    )
    (checkout / "data/prepared/manifest.json").unlink()
    seal(checkout / "data/prepared")
    assert _guarded(STAGE) is Exit.DATA
    said = "data/prepared: no task of the split train has a sentence; prepare.source described-shapes has such"
    assert said in capsys.readouterr().err
