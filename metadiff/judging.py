"""From cosines to numbers: what validation chooses, one row an episode, and the summary of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.classifiers import Checkpoints, classifiers, make_generators
from metadiff.episodes import Episodes
from metadiff.evaluation import (
    BINS,
    RowsOf,
    best_temperature,
    calibration,
    class_rows,
    correct_counts,
    cosines,
    log_probabilities,
    mean_and_ci95,
    negative_log_likelihood,
    targets,
)
from metadiff.rows import Rows

if TYPE_CHECKING:
    from metadiff.params import Evaluate

TYPICAL = 10.0  # temperature with which draws are averaged before one is chosen
RIVALS = ("ncm", "gaussian", "regression")  # every other classifier is compared with these, episode by episode


@dataclass(frozen=True)
class Choice:
    """What validation chose of a classifier: a candidate and a centre for all numbers of shots, a temperature for each."""

    candidate: str
    centre: str
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
    features_ND: NDArray[np.float32],
    checkpoints: Checkpoints,
    device: str,
) -> Verdict:
    """Choose on validation episodes, judge on all. Of plain values, so that a worker elsewhere can do it."""
    features = torch.from_numpy(features_ND).to(device)
    posterior = GaussianPosterior(features, data)
    candidates = dict(classifiers(section, posterior, make_generators(checkpoints, device)))[name]
    centres = {"origin": None, "base mean": posterior.mean_D.float()}  # from where angles are measured
    validation = {shot: episodes for (split, shot), episodes in drawn.items() if split == "val"}
    choice, seen = choose(candidates, features, validation, centres=centres)
    judged = []
    for (split, shot), episodes in drawn.items():
        if split != "val":
            rows_GEWD = class_rows(candidates[choice.candidate], features, episodes)
            seen[shot] = cosines(rows_GEWD, features, episodes, centre_D=centres[choice.centre])
        parts = judge(seen[shot], targets(episodes), temperature=choice.temperature[shot])
        judged.append([_with_cell(part, split, shot, name) for part in parts])
    rows, bins = (pd.concat(parts, ignore_index=True) for parts in zip(*judged, strict=True))
    return Verdict(rows, bins, choice)


def choose(
    candidates: Mapping[str, RowsOf],
    features_ND: Tensor,
    episodes: Mapping[int, Episodes],
    *,
    centres: Mapping[str, Tensor | None],
) -> tuple[Choice, dict[int, Tensor]]:
    """The best mean accuracy over shots, the first of equals, then the likeliest temperatures; and the cosines it gave."""
    target_Q = {shot: targets(drawn) for shot, drawn in episodes.items()}
    found: dict[tuple[str, str], dict[int, Tensor]] = {}
    for name, rows_of in candidates.items():
        rows = {shot: class_rows(rows_of, features_ND, drawn) for shot, drawn in episodes.items()}
        for centre, centre_D in centres.items():
            found[name, centre] = {k: cosines(rows[k], features_ND, episodes[k], centre_D=centre_D) for k in episodes}

    def mean_accuracy(key: tuple[str, str]) -> float:
        counts = [correct_counts(log_probabilities(found[key][shot], TYPICAL), target_Q[shot]) for shot in episodes]
        return float(np.mean([count.mean() for count in counts]))

    best = max(found, key=mean_accuracy)
    return Choice(*best, {shot: best_temperature(found[best][shot], target_Q[shot]) for shot in episodes}), found[best]


def judge(cosines_GEQW: Tensor, target_Q: Tensor, *, temperature: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row an episode, and one row a bin of confidence."""
    log_EQW = log_probabilities(cosines_GEQW, temperature)
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
            rivals = [
                rival for rival in RIVALS if rival in per_cent and rival != name and name not in RIVALS[: RIVALS.index(rival)]
            ]
            here[name] |= {f"vs_{rival}": _interval("diff", values - per_cent[rival]) for rival in rivals}
    return metrics


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
