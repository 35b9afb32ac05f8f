"""This run beside its experiments or beside another commit, by the columns that matter; `dvc exp show` has all the others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metadiff.errors import DataError
from metadiff.lineage import METRICS, PARAMS, content, experiments, flat, message, read_lock, refuse_unknown

HERE = "this checkout"
SECONDS = re.compile(r"run in (\d+) seconds")  # as the flow writes it into the commit of an experiment


@dataclass(frozen=True)
class Result:
    """What one run measured, and in which parameters it differs from the commit of the checkout."""

    name: str
    metrics: dict[str, Any]
    changes: dict[str, object]
    seconds: str  # that the stages took, where the flow ran them; empty elsewhere


def results(root: Path) -> Iterator[Result]:
    """The checkout's first, then those of the experiments, the newest first. Changes are against HEAD."""
    try:
        base = _params(root, "HEAD")
    except DataError:  # it has no results
        base = _params(root, None)
    for name, revision in [(HERE, None), *experiments(root).items()]:
        try:
            metrics, params = json.loads(content(root, METRICS, revision)), _params(root, revision)
        except DataError:
            if revision is None:
                raise
            continue  # from before there were results
        changes = {key: params.get(key) for key in sorted(params.keys() | base.keys()) if params.get(key) != base.get(key)}
        seconds = SECONDS.findall(message(root, revision)) if revision else []
        yield Result(name, metrics, changes, seconds[-1] if seconds else "")


@dataclass(frozen=True)
class Change:
    """The accuracy of a classifier in another commit and here, in per cent, each with half of its interval."""

    split: str
    shot: str
    classifier: str
    before: tuple[float, float] | None
    now: tuple[float, float] | None

    @property
    def difference(self) -> tuple[float, float] | None:
        """With half of its interval, as if the episodes were others: for the same ones it is wider than need be."""
        if not (self.before and self.now):
            return None
        return self.now[0] - self.before[0], (self.before[1] ** 2 + self.now[1] ** 2) ** 0.5


def changes(root: Path, base: str) -> list[Change]:
    """Of every classifier whose accuracy is not what it was in the commit ``base``."""
    refuse_unknown(root, base)
    now = _accuracies(json.loads(content(root, METRICS, None)))
    try:
        before = _accuracies(json.loads(content(root, METRICS, base)))
    except DataError:
        before = {}  # there were no results yet
    every = [*before, *(cell for cell in now if cell not in before)]
    return [Change(*cell, before.get(cell), now.get(cell)) for cell in every if before.get(cell) != now.get(cell)]


def _accuracies(metrics: dict[str, Any]) -> dict[tuple[str, str, str], tuple[float, float]]:
    return {
        (split, shot.removeprefix("shot"), name): (cell["accuracy"], cell["ci95"])
        for split in ("test", "val")
        for shot, cells in metrics.get(split, {}).items()
        for name, cell in cells.items()
    }


def _params(root: Path, revision: str | None) -> dict[str, object]:
    """Those that the result was made with, whatever params.yaml says."""
    used = [stage.get("params", {}).get(PARAMS.name, {}) for stage in read_lock(root, revision).values()]
    return {key: value for params in used for key, value in flat(params).items()}
