"""Weights from sentences through the stages, on generated features: every model of `hyperldm.models`, and its judgement."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import Tensor

from metadiff.artifact import seal, verify
from metadiff.asking import Asked
from metadiff.checkpoint import load_checkpoint
from metadiff.concepts import DescribedTask
from metadiff.methods.hyperldm import EXPLODED
from metadiff.textbuild import TEXT_MODELS
from metadiff.vectors import write_vectors
from stages import collect, described, evaluate, metatrain
from stages.executors import VARIABLE
from stages.imports import ROOT
from stages.runner import Exit, _guarded
from tests import repository
from tests.stages.test_collect import generated_features, others, told
from tests.stages.test_weights import train_stopped_once

TINY: dict[str, dict[str, Any]] = {
    "shared": {"threads": 1},
    "prepare": {"source": "described-shapes", "path": "some.safetensors", "color": "rgb", "encoder": "cached"},
    "collect": {
        "tasks_of": "sentences",
        "learner": "mlp",
        "hidden": 4,
        "dim": 5,
        "spread": 1.0,
        "sees": "support",
        "shot": 4,
        "way": 2,
        "tasks": 6,
        "block": 6,
        "steps": 40,
        "keep": 2,
        "lr": 0.05,
        "init_std": 1.0,
        "start": "common",
        "noise": 0.0,
    },
    "metatrain": {"models": []},
    "mcdi": {"models": []},
    "hyperldm": {
        "models": [*TEXT_MODELS],
        "latents_of": "hnet",
        "inner_steps": 2,
        "latent": 4,
        "hidden": 8,
        "text_hidden": 8,
        "batch": 6,
        "images": 3,
        "latent_batch": 8,
        "steps": 4,
        "encoder_steps": 4,
        "val_every": 2,
        "val_images": 4,
        "times": 20,
        "sampling_steps": 4,
        "guide_steps": 3,
    },
    "evaluate": {
        "way": 3,
        "shots": [1],
        "query": 2,
        "episodes": 6,
        "val_episodes": 6,
        "ridges": [1.0],
        "spreads": [1.0],
        "curve": [],
        "draw_curve": [],
        "sentence_images": 3,
        "gammas": [1.0, 1.5],
        "pulls": [0.1],
        "draws": 2,
        "adapt_images": [2, 4],
        "text_adapt_images": [2, 4],
        "adapt_pulls": [0.1, 1.0],
        "adapt_steps": 2,
    },
}
JUDGED = {"hnet", "hyperldm-g1", "hyperldm-g1.5", "shuffled", "hyperldm-mean", "hyperldm-best", "hyperclip", "mlp", "end-to-end"}
JUDGED |= {"joint", "uncond", "nearest", "ridge", "adapt-2", "adapt-4", "text-adapt-2", "text-adapt-4"}
STAGES = (collect.STAGE, metatrain.STAGE, evaluate.STAGE)


def tasks() -> list[DescribedTask]:
    """Those of `collect`, and of each other split one more with one answer and some that share a sentence: more of test."""
    found = told()
    for split in ("val", "test"):
        some = {"kind": "some", "split": split, "concept": split, "texts": (f"some of {split}", f"is it some of {split}?")}
        plain = DescribedTask(f"5 in {split}", "5", "one", split, (f"5 in {split}", f"is it 5 in {split}?"), (5,), (), others(5))
        found.append(plain)
        for meant in (1, 3, 7)[: 2 + (split == "test")]:
            found.append(replace(plain, **some, name=f"some of {split}: {meant}", yes=(meant,), near=(5,), no=others(meant, 5)))
    return found


def set_params(**changes: dict[str, Any]) -> None:
    tiny = {section: values | changes.get(section, {}) for section, values in TINY.items()}
    repository.set_params(Path(), tiny, base=ROOT)


@pytest.fixture
def checkout(workplace: Path) -> Path:
    """A folder with images of every class in val and test, what sentences ask of them, and vectors of these."""
    generated_features(workplace / "data/backbone/features.h5", tasks())
    prepared = workplace / "data/prepared"
    texts = sorted({text for task in tasks() for text in task.texts})
    vectors_ND = np.random.default_rng(0).normal(size=(len(texts), 7)).astype(np.float32)
    write_vectors(prepared / "sentences.safetensors", texts, vectors_ND, about={"encoder": "made up"})
    (prepared / "manifest.json").unlink()
    seal(prepared)
    set_params()
    return workplace


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("source", ["hnet", *(pytest.param(source, marks=pytest.mark.slow) for source in ("maml", "hvae"))])
def test_every_model_is_trained_and_answers_the_same_tasks(checkout: Path, source: str) -> None:
    set_params(hyperldm={"latents_of": source})
    assert [_guarded(stage) for stage in STAGES] == [Exit.OK] * 3
    for folder in ("trajectories", "generator", "results"):
        verify(checkout / "data" / folder)
    assert {path.stem for path in (checkout / "data/generator").glob("*.safetensors")} == {*TEXT_MODELS}
    curves = pd.read_csv(checkout / "data/generator/curves.csv")
    assert curves["step"].tolist() == [2, 4]
    for model in TEXT_MODELS:
        tensors, facts = load_checkpoint(checkout / f"data/generator/{model}.safetensors")
        assert facts["model"] == model
        assert facts["encoder"] == {"encoder": "made up"}
        known = {"maml": {"latents"}, "hvae": {"latents", "weights"}}.get(model, set())
        assert {name.split("/")[0] for name in tensors} == {"average", "sentences", "inputs"} | known
        assert np.isfinite(curves[[f"{model}_loss", f"{model}_score"]]).all(axis=None)
    rows = pd.read_csv(checkout / "data/results/described.csv")
    assert {*rows["classifier"]} == JUDGED
    asked = [(task.split, text, task.name, task.kind) for task in tasks() if task.split != "train" for text in ("seen", "unseen")]
    for _, part in rows.groupby("classifier"):
        found = [(row.split, row.text, row.task, row.kind) for row in part.itertuples()]
        assert sorted(found) == sorted(asked)  # a row a task, split and template
    assert (rows["queries"] == 6).all()
    assert rows["correct"].between(0, 6).all()
    assert (rows["nll"] > 0).all()
    metrics = json.loads((checkout / "data/results/metrics.json").read_bytes())
    assert {*metrics["chosen_by_text"]} == JUDGED
    assert {*metrics["spread_of_latents"]} == {name for name in JUDGED if name.startswith("hyperldm-g")}
    assert all(0 < value < EXPLODED for value in metrics["spread_of_latents"].values())
    assert metrics["chosen_by_text"]["adapt-2"] in ("pull 0.1", "pull 1")
    for split in ("val", "test"):
        for text in ("seen", "unseen"):
            for group, kinds in (("plain", ["one", "two"]), ("ambiguous", ["some"])):
                found = metrics["described"][split][text][group]
                assert {*found} == JUDGED
                part = rows[(rows["split"] == split) & (rows["text"] == text) & rows["kind"].isin(kinds)]
                share = 100 * part.groupby("classifier")["correct"].sum() / part.groupby("classifier")["queries"].sum()
                for name, facts in found.items():
                    assert facts["accuracy"] == pytest.approx(share[name], abs=1e-3)


def test_what_sees_no_sentence_answers_both_templates_alike_and_is_chosen_on_validation(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are the same whatever the template; test tasks are answered once."""
    set_params(hyperldm={"models": ["hnet"]})
    chosen_on, choice_of = [], described.choice_of

    def spied(candidates: object, asked: Asked, target_Q: Tensor, tasks_E: Tensor) -> object:
        chosen_on.append((len(asked.sentence_ED), tasks_E.tolist()))
        return choice_of(candidates, asked, target_Q, tasks_E)

    monkeypatch.setattr(described, "choice_of", spied)
    assert [_guarded(stage) for stage in STAGES] == [Exit.OK] * 3
    rows = pd.read_csv(checkout / "data/results/described.csv").set_index(["classifier", "split", "task"])
    plain, every = (4, [True, True, False, False]), (4, [True] * 4)  # of test there are five
    assert chosen_on == [plain] * 4 + [every] * 2
    assert [*rows.index.unique(0)] == ["hnet", "uncond", "nearest", "ridge", "adapt-2", "adapt-4"]
    for name in ("uncond", "adapt-2", "adapt-4"):
        seen, unseen = (rows.loc[name][rows.loc[name]["text"] == text]["nll"] for text in ("seen", "unseen"))
        pd.testing.assert_series_equal(seen, unseen)
    seen, unseen = (rows.loc["hnet"][rows.loc["hnet"]["text"] == text]["nll"] for text in ("seen", "unseen"))
    assert (seen != unseen).any()


@pytest.mark.parametrize(
    "stop", [6, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (2, 4, 8, 11))]
)  # of two a model: hnet, maml, hvae, end-to-end, joint, and then those of latents
def test_a_stopped_training_ends_in_the_same_bytes(checkout: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    assert [_guarded(stage) for stage in STAGES[:2]] == [Exit.OK] * 2
    whole = files(checkout / "data/generator")
    for folder in ("data/generator", "data/.work/metatrain"):
        shutil.rmtree(checkout / folder)
    train_stopped_once(monkeypatch, stop, units=2 * len(TEXT_MODELS))
    assert files(checkout / "data/generator") == whole


def test_latents_spread_otherwise_than_those_of_training_are_said_and_of_few_tasks_nothing() -> None:
    spread = {"hyperldm-g1": 0.95, "hyperldm-g3": 1.31}
    assert [*described.doubtful(spread, tasks=50)] == [
        "hyperldm-g3: sampled latents have a deviation of 1.31 where those of training have 1 and 0.8 to 1.2 is sound: raise "
        "hyperldm.steps, or lower evaluate.gammas"
    ]
    assert not [*described.doubtful({"hyperldm-g1": 0.79}, tasks=49)]
    assert len([*described.doubtful({"hyperldm-g1": 0.79}, tasks=50)]) == 1


@pytest.mark.parametrize("source", [pytest.param("hnet", marks=pytest.mark.slow), "hvae"])
def test_the_order_of_models_changes_no_bytes(checkout: Path, source: str) -> None:
    """Those of latents wait for their source."""
    set_params(hyperldm={"models": [source, "joint", "mlp"], "latents_of": source})
    assert [_guarded(stage) for stage in STAGES[:2]] == [Exit.OK] * 2
    whole = {name: content for name, content in files(checkout / "data/generator").items() if name.endswith(".safetensors")}
    set_params(hyperldm={"models": ["mlp", "joint", source], "latents_of": source})
    assert _guarded(metatrain.STAGE) is Exit.OK
    found = files(checkout / "data/generator")
    assert all(found[name] == content for name, content in whole.items())


@pytest.mark.slow  # processes import torch
def test_processes_give_the_same_bytes(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [_guarded(stage) for stage in STAGES] == [Exit.OK] * 3
    made = ("data/generator", "data/results")
    serial = [verify(checkout / folder) for folder in made]
    for stage in ("metatrain", "evaluate"):
        shutil.rmtree(f"data/.work/{stage}")
    monkeypatch.setenv(VARIABLE, "processes:2")
    assert [_guarded(stage) for stage in STAGES[1:]] == [Exit.OK] * 2
    assert [verify(checkout / folder) for folder in made] == serial


@pytest.mark.slow
def test_a_stopped_judgement_goes_on_after_the_last_classifier(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_params(hyperldm={"models": ["hnet"]})
    assert [_guarded(stage) for stage in STAGES] == [Exit.OK] * 3
    serial = verify(checkout / "data/results")
    shutil.rmtree("data/.work/evaluate")
    answered, asked = described.answered, []

    def until_stopped(name: str, *others: object) -> object:
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answered(name, *others)

    monkeypatch.setattr(described, "answered", until_stopped)
    with pytest.raises(KeyboardInterrupt):
        _guarded(evaluate.STAGE)
    assert _guarded(evaluate.STAGE) is Exit.OK
    assert len(asked) == 7  # six, and the third again
    assert verify(checkout / "data/results") == serial
