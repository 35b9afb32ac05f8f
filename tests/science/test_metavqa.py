"""Meta-VQA: files of its published layout become tasks, and one line says what is wrong with others."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metadiff.errors import CorruptArtifactError, DataError
from metadiff.metavqa import IMAGES, PROMPTS, TEST, TEXTS, TRAIN, named, read_metavqa
from metadiff.text import Encoder, write_cached
from metadiff.vectors import write_vectors

COLOUR, HAT, COUNT = "What color is the bowl?", "What is on his head?", "How many cats are there?"
CONTENT: dict[str, Any] = {
    TRAIN: {
        COLOUR: {
            "train": [["COCO_train2014_000000000003", "white"], ["COCO_train2014_000000000001", "dark_blue"], ["c", "white"]],
            "test": [["COCO_val2014_000000000002", "dark_blue"], ["d", "white"]],
            "answers": ["white", "dark_blue"],
        },
        HAT: {
            "train": [["c", "hat"], ["d", "helmet"], ["e", "nothing"]],
            "test": [["f", "nothing"]],
            "answers": ["hat", "helmet", "nothing"],
        },
    },
    TEST: {COUNT: {"train": [["c", "2"], ["g", "1"]], "test": [["f", "1"], ["d", "2"]], "answers": ["1", "2"]}},
    PROMPTS: {COLOUR: "the bowl is {}", HAT: "{} is on his head", COUNT: "there are {} cats", "Not asked?": "{}"},
}
SENTENCES = [
    *(COLOUR, HAT, COUNT, "the bowl is white", "the bowl is dark blue", "hat is on his head", "helmet is on his head"),
    *("nothing is on his head", "there are 1 cats", "there are 2 cats"),
]
PICTURES = ["COCO_train2014_000000000001", "COCO_train2014_000000000003", "COCO_val2014_000000000002", *"cdefg"]
Change = Callable[[dict[str, Any]], None]


def vector(name: str) -> np.ndarray[Any, np.dtype[np.float16]]:
    return np.random.default_rng([*name.encode()]).standard_normal(6).astype(np.float16)


def encoder(width: int = 6) -> Encoder:
    return Encoder("e", {"encoder": "e"}, lambda texts: np.array([vector(text)[:width] for text in texts], np.float32))


def write(folder: Path, content: dict[str, Any]) -> None:
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value))


def write_images(folder: Path, names: list[str]) -> None:
    write_vectors(folder / IMAGES, names, np.array([vector(name) for name in names]), about={"model": "made up"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, CONTENT)
    write_images(tmp_path, [*PICTURES, "an image of no task"])
    write_cached(tmp_path / TEXTS, [*SENTENCES, "a sentence of no task"], encoder())
    return tmp_path


def test_every_example_has_the_features_and_the_answer_that_the_files_say(folder: Path) -> None:
    """By the files themselves, without the reader's numbers."""
    data = read_metavqa(folder)
    for file, tasks in ((TRAIN, data.train), (TEST, data.test)):
        assert [task.question for task in tasks] == [*CONTENT[file]]
        for task, (question, written) in zip(tasks, CONTENT[file].items(), strict=True):
            assert task.answers == tuple(written["answers"])
            assert np.array_equal(data.texts_TD[task.question_row], vector(question))
            for row, answer in zip(task.answer_row_A, task.answers, strict=True):
                sentence = CONTENT[PROMPTS][question].format(answer.replace("_", " "))
                assert np.array_equal(data.texts_TD[row], vector(sentence))
            for examples, found in ((written["train"], task.support_S2), (written["test"], task.query_Q2)):
                assert found.shape == (len(examples), 2)
                for (image, answer), (row, number) in zip(examples, found, strict=True):
                    assert np.array_equal(data.images_ID[row], vector(image))
                    assert task.answers[number] == answer


def test_the_names_of_what_must_have_features(folder: Path) -> None:
    (folder / IMAGES).unlink()
    (folder / TEXTS).unlink()
    assert named(folder) == (sorted(PICTURES), sorted(SENTENCES))


def task_of(content: dict[str, Any]) -> dict[str, Any]:
    task: dict[str, Any] = content[TRAIN][COLOUR]
    return task


MALFORMED: dict[str, tuple[Change, str]] = {
    "list": (lambda c: c.update({TRAIN: [COLOUR]}), "meta_train.json: expected an object with a key a question"),
    "empty": (lambda c: c.update({TEST: {}}), "meta_test.json: expected an object with a key a question"),
    "task": (lambda c: c[TRAIN].update({COLOUR: []}), f"{COLOUR!r}: expected an object with answers, test, train"),
    "key": (lambda c: task_of(c).pop("test"), f"{COLOUR!r}: expected an object with answers, test, train"),
    "answers": (lambda c: task_of(c).update(answers="ab"), f"{COLOUR!r}: answers must be a list of two or more texts"),
    "number": (lambda c: task_of(c).update(answers=["white", 2]), f"{COLOUR!r}: answers must be a list of two or more texts"),
    "one answer": (lambda c: task_of(c).update(answers=["white"]), f"{COLOUR!r}: answers must be a list of two or more texts"),
    "twin answer": (lambda c: task_of(c)["answers"].append("white"), f"{COLOUR!r}: the answer 'white' is there twice"),
    "empty twins": (lambda c: task_of(c).update(answers=["", ""]), f"{COLOUR!r}: the answer '' is there twice"),
    "no support": (lambda c: task_of(c).update(train=[]), f"{COLOUR!r}: train must be a list of examples"),
    "no query": (lambda c: task_of(c).update(test={"a": "b"}), f"{COLOUR!r}: test must be a list of examples"),
    "example": (lambda c: task_of(c)["test"].append(["x"]), f'{COLOUR!r}: test: expected an image and its answer, got ["x"]'),
    "image": (lambda c: task_of(c)["train"].append([7, "white"]), 'train: expected an image and its answer, got [7, "white"]'),
    "text": (lambda c: task_of(c)["train"].append("ab"), 'train: expected an image and its answer, got "ab"'),
    "unknown answer": (
        lambda c: task_of(c)["test"].append(["e", "red"]),
        f"{COLOUR!r}: test: 'e' has the answer 'red', which answers lacks",
    ),
    "no support of an answer": (
        lambda c: (task_of(c)["answers"].append("red"), task_of(c)["test"].append(["e", "red"])),
        f"{COLOUR!r}: the answer 'red' has no example in train",
    ),
    "image in support and query": (
        lambda c: task_of(c)["test"].append(["c", "white"]),
        f"{COLOUR!r}: the image 'c' is there twice",
    ),
    "image twice": (lambda c: task_of(c)["train"].append(["c", "dark_blue"]), f"{COLOUR!r}: the image 'c' is there twice"),
    "no prompt": (lambda c: c[PROMPTS].pop(HAT), f"{PROMPTS}: {HAT!r}: expected a sentence with one {{}}, got None"),
    "no hole": (lambda c: c[PROMPTS].update({HAT: "hat"}), f"{PROMPTS}: {HAT!r}: expected a sentence with one {{}}, got 'hat'"),
    "two holes": (lambda c: c[PROMPTS].update({HAT: "{} or {}"}), "expected a sentence with one {}, got '{} or {}'"),
    "same sentence": (
        lambda c: (task_of(c)["answers"].append("dark blue"), task_of(c)["train"].append(["e", "dark blue"])),
        f"{COLOUR!r}: two answers give the same sentence, 'the bowl is dark blue'",
    ),
    "question twice": (lambda c: c[TEST].update({HAT: c[TRAIN][HAT]}), f"{HAT!r} is in meta_train.json and in meta_test.json"),
    "image without features": (
        lambda c: task_of(c)["train"].extend([["x", "white"], ["y", "white"]]),
        "images.safetensors: no features of 'x'; 2 of 10 are missing",
    ),
    "question without embedding": (
        lambda c: (c[TEST].update({"Why?": c[TEST].pop(COUNT)}), c[PROMPTS].update({"Why?": "there are {} cats"})),
        "texts.safetensors: no embedding of 'Why?'; 1 of 10 are missing",
    ),
    "answer without embedding": (
        lambda c: c[PROMPTS].update({COUNT: "{} of them"}),
        "texts.safetensors: no embedding of '1 of them'; 2 of 10 are missing",
    ),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_one_line_says_what_is_wrong(folder: Path, fault: str) -> None:
    change, said = MALFORMED[fault]
    content = deepcopy(CONTENT)
    change(content)
    write(folder, content)
    with pytest.raises(DataError) as caught:
        read_metavqa(folder)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*CONTENT, IMAGES, TEXTS])
def test_a_missing_file_is_said(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        read_metavqa(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"a": \xff}', b"[" * 100_000, b"PK"], ids=["empty", "open", "latin", "deep", "zip"]
)
def test_what_is_not_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / TRAIN).write_bytes(content)
    with pytest.raises(DataError, match=r"meta_train\.json: not JSON"):
        read_metavqa(folder)


@pytest.mark.parametrize("name", [TRAIN, PROMPTS])
def test_a_question_that_is_written_twice_is_refused(folder: Path, name: str) -> None:
    """JSON would keep the last."""
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace(json.dumps(HAT), json.dumps(COLOUR)))
    with pytest.raises(DataError, match=rf"{name}: 'What color is the bowl\?' is there twice"):
        read_metavqa(folder)


def test_features_of_two_models_are_refused(folder: Path) -> None:
    write_cached(folder / TEXTS, SENTENCES, encoder(width=5))
    with pytest.raises(DataError, match="are not of one model: 6 numbers an image, 5 a sentence"):
        read_metavqa(folder)


@pytest.mark.parametrize("name", [IMAGES, TEXTS])
def test_damaged_features_are_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=f"{name}: damaged"):
        read_metavqa(folder)
