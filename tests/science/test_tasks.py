"""Tasks to a file and back, from the table of classes, and what a broken file says."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metadiff.concepts import KINDS, described_tasks
from metadiff.errors import CorruptArtifactError
from metadiff.rows import Rows
from metadiff.tasks import read_tasks, write_tasks

TASKS = described_tasks((0.65, 0.1, 0.25), 0)[-3:]


def rows(*names: str) -> Rows:
    nothing = np.zeros(0, dtype=np.int32)
    return Rows(nothing, nothing.astype(np.uint8), nothing, nothing.astype("S1"), np.array([n.encode() for n in names]), "x")


def test_tasks_come_back_as_they_were_one_a_line(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks.json", TASKS)
    assert read_tasks(tmp_path, rows(*KINDS)) == TASKS
    lines = (tmp_path / "tasks.json").read_text().splitlines()
    assert [json.loads(line.removesuffix(","))["name"] for line in lines[1:-1]] == [task.name for task in TASKS]


CLASSES = """id,name,split,count,description
0,ash,train,3,A tree.
1,"beech, red",train,3,"A tree, red."
2,cat,val,3,A cat.
3,dog,test,3,A dog.
4,elm,train,3,
"""
NAMES = ("ash", "beech, red", "cat", "dog", "elm")


def test_a_described_class_is_a_task_against_the_others_of_its_split(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text(CLASSES)
    found = read_tasks(tmp_path, rows(*NAMES))
    assert [(task.name, task.split, task.texts, task.yes, task.no) for task in found] == [
        ("ash", "train", ("A tree.",), (0,), (1, 4)),
        ("beech, red", "train", ("A tree, red.",), (1,), (0, 4)),
        ("cat", "val", ("A cat.",), (2,), ()),
        ("dog", "test", ("A dog.",), (3,), ()),
    ]
    assert {(task.kind, task.near) for task in found} == {("class", ())}


def test_classes_of_a_split_that_are_described_alike_are_right_together(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text(CLASSES.replace("A tree, red.", "A tree.").replace("A dog.", "A cat."))
    found = read_tasks(tmp_path, rows(*NAMES))
    assert [(task.name, task.concept, task.texts, task.yes, task.no) for task in found] == [
        ("ash, beech, red", "ash, beech, red", ("A tree.",), (0, 1), (4,)),
        ("cat", "cat", ("A cat.",), (2,), ()),
        ("dog", "dog", ("A cat.",), (3,), ()),
    ]


def change(**values: object) -> Callable[[list[dict[str, object]]], object]:
    return lambda tasks: tasks[1].update(values)


BROKEN = {
    "no JSON": (lambda tasks: None, "Invalid JSON"),
    "no list": (lambda tasks: {"tasks": tasks}, "Input should be a valid "),
    "a missing field": (lambda tasks: tasks[1].pop("near") and None, "1 near Field required"),
    "a number that is a text": (change(yes=["3"]), "1 yes 0 Input should be a valid integer"),
    "the same name twice": (change(name=TASKS[0].name), "two tasks have the same name"),
    "another split": (change(split="all"), f"task '{TASKS[1].name}' is of no split"),
    "no sentence": (change(texts=[]), "has an empty sentence or none"),
    "an empty sentence": (change(texts=["a", " "]), "has an empty sentence or none"),
    "no class is right": (change(yes=[]), "does not sort the classes of images.h5"),
    "a class that is right and wrong": (change(yes=[5], near=[], no=[5]), "does not sort the classes of images.h5"),
    "a class that is not there": (change(no=[192]), "does not sort the classes of images.h5"),
    "a negative class": (change(no=[-1]), "does not sort the classes of images.h5"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_of_tasks_is_one_line(tmp_path: Path, name: str) -> None:
    spoil, wanted = BROKEN[name]
    write_tasks(tmp_path / "tasks.json", TASKS)
    content = json.loads((tmp_path / "tasks.json").read_text())
    changed = spoil(content)
    (tmp_path / "tasks.json").write_text("[{" if name == "no JSON" else json.dumps(changed or content))
    with pytest.raises(CorruptArtifactError) as caught:
        read_tasks(tmp_path, rows(*KINDS))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/tasks.json: ")
    assert message.endswith("; make it again: dvc repro prepare")
    assert wanted in message
    assert "\n" not in message


BROKEN_TABLES = {
    "not there": (None, "cannot be read as the table of classes (FileNotFoundError"),
    "no text": (b"\xff\xfe", "cannot be read as the table of classes (UnicodeDecodeError"),
    "another table": (b"a,b\n1,2\n", "cannot be read as the table of classes (KeyError"),
    "other classes": (CLASSES.replace("dog", "fox").encode(), "names other classes than images.h5"),
    "a torn line": (CLASSES.replace("dog,test,3,A dog.", "dog").encode(), "has a class of no split"),
}


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_a_broken_table_of_classes_is_one_line(tmp_path: Path, name: str) -> None:
    content, wanted = BROKEN_TABLES[name]
    if content is not None:
        (tmp_path / "classes.csv").write_bytes(content)
    with pytest.raises(CorruptArtifactError) as caught:
        read_tasks(tmp_path, rows(*NAMES))
    assert str(caught.value).startswith(f"{tmp_path}/classes.csv: {wanted}")
    assert "\n" not in str(caught.value)
