"""The results of a study's cells -> table.json, a flat row a data set, method and number of shots; figures; README's table.

    python -m stages.table few-shot   writes studies/few-shot/table.json and gain.png, and draws.png where it has draws_of
    python -m stages.table --readme   writes the table of every study into README.md, between its two marks

Test episodes are the same for all seeds. An interval is over episodes and over training seeds, the root of the sum of both
squares: 1.96 standard errors of the episodes' means over seeds; Student's factor times the standard error of the seeds' means.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metadiff.artifact import write_json
from metadiff.errors import DataError
from metadiff.evaluation import mean_and_ci95
from stages.imports import ROOT
from stages.study import STUDIES, results_folder, seeds_of, varied_of

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 0.975 quantiles, from one degree of freedom on

Values = NDArray[np.float64]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stages.table", description="The table of a study.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("study", nargs="?", choices=sorted(path.parent.name for path in STUDIES.glob("*/params.yaml")))
    what.add_argument("--readme", action="store_true", help="write the tables that there are into README.md")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.readme:
            for path in sorted(STUDIES.glob("*/table.json")):
                write_readme(path.parent.name, shown_rows(path.parent))
        else:
            write_table(STUDIES / chosen.study)
    except DataError as error:
        print(error, file=sys.stderr)
        return os.EX_DATAERR
    return 0


def write_table(study: Path) -> None:
    varied = varied_of(study)
    for name in varied["datasets"]:
        if len(seeds_of(varied, name)) > len(STUDENT) + 1:
            raise DataError(f"{study / 'params.yaml'}: seeds: at most {len(STUDENT) + 1}, got {len(seeds_of(varied, name))}")
    how = {name: varied[name] for name in ("rivals", "names")}
    rows = [row for name in varied["datasets"] for row in dataset_rows(study, name, seeds=seeds_of(varied, name), **how)]
    curves = chosen_curves(study, varied) if "draws_of" in varied else {}
    write_json(study / "table.json", rows)
    draw(study / "gain.png", rows, varied["drawn"])
    if curves:
        draw_draws(study / "draws.png", varied["draws_of"], curves)
    for row in rows:
        print(" | ".join(cells(row, rivals_in(rows))))


def dataset_rows(
    study: Path, dataset: str, *, seeds: list[int], rivals: list[str], names: dict[str, str]
) -> list[dict[str, Any]]:
    """``names`` are those that classifiers of metrics.json have in the table, where it has others."""
    results = [results_folder(study, dataset, seed) for seed in seeds]
    tables = [pd.read_csv(result / "episodes.csv").query("split == 'test'") for result in results]
    metrics = json.loads((results[0] / "metrics.json").read_bytes())
    seconds = pd.DataFrame([json.loads((result / "seconds.json").read_bytes()) for result in results]).mean()
    rows = []
    for shot in sorted(tables[0]["shot"].unique()):
        cells = [table[table["shot"] == shot] for table in tables]
        accuracy = {names.get(name, name): per_cent(cells, name) for name in metrics["chosen"]}
        if len(accuracy) < len(metrics["chosen"]):
            raise DataError(f"{study / 'params.yaml'}: names: two classifiers of {dataset} have one name; leave one out")
        for name, found in zip(accuracy, metrics["chosen"], strict=True):
            values_SE = accuracy[name]
            row: dict[str, Any] = {"dataset": dataset, "method": name, "way": metrics["way"], "shot": int(shot)}
            row |= {"seeds": len(seeds), "episodes": metrics["episodes"]} | interval("accuracy", "ci95", values_SE)
            for rival in rivals:
                if rival in accuracy and rival != name:
                    apart_SE = values_SE - accuracy[rival]
                    row |= interval(f"vs_{rival}", f"vs_{rival}_ci95", apart_SE)
                    row[f"seeds_above_{rival}"] = sum(mean > half for mean, half in map(mean_and_ci95, apart_SE))
            row["nll"] = round(float(np.mean([part.loc[part["classifier"] == found, "nll"].mean() for part in cells])), 4)
            rows.append(row | {"seconds": round(float(seconds[found]), 3)})
    return rows


def per_cent(cells: list[pd.DataFrame], classifier: str) -> Values:
    """(S, E): accuracy by seed and episode."""
    parts = [cell[cell["classifier"] == classifier].sort_values("episode") for cell in cells]
    return np.stack([100 * np.asarray(part["correct"] / part["queries"], dtype=np.float64) for part in parts])


def interval(name: str, half: str, values_SE: Values) -> dict[str, float]:
    mean, over_episodes = mean_and_ci95(values_SE.mean(0))
    return {name: round(mean, 3), half: round(float(np.hypot(over_episodes, half_over_seeds(values_SE.mean(1)))), 3)}


def half_over_seeds(means_S: Values) -> Values:
    """Of the 95 % interval, for each column of (S, ...); of one seed there is none."""
    seeds = len(means_S)
    half: Values = STUDENT[seeds - 2] * means_S.std(axis=0, ddof=1) / seeds**0.5 if seeds > 1 else np.zeros_like(means_S[0])
    return half


def chosen_curves(study: Path, varied: Mapping[str, Any]) -> dict[str, dict[str, pd.DataFrame]]:
    """Of the figure of draws."""
    dataset = varied["draws_of"]
    found = draws_curves(study, dataset, seeds=seeds_of(varied, dataset), names=varied["names"])
    curves = {name: found[name] for name in varied["drawn"] if name in found}
    if not curves:
        raise DataError(f"{study / 'params.yaml'}: drawn: none of them is drawn several times; there are {', '.join(found)}")
    return curves


def draws_curves(study: Path, dataset: str, *, seeds: list[int], names: dict[str, str]) -> dict[str, dict[str, pd.DataFrame]]:
    """By classifier and column of draws.csv, such as `5-shot nll`: a row a number of draws, a column a seed."""
    paths = [results_folder(study, dataset, seed) / "draws.csv" for seed in seeds]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: missing; draws_of of {study / 'params.yaml'} must be a data set with generated weights")
    tables = [pd.read_csv(path, index_col="draws") for path in paths]
    curves: dict[str, dict[str, pd.DataFrame]] = {}
    for column in tables[0]:
        classifier, _, what = str(column).partition(" ")
        curves.setdefault(names.get(classifier, classifier), {})[what] = pd.concat([table[column] for table in tables], axis=1)
    return curves


def shown_rows(study: Path) -> list[dict[str, Any]]:
    """The rows of README: `shown` of the study's params."""
    shown = varied_of(study)["shown"]
    return [row for row in json.loads((study / "table.json").read_bytes()) if row["method"] in shown]


def rivals_in(rows: list[dict[str, Any]]) -> list[str]:
    """Those with which others are compared, in the order of the rows."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return [method for method in methods if any(f"vs_{method}" in row for row in rows)]


def cells(row: dict[str, Any], rivals: list[str]) -> list[str]:
    apart = [f"{row[f'vs_{r}']:+.2f} ± {row[f'vs_{r}_ci95']:.2f}" if f"vs_{r}" in row else "" for r in rivals]
    accuracy = f"{row['accuracy']:.2f} ± {row['ci95']:.2f}"
    return [row["dataset"], str(row["shot"]), row["method"], accuracy, *apart, f"{row['nll']:.3f}", f"{row['seconds']:.2f}"]


def markdown(rows: list[dict[str, Any]]) -> str:
    rivals = rivals_in(rows)
    columns = ["data", "shots", "classifier", "accuracy", *(f"to {rival}" for rival in rivals), "nll", "s / 1000 tasks"]
    lines = [columns, ["---"] * len(columns), *(cells(row, rivals) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def marks(study: str) -> tuple[str, str]:
    return f"<!-- {study}: written by make tables -->\n", f"\n<!-- end of {study} -->"


def write_readme(study: str, rows: list[dict[str, Any]]) -> None:
    path = ROOT / "README.md"
    begin, end = marks(study)
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise DataError(f"README.md: no place for the table of {study}; write the lines {begin.strip()} and {end.strip()}")
    path.write_text(before + begin + markdown(rows) + end + after, encoding="utf-8")


def draw(path: Path, rows: list[dict[str, Any]], methods: list[str]) -> None:
    """What each method gains on nearest-class-mean, with its interval."""
    mpl.use("Agg")
    from matplotlib.figure import Figure

    datasets, shots = (list(dict.fromkeys(row[key] for row in rows)) for key in ("dataset", "shot"))
    figure = Figure(figsize=(5 * len(shots), 3.6), layout="constrained")
    for axes, shot in zip(figure.subplots(1, len(shots), squeeze=False)[0], shots, strict=True):
        for number, method in enumerate(methods):
            chosen = [row for row in rows if row["method"] == method and row["shot"] == shot]
            places = [datasets.index(row["dataset"]) + (number - (len(methods) - 1) / 2) / 6 for row in chosen]
            gains, halves = ([row[key] for row in chosen] for key in ("vs_ncm", "vs_ncm_ci95"))
            axes.errorbar(places, gains, yerr=halves, fmt="o", capsize=3, label=method)
        axes.axhline(0, color="gray", linewidth=1)
        axes.set_xticks(range(len(datasets)), datasets)
        axes.set(title=f"{shot} shot{'s' if shot > 1 else ''}", ylabel="points above nearest-class-mean")
        axes.grid(alpha=0.3, axis="y")
    axes.legend()
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


if __name__ == "__main__":
    sys.exit(main())
