"""The tasks of prepared data: what sentences ask, or that an image is of what a description says, where classes have such."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from metadiff.artifact import write_synced
from metadiff.concepts import DescribedTask
from metadiff.errors import CorruptArtifactError
from metadiff.rows import SPLITS, Rows

SENTENCES = "sentences.safetensors"  # the vectors of what they say, where an encoder was asked for


def write_tasks(path: Path, tasks: Iterable[DescribedTask]) -> None:
    """A task a line, which a comparison of two files can be read by."""
    lines = [json.dumps(asdict(task), ensure_ascii=False) for task in tasks]
    write_synced(path, "[\n" + ",\n".join(lines) + "\n]\n")


def read_tasks(folder: Path, data: Rows) -> tuple[DescribedTask, ...]:
    """Those of tasks.json; where there is none, a task for each description, of its classes against the others of their split."""
    path = folder / "tasks.json"
    return _described(path, data) if path.is_file() else _of_classes(folder / "classes.csv", data)


def _described(path: Path, data: Rows) -> tuple[DescribedTask, ...]:
    try:
        tasks = TypeAdapter(tuple[DescribedTask, ...]).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _broken(path, " ".join([*map(str, first["loc"]), first["msg"]])) from None
    if len({task.name for task in tasks}) < len(tasks):
        raise _broken(path, "two tasks have the same name")
    for task in tasks:
        numbers = [*task.yes, *task.near, *task.no]
        if task.split not in SPLITS:
            raise _broken(path, f"task {task.name!r} is of no split")
        if not task.texts or not all(text.strip() for text in task.texts):
            raise _broken(path, f"task {task.name!r} has an empty sentence or none")
        if not task.yes or len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(len(data.classes))):
            raise _broken(path, f"task {task.name!r} does not sort the classes of images.h5")
    return tasks


def _of_classes(path: Path, data: Rows) -> tuple[DescribedTask, ...]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(row["name"], row["split"], row["description"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise _broken(path, f"cannot be read as the table of classes ({type(error).__name__}: {error})") from None
    if [name for name, _, _ in rows] != data.class_names:
        raise _broken(path, "names other classes than images.h5")
    if not {split for _, split, _ in rows} <= set(SPLITS):
        raise _broken(path, "has a class of no split")
    alike: dict[tuple[str, str], list[int]] = {}
    for number, (_, split, description) in enumerate(rows):
        if description:
            alike.setdefault((split, description), []).append(number)
    return tuple(_of_description(text, split, yes, rows) for (split, text), yes in alike.items())


def _of_description(text: str, split: str, yes: Sequence[int], rows: Sequence[tuple[str, str, str]]) -> DescribedTask:
    """Classes that are described alike are right together."""
    name = ", ".join(rows[number][0] for number in yes)
    no = tuple(number for number, row in enumerate(rows) if row[1] == split and number not in yes)
    return DescribedTask(name, name, "class", split, (text,), tuple(yes), (), no)


def _broken(path: Path, why: str) -> CorruptArtifactError:
    return CorruptArtifactError(f"{path}: {why}; make it again: dvc repro prepare")
