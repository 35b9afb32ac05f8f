"""The contracts pass for good tables, and every expectation of them catches a fault that no other one catches."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from metadiff.concepts import DescribedTask
from metadiff.errors import DataError
from metadiff.rows import Rows
from metadiff.trajectory import Trajectories
from stages.checks import (
    Row,
    build_docs,
    check,
    features_contract,
    manifest_contract,
    results_contract,
    trajectories_contract,
)
from stages.contracts import manifest_tables, trajectory_facts
from stages.imports import ROOT

CLASSES, IMAGES = 6, 48
Key = tuple[str, str, str, str]
Change = Callable[[dict[str, pd.DataFrame]], object]


def manifest() -> dict[str, pd.DataFrame]:
    number = np.arange(IMAGES)
    label = number % CLASSES
    facts = {"source": [f"{i:03}.png" for i in number], "label": [f"class {i}" for i in label]}
    facts |= {"split": np.array(["train", "val", "test"])[label % 3], "group": [f"group {i}" for i in number]}
    facts |= {"sha256": [f"{i:064x}" for i in number], "height": 32, "width": 32, "channels": 1, "spread": 1.0 + number}
    images = pd.DataFrame(facts)
    names = [f"class {i}" for i in range(CLASSES)]
    classes = pd.DataFrame({"label": names, "split": ["train", "val", "test"] * 2, "count": 8, "usable": 8})
    return {"images": images, "classes": classes}


def check_manifest(
    tables: dict[str, pd.DataFrame],
    *,
    group_is_one_image: bool = True,
    twins_are_published: bool = False,
    splits_share_classes: bool = False,
) -> list[Row]:
    allowed = {"group_is_one_image": group_is_one_image, "twins_are_published": twins_are_published}
    return manifest_contract(**tables, size=32, channels=1, need=6, splits_share_classes=splits_share_classes, **allowed)


def features() -> dict[str, pd.DataFrame]:
    return {"features": pd.DataFrame(np.random.default_rng(0).standard_normal((30, 20), dtype=np.float32))}


def check_features(tables: dict[str, pd.DataFrame]) -> list[Row]:
    return features_contract(tables["features"].to_numpy(), rows=30)


def trajectories() -> dict[str, pd.DataFrame]:
    number = np.arange(20)
    facts = {"task": number, "largest": 1.0 + number, "first_loss": 2.0, "last_loss": 0.1, "first_accuracy": 0.2}
    return {"trajectories": pd.DataFrame(facts | {"last_accuracy": 1.0, "base_classes": 5, "support": 25})}


def check_trajectories(tables: dict[str, pd.DataFrame]) -> list[Row]:
    return trajectories_contract(tables["trajectories"], accepted=20, drawn=22, way=5, shot=5)


EPISODES = {"val": 2, "test": 4}


def results() -> dict[str, pd.DataFrame]:
    cells = [(s, k, e, c) for s, n in EPISODES.items() for k in (1, 5) for e in range(n) for c in ("ncm", "metadiff")]
    table = pd.DataFrame(cells, columns=["split", "shot", "episode", "classifier"])
    return {"results": table.assign(correct=np.arange(len(cells)), queries=75, nll=0.5, overlap=0)}


def check_results(tables: dict[str, pd.DataFrame]) -> list[Row]:
    return results_contract(tables["results"], episodes=EPISODES, shots=(1, 5), classifiers=("ncm", "metadiff"))


CONTRACTS = {
    "manifest": (manifest, check_manifest),
    "features": (features, check_features),
    "trajectories": (trajectories, check_trajectories),
    "results": (results, check_results),
}


def put(name: str, row: int, **facts: object) -> Change:
    """A change that gives one row of a table other values."""

    def change(tables: dict[str, pd.DataFrame]) -> None:
        for column, value in facts.items():
            tables[name][column] = tables[name][column].mask(tables[name].index == row, value)

    return change


def both(*changes: Change) -> Change:
    return lambda tables: [change(tables) for change in changes]


def repeat(name: str, row: int) -> Change:
    return lambda tables: tables.update({name: pd.concat([tables[name], tables[name].loc[[row]]])})


def drop(name: str, keep: Callable[[pd.DataFrame], pd.Series]) -> Change:
    return lambda tables: tables.update({name: tables[name][keep(tables[name])]})


def rename_split(name: str) -> Change:
    return lambda tables: tables.update({name: tables[name].replace({"split": {"test": "dream"}})})


def without_split(split: str) -> Change:
    return both(*(drop(name, lambda table: table["split"] != split) for name in ("images", "classes")))


def cells(rows: slice, columns: slice, value: float) -> Change:
    def change(tables: dict[str, pd.DataFrame]) -> None:
        tables["features"].iloc[rows, columns] = value

    return change


NULL, UNIQUE, BETWEEN = "values_to_not_be_null", "values_to_be_unique", "values_to_be_between"
IN_SET = "values_to_be_in_set"
# (contract, table, column, expectation) -> a change after which it fails, and no other one. Row 0 is class 0, of split train.
FAULTS: dict[Key, Change] = {
    **{
        ("manifest", "images", name, NULL): put("images", 0, **{name: np.nan})
        for name in ("source", "group", "sha256", "height", "width", "channels", "spread")
    },
    ("manifest", "images", "label", NULL): both(put("images", 0, label=np.nan), put("classes", 0, count=7)),
    ("manifest", "images", "split", NULL): put("images", 0, split=np.nan),
    ("manifest", "images", "source", UNIQUE): put("images", 0, source="001.png"),
    ("manifest", "images", "sha256", BETWEEN): put("images", 0, sha256=f"{1:064x}"),
    ("manifest", "images", "label", BETWEEN): put("images", 0, split="val"),
    ("manifest", "images", "group", BETWEEN): put("images", 0, group="group 1"),
    ("manifest", "images", "label", IN_SET): both(put("images", 0, label="nobody"), put("classes", 0, count=7)),
    ("manifest", "images", "height", IN_SET): put("images", 0, height=31),
    ("manifest", "images", "width", IN_SET): put("images", 0, width=33),
    ("manifest", "images", "channels", IN_SET): put("images", 0, channels=3),
    ("manifest", "images", "spread", BETWEEN): put("images", 0, spread=0.0),
    **{("manifest", "classes", name, NULL): put("classes", 0, **{name: np.nan}) for name in ("split", "count", "usable")},
    ("manifest", "classes", "label", NULL): lambda tables: tables.update(
        {"classes": pd.concat([tables["classes"], pd.DataFrame([{"label": np.nan, "split": "val", "count": 0, "usable": 8}])])}
    ),
    ("manifest", "classes", "label", UNIQUE): repeat("classes", 0),
    ("manifest", "classes", "split", "distinct_values_to_equal_set"): without_split("test"),
    ("manifest", "classes", "count", "pair_values_to_be_equal"): put("classes", 0, count=9),
    ("manifest", "classes", "usable", BETWEEN): put("classes", 0, usable=5),
    ("features", "features", "", "row_count_to_equal"): drop("features", lambda table: table.index != 3),
    ("features", "features", "largest", NULL): cells(slice(3, 4), slice(2, 3), -np.inf),
    ("features", "features", "largest", BETWEEN): cells(slice(3, 4), slice(None), 0.0),
    ("features", "dimensions", "range", BETWEEN): cells(slice(None), slice(0, 3), 0.1),
    **{
        ("trajectories", "trajectories", name, NULL): put("trajectories", 0, **{name: np.nan})
        for name in ("task", "largest", "first_loss", "last_loss", "first_accuracy", "last_accuracy", "base_classes", "support")
    },
    ("trajectories", "trajectories", "", "row_count_to_equal"): drop("trajectories", lambda table: table.index != 3),
    ("trajectories", "trajectories", "task", UNIQUE): put("trajectories", 0, task=1),
    ("trajectories", "trajectories", "task", BETWEEN): put("trajectories", 0, task=22),
    ("trajectories", "trajectories", "last_loss", "pair_values_a_to_be_greater_than_b"): put("trajectories", 0, last_loss=2.0),
    ("trajectories", "trajectories", "first_accuracy", BETWEEN): put("trajectories", 0, first_accuracy=-0.1),
    ("trajectories", "trajectories", "last_accuracy", BETWEEN): put("trajectories", 0, last_accuracy=1.1),
    ("trajectories", "trajectories", "base_classes", IN_SET): put("trajectories", 0, base_classes=4),
    ("trajectories", "trajectories", "support", IN_SET): put("trajectories", 0, support=24),
    **{
        ("results", "results", name, NULL): put("results", 0, **{name: np.nan})
        for name in ("split", "shot", "episode", "classifier", "correct", "queries", "nll", "overlap")
    },
    ("results", "results", "", "row_count_to_equal"): drop("results", lambda table: table.index != 3),
    ("results", "results", "split, shot, episode, classifier", "compound_columns_to_be_unique"): both(
        drop("results", lambda table: table.index != 3), repeat("results", 0)
    ),
    ("results", "results", "split", IN_SET): put("results", 0, split="train"),
    ("results", "results", "shot", IN_SET): put("results", 0, shot=2),
    ("results", "results", "classifier", IN_SET): put("results", 0, classifier="oracle"),
    ("results", "results", "episode", BETWEEN): put("results", 0, episode=-1),
    ("results", "results", "episode", "pair_values_a_to_be_greater_than_b"): put("results", 0, episode=2),
    ("results", "results", "correct", BETWEEN): put("results", 0, correct=-1),
    ("results", "results", "correct", "pair_values_a_to_be_greater_than_b"): put("results", 0, correct=76),
    ("results", "results", "queries", BETWEEN): put("results", 0, queries=0, correct=0),
    ("results", "results", "nll", BETWEEN): put("results", 0, nll=-0.1),
    ("results", "results", "overlap", IN_SET): put("results", 0, overlap=1),
}
# The same expectations once more: other faults that they alone must catch.
MORE_FAULTS: list[tuple[Key, Change]] = [
    (("manifest", "images", "spread", NULL), put("images", 0, spread=np.inf)),
    (("manifest", "images", "label", BETWEEN), put("images", 0, split="dream")),
    (("manifest", "images", "label", BETWEEN), put("classes", 0, split="val")),
    (
        ("manifest", "classes", "split", "distinct_values_to_equal_set"),
        both(*(rename_split(name) for name in ("images", "classes"))),
    ),
    (("features", "features", "largest", NULL), cells(slice(3, 4), slice(2, 3), np.nan)),
    (("features", "features", "largest", NULL), cells(slice(3, 4), slice(None), np.nan)),
    (("features", "dimensions", "range", BETWEEN), cells(slice(None), slice(None), 0.1)),
    (("trajectories", "trajectories", "largest", NULL), put("trajectories", 0, largest=np.inf)),
    (("trajectories", "trajectories", "last_loss", NULL), put("trajectories", 0, last_loss=-np.inf)),
    (("trajectories", "trajectories", "task", BETWEEN), put("trajectories", 0, task=-1)),
    (("results", "results", "episode", "pair_values_a_to_be_greater_than_b"), put("results", 23, episode=4)),
]


def key(contract: str, row: Row) -> Key:
    name = str(row["expectation"]).removeprefix("expect_").removeprefix("column_").removeprefix("table_")
    return contract, str(row["table"]), str(row["column"]), name


@functools.cache
def words(contract: str) -> dict[Key, object]:
    """What each expectation asks, as a passing run says it."""
    make, run = CONTRACTS[contract]
    return {key(contract, row): row["expected"] for row in run(make())}


def broken(contract: str, change: Change) -> DataError:
    make, run = CONTRACTS[contract]
    tables = make()
    change(tables)
    with pytest.raises(DataError) as caught:
        run(tables)
    return caught.value


@pytest.mark.parametrize("contract", CONTRACTS)
def test_good_tables_pass_and_every_expectation_has_a_fault(contract: str) -> None:
    make, run = CONTRACTS[contract]
    rows = run(make())
    assert all(row["success"] is True for row in rows)
    keys = [key(contract, row) for row in rows]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {fault for fault in FAULTS if fault[0] == contract}


@pytest.mark.parametrize(
    ("fault", "change"), [*FAULTS.items(), *MORE_FAULTS], ids=lambda part: "-".join(part) if isinstance(part, tuple) else ""
)
def test_a_fault_is_caught_by_one_expectation_alone(fault: Key, change: Change) -> None:
    contract, table, column, _ = fault
    expected = words(contract)[fault]
    headlines = [line for line in str(broken(contract, change)).splitlines() if not line.startswith("  ")]
    assert len(headlines) == 1
    start = f"table {table}, column {column}" if column else f"table {table}"
    assert headlines[0].startswith(f"{start}: must be {expected}; ")


def test_the_message_names_what_how_many_and_which_rows() -> None:
    assert str(broken("manifest", put("images", 0, sha256=f"{1:064x}"))) == (
        "table images, column sha256: must be in one split only (equal pixels); 2 of 48 rows break it\n"
        f"  row 0: source 000.png, label class 0, split train, sha256 {1:064x}, sha256_splits 2\n"
        f"  row 1: source 001.png, label class 1, split val, sha256 {1:064x}, sha256_splits 2"
    )
    assert str(broken("results", put("results", 5, correct=76))) == (
        "table results, column correct: must be at most queries; 1 of 24 rows break it\n"
        "  row 5: split val, shot 5, episode 0, classifier metadiff, correct 76, queries 75"
    )
    assert str(broken("results", drop("results", lambda table: table.index != 3))) == (
        "table results: must be 24 rows: episodes of all splits x shots x classifiers; 23 rows"
    )


def test_no_more_than_ten_rows_are_shown_and_several_failures_follow_each_other() -> None:
    def change(tables: dict[str, pd.DataFrame]) -> None:
        tables["images"] = tables["images"].assign(height=31, spread=0.0)

    lines = str(broken("manifest", change)).splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        "table images, column height: must be 32; 48 of 48 rows break it",
        "table images, column spread: must be above 0 (not a blank image); 48 of 48 rows break it",
    ]
    assert len(lines) == 2 + 2 * 10


def test_a_missing_split_and_values_that_cannot_be_compared_are_said_in_words() -> None:
    message = str(broken("manifest", without_split("test")))
    assert message.startswith("table classes, column split: must be all of train, val and test; ")
    message = str(broken("results", lambda tables: put("results", 0, correct="many")(tables)))
    assert "column correct: must be at least 0; found values of a kind that cannot be compared" in message


def test_a_group_may_cross_splits_when_it_is_more_than_one_image() -> None:
    tables = manifest()
    put("images", 0, group="group 1")(tables)
    rows = check_manifest(tables, group_is_one_image=False)
    assert "in one split only" not in [row["expected"] for row in rows]
    assert "group" in str(broken("manifest", put("images", 0, group="group 1")))


def test_a_class_may_cross_splits_when_its_images_are_split() -> None:
    tables = manifest()
    put("images", 0, split="test")(tables)
    rows = check_manifest(tables, splits_share_classes=True)
    assert "a class in one split only" not in [row["expected"] for row in rows]
    assert "a class in one split only" in str(broken("manifest", put("images", 0, split="test")))


def test_rows_are_numbered_by_their_place_whatever_the_index() -> None:
    def change(tables: dict[str, pd.DataFrame]) -> None:
        put("images", 3, height=31)(tables)
        tables["images"].index = [0] * IMAGES

    assert str(broken("manifest", change)) == str(broken("manifest", put("images", 3, height=31)))
    assert "row 3: source 003.png" in str(broken("manifest", change))


def test_the_facts_of_features_are_those_of_the_vectors() -> None:
    """A feature is dead where its variance, taken in float64, is nothing but rounding."""
    features_ND: NDArray[np.float32] = features()["features"].to_numpy(copy=True)
    features_ND[:, :2] = 0.1
    assert (features_ND.astype(np.float64).var(axis=0) > 1e-12).mean() == 0.9
    row = next(row for row in features_contract(features_ND, rows=30) if row["table"] == "dimensions")
    assert row["observed"] == "2 of 20 rows break it"


def test_the_facts_of_trajectories_count_what_is_as_it_should_be() -> None:
    """Classes 0 and 1 are base classes, of three images each; class 2 is none."""
    label, split = np.arange(9, dtype=np.int32) // 3, np.repeat(np.array([0, 0, 1], np.uint8), 3)
    names = np.array([b"a", b"b", b"c"])
    data = Rows(label, split, np.arange(9, dtype=np.int32), np.full(9, b"x"), names, "generated")
    classes = np.array([[0, 1], [1, 1], [0, 2], [0, 1], [0, 1]], dtype=np.int32)
    support = np.array([[[0, 1], [3, 4]], [[3, 4], [3, 4]], [[0, 1], [6, 7]], [[0, 0], [3, 4]], [[0, 3], [4, 5]]], dtype=np.int32)
    weights = np.zeros((5, 2, 4), np.float32)
    weights[1, 1, 2] = -3
    measures = np.arange(20, dtype=np.float32).reshape(2, 5, 2)
    facts = trajectory_facts(Trajectories(np.arange(5, dtype=np.int32), classes, support, weights, *measures), data)
    assert facts["base_classes"].tolist() == [2, 1, 1, 2, 2]
    assert facts["support"].tolist() == [4, 2, 4, 3, 3]
    assert facts["largest"].tolist() == [0, 3, 0, 0, 0]
    assert facts.loc[1, ["first_loss", "last_loss", "first_accuracy", "last_accuracy"]].tolist() == [2, 3, 12, 13]


def test_questions_must_be_of_training_and_have_their_answers() -> None:
    """All else is asked of them as of episodes."""
    facts = trajectories()["trajectories"].drop(columns="base_classes").assign(training_task=True)
    sizes = {"accepted": 20, "drawn": 22, "way": 5, "shot": 5}
    asked = [(row["column"], row["expectation"]) for row in trajectories_contract(facts, **sizes, tasks_of="sentences")]
    of_episodes = [(row["column"], row["expectation"]) for row in check_trajectories(trajectories())]
    assert sorted(asked) == sorted((column.replace("base_classes", "training_task"), name) for column, name in of_episodes)
    faults: dict[str, tuple[object, str]] = {
        "training_task": (False, "must be true; 1 of 20 rows break it\n  row 3: task 3, training_task False"),
        "support": (24, "must be 25; 1 of 20 rows break it\n  row 3: task 3, support 24"),
    }
    for column, (value, expected) in faults.items():
        with pytest.raises(DataError) as caught:
            trajectories_contract(
                facts.assign(**{column: facts[column].mask(facts["task"] == 3, value)}), **sizes, tasks_of="sentences"
            )
        assert str(caught.value) == f"table trajectories, column {column}: {expected}"


def test_the_facts_of_questions_count_the_images_that_are_the_answers() -> None:
    """Kinds 0 and 1 are right for task 1, kind 2 is nearly right, kind 3 wrong; the last image of each is a test image."""
    label, split = np.arange(12, dtype=np.int32) // 3, np.tile(np.array([0, 1, 2], np.uint8), 4)
    data = Rows(label, split, np.arange(12, dtype=np.int32), np.full(12, b"x"), np.array([b"a", b"b", b"c", b"d"]), "shapes")
    task = DescribedTask("t", "t", "or", "train", ("t?",), (0, 1), (2,), (3,))
    tasks = [replace(task, name="s", split="test"), task, replace(task, name="u", no=(), split="val")]
    right = [[6, 9], [0, 3]]
    cases: list[tuple[list[int], list[list[int]], bool, int]] = [  # numbers, support, whether of training, good images
        ([1, 1], right, True, 4),
        ([1, 1], [[7, 10], [4, 1]], True, 4),
        ([1, 1], right[::-1], True, 0),
        ([1, 1], [[6, 0], [0, 3]], True, 3),
        ([1, 1], [[6, 9], [9, 3]], True, 3),
        ([1, 1], [[8, 9], [2, 3]], True, 2),
        ([1, 1], [[6, 6], [0, 0]], True, 2),
        ([0, 0], right, False, 4),
        ([2, 2], right, False, 3),
        ([1, 0], right, False, 4),
        ([9, 9], right, False, 3),
    ]
    classes, support = (np.array([case[part] for case in cases], np.int32) for part in (0, 1))
    count = len(cases)
    floats = (np.zeros((count, 2, 4), np.float32), np.zeros((count, 2), np.float32), np.zeros((count, 2), np.float32))
    facts = trajectory_facts(Trajectories(np.arange(count, dtype=np.int32), classes, support, *floats), data, tasks)
    assert facts["training_task"].tolist() == [case[2] for case in cases]
    assert facts["support"].tolist() == [case[3] for case in cases]
    assert "base_classes" not in facts


QUIET = """
import socket, sys
def refuse(*_): raise AssertionError("network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import stages.checks
assert "great_expectations" not in sys.modules, "imported too early"
from tests.stages.test_checks import check_manifest, manifest
import json
print(json.dumps(check_manifest(manifest())))
try:
    check_manifest(manifest() | {"classes": manifest()["classes"][:5]})
except stages.checks.DataError:
    assert "great_expectations" in sys.modules
else:
    raise AssertionError("passed")
"""


@pytest.mark.slow  # three processes that import everything
def test_it_is_lazy_offline_quiet_leaves_no_file_and_gives_the_same_bytes(tmp_path: Path) -> None:
    """In a fresh process, with another hash seed, with HOME, TMPDIR and the current folder empty, and warnings as errors."""
    folders = {name: tmp_path / name for name in ("HOME", "TMPDIR", "cwd")}
    for folder in folders.values():
        folder.mkdir()
    environment = {"HOME": str(folders["HOME"]), "TMPDIR": str(folders["TMPDIR"]), "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUIET],
        cwd=folders["cwd"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == json.dumps(check_manifest(manifest())) + "\n"
    assert [path for folder in folders.values() for path in folder.rglob("*")] == []


def test_the_pages_show_good_and_bad_tables_and_no_old_ones(tmp_path: Path) -> None:
    tables = manifest()
    put("images", 0, height=31)(tables)
    made = manifest_tables(**tables, size=32, channels=1, need=6, group_is_one_image=True, twins_are_published=False)
    for _ in range(2):
        assert build_docs(tmp_path / "docs", made) == tmp_path / "docs/index.html"
    pages = {path.stem: path.read_text() for path in (tmp_path / "docs/validations").rglob("*.html")}
    assert sorted(pages) == ["classes-classes", "images-images"]
    assert len(list((tmp_path / "docs/validations").rglob("*.html"))) == 2
    assert "Failed" in pages["images-images"]
    index = (tmp_path / "docs/index.html").read_text()
    assert re.findall("([0-9]+) expectations broken", index) == ["1", "0"]
    assert all((tmp_path / "docs" / link).is_file() for link in re.findall('href="([^"]+)"', index))
    assert "http" not in index
    with pytest.raises(DataError):
        check(made)
