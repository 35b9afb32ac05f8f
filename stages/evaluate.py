"""features -> metrics.json, and a table with one row an episode.

Every classifier is measured on the very same episodes, a pure function of (seed, index); episodes.h5 holds their images as rows
of data/backbone/features.h5. Numbers are percentages, with the half width of the 95 % interval over episodes.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from metadiff.artifact import write_json
from metadiff.baselines.ncm import cosine_ncm
from metadiff.episodes import Episodes, draw_episodes, shared_groups
from metadiff.evaluation import Classifier, correct_counts, mean_and_ci95
from metadiff.store import read_features, read_rows, write_arrays
from stages.checks import results_contract
from stages.runner import Run, Stage, main

if TYPE_CHECKING:
    from metadiff.params import Evaluate

BACKBONE = Path("data/backbone")
SPLITS = ("val", "test")
CLASSIFIERS: dict[str, Classifier] = {"ncm": cosine_ncm}


def build(run: Run[Evaluate]) -> None:
    section = run.params
    data = read_rows(BACKBONE / "features.h5")
    features_ND = torch.from_numpy(read_features(BACKBONE / "features.h5")).to(run.device)
    tables: list[pd.DataFrame] = []
    stored: dict[str, NDArray[np.int32]] = {}
    with run.progress("classifying", total=len(SPLITS) * len(section.shots) * section.episodes, unit="episodes") as advance:
        for split, shot in product(SPLITS, section.shots):
            sizes = {"way": section.way, "query": section.query, "episodes": section.episodes}
            episodes = draw_episodes(data, split, shot=shot, seed=section.seed, **sizes)
            stored |= {f"{split}/shot{shot}/{name}": ids for name, ids in vars(episodes).items()}
            tables.append(measure(features_ND, episodes, data.group).assign(split=split, shot=shot))
            advance(section.episodes)
    table = pd.concat(tables)[["split", "shot", "episode", "classifier", "correct", "queries", "overlap"]]
    checks = results_contract(
        table, splits=SPLITS, shots=section.shots, episodes=section.episodes, classifiers=tuple(CLASSIFIERS)
    )
    table.to_csv(run.out / "episodes.csv", index=False, lineterminator="\n")
    write_arrays(run.out / "episodes.h5", stored)
    about = {"dataset": data.dataset, "way": section.way, "query": section.query, "episodes": section.episodes}
    write_json(run.out / "metrics.json", about | summary(table))
    write_json(run.out / "checks.json", checks)


def measure(features_ND: torch.Tensor, episodes: Episodes, group_N: NDArray[np.int32]) -> pd.DataFrame:
    """One row an episode and classifier: how many of its queries were classified rightly."""
    facts = {"episode": np.arange(len(episodes.query_EWQ)), "queries": episodes.query_EWQ[0].size}
    facts |= {"overlap": shared_groups(episodes, group_N)}
    correct = {name: correct_counts(classifier, features_ND, episodes) for name, classifier in CLASSIFIERS.items()}
    return pd.concat([pd.DataFrame(facts | {"classifier": name, "correct": counts}) for name, counts in correct.items()])


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Nested as `dvc exp show` unfolds it: test.shot1.ncm.accuracy and .ci95."""
    metrics: dict[str, Any] = {}
    for (split, shot, classifier), part in table.groupby(["split", "shot", "classifier"], sort=False):
        mean, ci95 = mean_and_ci95(100 * part["correct"].to_numpy() / part["queries"].to_numpy())
        cell = metrics.setdefault(split, {}).setdefault(f"shot{shot}", {})
        cell[classifier] = {"accuracy": round(mean, 3), "ci95": round(ci95, 3)}
    return metrics


STAGE = Stage(
    name="evaluate",
    out=Path("data/results"),
    build=build,
    inputs=(BACKBONE,),
    versions=("great-expectations", "h5py", "numpy", "pandas"),
    shared=("threads", "device", "deterministic"),
    lower="evaluate.query",
)

if __name__ == "__main__":
    main(STAGE)
