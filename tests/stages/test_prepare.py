"""The stage prepare on described shapes, few of each kind: images are split, and tasks go with them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from metadiff.artifact import file_sha256
from metadiff.concepts import KINDS, described_tasks, kind_splits
from metadiff.images import shapes
from metadiff.rows import SPLITS
from metadiff.store import image_blocks, read_rows
from metadiff.tasks import SENTENCES, read_tasks
from metadiff.vectors import read_vectors, write_vectors
from stages.imports import ROOT
from stages.prepare import STAGE
from stages.runner import Exit, _guarded

SHARES, SEED, FILE = (0.65, 0.1, 0.25), 2, "data/builtin/described-shapes.safetensors"
PREPARE = {"source": "described-shapes", "path": FILE, "image_size": 16, "color": "rgb", "split": list(SHARES)}
FEW = {"train": 3, "val": 2, "test": 2}


@pytest.fixture
def checkout(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters and sentences, though not the latter's content, which the images do not need."""
    monkeypatch.setattr(shapes, "IMAGES", FEW)
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["prepare"].update(PREPARE, split_seed=SEED, min_images=2)
    params["collect"]["shot"] = 1
    params["pretrain"] |= {"val_shot": 1, "val_query": 1}
    params["metatrain"] |= {"shots": [1], "val_query": 1}
    params["evaluate"] |= {"shots": [1], "query": 1}
    yaml.dump(params, workplace / "params.yaml")
    (workplace / "constraints.txt").write_bytes((ROOT / "constraints.txt").read_bytes())
    (workplace / FILE).parent.mkdir(parents=True)
    (workplace / FILE).write_bytes(b"sentences")
    return workplace


def test_images_are_split_by_the_source_and_tasks_go_with_them(checkout: Path) -> None:
    assert _guarded(STAGE) is Exit.OK
    prepared = checkout / "data/prepared"
    rows, own = read_rows(prepared / "images.h5"), kind_splits(SHARES, SEED)
    assert rows.class_names == list(KINDS)
    wanted = [FEW[name] if name != "train" or split == "train" else 0 for split in own for name in SPLITS]
    found = np.bincount(rows.label * 3 + rows.split, minlength=3 * len(KINDS))
    assert found.tolist() == wanted
    classes = pd.read_csv(prepared / "classes.csv")
    assert classes["split"].tolist() == ["train" if split == "train" else "val" for split in own]  # the first that it is in
    assert list(classes["count"]) == np.reshape(wanted, (-1, 3)).sum(1).tolist()
    assert classes["description"][0] == f"A {KINDS[0]}."
    source = shapes.open_shapes(checkout / FILE, image_size=16, color="rgb", shares=SHARES, seed=SEED)
    images = np.concatenate(list(image_blocks(prepared / "images.h5")))
    assert len(images) == len(source.entries) == sum(wanted)
    assert all(np.array_equal(images[index], source.draw(index)) for index in range(0, len(images), 40))
    assert read_tasks(prepared, rows) == described_tasks(SHARES, SEED)
    assert not (prepared / SENTENCES).exists()
    assert "a class in one split only" not in {check["expected"] for check in json.loads((prepared / "checks.json").read_text())}


def set_prepare(folder: Path, **changes: object) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params["prepare"].update(changes)
    yaml.dump(params, folder / "params.yaml")


def test_the_vectors_of_sentences_are_those_of_the_tasks(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cached file has more of them, and in half precision."""
    told = sorted({text for task in described_tasks(SHARES, SEED) for text in task.texts})
    vectors_ND = np.random.default_rng(0).normal(size=(len(told) + 1, 5)).astype(np.float16)
    write_vectors(checkout / FILE, [*told, "a sentence of no task"], vectors_ND, about={"encoder": "of the test"})
    set_prepare(checkout, encoder="cached")
    assert _guarded(STAGE) is Exit.OK
    prepared = checkout / "data/prepared"
    found = read_vectors(prepared / SENTENCES)
    assert found.names == tuple(told)
    assert np.array_equal(found.vectors_ND, vectors_ND[:-1].astype(np.float32))
    assert found.about["made_by"] == {"encoder": "of the test"}
    assert found.about["sha256"] == file_sha256(checkout / FILE)
    assert {text for task in read_tasks(prepared, read_rows(prepared / "images.h5")) for text in task.texts} == {*found.names}
    assert f"{len(told):,} sentences of {len(described_tasks(SHARES, SEED)):,} tasks" in capsys.readouterr().err


def test_a_sentence_that_the_cached_file_lacks_is_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vectors(checkout / FILE, ["a sentence of no task"], np.ones((1, 5), np.float32), about={"encoder": "minilm"})
    set_prepare(checkout, encoder="cached")
    assert _guarded(STAGE) is Exit.DATA
    assert f"{FILE}: no embedding of " in capsys.readouterr().err
    assert not (checkout / "data/prepared").exists()


def test_without_the_file_of_sentences_nothing_is_made(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / FILE).unlink()
    assert _guarded(STAGE) is Exit.DATA
    assert f"prepare.path {FILE}: no such file; write it: make sentences" in capsys.readouterr().err
    assert not (checkout / "data/prepared").exists()


def test_shares_that_no_kind_can_be_learnt_by_are_an_error_of_parameters(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_prepare(checkout, split=[0.05, 0.05, 0.9])
    assert _guarded(STAGE) is Exit.PARAMS
    assert "prepare.split [0.05, 0.05, 0.9] leaves a split without kinds" in capsys.readouterr().err
