"""What DVC knows of a checkout: its stages in the order in which they must run."""

from __future__ import annotations

from contextlib import chdir
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo


def stage_order(root: Path, targets: list[str] | None = None) -> list[str]:
    """The names of the stages that the targets need, by default those of dvc.yaml, each after the stages that it reads from.

    ValueError if DVC knows no such target.
    """
    with chdir(root), Repo() as repo:  # DVC reads and gives names as they are seen from the current folder
        needed: set[Any] = set()
        try:
            for target in targets or ["dvc.yaml"]:
                needed.update(repo.stage.collect(target, with_deps=True))
        except DvcException as error:
            raise ValueError(f"targets: {error}") from error
        graph = repo.index.graph  # an edge leads to what a stage needs
        before = {stage.addressing: sorted(other.addressing for other in graph.successors(stage)) for stage in needed}
        return [*TopologicalSorter({name: before[name] for name in sorted(before)}).static_order()]
