"""`bench.metavqa` on a generated Meta-VQA whose questions say which number of an image's features matters."""

import hashlib
import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench import metavqa as bench
from metadiff.metavqa import IMAGES, PROMPTS, TEST, TEXTS, TRAIN, named
from metadiff.params import load
from metadiff.rng import torch_stream
from metadiff.text import Encoder, write_cached
from metadiff.vectors import write_vectors
from metadiff.vqaladder import TaskWeights
from metadiff.vqatasks import VQASplits, VQATasks
from stages.imports import ROOT
from tests.repository import set_params
from tests.science.test_metavqa import write

DIM, KINDS, IMAGES_OF = 8, 4, 24  # numbers of features, those of them that a question may be about, images of a task's support
TRAINED, TESTED = 60, 20  # tasks
TINY: dict[str, dict[str, Any]] = {
    "shared": {"threads": 1},
    "hyperldm": {
        **{"latent": 8, "hidden": 32, "text_hidden": 32, "text_noise": 0.2, "dropout": 0.0, "batch": 16, "latent_batch": 64},
        **{
            "steps": 300,
            "encoder_steps": 300,
            "val_every": 150,
            "lr": 1e-2,
            "ema": 0.9,
            "times": 100,
            "sampling_steps": 5,
            "guide_steps": 20,
        },
    },
    "evaluate": {"gammas": [1.0, 1.5], "pulls": [0.01, 0.1], "adapt_pulls": [0.1, 1.0], "adapt_steps": 20},
}
ROWS = [
    *("clip", "uncond", "hnet", "mlp", "end-to-end", "hyperclip", "hyperldm-g1", "hyperldm-g1.5", "shuffled"),
    *("adapt", "text-adapt"),
]
Row = dict[str, Any]


def features(name: str) -> NDArray[np.float32]:
    """Of an image, by its name."""
    return np.random.default_rng([*name.encode()]).standard_normal(DIM).astype(np.float32)


def told(sentence: str) -> NDArray[np.float32]:
    """Of a question what it is about; of an answer's sentence its last word, along a number that no question is about."""
    code_KD = np.random.default_rng(0).standard_normal((KINDS, DIM))
    words = sentence.split()
    if words[0] == "Question":
        noise_D = 0.1 * np.random.default_rng([*sentence.encode()]).standard_normal(DIM)
        return (code_KD[int(words[-1]) % KINDS] + noise_D).astype(np.float32)
    return np.eye(DIM, dtype=np.float32)[KINDS + ["low", "high", "middle"].index(words[-1])]


def examples(number: int, count: int, part: str) -> list[list[str]]:
    """An image is low or high by one of its features and, in every third task, perhaps neither."""
    found = []
    for image in range(count):
        name = f"{part} {number} {image}"
        value = features(name)[number % KINDS]
        found.append([name, "middle" if number % 3 == 0 and abs(value) < 0.4 else "high" if value > 0 else "low"])
    return found


def generated(numbers: range) -> dict[str, Any]:
    return {
        f"Question about {number}": {
            "train": examples(number, IMAGES_OF + number % 5, "support"),
            "test": examples(number, IMAGES_OF + number % 7, "query"),
            "answers": ["low", "high", *(["middle"] if number % 3 == 0 else [])],
        }
        for number in numbers
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("meta-vqa")
    content = {TRAIN: generated(range(TRAINED)), TEST: generated(range(TRAINED, TRAINED + TESTED))}
    questions = [question for tasks in content.values() for question in tasks]
    write(made, content | {PROMPTS: dict.fromkeys(questions, "it is {}")})
    images, sentences = named(made)
    write_vectors(made / IMAGES, images, np.array([features(name) for name in images]), about={"model": "made up"})
    encoder = Encoder("e", {"encoder": "e"}, lambda texts: np.array([told(text) for text in texts], np.float32))
    write_cached(made / TEXTS, sentences, encoder)
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With parameters of which a run takes seconds."""
    made = tmp_path_factory.mktemp("place")
    shutil.copy(ROOT / "params.yaml", made)
    set_params(made, TINY)
    return made


@pytest.fixture(scope="module")
def result(folder: Path, place: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    with chdir(place):
        assert bench.main([str(folder), "--out", "found.json"]) == 0
    found: dict[str, Any] = json.loads((place / "found.json").read_text())
    return found


@pytest.mark.slow  # whoever is first waits for all five models
def test_the_rows_are_there_with_what_validation_chose(result: dict[str, Any]) -> None:
    assert [*result["rows"]] == ROWS
    for name, row in result["rows"].items():
        assert min(row["accuracy"], row["pooled"], row["val"]) >= 0
        assert max(row["accuracy"], row["pooled"], row["val"]) <= 100
        assert 0 < row["ci95"] < 20
        chosen = {"hyperclip": "pull ", "adapt": "pull ", "text-adapt": "pull "}.get(name, "")
        assert row["chosen"].startswith(chosen)
        assert bool(row["chosen"]) == bool(chosen)


@pytest.mark.slow
def test_clip_is_answered_as_by_the_files_themselves(result: dict[str, Any], folder: Path) -> None:
    """Mean over tasks, its interval, and over all images."""
    shares, hits, images = [], 0, 0
    for task in json.loads((folder / TEST).read_text()).values():
        answers_AD = np.array([told(f"it is {answer}") for answer in task["answers"]])
        features_QD = np.array([features(image) for image, _ in task["test"]])
        found = (features_QD @ answers_AD.T).argmax(1)  # sentences are of length 1
        right = [task["answers"][number] == answer for number, (_, answer) in zip(found, task["test"], strict=True)]
        shares.append(100 * np.mean(right))
        hits, images = hits + sum(right), images + len(right)
    row = result["rows"]["clip"]
    assert row["accuracy"] == pytest.approx(np.mean(shares))
    assert row["ci95"] == pytest.approx(1.96 * np.std(shares, ddof=1) / np.sqrt(TESTED))
    assert row["pooled"] == pytest.approx(100 * hits / images)


@pytest.mark.slow
def test_whoever_is_told_the_question_knows_what_matters(result: dict[str, Any]) -> None:
    accuracy = {name: row["accuracy"] for name, row in result["rows"].items()}
    for name in ("hnet", "end-to-end", "mlp", "hyperldm-g1", "hyperldm-g1.5", "text-adapt"):
        assert accuracy[name] > accuracy["clip"] + 20, name
        assert accuracy[name] > accuracy["uncond"] + 10, name
    assert accuracy["hyperclip"] > accuracy["uncond"] + 5
    assert accuracy["shuffled"] < accuracy["hyperldm-g1"] - 15  # another's question
    assert accuracy["adapt"] > accuracy["uncond"] + 5  # images alone


@pytest.mark.slow
def test_the_result_says_what_it_is_of(result: dict[str, Any], folder: Path) -> None:
    assert result["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert result["tasks"] == {"train": 54, "val": 6, "test": 20}
    assert result["learner"] == {"kind": "adapter", "dim": DIM, "hidden": 256}
    assert result["seed"] == 0
    assert result["params"]["hyperldm"]["latent"] == 8
    assert {"torch", "device", "threads"} <= {*result["made_with"]}
    assert {*result["best_step"]} == {"hnet", "hyperldm", "hyperclip", "mlp", "end-to-end"}
    assert {*result["best_step"].values()} <= {150, 300}


def test_two_runs_give_the_same_rows_and_other_steps_others(
    folder: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    with chdir(place):
        for name, steps in (("one.json", 10), ("two.json", 10), ("other.json", 20)):
            assert bench.main([str(folder), "--steps", str(steps), "--out", name]) == 0
            rows.append(json.loads(Path(name).read_text())["rows"])
    assert rows[0] == rows[1]
    assert rows[0]["clip"] == rows[2]["clip"]
    assert rows[0]["hnet"] != rows[2]["hnet"]
    said = capsys.readouterr()
    assert "metavqa: training: 50 steps" in said.err
    assert "metavqa: answers: 11 rows" in said.err
    lines = said.out.splitlines()[1 : len(ROWS) + 1]
    assert [line.split()[0] for line in lines] == ROWS
    assert f"{rows[0]['clip']['accuracy']:.2f} ± " in lines[0]


def test_test_tasks_are_not_looked_at_before_the_models_are_taught(folder: Path, place: Path, tmp_path: Path) -> None:
    """With other test images the models and all that validation chose are the same."""
    shutil.copytree(folder, tmp_path / "other")
    tasks = json.loads((tmp_path / "other" / TEST).read_text())
    for task in tasks.values():
        task["train"], task["test"] = task["test"], task["train"]
    (tmp_path / "other" / TEST).write_text(json.dumps(tasks))
    with chdir(place):
        found = []
        for name, of in (("a.json", folder), ("b.json", tmp_path / "other")):
            assert bench.main([str(of), "--steps", "10", "--out", name]) == 0
            found.append(json.loads(Path(name).read_text()))
    one, other = ({name: (row["val"], row["chosen"]) for name, row in of["rows"].items()} for of in found)
    assert one == other
    assert found[0]["rows"] != found[1]["rows"]


def run(place: Path, *arguments: str) -> int:
    with chdir(place):
        return bench.main([*arguments])


@pytest.mark.parametrize("name", [TRAIN, TEST, PROMPTS, IMAGES, TEXTS])
def test_a_missing_file_is_said_in_one_line(
    folder: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copytree(folder, tmp_path / "some")
    (tmp_path / "some" / name).unlink()
    assert run(place, str(tmp_path / "some")) == 65
    said = capsys.readouterr()
    assert said.err.startswith(f"metavqa: {tmp_path / 'some' / name}: no such file")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 65, "metavqa: nowhere: no such folder"),
        (["FOLDER", "--steps", "0"], 64, "metavqa: --steps: must be at least 1, got 0"),
        (["FOLDER", "--out", "nowhere/found.json"], 65, "metavqa: --out: nowhere: no such folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    folder: Path, place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert run(place, *(str(folder) if part == "FOLDER" else part for part in arguments)) == code
    assert capsys.readouterr().err == said + "\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_device_that_is_not_there_is_said(folder: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, str(folder), "--device", "cuda") == 64
    assert "torch sees no CUDA device here" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_said(
    folder: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(bench.Ladder):
        def _unchanged(self, *of: Any) -> torch.Tensor:  # noqa: ANN401
            return super()._unchanged(*of) / 0

    monkeypatch.setattr(bench, "Ladder", Broken)
    assert run(place, str(folder), "--steps", "1") == 70
    assert capsys.readouterr().err.splitlines()[-1].startswith("metavqa: generated weights are not finite")


def test_shares_are_those_of_each_task_alone_in_the_order_of_the_tasks(folder: Path, place: Path) -> None:
    """Whatever their sizes, by which they are answered together."""
    with chdir(place):
        params = load()
    data = bench.read_metavqa(folder)
    splits = VQASplits.of(data, seed=0, device="cpu")
    learner = bench.Adapter("adapter", dim=DIM, hidden=4)
    ladder = bench.Ladder(params.hyperldm, params.evaluate, splits, learner, 0)
    theta_TP = torch.randn(TESTED, learner.size, generator=torch_stream(0, "weights"))
    found_T = ladder.shares(splits.test, lambda tasks, which_B: theta_TP[which_B])
    for task, theta_P, share in zip(data.test, theta_TP, found_T, strict=True):
        images_ND, answers_AD = data.images_ID[task.query_Q2[:, 0]], data.texts_TD[task.answer_row_A]
        there_1A = torch.ones(1, len(answers_AD), dtype=torch.bool)
        images_1ND, answers_1AD = (torch.from_numpy(part)[None] for part in (images_ND, answers_AD))
        scores_NA = learner.scores(theta_P[None], images_1ND, answers_1AD, there_1A)[0]
        assert share == pytest.approx(np.mean(scores_NA.argmax(1).numpy() == task.query_Q2[:, 1]))


def test_steps_of_training_are_judged_on_validation_tasks(folder: Path, place: Path) -> None:
    judged: list[VQATasks] = []

    class Watched(bench.Ladder):
        def shares(self, tasks: VQATasks, weights_of: TaskWeights) -> NDArray[np.float64]:
            judged.append(tasks)
            return super().shares(tasks, weights_of)

    with chdir(place):
        params = load()
    splits = VQASplits.of(bench.read_metavqa(folder), seed=0, device="cpu")
    section = params.hyperldm.model_copy(update={"steps": 2, "val_every": 1})
    ladder = Watched(section, params.evaluate, splits, bench.Adapter("adapter", dim=DIM, hidden=4), 0)
    steps: list[int] = []
    ladder.taught("end-to-end", None, steps.append)
    assert len(judged) == 4  # the trained weights and their average, after each step
    assert all(tasks is splits.val for tasks in judged)
    assert steps == [1, 1]


def test_draws_are_a_function_of_the_seed_and_the_tasks(folder: Path, place: Path) -> None:
    with chdir(place):
        params = load()
    splits = VQASplits.of(bench.read_metavqa(folder), seed=0, device="cpu")
    learner, found = bench.Adapter("adapter", dim=DIM, hidden=4), []
    for seed, first in ((0, 0), (0, 0), (1, 0), (0, 3)):
        ladder = bench.Ladder(params.hyperldm, params.evaluate, splits, learner, seed)
        draw = ladder._told(lambda sentence_BD, noise: noise(sentence_BD))
        found.append(draw(splits.test, torch.arange(first, first + 3)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])
