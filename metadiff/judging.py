"""From scores to numbers: what validation chooses, one row an episode, and the summary of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.baselines.nearest import PathEnds
from metadiff.candidates import Candidate
from metadiff.classifiers import (
    CLOSED,
    Checkpoints,
    classifiers,
    make_generators,
    make_training_tasks,
    make_weight_generators,
)
from metadiff.episodes import Episodes
from metadiff.evaluation import (
    BINS,
    TYPICAL,
    best_temperature,
    calibration,
    correct_counts,
    log_probabilities,
    mean_and_ci95,
    negative_log_likelihood,
    targets,
)
from metadiff.pictures import Pictures
from metadiff.rows import Rows
from metadiff.weightclassifiers import of_weights

if TYPE_CHECKING:
    from metadiff.params import Evaluate

RIVALS = (*CLOSED, "regression")  # every other classifier is compared with these, episode by episode,
WEIGHT_RIVALS = ("weights-regression", "finetune-random", "finetune-random-mean")  # and one of whole weights with these too


@dataclass(frozen=True)
class Choice:
    """What validation chose of a classifier: a candidate and a view of its scores for all shots, a temperature for each."""

    candidate: str
    view: str
    temperature: Mapping[int, float]


@dataclass(frozen=True)
class Verdict:
    """Of one classifier: one row an episode of any split and number of shots, the bins of its confidence, and what was chosen."""

    rows: pd.DataFrame
    bins: pd.DataFrame
    choice: Choice


def verdict(
    name: str,
    section: Evaluate,
    drawn: Mapping[tuple[str, int], Episodes],
    *,
    data: Rows,
    pictures: Pictures,
    checkpoints: Checkpoints,
    ends: PathEnds | None = None,
    device: str,
) -> Verdict:
    """Choose on validation episodes, judge on all. Of plain values, so that a worker elsewhere can do it."""
    pictures = pictures.to(device)
    features, weights = pictures.features, make_weight_generators(checkpoints, device)
    made = make_generators(checkpoints, device), weights, make_training_tasks(ends, weights, features, data)
    candidates = dict(classifiers(section, GaussianPosterior(features, data), *made))[name]
    validation = {shot: episodes for (split, shot), episodes in drawn.items() if split == "val"}
    choice, seen = choose(candidates, pictures, validation)
    judged = []
    for (split, shot), episodes in drawn.items():
        if split != "val":
            seen[shot] = candidates[choice.candidate].scores(pictures, episodes)[choice.view]
        parts = judge(seen[shot], targets(episodes), temperature=choice.temperature[shot])
        judged.append([_with_cell(part, split, shot, name) for part in parts])
    rows, bins = (pd.concat(parts, ignore_index=True) for parts in zip(*judged, strict=True))
    return Verdict(rows, bins, choice)


def choose(
    candidates: Mapping[str, Candidate], pictures: Pictures, episodes: Mapping[int, Episodes]
) -> tuple[Choice, dict[int, Tensor]]:
    """The best mean accuracy over shots, the first of equals, then the likeliest temperatures; and the scores it gave."""
    target_Q = {shot: targets(drawn) for shot, drawn in episodes.items()}
    found: dict[tuple[str, str], dict[int, Tensor]] = {}
    for name, candidate in candidates.items():
        for shot, drawn in episodes.items():
            for view, scores in candidate.scores(pictures, drawn).items():
                found.setdefault((name, view), {})[shot] = scores

    def mean_accuracy(key: tuple[str, str]) -> float:
        counts = [correct_counts(log_probabilities(found[key][shot], TYPICAL), target_Q[shot]) for shot in episodes]
        return float(np.mean([count.mean() for count in counts]))

    best = max(found, key=mean_accuracy)
    return Choice(*best, {shot: best_temperature(found[best][shot], target_Q[shot]) for shot in episodes}), found[best]


def judge(scores_GEQW: Tensor, target_Q: Tensor, *, temperature: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row an episode, and one row a bin of confidence."""
    log_EQW = log_probabilities(scores_GEQW, temperature)
    facts = {"episode": np.arange(len(log_EQW)), "correct": correct_counts(log_EQW, target_Q), "queries": len(target_Q)}
    rows = pd.DataFrame(facts | {"nll": negative_log_likelihood(log_EQW, target_Q).round(6)})
    bins = vars(calibration(log_EQW, target_Q))
    return rows, pd.DataFrame({"bin": np.arange(1, BINS + 1)} | {name.removesuffix("_B"): bins[name] for name in bins})


def summary(rows: pd.DataFrame, bins: pd.DataFrame) -> dict[str, Any]:
    """Nested as `dvc exp show` unfolds it: test.shot1.ncm.accuracy, .ci95, .nll, .ece and .vs_gaussian.diff."""
    metrics: dict[str, Any] = {}
    for (split, shot), cell in rows.groupby(["split", "shot"], sort=False):
        per_cent = {name: _per_cent(part) for name, part in cell.groupby("classifier", sort=False)}
        here = metrics.setdefault(split, {}).setdefault(f"shot{shot}", {})
        for name, values in per_cent.items():
            chosen = bins[(bins["split"] == split) & (bins["shot"] == shot) & (bins["classifier"] == name)]
            nll = float(cell.loc[cell["classifier"] == name, "nll"].mean())
            error = (chosen["confidence"] - chosen["correct"]).abs().sum() / chosen["count"].sum()
            here[name] = _interval("accuracy", values) | {"nll": round(nll, 4), "ece": round(100 * float(error), 3)}
            rivals = (rival for rival in rivals_of(name) if rival in per_cent)
            here[name] |= {f"vs_{rival}": _interval("diff", values - per_cent[rival]) for rival in rivals}
    return metrics


def rivals_of(name: str) -> tuple[str, ...]:
    """With what a classifier is compared: a rival itself with those before it only."""
    rivals = RIVALS + WEIGHT_RIVALS if of_weights(name) else RIVALS
    return rivals[: rivals.index(name)] if name in rivals else rivals


def _with_cell(table: pd.DataFrame, split: str, shot: int, classifier: str) -> pd.DataFrame:
    for name, value in (("classifier", classifier), ("shot", shot), ("split", split)):
        table.insert(0, name, value)
    return table


def _per_cent(rows: pd.DataFrame) -> np.ndarray:
    ordered = rows.sort_values("episode")
    return np.asarray(100 * ordered["correct"] / ordered["queries"])


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    mean, ci95 = mean_and_ci95(values)
    return {name: round(mean, 3), "ci95": round(ci95, 3)}
