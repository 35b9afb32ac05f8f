"""What the classifiers of a study's cells answered on test, seed by seed, so that any two of them can be paired."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metadiff.described import AMBIGUOUS
from metadiff.errors import DataError
from stages.intervals import Values

TEXTS = ("seen", "unseen")  # words of a sentence, in training


@dataclass(frozen=True)
class Asked:
    """What classifiers are compared on: test episodes of as many shots, or test tasks of a kind in such words."""

    about: dict[str, Any]  # columns of the table
    unit: str  # episode, task
    by_seed: list[pd.DataFrame]  # a row a unit and classifier


def asked_episodes(results: list[Path]) -> list[Asked]:
    tables = answers([result / "episodes.csv" for result in results], ["shot", "episode"])
    way = json.loads(content(results[0] / "metrics.json"))["way"]
    shots = sorted(tables[0]["shot"].unique())
    return [
        Asked({"way": way, "shot": int(shot)}, "episode", [table[table["shot"] == shot] for table in tables]) for shot in shots
    ]


def asked_sentences(results: list[Path]) -> list[Asked]:
    """Of all kinds whose sentence has one right answer, of all others, and of each kind; of seeds that have two such tasks."""
    tables = answers([result / "described.csv" for result in results], ["text", "task"])
    kinds = [*dict.fromkeys(kind for table in tables for kind in table["kind"])]
    plain = [kind for kind in kinds if kind not in AMBIGUOUS]
    groups = {"plain": plain, "ambiguous": [*AMBIGUOUS]} | {kind: [kind] for kind in kinds}
    found = []
    for (kind, members), text in ((group, text) for group in groups.items() for text in TEXTS):
        parts = [table[table["kind"].isin(members) & (table["text"] == text)] for table in tables]
        parts = [part for part in parts if part["task"].nunique() > 1]
        if parts:
            found.append(Asked({"kind": kind, "text": text, "way": 2, "shot": 0}, "task", parts))
    return found


def answers(paths: list[Path], keys: list[str]) -> list[pd.DataFrame]:
    """Those of the split test, seed by seed; each of the same classifiers to the same questions, so that they can be paired."""
    tables: list[pd.DataFrame] = []
    for path in paths:
        content(path)
        table = pd.read_csv(path).query("split == 'test'")
        names = set(table["classifier"])
        if not names:
            raise DataError(f"{path}: nothing of the split test; make the cell again")
        if tables and names != set(tables[0]["classifier"]):
            other = sorted(names ^ set(tables[0]["classifier"]))[0]
            raise DataError(f"{path}: other classifiers than {paths[0]}, such as {other}; make the cells again")
        answered = table.groupby([*keys, "classifier"]).size()
        if (answered > 1).any() or (answered.groupby(keys).size() < len(names)).any():
            raise DataError(f"{path}: not one row for every classifier, {' and '.join(keys)}; make the cell again")
        tables.append(table)
    return tables


def content(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path}: missing; make the cell, or dvc pull the study")
    return path.read_bytes()


def per_cent(asked: Asked, classifier: str) -> list[Values]:
    """Accuracies of each seed, in the order of what was asked."""
    parts = [part[part["classifier"] == classifier].sort_values(asked.unit) for part in asked.by_seed]
    return [100 * np.asarray(part["correct"] / part["queries"], dtype=np.float64) for part in parts]
