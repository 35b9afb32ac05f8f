"""A published data set through the stage itself, from its archives: by all processors or one, and refused where it is broken."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from metadiff.images.published import FACTS
from metadiff.store import read_rows
from stages.imports import ROOT
from tests import formats
from tests.repository import Repository, draw_pictures, set_params

PREPARE = {"source": "omniglot", "path": "brought", "image_size": 28, "split": "given", "quarter_turns": True}


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both zips of Omniglot, with enough of its classes for several processes; one drawing is in two of them."""
    folder = tmp_path_factory.mktemp("omniglot") / "brought"
    labels = {
        split: labels[:count] for count, (split, labels) in zip((40, 25, 25), FACTS["omniglot"].splits.items(), strict=True)
    }
    sample = formats.make_sample(labels, images=20, side=105, binary=True)
    first, last = next(iter(sample["train"].values())), next(iter(sample["test"].values()))
    last[0] = first[0]
    formats.omniglot_zips(folder, sample, evaluation={label.split("/")[0] for label in labels["test"]})
    return folder


def prepare(root: Path, brought: Path, *, executor: str = "", ok: bool = True) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "params.yaml", root)
    set_params(root, {"prepare": PREPARE | {"path": str(brought)}})
    return Repository(root).run(
        sys.executable, "-m", "stages.prepare", ok=ok, env={"PYTHONPATH": str(ROOT), "METADIFF_EXECUTOR": executor}
    )


@pytest.mark.slow
def test_the_bytes_are_those_of_one_process_wherever_images_are_drawn(tmp_path: Path, brought: Path) -> None:
    told = {}
    for name, executor in (("one", "serial"), ("many", "")):
        (tmp_path / name).mkdir()
        told[name] = prepare(tmp_path / name, brought, executor=executor).stderr
    one, many = (tmp_path / name / "data/prepared" for name in ("one", "many"))
    for file in ("images.h5", "classes.csv", "checks.json", "bad.csv"):
        assert (one / file).read_bytes() == (many / file).read_bytes()
    for line in (
        "prepare: found Omniglot: a folder of images a class, the split as published; "
        "train 800 images, val 500 images, test 500 images",
        "prepare: 2 images look exactly like one of another class or split; so they were published",
        "prepare: omniglot: 4,200 images of 210 classes (train 160, val 25, test 25)",
    ):
        assert all(line in text for text in told.values()), told
    assert not list(tmp_path.glob("*/data/.work/prepare/run-*/scratch"))
    rows, classes = read_rows(many / "images.h5"), pd.read_csv(many / "classes.csv")
    assert sum("@90" in name for name in classes["name"]) == 40
    assert len(rows.label) == 4_200
    assert "sha256" not in {
        row["column"] for row in json.loads((many / "checks.json").read_bytes()) if "split" in row["expected"]
    }


@pytest.mark.parametrize("spoiled", ["images_background.zip", "images_evaluation.zip"])
def test_a_failed_download_is_named_and_nothing_is_published(tmp_path: Path, brought: Path, spoiled: str) -> None:
    shutil.copytree(brought, tmp_path / "brought")
    (tmp_path / "brought" / spoiled).write_bytes(b"<!DOCTYPE html><html><body>Quota exceeded</body></html>")
    (tmp_path / "run").mkdir()
    done = prepare(tmp_path / "run", tmp_path / "brought", ok=False)
    assert done.returncode == 65
    place = tmp_path / "brought" / spoiled
    assert done.stderr == f"prepare: {place}: an HTML page, whatever its name says: the download failed; bring it again\n"
    assert not (tmp_path / "run/data/prepared").exists()


def test_a_hostile_archive_touches_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    hostile = formats.hostile_zips(tmp_path / "hostile", canary)
    (tmp_path / "run").mkdir()
    (tmp_path / "brought").mkdir()
    shutil.copy(hostile["parent folders"], tmp_path / "brought/images_background.zip")
    done = prepare(tmp_path / "run", tmp_path / "brought", ok=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (65, 1), done.stderr
    assert canary.read_text() == "alive"
    assert not (tmp_path / "run/data/prepared").exists()
    assert not list((tmp_path / "run/data/.work/prepare").glob("run-*/scratch")), "what was unpacked would stay"


@pytest.mark.slow
def test_archives_beside_class_folders_are_nobodys_business(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "brought", classes=6, images=20)
    for name in ("backup.zip", "notes.xlsx"):
        (tmp_path / "brought" / name).write_bytes(b"PK\x03\x04 and no more")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, {"prepare": {"source": "folder", "path": "brought", "image_size": 16, "split": [0.4, 0.3, 0.3]}})
    done = Repository(tmp_path).run(sys.executable, "-m", "stages.prepare", env={"PYTHONPATH": str(ROOT)})
    assert "120 images of 6 classes" in done.stderr


@pytest.mark.slow
def test_a_folder_may_come_as_an_archive(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "photos", classes=6, images=20)
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path, "photos")
    shutil.rmtree(tmp_path / "photos")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, {"prepare": {"source": "folder", "path": "photos.zip", "image_size": 16, "split": [0.4, 0.3, 0.3]}})
    done = Repository(tmp_path).run(sys.executable, "-m", "stages.prepare", env={"PYTHONPATH": str(ROOT)})
    assert "prepare: photos: 120 images of 6 classes" in done.stderr
