"""Meta-VQA in the files that HyperCLIP was published with: a question is a task, and its answers are the classes of images.

    meta_train.json, meta_test.json  {question: {"answers": [...], "train": [[image, answer], ...], "test": [...]}}, where "train"
                                     is the support of the task and "test" its query
    prompt_meta.json                 {question: a sentence with {} in place of the answer}
    images.safetensors               features of the images by their names (vectors.py)
    texts.safetensors                embeddings of the questions and of the answers' sentences (text.py)

How the last two are made is in docs/metavqa.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metadiff.errors import DataError
from metadiff.vectors import Vectors, read_vectors

TRAIN, TEST, PROMPTS = "meta_train.json", "meta_test.json", "prompt_meta.json"
IMAGES, TEXTS = "images.safetensors", "texts.safetensors"
KEYS = {"answers", "train", "test"}  # of a task
HOLE = "{}"

Example = tuple[str, str]  # an image and its answer
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class VQATask:
    question: str
    answers: tuple[str, ...]
    question_row: int  # of the texts
    answer_row_A: Ints  # likewise, of the sentences that the answers stand in
    support_S2: Ints  # a row of the images and the number of its answer
    query_Q2: Ints


@dataclass(frozen=True)
class MetaVQA:
    train: tuple[VQATask, ...]
    test: tuple[VQATask, ...]
    images_ID: NDArray[np.float32]
    texts_TD: NDArray[np.float32]


@dataclass(frozen=True)
class _Written:
    """A task as the files have it, and the sentences that its answers stand in."""

    question: str
    answers: tuple[str, ...]
    sentences: tuple[str, ...]
    support: list[Example]
    query: list[Example]


def read_metavqa(folder: Path) -> MetaVQA:
    """All tasks and all features; refuses files that contradict themselves or each other."""
    train, test = _written(folder)
    images, texts = read_vectors(folder / IMAGES), read_vectors(folder / TEXTS)
    if images.vectors_ND.shape[1] != texts.vectors_ND.shape[1]:
        widths = f"{images.vectors_ND.shape[1]} numbers an image, {texts.vectors_ND.shape[1]} a sentence"
        raise DataError(f"{folder}: {IMAGES} and {TEXTS} are not of one model: {widths}")
    _refuse_absent(folder / IMAGES, images, _image_names([*train, *test]), "features")
    _refuse_absent(folder / TEXTS, texts, _sentences([*train, *test]), "embedding")
    tasks = [_task(written, images.row_of, texts.row_of) for written in (*train, *test)]
    return MetaVQA(tuple(tasks[: len(train)]), tuple(tasks[len(train) :]), images.vectors_ND, texts.vectors_ND)


def named(folder: Path) -> tuple[list[str], list[str]]:
    """The names of all images and all sentences, of which the two files with features must have a row each."""
    train, test = _written(folder)
    return _image_names([*train, *test]), _sentences([*train, *test])


def _image_names(tasks: Iterable[_Written]) -> list[str]:
    return sorted({image for task in tasks for image, _ in (*task.support, *task.query)})


def _sentences(tasks: Iterable[_Written]) -> list[str]:
    return sorted({sentence for task in tasks for sentence in (task.question, *task.sentences)})


def _written(folder: Path) -> tuple[list[_Written], list[_Written]]:
    prompts = _object(folder / PROMPTS)
    train, test = (
        [_parsed(folder / name, question, task, prompts) for question, task in _object(folder / name).items()]
        for name in (TRAIN, TEST)
    )
    if both := sorted({task.question for task in train} & {task.question for task in test}):
        raise DataError(f"{folder}: {both[0]!r} is in {TRAIN} and in {TEST}")
    return train, test


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; docs/metavqa.md says where it is from")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=partial(_without_twins, path))
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: expected an object with a key a question")
    return content


def _without_twins(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values under one key JSON would keep the last."""
    if (twin := _twin(key for key, _ in pairs)) is not None:
        raise DataError(f"{path}: {twin!r} is there twice")
    return dict(pairs)


def _parsed(path: Path, question: str, task: object, prompts: Mapping[str, Any]) -> _Written:
    where = f"{path}: {question!r}"
    if not (isinstance(task, dict) and task.keys() >= KEYS):
        raise DataError(f"{where}: expected an object with {', '.join(sorted(KEYS))}")
    answers = task["answers"]
    if not (isinstance(answers, list) and len(answers) > 1 and all(isinstance(answer, str) for answer in answers)):
        raise DataError(f"{where}: answers must be a list of two or more texts")
    if (twin := _twin(answers)) is not None:
        raise DataError(f"{where}: the answer {twin!r} is there twice")
    support, query = (_examples(where, key, task[key], answers) for key in ("train", "test"))
    if absent := set(answers) - {answer for _, answer in support}:
        raise DataError(f"{where}: the answer {min(absent)!r} has no example in train")
    if (twin := _twin(image for image, _ in (*support, *query))) is not None:
        raise DataError(f"{where}: the image {twin!r} is there twice")
    prompt = prompts.get(question)
    if not (isinstance(prompt, str) and prompt.count(HOLE) == 1):
        raise DataError(f"{path.with_name(PROMPTS)}: {question!r}: expected a sentence with one {HOLE}, got {prompt!r}")
    texts = [prompt.replace(HOLE, answer.replace("_", " ")) for answer in answers]  # as the published code does
    if (twin := _twin(texts)) is not None:
        raise DataError(f"{where}: two answers give the same sentence, {twin!r}")
    return _Written(question, tuple(answers), tuple(texts), support, query)


def _examples(where: str, key: str, examples: object, answers: list[str]) -> list[Example]:
    if not (isinstance(examples, list) and examples):
        raise DataError(f"{where}: {key} must be a list of examples")
    found = []
    for example in examples:
        if not (isinstance(example, list) and len(example) == 2 and all(isinstance(part, str) for part in example)):
            raise DataError(f"{where}: {key}: expected an image and its answer, got {json.dumps(example)[:80]}")
        image, answer = example
        if answer not in answers:
            raise DataError(f"{where}: {key}: {image!r} has the answer {answer!r}, which answers lacks")
        found.append((image, answer))
    return found


def _refuse_absent(path: Path, known: Vectors, names: list[str], what: str) -> None:
    if absent := [name for name in names if name not in known.row_of]:
        raise DataError(f"{path}: no {what} of {absent[0]!r}; {len(absent):,} of {len(names):,} are missing")


def _task(task: _Written, image_row: Mapping[str, int], text_row: Mapping[str, int]) -> VQATask:
    number_of = {answer: number for number, answer in enumerate(task.answers)}
    support, query = (
        np.array([(image_row[image], number_of[answer]) for image, answer in part], np.int64)
        for part in (task.support, task.query)
    )
    rows = np.array([text_row[sentence] for sentence in task.sentences], np.int64)
    return VQATask(task.question, task.answers, text_row[task.question], rows, support, query)


def _twin(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
