"""The figures of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from stages.intervals import half_over_seeds

LABEL = 1.6  # inches of a legend
CHANCE = 50  # per cent, of questions of yes or no
LONG = {"ncm": "nearest-class-mean"}  # where a method is named in full
PANELS = {"plain": "sentences with one right answer", "ambiguous": "sentences with several right answers"}


def draw_gains(path: Path, rows: list[dict[str, Any]], methods: list[str], *, against: str = "ncm") -> None:
    """What each method gains on another, with its interval, on data sets of all the table's numbers of shots."""
    mpl.use("Agg")
    from matplotlib.figure import Figure

    shots, datasets = list(dict.fromkeys(row["shot"] for row in rows)), of_every_shot(rows)
    wide = max(5, 0.95 * len(datasets))  # inches, for the names below
    figure = Figure(figsize=(wide * len(shots), 4.2), layout="constrained")
    for axes, shot in zip(figure.subplots(1, len(shots), squeeze=False)[0], shots, strict=True):
        for number, method in enumerate(methods):
            chosen = [row for row in rows if (row["method"], row["shot"]) == (method, shot) and f"vs_{against}" in row]
            chosen = [row for row in chosen if row["dataset"] in datasets]
            places = [datasets.index(row["dataset"]) + (number - (len(methods) - 1) / 2) / 6 for row in chosen]
            gains, halves = ([row[key] for row in chosen] for key in (f"vs_{against}", f"vs_{against}_ci95"))
            axes.errorbar(places, gains, yerr=halves, fmt="o", capsize=3, label=method)
        axes.axhline(0, color="gray", linewidth=1)
        axes.set_xticks(range(len(datasets)), [name.replace("-", "-\n") for name in datasets])
        axes.set(title=f"{shot} shot{'s' if shot > 1 else ''}", ylabel=f"points above {LONG.get(against, against)}")
        axes.grid(alpha=0.3, axis="y")
    beside = int(wide * len(shots) / LABEL)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(methods), beside), fontsize=9)
    figure.savefig(path, dpi=120)


def of_every_shot(rows: list[dict[str, Any]]) -> list[str]:
    """The data sets that have rows of each number of shots that any has."""
    shots_of: dict[str, set[int]] = {}
    for row in rows:
        shots_of.setdefault(row["dataset"], set()).add(row["shot"])
    most = set().union(*shots_of.values())
    return [dataset for dataset, shots in shots_of.items() if shots == most]


def draw_ladder(path: Path, rows: list[dict[str, Any]], methods: list[str]) -> None:
    """Each method on sentences in words that training has seen, from the worst to the best on those with one right answer."""
    mpl.use("Agg")
    from matplotlib.figure import Figure

    found = {(row["kind"], row["method"]): row for row in rows if row["text"] == "seen" and row["method"] in methods}
    ladder = sorted({method for _, method in found}, key=lambda method: found["plain", method]["accuracy"])
    figure = Figure(figsize=(9, 1.4 + 0.25 * len(ladder)), layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
        for shown, mark in ((False, "o"), (True, "s")):
            chosen = [row for (of, _), row in found.items() if of == kind and (row["shot"] > 0) == shown]
            places = [ladder.index(row["method"]) for row in chosen]
            means, halves = ([row[key] for row in chosen] for key in ("accuracy", "ci95"))
            label = f"{'with' if shown else 'without'} labelled images of the task"
            axes.errorbar(means, places, xerr=halves, fmt=mark, markersize=5, capsize=3, label=label)
        axes.axvline(CHANCE, color="gray", linestyle="--", linewidth=1, label="chance")
        axes.set_yticks(range(len(ladder)), ladder)
        axes.set(title=title, xlabel="accuracy on test tasks, per cent")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=120)


def draw_draws(path: Path, dataset: str, curves: dict[str, dict[str, pd.DataFrame]]) -> None:
    """What averaging over draws is worth: a colour a classifier, dashed with fewer shots; the band is over seeds."""
    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = dict(zip(("accuracy, per cent", "negative log-likelihood"), figure.subplots(1, 2), strict=True))
    shots = list(dict.fromkeys(what.partition("-")[0] for curve in curves.values() for what in curve))
    for number, (classifier, curve) in enumerate(curves.items()):
        for what, by_seed in curve.items():
            axes = panels["negative log-likelihood" if what.endswith("nll") else "accuracy, per cent"]
            shot, draws = what.partition("-")[0], by_seed.index.to_numpy()
            mean, half = by_seed.mean(axis=1).to_numpy(), half_over_seeds(by_seed.to_numpy().T)
            label = f"{classifier}, {shot} shot{'s' * (shot != '1')}"
            style = "-" if shot == shots[-1] else "--"
            axes.plot(draws, mean, style, color=f"C{number}", marker=".", label=label)
            axes.fill_between(draws, mean - half, mean + half, color=f"C{number}", alpha=0.2, linewidth=0)
    counts = [*next(iter(next(iter(curves.values())).values())).index]
    for what, axes in panels.items():
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, map(str, counts))
        axes.set(title=f"{dataset}: {what}", xlabel="draws whose probabilities are averaged")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(curves), fontsize=9)
    figure.savefig(path, dpi=100)
