"""The whole pipeline through DVC, on pictures and parameters so small that it takes seconds."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import linalg

from metadiff.artifact import verify
from metadiff.checkpoint import load_checkpoint
from metadiff.params import load
from metadiff.store import read_arrays, read_features, read_rows
from metadiff.trajectory_store import open_trajectories
from tests.repository import Repository, set_params

pytestmark = pytest.mark.timeout(180)


def test_each_stage_leaves_a_sealed_folder_that_opens_by_itself(finished: Repository) -> None:
    data = finished.root / "data"
    for folder in ("prepared", "backbone", "trajectories", "generator", "results"):
        verify(data / folder)
    rows = read_rows(data / "backbone/features.h5")
    assert rows.dataset == "pictures"
    assert len(rows.class_names) == 12
    assert read_features(data / "backbone/features.h5").shape == (108, 64)
    assert (data / "prepared/classes.csv").read_text().splitlines()[0] == "id,name,split,count,description"
    store = open_trajectories(data / "trajectories/trajectories.zarr")
    assert store.attributes["dataset"] == "pictures"
    assert store.end_points().shape == (20, 2 * 64)
    assert len(read_arrays(data / "results/episodes.h5")["test/shot2/support_EWS"]) == 20


def test_the_numbers_are_those_of_the_table_beside_them(finished: Repository) -> None:
    metrics = json.loads((finished.root / "data/results/metrics.json").read_text())
    assert {key: metrics[key] for key in ("dataset", "way", "query", "episodes", "val_episodes")} == {
        "dataset": "pictures",
        "way": 2,
        "query": 4,
        "episodes": 20,
        "val_episodes": 15,
    }
    lines = [line.split(",") for line in (finished.root / "data/results/episodes.csv").read_text().splitlines()]
    assert lines[0] == ["split", "shot", "classifier", "episode", "correct", "queries", "nll", "overlap"]
    chosen = [100 * int(line[4]) / int(line[5]) for line in lines[1:] if line[:3] == ["test", "2", "ncm"]]
    assert len(chosen) == 20
    cell = metrics["test"]["shot2"]["ncm"]
    assert cell["accuracy"] == pytest.approx(sum(chosen) / 20, abs=1e-3)
    assert 50 <= cell["accuracy"] <= 100


def test_every_classifier_is_measured_on_the_same_episodes(finished: Repository) -> None:
    table = pd.read_csv(finished.root / "data/results/episodes.csv")
    expected = {"ncm", "gaussian", "ncm-whitened", "gaussian-whitened", "metadiff", "metadiff-raw", "metadiff-mean", "regression"}
    expected |= {"gradient", "gradient-untrained"}
    assert set(table["classifier"]) == expected
    counted = table.groupby(["split", "shot", "classifier"]).size()
    assert counted.groupby("split").unique().map(list).to_dict() == {"val": [15], "test": [20]}
    metrics = json.loads((finished.root / "data/results/metrics.json").read_text())
    assert set(metrics["chosen"]) == expected
    assert {"diff", "ci95"} == set(metrics["test"]["shot1"]["metadiff"]["vs_regression"])


def test_the_result_is_shown_as_a_table_and_a_picture(copy: Repository) -> None:
    said = copy.run(sys.executable, "-m", "metadiff.cli", "results", "--next").stdout
    assert "pictures: 2-way, 4 queries a class, 20 episodes of test classes" in said
    assert said.count("metadiff-mean") == 2
    with Image.open(copy.root / "plots/run.png") as picture:
        assert picture.width > 5 * picture.height


def test_base_classes_are_moved_together_for_training(finished: Repository) -> None:
    """The scale beside a generator's weights is that of class means, in whitened units, at a fifth of their distances."""
    rows, features = (
        read_rows(finished.root / "data/backbone/features.h5"),
        read_features(finished.root / "data/backbone/features.h5"),
    )
    base = rows.of("train")
    classes = [features[base[rows.label[base] == label]].astype(float) for label in np.unique(rows.label[base])]
    means = np.stack([images.mean(0) for images in classes])
    apart = np.concatenate([images - images.mean(0) for images in classes])
    within = apart.T @ apart / (len(apart) - len(classes))
    share = load(finished.root / "params.yaml").metatrain.whitened
    ridge = share * np.trace(within) / len(within) * np.eye(len(within))
    means = (means - means.mean(0)) @ linalg.inv(linalg.sqrtm(within + ridge))
    tensors, _ = load_checkpoint(finished.root / "data/generator/task.safetensors")
    assert float(tensors["scale/weights/deviation"]) == pytest.approx(0.2 * np.sqrt((means**2).mean()), rel=1e-3)


@pytest.mark.slow
def test_trained_weights_can_be_the_target(copy: Repository) -> None:
    set_params(copy.root, {"metatrain": {"target": "trajectory-ends", "whitened": 0.0, "spread": 1.0, "models": ["task"]}})
    before = verify(copy.root / "data/generator")
    copy.run(sys.executable, "-m", "stages.metatrain")
    assert verify(copy.root / "data/generator") != before


def test_nothing_runs_twice(finished: Repository) -> None:
    assert "Data and pipelines are up to date." in finished.run("dvc", "repro").stdout
    assert finished.run("git", "status", "--porcelain").stdout == ""


def test_a_parameter_reruns_only_what_it_touches(copy: Repository) -> None:
    set_params(copy.root, {"evaluate": {"episodes": 21}})
    said = copy.run("dvc", "repro").stdout
    assert "Stage 'prepare' didn't change, skipping" in said
    assert "Stage 'pretrain' didn't change, skipping" in said
    assert "Stage 'collect' didn't change, skipping" in said
    assert "Running stage 'evaluate'" in said
    set_params(copy.root, {"evaluate": {"episodes": 20}})
    assert "Stage 'evaluate' is cached - skipping run, checking out outputs" in copy.run("dvc", "repro").stdout
    assert copy.run("git", "diff", "HEAD", "--stat", "--", "dvc.lock", "data").stdout == ""


@pytest.mark.slow
def test_a_clone_without_the_cache_ends_in_the_committed_lock(finished: Repository, tmp_path: Path) -> None:
    finished.run("git", "clone", "-q", str(finished.root), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    clone.run("dvc", "repro", env={"PYTHONHASHSEED": "7"})
    assert clone.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.slow
def test_stages_run_by_hand_give_the_bytes_that_dvc_gives(finished: Repository, tiny: Repository) -> None:
    for stage in ("prepare", "pretrain", "collect", "metatrain", "evaluate"):
        tiny.run(sys.executable, "-m", f"stages.{stage}")
    for folder in ("prepared", "backbone", "trajectories", "generator", "results"):
        assert verify(tiny.root / "data" / folder) == verify(finished.root / "data" / folder)


def test_wrong_params_stop_before_anything(tiny: Repository) -> None:
    set_params(tiny.root, {"evaluate": {"way": 1}, "pretrain": {"lr": -1}})
    done = tiny.run("dvc", "repro", ok=False)
    said = done.stdout + done.stderr
    assert "pretrain.lr" in said
    assert "evaluate.way" in said
    assert "exited with 64" in said
    assert not (tiny.root / "data/.work").exists()


@pytest.mark.slow
def test_bad_images_stop_the_run_and_are_listed_or_are_skipped_and_listed(tiny: Repository) -> None:
    pictures = tiny.root / "pictures"
    (pictures / "class-03" / "0.png").write_bytes(b"no picture")
    (pictures / "class-05" / "notes.txt").write_text("words")
    done = tiny.run("dvc", "repro", "prepare", ok=False)
    said = done.stdout + done.stderr
    assert "class-03/0.png: " in said
    assert "class-05/notes.txt: " in said
    assert "exited with 65" in said
    set_params(tiny.root, {"prepare": {"on_bad": "skip"}})
    tiny.run("dvc", "repro", "prepare")
    bad = (tiny.root / "data/prepared/bad.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in bad] == ["source", "class-03/0.png", "class-05/notes.txt"]
    assert len(read_rows(tiny.root / "data/prepared/images.h5").label) == 107


def test_skipping_never_leaves_a_class_too_small(tiny: Repository) -> None:
    for i in (0, 1):
        (tiny.root / "pictures" / "class-07" / f"{i}.png").write_bytes(b"")
    set_params(tiny.root, {"prepare": {"on_bad": "skip"}})
    done = tiny.run("dvc", "repro", "prepare", ok=False)
    assert "class-07: 7 usable images, prepare.min_images asks for 8" in done.stdout + done.stderr
    assert not (tiny.root / "data/prepared").exists()


@pytest.mark.slow
def test_the_same_image_in_two_splits_is_refused_with_its_rows(tiny: Repository) -> None:
    for label in range(12):  # whichever classes fall apart
        shutil.copy(tiny.root / "pictures/class-00/0.png", tiny.root / f"pictures/class-{label:02d}/twin.png")
    done = tiny.run("dvc", "repro", "prepare", ok=False)
    said = done.stdout + done.stderr
    assert "exited with 65" in said
    assert "twin.png" in said
    assert not (tiny.root / "data/prepared").exists()


@pytest.mark.slow
def test_a_full_disk_ends_with_74_and_after_freeing_space_the_run_goes_on(tiny: Repository) -> None:
    """A limit on the size of files stands in for the disk: a block of pixels does not fit any more."""
    done = tiny.run("bash", "-c", f"ulimit -f 20; exec {sys.executable} -m stages.prepare", ok=False)
    assert done.returncode == 74, done.stderr
    assert "nothing was published. Free some space and run again" in done.stderr
    assert not (tiny.root / "data/prepared").exists()
    tiny.run(sys.executable, "-m", "stages.prepare")
    verify(tiny.root / "data/prepared")


def test_a_changed_artifact_is_found_by_the_next_stage(copy: Repository) -> None:
    path = copy.root / "data/backbone/features.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(content)
    done = copy.run(sys.executable, "-m", "stages.evaluate", ok=False)
    assert done.returncode == 65
    assert "data/backbone/features.h5: changed since it was made" in done.stderr


@pytest.mark.slow
def test_ci_reports_a_change_and_refuses_a_stale_lock(copy: Repository) -> None:
    """What the workflow runs for a pull request: first with a forgotten `dvc repro`, then with its result committed."""
    copy.run("git", "checkout", "-qb", "change")
    set_params(copy.root, {"evaluate": {"episodes": 30}})
    copy.run("git", "commit", "-qam", "more episodes, dvc.lock forgotten")
    done = copy.run("bash", ".ci/repro", "main", "report.md", ok=False)
    assert done.returncode == 1
    report = (copy.root / "report.md").read_text()
    assert ["params.yaml", "evaluate.episodes", "20", "30"] in [
        [cell.strip() for cell in line.split("|")[1:5]] for line in report.splitlines()
    ]
    assert re.search(
        r"^\| test \| 1 \| ncm \| \d+\.\d\d ± \d+\.\d\d \| \d+\.\d\d ± .* \| [+-]\d+\.\d\d ± \d+\.\d\d \| within noise \|$",
        report,
        re.MULTILINE,
    )
    assert "is not what the committed params, code and data give" in report
    copy.run("git", "add", "dvc.lock", "data")
    copy.run("git", "commit", "-qm", "with its results")
    (copy.root / "report.md").unlink()
    copy.run("bash", ".ci/repro", "main", "report.md")
    assert "dvc.lock is what the committed params, code and data give." in (copy.root / "report.md").read_text()


@pytest.mark.slow
def test_with_a_remote_only_what_a_change_touches_runs_and_is_shared(copy: Repository, tmp_path: Path) -> None:
    """A folder stands for the remote; another clone pulls and has nothing to run."""
    copy.run("dvc", "remote", "add", "--default", "folder", str(tmp_path / "remote"))
    copy.run("git", "commit", "-qam", "a remote")
    copy.run("dvc", "push", "--run-cache")
    copy.run("git", "clone", "-q", str(copy.root), str(tmp_path / "two"))
    two = Repository(tmp_path / "two")
    two.run("dvc", "pull", "--run-cache")
    assert two.run("dvc", "repro").stdout.count("didn't change, skipping") == 5
    copy.run("git", "clone", "-q", str(copy.root), str(tmp_path / "three"))
    three = Repository(tmp_path / "three")
    three.run("git", "checkout", "-qb", "change")
    set_params(three.root, {"metatrain": {"lr": 3.0e-3}})
    three.run("git", "commit", "-qam", "another rate, dvc.lock forgotten")
    done = three.run("bash", ".ci/repro", "origin/main", "report.md", ok=False)
    assert re.findall(r"Running stage '(\w+)'", done.stdout) == ["metatrain", "evaluate"]
    report = (three.root / "report.md").read_text()
    assert "metatrain.lr" in report
    assert "dvc.lock is not what the committed params" in report
    three.run("git", "commit", "-qam", "with its results")
    two.run("git", "pull", "-q", str(three.root), "change")
    two.run("dvc", "pull", "--run-cache")
    assert two.run("dvc", "repro").stdout.count("didn't change, skipping") == 5


def test_curves_render_as_plots(finished: Repository, tmp_path: Path) -> None:
    finished.run("dvc", "plots", "show", "-q", "-o", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text()
    assert "Training loss" in page
    assert "ncm_accuracy" in page
    columns = finished.run("dvc", "exp", "show", "--csv").stdout.splitlines()[0]
    assert "test.shot1.ncm.accuracy" in columns
