"""Whole weights through the stages, on generated features: paths, every model of `mcdi.models`, and their judgement."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from metadiff.artifact import seal, verify
from metadiff.checkpoint import load_checkpoint
from metadiff.metatraining import MetaTraining
from metadiff.methods.mcdi import WEIGHT_MODELS
from metadiff.rows import Rows
from metadiff.store import write_features, write_images
from stages import collect, evaluate, metatrain
from stages.executors import VARIABLE
from stages.imports import ROOT
from stages.runner import Exit, _guarded
from tests import repository

CLASSES, IMAGES, DIM = 12, 14, 8
TINY: dict[str, dict[str, Any]] = {
    "shared": {"threads": 1},
    "collect": {
        "learner": "mlp",
        "hidden": 6,
        "dim": 6,
        "sees": "support",
        "shot": 5,
        "way": 3,
        "tasks": 24,
        "block": 10,
        "steps": 30,
        "keep": 7,
        "lr": 0.05,
        "init_std": 1.0,
        "weight_decay": 0.01,
    },
    "metatrain": {"models": ["task"], "way": 3, "shots": [1, 2], "steps": 2, "val_every": 2, "val_query": 4, "val_episodes": 5},
    "mcdi": {
        "models": [*WEIGHT_MODELS],
        "times": 6,
        "shots": [1, 2],
        "batch": 8,
        "steps": 4,
        "val_every": 2,
        "hidden": 8,
        "layers": 1,
        "start_tours": 4,
        "start_steps": 3,
        "val_query": 4,
        "val_episodes": 5,
    },
    "evaluate": {
        "way": 3,
        "shots": [1, 2],
        "query": 4,
        "episodes": 20,
        "val_episodes": 20,
        "curve": [],
        "draw_curve": [1, 3],
        "curve_episodes": 10,
        "finetune_lrs": [0.03],
        "finetune_steps": [2, 20],
        "finetune_few": 2,
    },
}


def set_params(**changes: dict[str, Any]) -> None:
    tiny = {section: values | changes.get(section, {}) for section, values in TINY.items()}
    repository.set_params(Path(), tiny, base=ROOT)


@pytest.fixture
def checkout(workplace: Path) -> Path:
    """A folder with features of classes that lie apart."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(CLASSES), IMAGES).astype(np.int32)
    split = np.array([0, 0, 1, 2], np.uint8)[label % 4]  # six base classes, three of each other split
    names = np.array([f"class {number}".encode() for number in range(CLASSES)])
    rows = Rows(label, split, np.arange(len(label), dtype=np.int32), np.full(len(label), b"x"), names, "generated")
    features_ND = 2 * rng.normal(size=(CLASSES, DIM))[label] + 0.5 * rng.normal(size=(len(label), DIM))
    path = workplace / "data/backbone/features.h5"
    path.parent.mkdir(parents=True)
    write_features(path, features_ND.astype(np.float32), rows=rows)
    seal(path.parent)
    draw_images(workplace / "data/prepared/images.h5", rows)
    return workplace


def draw_images(path: Path, rows: Rows) -> None:
    """Of each class a pattern of its own, with noise."""
    rng = np.random.default_rng(1)
    pattern_CHW1 = rng.integers(40, 200, (CLASSES, 10, 10, 1))
    images_NHW1 = (pattern_CHW1[rows.label] + rng.integers(-40, 40, (len(rows.label), 10, 10, 1))).astype(np.uint8)
    path.parent.mkdir(parents=True)
    write_images(path, [images_NHW1], shape=(10, 10, 1), rows=rows)
    seal(path.parent)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes:2", "dask"])
def test_judgement_gives_the_same_bytes_by_whichever_executor(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    set_params(mcdi={"models": ["vanilla"]})
    assert [_guarded(stage.STAGE) for stage in (collect, metatrain, evaluate)] == [Exit.OK] * 3
    serial = verify(checkout / "data/results")
    shutil.rmtree("data/.work/evaluate")
    monkeypatch.setenv(VARIABLE, executor)
    assert _guarded(evaluate.STAGE) is Exit.OK
    assert verify(checkout / "data/results") == serial


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["mlp", "linear", "conv"])
def test_every_model_is_trained_and_judged_on_the_same_episodes(
    checkout: Path, learner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(collect={"learner": learner, "channels": 6, "lr": 0.02 if learner == "conv" else 0.05})
    assert [_guarded(stage.STAGE) for stage in (collect, metatrain, evaluate)] == [Exit.OK] * 3
    for folder in ("trajectories", "generator", "results"):
        verify(checkout / "data" / folder)
    made = {path.stem for path in (checkout / "data/generator").glob("*.safetensors")}
    assert made == {"task", *WEIGHT_MODELS}
    metrics = json.loads((checkout / "data/results/metrics.json").read_bytes())
    drawing = [name for name in WEIGHT_MODELS if name not in ("weights-regression", "reptile")]
    names = {*WEIGHT_MODELS, *(f"{name}-mean" for name in drawing), "finetune-reptile"}
    names |= {"finetune-random", "finetune-random-mean"}
    names |= {"nearest-weights", "nearest-weights-mean", "average-weights", "noisy-weights"}
    names |= {"ncm", "ncm-whitened", "gaussian", "gaussian-whitened", "metadiff", "metadiff-raw", "metadiff-mean"}
    assert set(metrics["chosen"]) == names
    assert set(metrics["test"]["shot2"]["local"]) >= {"vs_ncm", "vs_gaussian", "vs_weights-regression", "vs_finetune-random"}
    assert metrics["test"]["shot2"]["finetune-random"]["accuracy"] > 60  # chance is 33
    curve = pd.read_csv(checkout / "data/results/draws.csv")
    assert curve["draws"].tolist() == [1, 3]
    rivals = ["weights-regression", "finetune-random"]
    columns = {f"{name} {shot}-shot{what}" for name in drawing + rivals for shot in (1, 2) for what in ("", " nll")}
    assert set(curve) == {"draws"} | columns
    chain = pd.read_csv(checkout / "data/results/chain.csv")
    assert chain["time"].tolist() == [*range(7)]
    assert len([name for name in chain if name.endswith(" support")]) == 2 * len(drawing)
    for name in columns & set(chain):
        assert chain[name].iloc[-1] == pytest.approx(curve[name].iloc[0], rel=1e-4)
    episodes = pd.read_csv(checkout / "data/results/episodes.csv")
    assert episodes.groupby(["classifier", "split", "shot"]).size().eq(20).all()
    memory, said = json.loads((checkout / "data/results/memory.json").read_bytes()), capsys.readouterr().err
    assert set(memory) == {*drawing}
    for name, facts in memory.items():
        assert f"evaluate: {name} {facts['verdict']}" in said
        assert facts["ratio"] == pytest.approx(facts["to_training"] / facts["among_training"], rel=1e-3)
        assert f"lie {facts['ratio']:.2f} times as far" in facts["verdict"]
        assert set(facts["overlap"]) == {"nearest", "draws", "finetune-random"}
        assert facts["training_weights"] == 24
        assert facts["reconstruction"] > 0
    lineage = json.loads((checkout / "data/results/lineage.json").read_bytes())
    assert lineage["stages"]["metatrain"]["methods"]["mcdi"]["segments"] == 3


IN_TURN = {"start_turn": 2, "start_inner": "sgd", "start_optimizer": "adam", "start_rate": 0.01}


@pytest.mark.parametrize(
    ("learner", "start"), [("mlp", {}), ("mlp", IN_TURN), pytest.param("conv", IN_TURN, marks=pytest.mark.slow)]
)
def test_all_weights_may_be_generated_as_a_difference_to_what_reptile_has_learnt(
    checkout: Path, learner: str, start: dict[str, Any]
) -> None:
    """By paths that begin there, of which an end is made of the learnt start and what is generated."""
    set_params(
        collect={"learner": learner, "channels": 6, "lr": 0.02},
        mcdi={
            "models": ["local", "vanilla", "ocd", "weights-regression", "reptile"],
            "base": "reptile",
            "turned": learner == "conv",
        }
        | start,
        evaluate={"draws": 1, "draw_curve": [], "finetune_sgd_lrs": [0.1]},
    )
    assert [_guarded(stage.STAGE) for stage in (collect, metatrain, evaluate)] == [Exit.OK] * 3
    made = {path.stem: load_checkpoint(path)[0] for path in (checkout / "data/generator").glob("*.safetensors")}
    for model in ("local", "vanilla", "ocd", "weights-regression"):
        assert torch.equal(made[model]["scale/shift_P"], made["reptile"]["average/theta_P"])
    assert all(torch.equal(made["ocd"][name], value) for name, value in made["vanilla"].items())
    episodes = pd.read_csv(checkout / "data/results/episodes.csv").set_index("classifier")
    assert (episodes.loc["ocd"].correct.to_numpy() == episodes.loc["vanilla"].correct.to_numpy()).all()
    assert ("finetune-turned" in episodes.index) == (learner == "conv")


def test_a_tour_cannot_have_more_images_at_a_step_than_a_class_has(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_params(mcdi={"models": ["reptile"], "start_turn": IMAGES + 1})
    assert [_guarded(stage.STAGE) for stage in (collect, metatrain)] == [Exit.OK, Exit.DATA]
    assert f"train: a class has {IMAGES} images: lower mcdi.start_turn from {IMAGES + 1}" in capsys.readouterr().err


def train_stopped_once(monkeypatch: pytest.MonkeyPatch, stop: int, *, units: int) -> None:
    """metatrain, interrupted in a unit and then run again, which makes all the others."""
    counted, run = [0], MetaTraining.run

    def until_stopped(training: MetaTraining[Any, Any]) -> dict[str, float]:
        counted[0] += 1
        if counted[0] == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return run(training)

    monkeypatch.setattr(MetaTraining, "run", until_stopped)
    assert _guarded(metatrain.STAGE) is Exit.INTERRUPTED
    assert counted == [stop]
    assert _guarded(metatrain.STAGE) is Exit.OK
    assert counted == [units]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 4, 7, 9])  # of 13 units, two a model: reptile, local, vanilla, naive, ocd, the control
def test_a_stopped_training_ends_in_the_same_bytes(checkout: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    set_params()
    assert [_guarded(stage) for stage in (collect.STAGE, metatrain.STAGE)] == [Exit.OK] * 2
    whole = {path.name: path.read_bytes() for path in (checkout / "data/generator").iterdir()}
    for folder in ("data/generator", "data/.work/metatrain"):
        shutil.rmtree(checkout / folder)
    train_stopped_once(monkeypatch, stop, units=13)
    assert {path.name: path.read_bytes() for path in (checkout / "data/generator").iterdir()} == whole


@pytest.mark.slow
def test_one_draw_in_the_draws_curve_is_what_the_first_of_several_is(checkout: Path) -> None:
    set_params(mcdi={"models": ["local"]})
    curves = []
    for numbers in ([1], [1, 2]):
        set_params(mcdi={"models": ["local"]}, evaluate={"draw_curve": numbers})
        assert [_guarded(stage.STAGE) for stage in (collect, metatrain, evaluate)] == [Exit.OK] * 3
        curves.append(pd.read_csv(checkout / "data/results/draws.csv").set_index("draws"))
    pd.testing.assert_series_equal(curves[0].loc[1], curves[1].loc[1])


def test_a_schedule_without_noise_at_its_start_is_refused_before_anything_is_trained(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(mcdi={"schedule": "linear"})
    assert _guarded(collect.STAGE) is Exit.OK
    assert _guarded(metatrain.STAGE) is Exit.PARAMS
    assert "mcdi.schedule: schedule linear with 6 times and 3 segments does not start from noise" in capsys.readouterr().err
    assert not (checkout / "data/generator").exists()
