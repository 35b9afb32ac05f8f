"""What must hold of the tables of facts that each stage makes, in plain words and as expectations; checks.py tries them.

A fact such as "in one split only" is a column computed here, beside the stage's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metadiff.rows import SPLITS, Rows

if TYPE_CHECKING:
    from metadiff.concepts import DescribedTask
    from metadiff.trajectory import Trajectories

IMAGE_FACTS = ("source", "label", "split", "group", "sha256", "height", "width", "channels", "spread")
CLASS_FACTS = ("label", "split", "count", "usable")
RESULT_FACTS = ("split", "shot", "episode", "classifier", "correct", "queries", "nll", "overlap")
TRAJECTORY_FACTS = (
    *("task", "largest", "first_loss", "last_loss"),
    *("first_accuracy", "last_accuracy", "base_classes", "support"),
)
QUESTION_FACTS = tuple("training_task" if name == "base_classes" else name for name in TRAJECTORY_FACTS)
EPISODE = ("split", "shot", "episode", "classifier")


@dataclass(frozen=True)
class Rule:
    """One expectation: the column as people know it, the class in Great Expectations, and plain words for "must be ..."."""

    column: str
    kind: str
    expected: str
    arguments: Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """A table of facts, with columns computed for the rules beside its own."""

    name: str
    facts: pd.DataFrame
    rules: tuple[Rule, ...]


def manifest_tables(
    images: pd.DataFrame,
    classes: pd.DataFrame,
    *,
    size: int,
    channels: int,
    need: int,
    group_is_one_image: bool,
    twins_are_published: bool,
    splits_share_classes: bool = False,
) -> tuple[Table, Table]:
    """What prepare promises: one row an image and one row a class; nothing leaks from one split to another."""
    images, classes = images[list(IMAGE_FACTS)], classes[list(CLASS_FACTS)]
    both = pd.concat([images[["label", "split"]], classes[["label", "split"]]])
    prepared = images.assign(
        spread=_finite(images["spread"]),
        sha256_splits=_splits(images, images["sha256"]),
        label_splits=_splits(both, images["label"]),
        group_splits=_splits(images, images["group"]),
        label_known=images["label"].isin(classes["label"]) | images["label"].isna(),
    )
    all_splits = _values("split", "ExpectColumnDistinctValuesToEqualSet", f"all of {_listed(SPLITS)}", value_set=list(SPLITS))
    shape = {"height": size, "width": size, "channels": channels}
    of_images = (
        *_present(IMAGE_FACTS),
        _values("source", "ExpectColumnValuesToBeUnique", "the source of one image only"),
        *(
            []
            if twins_are_published
            else [_between("sha256", "in one split only (equal pixels)", column="sha256_splits", max_value=1)]
        ),
        all_splits
        if splits_share_classes
        else _between("label", "a class in one split only", column="label_splits", max_value=1),
        *([_between("group", "in one split only", column="group_splits", max_value=1)] if group_is_one_image else []),
        _values("label", "ExpectColumnValuesToBeInSet", "in the table of classes", column="label_known", value_set=[True]),
        *(_one_of(name, [value]) for name, value in shape.items()),
        _between("spread", "above 0 (not a blank image)", min_value=0, strict_min=True),
    )
    found = classes["label"].map(images["label"].value_counts()).fillna(0).astype(int)
    count_is_found = {"column_A": "count", "column_B": "images", "ignore_row_if": "either_value_is_missing"}
    of_classes = (
        *_present(CLASS_FACTS),
        _values("label", "ExpectColumnValuesToBeUnique", "the name of one class only"),
        *([] if splits_share_classes else [all_splits]),
        Rule("count", "ExpectColumnPairValuesToBeEqual", "the number of images of the class", count_is_found),
        _between("usable", f"at least {need} (prepare.min_images)", min_value=need),
    )
    return Table("images", prepared, of_images), Table("classes", classes.assign(images=found), of_classes)


def features_tables(features_ND: NDArray[np.float32], *, rows: int) -> tuple[Table, Table]:
    """What pretrain promises: one finite feature vector an image, none of them zero, and few features that never vary."""
    largest_N = np.maximum(features_ND.max(axis=1, initial=0), -features_ND.min(axis=1, initial=0))
    with np.errstate(invalid="ignore", over="ignore"):  # not a finite number: the other table finds it
        range_D = np.ptp(features_ND, axis=0)  # the variance of a constant column may be above 0 by rounding, its range never is
    of_images = (
        Rule("", "ExpectTableRowCountToEqual", f"{rows} rows, one an image", {"value": rows}),
        _values("largest", "ExpectColumnValuesToNotBeNull", "a finite number"),
        _between("largest", "above 0 (not a vector of zeros)", min_value=0, strict_min=True),
    )
    varies = _between("range", "above 0 in at least 90 % of the rows", min_value=0, strict_min=True, mostly=0.9)
    features = pd.DataFrame({"largest": _finite(pd.Series(largest_N))})
    return Table("features", features, of_images), Table("dimensions", pd.DataFrame({"range": range_D}), (varies,))


def trajectory_facts(found: Trajectories, data: Rows, tasks: Sequence[DescribedTask] = ()) -> pd.DataFrame:
    """One row a task; `base_classes` and `support` count the different ones that are what they should be.

    Of described tasks (``tasks`` are all that there are) `training_task` says whether it is one of training; an image is what it
    should be if its way is the answer of the task, and if it is no test image.
    """
    own_TWS = _answers(found, data, tasks) if tasks else data.label[found.support_TWS] == found.classes_TW[:, :, None]
    own_TN, support_TN = (values_TWS.reshape(len(own_TWS), -1) for values_TWS in (own_TWS, found.support_TWS))
    facts: dict[str, object] = {"task": found.task_T, "largest": np.abs(found.weights_TKP).max((1, 2))}
    for name, values_TK in (("loss", found.loss_TK), ("accuracy", found.accuracy_TK)):
        facts |= {f"first_{name}": values_TK[:, 0], f"last_{name}": values_TK[:, -1]}
    if tasks:
        training = [number for number, task in enumerate(tasks) if task.split == "train"]
        same_T = found.classes_TW[:, 0] == found.classes_TW[:, -1]
        facts["training_task"] = same_T & np.isin(found.classes_TW[:, 0], training)
    else:
        base_TW = np.isin(found.classes_TW, data.label[data.of("train")])
        facts["base_classes"] = [len(set(ids[good])) for ids, good in zip(found.classes_TW, base_TW, strict=True)]
    facts["support"] = [len(set(ids[good])) for ids, good in zip(support_TN, own_TN, strict=True)]
    return pd.DataFrame(facts)


def _answers(found: Trajectories, data: Rows, tasks: Sequence[DescribedTask]) -> NDArray[np.bool_]:
    """Of each image of the support whether its way is the task's answer to it, and it is no test image."""
    answer_KC = np.full((len(tasks), len(data.classes)), -1)
    for answer_C, task in zip(answer_KC, tasks, strict=True):
        answer_C[[*task.near, *task.no]], answer_C[[*task.yes]] = 0, 1
    number_T11 = found.classes_TW[:, :1, None].clip(0, len(tasks) - 1)  # of another number `training_task` is false
    right_TWS = answer_KC[number_T11, data.label[found.support_TWS]] == np.arange(found.classes_TW.shape[1])[:, None]
    return np.asarray(right_TWS & (data.split[found.support_TWS] != SPLITS.index("test")))


def trajectories_tables(
    facts: pd.DataFrame, *, accepted: int, drawn: int, way: int, shot: int, tasks_of: str = "episodes"
) -> tuple[Table]:
    """What collect promises: one row an accepted task, finite weights that became better, its own base classes and support.

    Of sentences: of a training task, with the images that are its answers.
    """
    lower = {"column_A": "first_loss", "column_B": "last_loss", "or_equal": False, "ignore_row_if": "either_value_is_missing"}
    described = tasks_of == "sentences"
    names = QUESTION_FACTS if described else TRAJECTORY_FACTS
    facts = facts[list(names)]
    finite = {name: _finite(facts[name]) for name in ("largest", "first_loss", "last_loss")}
    rules = (
        *_present(names),
        Rule("", "ExpectTableRowCountToEqual", f"{accepted} rows, one an accepted task", {"value": accepted}),
        _values("task", "ExpectColumnValuesToBeUnique", "the number of one task only"),
        _between("task", f"0 to {drawn - 1}", min_value=0, max_value=drawn - 1),
        Rule("last_loss", "ExpectColumnPairValuesAToBeGreaterThanB", "below first_loss", lower),
        *(_between(name, "from 0 to 1", min_value=0, max_value=1) for name in ("first_accuracy", "last_accuracy")),
        _values("training_task", "ExpectColumnValuesToBeInSet", "true", value_set=[True])
        if described
        else _one_of("base_classes", [way]),
        _one_of("support", [way * shot]),
    )
    return (Table("trajectories", facts.assign(**finite), rules),)


def results_tables(
    results: pd.DataFrame, *, episodes: Mapping[str, int], shots: Sequence[int], classifiers: Sequence[str]
) -> tuple[Table]:
    """What evaluate promises of each split's episodes: a row for each and each classifier, support and query apart."""
    rows = sum(episodes.values()) * len(shots) * len(classifiers)
    each = _listed(f"{count} of {split}" for split, count in episodes.items())
    below = {"column_A": "episodes", "column_B": "episode", "or_equal": False, "ignore_row_if": "either_value_is_missing"}
    at_most = {"column_A": "queries", "column_B": "correct", "or_equal": True, "ignore_row_if": "either_value_is_missing"}
    rules = (
        *_present(RESULT_FACTS),
        Rule("", "ExpectTableRowCountToEqual", f"{rows} rows: episodes of all splits x shots x classifiers", {"value": rows}),
        Rule(", ".join(EPISODE), "ExpectCompoundColumnsToBeUnique", "together in one row only", {"column_list": list(EPISODE)}),
        _one_of("split", [*episodes]),
        _one_of("shot", shots),
        _one_of("classifier", classifiers),
        _between("episode", "at least 0", min_value=0),
        Rule("episode", "ExpectColumnPairValuesAToBeGreaterThanB", f"below the number of its split ({each})", below),
        _between("correct", "at least 0", min_value=0),
        Rule("correct", "ExpectColumnPairValuesAToBeGreaterThanB", "at most queries", at_most),
        _between("queries", "at least 1", min_value=1),
        _between("nll", "at least 0", min_value=0),
        _one_of("overlap", [0]),
    )
    known = results[list(RESULT_FACTS)].assign(nll=_finite(results["nll"]), episodes=results["split"].map(episodes))
    return (Table("results", known, rules),)


def _values(subject: str, kind: str, expected: str, **arguments: object) -> Rule:
    return Rule(subject, kind, expected, {"column": subject} | arguments)


def _present(columns: Sequence[str]) -> tuple[Rule, ...]:
    words = dict.fromkeys(("spread", "largest", "first_loss", "last_loss", "nll"), "a finite number")
    return tuple(_values(name, "ExpectColumnValuesToNotBeNull", words.get(name, "given")) for name in columns)


def _one_of(column: str, allowed: Sequence[str] | Sequence[int]) -> Rule:
    return _values(column, "ExpectColumnValuesToBeInSet", _listed(allowed, "or"), value_set=list(allowed))


def _between(subject: str, expected: str, **arguments: object) -> Rule:
    return _values(subject, "ExpectColumnValuesToBeBetween", expected, **arguments)


def _listed(values: Iterable[object], last: str = "and") -> str:
    *head, tail = map(str, values)
    return f"{', '.join(head)} {last} {tail}" if head else tail


def _finite(values: pd.Series) -> pd.Series:
    """Infinite numbers become missing ones, which the expectation of a finite number finds."""
    return values.where(np.isfinite(values))


def _splits(table: pd.DataFrame, keys: pd.Series) -> pd.Series:
    """In how many different splits of the table each key occurs."""
    return keys.map(table.groupby(keys.name)["split"].nunique())
