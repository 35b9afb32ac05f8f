"""Weights from the sentences of somebody's own classes: image files and a table of descriptions through all stages."""

import csv
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from metadiff import Classifier, text
from metadiff.artifact import verify
from metadiff.ask import about
from metadiff.concepts import DescribedTask
from metadiff.errors import ParamsError
from metadiff.images.shapes import draw_shape
from metadiff.rng import numpy_stream
from metadiff.store import read_rows
from metadiff.tasks import read_tasks
from metadiff.text import Encoder
from stages import collect, described, evaluate, metatrain, prepare, pretrain
from stages.imports import ROOT
from stages.runner import Exit, _guarded
from tests import repository
from tests.stages.test_sentences_end_to_end import TINY

STAGES = (prepare.STAGE, pretrain.STAGE, collect.STAGE, metatrain.STAGE, evaluate.STAGE)
COLOURS, SHAPES, IMAGES = ("red", "green", "blue", "white"), ("circle", "star", "heart"), 8
LABELS = tuple(f"{colour}_{shape}" for colour in COLOURS for shape in SHAPES)
SPLIT = dict(zip(LABELS, ["train"] * 6 + ["val"] * 3 + ["test"] * 3, strict=True))
MODELS = ("hnet", "hyperldm", "mlp", "end-to-end", "joint")
OWN: dict[str, dict[str, Any]] = {
    "prepare": {"source": "folder", "path": "own", "image_size": 16, "split": "given", "min_images": 5, "encoder": "minilm"},
    "pretrain": {"epochs": 1, "val_way": 3, "val_shot": 1, "val_query": 2, "val_episodes": 3, "batch": 12},
    "metatrain": {"shots": [1], "val_query": 2},
    "hyperldm": {"models": [*MODELS]},
}


def made_up(sentences: list[str]) -> np.ndarray:
    return np.stack([numpy_stream(0, "made up", sentence).normal(size=7) for sentence in sentences]).astype(np.float32)


def draw_own(root: Path, descriptions: Mapping[str, str]) -> None:
    """Image files, a folder a class, and a table in which one row of each class describes it."""
    rows = [("path", "label", "split", "description")]
    for label, split in SPLIT.items():
        (root / label).mkdir(parents=True)
        for number in range(IMAGES):
            stream = numpy_stream(1, label, number)
            image = draw_shape(label.split("_")[0], "solid", label.split("_")[1], stream, image_size=20, channels=3)
            Image.fromarray(image).save(root / label / f"{number}.png")
            rows.append((f"{label}/{number}.png", label, split, "" if number else descriptions.get(label, "")))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def checkout(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parameters for a folder of described classes, and an encoder that needs no package."""
    monkeypatch.setattr(text, "encoder_of", lambda name, cached: Encoder(name, {"encoder": "made up"}, made_up))
    tiny = {section: TINY.get(section, {}) | OWN.get(section, {}) for section in TINY | OWN}
    repository.set_params(workplace, deepcopy(tiny), base=ROOT)
    (workplace / "constraints.txt").write_bytes((ROOT / "constraints.txt").read_bytes())
    return workplace


def said(label: str) -> str:
    return f"the {label.split('_')[1]} that is {label.split('_')[0]}"


def tasks(checkout: Path) -> tuple[DescribedTask, ...]:
    prepared = checkout / "data/prepared"
    return read_tasks(prepared, read_rows(prepared / "images.h5"))


def test_described_classes_go_through_all_stages_and_are_asked_for(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_own(checkout / "own", {label: said(label) for label in LABELS})
    assert [_guarded(stage) for stage in STAGES] == [Exit.OK] * 5
    for folder in ("prepared", "backbone", "trajectories", "generator", "results"):
        verify(checkout / "data" / folder)
    rows = pd.read_csv(checkout / "data/results/described.csv")
    metrics = json.loads((checkout / "data/results/metrics.json").read_bytes())
    assert {*MODELS[2:], "hnet", "hyperldm-mean", "hyperldm-best", "adapt-2", "text-adapt-2"} <= {*rows["classifier"]}
    assert {*zip(rows["split"], rows["task"], rows["kind"], strict=True)} == {
        (split, label, "class") for label, split in SPLIT.items() if split != "train"
    }
    assert {*rows["text"]} == {"seen"}  # a class is described in one way, so there is no other wording to measure
    assert not rows.duplicated(["split", "task", "classifier"]).any()
    assert {split: [*texts] for split, texts in metrics["described"].items()} == {"val": ["seen"], "test": ["seen"]}
    assert [*metrics["described"]["test"]["seen"]] == ["plain"]
    error = capsys.readouterr().err
    assert "prepare: 12 sentences of 12 tasks\n" in error
    assert "no description" not in error
    assert "evaluate: plain test sentences, per cent of the answers that are right: " in error
    classifier = Classifier.from_text(said(LABELS[-1]), draws=2)
    assert about(classifier.lineage_).count("on validation sentences") == 1
    assert "wordings" not in about(classifier.lineage_)
    images_NHWC = np.stack([np.asarray(Image.open(path).resize((16, 16))) for path in sorted((checkout / "own").glob("*/0.png"))])
    assert classifier.predict_proba(images_NHWC).shape == (12, 2)


def test_the_names_of_undescribed_classes_are_their_sentences_and_that_is_said(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_own(checkout / "own", {"red_star": said("red_star")})
    assert _guarded(prepare.STAGE) is Exit.OK
    found = {task.name: task.texts for task in tasks(checkout)}
    assert found["red_star"] == ("the star that is red",)
    assert found["blue_heart"] == ("A picture of blue heart.",)
    line = "prepare: 11 classes have no description: their sentence is their name, as in 'A picture of blue circle.'\n"
    assert line in capsys.readouterr().err


def test_a_sentence_of_several_classes_asks_for_all_of_them_and_one_of_two_splits_is_said(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_colour = {label: f"a {label.split('_')[0]} thing" for label in LABELS if not label.startswith("white")}
    draw_own(checkout / "own", of_colour | {"white_circle": "a red thing", "white_star": "a star", "white_heart": "a heart"})
    assert _guarded(prepare.STAGE) is Exit.OK
    names = read_rows(checkout / "data/prepared/images.h5").class_names
    of_train = [task for task in tasks(checkout) if task.split == "train"]
    assert {task.texts[0]: {names[number] for number in task.yes} for task in of_train} == {
        f"a {colour} thing": {f"{colour}_{shape}" for shape in SHAPES} for colour in ("red", "green")
    }
    assert all({*task.yes} | {*task.no} == {names.index(label) for label in LABELS[:6]} for task in of_train)
    assert "prepare: 1 sentences of val or test are of training too, as 'a red thing'" in capsys.readouterr().err


def test_an_encoder_that_is_absent_is_said_before_an_image_is_read(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str, *, cached: Path) -> Encoder:
        raise ParamsError(f"text encoder {name}: install it")

    monkeypatch.setattr(text, "encoder_of", absent)
    monkeypatch.setattr(prepare, "draw", None)
    draw_own(checkout / "own", {})
    assert _guarded(prepare.STAGE) is Exit.PARAMS
    assert capsys.readouterr().err == "params.yaml: prepare.encoder: text encoder minilm: install it\n"
    assert not (checkout / "data/prepared").exists()


def test_tasks_with_too_few_images_for_what_is_asked_are_said(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository.set_params(checkout, {"hyperldm": {"models": ["hnet"]}, "evaluate": {"adapt_images": [2, 12]}})
    draw_own(checkout / "own", {label: said(label) for label in LABELS})
    assert [_guarded(stage) for stage in STAGES] == [Exit.OK] * 5
    line = "evaluate: 3 of 3 test tasks have fewer than 9 images that are right, one 8: the same come again; lower "
    assert f"{line}evaluate.adapt_images, evaluate.text_adapt_images or evaluate.sentence_images\n" in capsys.readouterr().err


def test_wordings_are_told_apart_where_there_are_several() -> None:
    one = DescribedTask("a", "a", "class", "val", ("a",), (0,), (), (1,))
    two = DescribedTask("b", "b", "one", "val", ("b", "it is b"), (0,), (), (1,))
    assert described.worded([one]) == ["seen"]
    assert described.worded([two, two]) == ["seen", "unseen"]
