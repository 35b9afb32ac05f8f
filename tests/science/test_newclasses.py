"""New classes by whole weights: read from the files of a run, each classifier is the one that `evaluate` judged."""

import csv
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from metadiff import Classifier, cli
from metadiff.artifact import seal, verify, write_json
from metadiff.backbone import build, dump
from metadiff.baselines.start import build_start
from metadiff.checkpoint import save_checkpoint
from metadiff.classifiers import read_checkpoints
from metadiff.episodes import Episodes, draw_episodes
from metadiff.errors import DataError
from metadiff.inputs import whitened
from metadiff.judging import summary, verdict
from metadiff.learner import Perceptron
from metadiff.lineage import LINEAGE, METRICS, RESULTS
from metadiff.methods.mcdi import WEIGHT_MODELS, build_weights
from metadiff.params import load
from metadiff.paths import WeightScale
from metadiff.pictures import Pictures
from metadiff.rows import Rows
from metadiff.tracked import model_of
from metadiff.trackedruns import BACKBONE, GENERATOR, open_tracked
from metadiff.weightgenerator import WeightGenerator, dump_weights
from stages.imports import ROOT
from tests.science.test_mcdi import FACTS

CLASSES, IMAGES, WAY, QUERY, SHOTS, EPISODES = 12, 14, 4, 4, (1, 3), 4
LEARNER = Perceptron("mlp", WAY, 8, hidden=12)  # 160 numbers: torch draws 16 at a time, else noise for one is not that for many
SECTION = load(ROOT / "params.yaml").evaluate.model_copy(
    update={"way": WAY, "shots": SHOTS, "query": QUERY, "draws": 3, "finetune_lrs": (0.03, 0.1), "finetune_steps": (2, 10)}
)
WITHOUT_NOISE = ("weights-regression", "reptile", "finetune-reptile")
METHODS = ("local", "local-mean", "vanilla", "naive-mean", "ocd", *WITHOUT_NOISE, "finetune-random", "finetune-random-mean")


class Judged:
    """A run with untrained generators of whole weights, on generated features, and the verdict on its episodes."""

    def __init__(self, root: Path) -> None:
        self.root, (self.features, data) = root, features_and_rows()
        write_models(root, self.features, data)
        sizes = {"way": WAY, "query": QUERY, "episodes": EPISODES, "seed": SECTION.seed}
        cells = [(split, shot) for split in ("val", "test") for shot in SHOTS]
        self.episodes = {(split, shot): draw_episodes(data, split, shot=shot, **sizes) for split, shot in cells}
        self.table = write_verdicts(root, self.episodes, self.features, data).set_index(
            ["classifier", "split", "shot", "episode"]
        )

    def support(self, split: str, shot: int, episode: int) -> tuple[np.ndarray, np.ndarray]:
        return self.features[self.episodes[split, shot].support_EWS[episode].ravel()], np.repeat(np.arange(WAY), shot)

    def query(self, split: str, shot: int, episode: int) -> tuple[np.ndarray, np.ndarray]:
        return self.features[self.episodes[split, shot].query_EWQ[episode].ravel()], np.repeat(np.arange(WAY), QUERY)


def features_and_rows() -> tuple[np.ndarray, Rows]:
    """As many features as the backbone gives."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(CLASSES), IMAGES).astype(np.int32)
    names = np.array([f"{number}".encode() for number in range(CLASSES)])
    group = np.arange(len(label), dtype=np.int32)
    data = Rows(label, (label % 3).astype(np.uint8), group, np.full(len(label), b"x"), names, "generated")
    return (rng.normal(size=(CLASSES, 64))[label] + rng.normal(size=(len(label), 64))).astype(np.float32), data


def write_models(root: Path, features: np.ndarray, data: Rows) -> None:
    for folder in (BACKBONE, GENERATOR):
        (root / folder).mkdir(parents=True)
    save_checkpoint(root / BACKBONE / "backbone.safetensors", *dump(build("conv4", channels=1, image_size=16, seed=0)))
    inputs = whitened(torch.from_numpy(features), data, LEARNER.dim)
    scale = WeightScale(torch.linspace(-0.1, 0.1, LEARNER.size), torch.full((LEARNER.size,), 0.1))
    for model in WEIGHT_MODELS:
        facts = FACTS | {"times": 3, "model": model, "start_std": 0.5, "learner": asdict(LEARNER)}
        method = build_start(facts) if model == "reptile" else build_weights(facts, scale)
        average = method.net.state_dict()
        both = {"average": average, "raw": {name: value + 1 for name, value in average.items()}}
        made = WeightGenerator(method, inputs, scale, facts["start_std"])
        save_checkpoint(root / GENERATOR / f"{model}.safetensors", dump_weights(both, made), facts)
    for folder in (BACKBONE, GENERATOR):
        seal(root / folder)


def write_verdicts(root: Path, drawn: dict[tuple[str, int], Episodes], features: np.ndarray, data: Rows) -> pd.DataFrame:
    checkpoints = read_checkpoints(root / GENERATOR)
    judge = {"data": data, "pictures": Pictures(torch.from_numpy(features)), "checkpoints": checkpoints, "device": "cpu"}
    found = {name: verdict(name, SECTION, drawn, **judge) for name in ("ncm", *METHODS)}
    rows, bins = (pd.concat([getattr(one, part) for one in found.values()], ignore_index=True) for part in ("rows", "bins"))
    chosen = {name: vars(one.choice) for name, one in found.items()}
    inputs = {str(folder): verify(root / folder) for folder in (BACKBONE, GENERATOR)} | {"data/trajectories": "not there"}
    (root / RESULTS).mkdir()
    write_json(root / METRICS, {"dataset": "generated", **summary(rows, bins), "chosen": chosen})
    write_json(
        root / LINEAGE,
        {
            "stages": {
                "collect": {"params": {"learner": "mlp"}},
                "evaluate": {"params": SECTION.model_dump(mode="json"), "inputs": inputs},
            }
        },
    )
    seal(root / RESULTS)
    return rows


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    torch.set_num_threads(1)
    return Judged(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("method", METHODS)
def test_accuracy_and_likelihood_are_those_of_evaluate(judged: Judged, method: str) -> None:
    """Of what draws noise the first episode is compared: the noise of the others depends on their place in the batch."""
    classifier = Classifier.from_run(judged.root, method)
    episodes = range(EPISODES) if method in WITHOUT_NOISE else (0,)
    for cell in ((split, shot, episode) for split in ("val", "test") for shot in SHOTS for episode in episodes):
        (queries, truth), row = judged.query(*cell), judged.table.loc[(method, *cell)]
        classifier.fit(*judged.support(*cell))
        assert (classifier.predict(queries) == truth).sum() == row["correct"], cell
        nll = -np.log(classifier.predict_proba(queries)[np.arange(len(truth)), truth]).mean()
        assert nll == pytest.approx(row["nll"], abs=2e-5), cell


@pytest.mark.parametrize("method", ["local", "finetune-random"])
def test_noise_is_a_function_of_the_seed_of_evaluate_alone(judged: Judged, method: str) -> None:
    (support, labels), features = judged.support("test", 3, 2), judged.features
    first, again = (Classifier.from_run(judged.root, method).fit(support, labels) for _ in range(2))
    again.fit(*judged.support("test", 1, 0))
    np.testing.assert_array_equal(again.fit(support, labels).predict_proba(features), first.predict_proba(features))
    tracked = open_tracked(judged.root, method)
    stages = json.loads(json.dumps(tracked.lineage["stages"]))
    stages["evaluate"]["params"]["seed"] = 1
    other = replace(tracked, lineage={**tracked.lineage, "stages": stages}).adapt(torch.from_numpy(support), labels)
    assert (other - first.weights_).abs().max() > 0.1


@pytest.mark.parametrize("method", ["local-mean", "ocd", "finetune-reptile", "finetune-random"])
def test_a_saved_classifier_needs_no_run(judged: Judged, tmp_path: Path, method: str) -> None:
    (support, labels), path = judged.support("test", 3, 0), tmp_path / "a.safetensors"
    classifier = Classifier.from_run(judged.root, method).fit(support, np.array(["oak", "ash", "elm", "fir"])[labels])
    expected = classifier.predict_proba(judged.features)
    classifier.save(path)
    assert str(judged.root).encode() not in path.read_bytes()
    again = Classifier.load(path)
    assert again.lineage_ == classifier.lineage_
    np.testing.assert_array_equal(again.predict_proba(judged.features), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).predict_proba(judged.features), expected)  # noqa: S301
    again.save(tmp_path / "b.safetensors")
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    fresh = Classifier.from_run(path, method).fit(support, labels)
    np.testing.assert_array_equal(
        fresh.predict_proba(judged.features), classifier.fit(support, labels).predict_proba(judged.features)
    )


def test_another_number_of_classes_is_refused_and_changes_nothing(judged: Judged) -> None:
    (support, labels), (queries, _) = judged.support("test", 3, 0), judged.query("test", 3, 0)
    classifier = Classifier.from_run(judged.root, "local").fit(support, labels)
    expected = classifier.predict_proba(queries)
    why = "local makes weights for 4 classes alone: give as many, or choose another method, such as ncm"
    with pytest.raises(DataError, match=f"^5 classes; {why}$"):
        classifier.partial_fit(queries[:3], [-1] * 3)
    assert classifier.classes_.tolist() == [*range(WAY)]
    np.testing.assert_array_equal(classifier.predict_proba(queries), expected)
    with pytest.raises(DataError, match=f"^3 classes; {why}$"):
        classifier.fit(support[:9], labels[:9])


def test_classes_with_different_numbers_of_images_are_refused_until_they_have_equally_many(judged: Judged) -> None:
    support, labels = judged.support("test", 3, 0)
    classifier = Classifier(run=str(judged.root), method="finetune-reptile")
    with pytest.raises(
        DataError, match=r"^classes have from 2 to 3 images; this method makes the classifier of all classes toge"
    ):
        classifier.fit(support[:-1], labels[:-1])
    classifier.fit(support[2::3], labels[2::3]).partial_fit(support[::3], labels[::3]).partial_fit(support[1::3], labels[1::3])
    whole = Classifier(run=str(judged.root), method="finetune-reptile").fit(support, labels)
    np.testing.assert_allclose(classifier.predict_proba(judged.features), whole.predict_proba(judged.features), atol=1e-4)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("local-mean", "local"),
        ("weights-regression", "weights-regression"),
        ("finetune-reptile", "reptile"),
        ("finetune-random", "vanilla"),
        ("finetune-turned", "local"),
        ("finetune-random-mean", "vanilla"),
        ("metadiff-raw", "task"),
        ("gradient-untrained", "gradient"),
    ],
)
def test_the_model_behind_a_name(method: str, expected: str) -> None:
    assert model_of(method, {"task", "reptile", "vanilla", "weights-regression"}) == expected


def pixels(label: int, numbers: range) -> list[np.ndarray]:
    """Of one class, which has a shade of its own."""
    return [np.random.default_rng(n).integers(60 * label, 60 * label + 40, (16, 16), dtype=np.uint8) for n in numbers]


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., list[str]]:
    """The command for as many classes, with three pictures of each to learn from and two to classify."""

    def command(judged: Judged, classes: int, **more: object) -> list[str]:
        for label in range(classes):
            for folder, numbers in (("support", range(3)), ("query", range(3, 5))):
                (tmp_path / folder / f"class-{label}").mkdir(parents=True, exist_ok=True)
                for number, picture in zip(numbers, pixels(label, numbers), strict=True):
                    Image.fromarray(picture).save(tmp_path / folder / f"class-{label}/{number}.png")
        options = {
            "support": tmp_path / "support",
            "query": tmp_path / "query",
            "run": judged.root,
            "page": tmp_path / "page.html",
        }
        return ["classify", *(str(part) for name, value in (options | more).items() for part in (f"--{name}", value))]

    return command


def test_classify_by_whole_weights(
    judged: Judged, pictures: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "found.csv"
    assert cli.main(pictures(judged, WAY, method="finetune-random-mean", csv=table)) == 0
    assert capsys.readouterr().out.startswith("finetune-random-mean of generated, ")
    support, query = (np.stack([one for n in range(WAY) for one in pixels(n, numbers)]) for numbers in (range(3), range(3, 5)))
    classifier = Classifier.from_run(judged.root, "finetune-random-mean").fit(support, np.repeat(np.arange(WAY), 3))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["class"] for row in rows] == [f"class-{label}" for label in range(WAY) for _ in range(2)]
    assert [row["prediction"] for row in rows] == [f"class-{label}" for label in classifier.predict(query)]
    confidences = [float(row["confidence"]) for row in rows]
    np.testing.assert_allclose(confidences, classifier.predict_proba(query).max(1), atol=1e-6)


def test_classify_says_for_how_many_classes_weights_are(
    judged: Judged, pictures: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(pictures(judged, 2, method="local-mean")) == os.EX_DATAERR
    expected = (
        "metadiff: 2 classes; local-mean makes weights for 4 classes alone: give as many, or choose another method, such as ncm\n"
    )
    assert capsys.readouterr().err == expected
