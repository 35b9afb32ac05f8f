"""The results of a study's cells -> table.json, a flat row a data set, method and number of shots; a figure; README's table.

    python -m stages.table few-shot   writes studies/few-shot/table.json and gain.png
    python -m stages.table --readme   writes the table of every study into README.md, between its two marks

Test episodes are the same for all seeds. An interval is over episodes and over training seeds, the root of the sum of both
squares: 1.96 standard errors of the episodes' means over seeds; Student's factor times the standard error of the seeds' means.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ruamel.yaml import YAML

from metadiff.artifact import write_json
from metadiff.errors import DataError
from metadiff.evaluation import mean_and_ci95
from metadiff.judging import RIVALS
from stages.imports import ROOT
from stages.study import STUDIES, results_folder

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 0.975 quantiles, from one degree of freedom on
COLUMNS = ("data", "shots", "classifier", "accuracy", "to ncm", "to gaussian", "to regression", "nll", "s / 1000 tasks")
DRAWN = ("gaussian", "regression", "metadiff", "metadiff-mean")

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
                write_readme(path.parent.name, json.loads(path.read_bytes()))
        else:
            write_table(STUDIES / chosen.study)
    except DataError as error:
        print(error, file=sys.stderr)
        return os.EX_DATAERR
    return 0


def write_table(study: Path) -> None:
    varied = YAML(typ="safe").load(study / "params.yaml")
    if len(varied["seeds"]) > len(STUDENT) + 1:
        raise DataError(f"{study / 'params.yaml'}: seeds: at most {len(STUDENT) + 1}, got {len(varied['seeds'])}")
    rows = [row for dataset in varied["datasets"] for row in dataset_rows(study, dataset, varied["seeds"])]
    write_json(study / "table.json", rows)
    draw(study / "gain.png", rows)
    for row in rows:
        print(" | ".join(cells(row)))


def dataset_rows(study: Path, dataset: str, seeds: list[int]) -> list[dict[str, Any]]:
    results = [results_folder(study, dataset, seed) for seed in seeds]
    tables = [pd.read_csv(result / "episodes.csv").query("split == 'test'") for result in results]
    metrics = json.loads((results[0] / "metrics.json").read_bytes())
    seconds = pd.DataFrame([json.loads((result / "seconds.json").read_bytes()) for result in results]).mean()
    rows = []
    for shot in sorted(tables[0]["shot"].unique()):
        cells = [table[table["shot"] == shot] for table in tables]
        accuracy = {name: per_cent(cells, name) for name in metrics["chosen"]}
        for name, values_SE in accuracy.items():
            row: dict[str, Any] = {"dataset": dataset, "method": name, "way": metrics["way"], "shot": int(shot)}
            row |= {"seeds": len(seeds), "episodes": metrics["episodes"]} | interval("accuracy", "ci95", values_SE)
            for rival in RIVALS:
                if rival in accuracy and rival != name:
                    apart_SE = values_SE - accuracy[rival]
                    row |= interval(f"vs_{rival}", f"vs_{rival}_ci95", apart_SE)
                    row[f"seeds_above_{rival}"] = sum(mean > half for mean, half in map(mean_and_ci95, apart_SE))
            row["nll"] = round(float(np.mean([part.loc[part["classifier"] == name, "nll"].mean() for part in cells])), 4)
            rows.append(row | {"seconds": round(float(seconds[name]), 3)})
    return rows


def per_cent(cells: list[pd.DataFrame], classifier: str) -> Values:
    """(S, E): accuracy by seed and episode."""
    parts = [cell[cell["classifier"] == classifier].sort_values("episode") for cell in cells]
    return np.stack([100 * np.asarray(part["correct"] / part["queries"], dtype=np.float64) for part in parts])


def interval(name: str, half: str, values_SE: Values) -> dict[str, float]:
    mean, over_episodes = mean_and_ci95(values_SE.mean(0))
    seeds = len(values_SE)
    over_seeds = STUDENT[seeds - 2] * float(values_SE.mean(1).std(ddof=1)) / seeds**0.5 if seeds > 1 else 0.0
    return {name: round(mean, 3), half: round(float(np.hypot(over_episodes, over_seeds)), 3)}


def cells(row: dict[str, Any]) -> list[str]:
    rivals = [f"{row[f'vs_{r}']:+.2f} ± {row[f'vs_{r}_ci95']:.2f}" if f"vs_{r}" in row else "" for r in RIVALS]
    accuracy = f"{row['accuracy']:.2f} ± {row['ci95']:.2f}"
    return [row["dataset"], str(row["shot"]), row["method"], accuracy, *rivals, f"{row['nll']:.3f}", f"{row['seconds']:.2f}"]


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *map(cells, rows)]
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


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """What each method gains on nearest-class-mean, with its interval."""
    mpl.use("Agg")
    from matplotlib.figure import Figure

    datasets, shots = (list(dict.fromkeys(row[key] for row in rows)) for key in ("dataset", "shot"))
    figure = Figure(figsize=(5 * len(shots), 3.6), layout="constrained")
    for axes, shot in zip(figure.subplots(1, len(shots), squeeze=False)[0], shots, strict=True):
        for number, method in enumerate(DRAWN):
            chosen = [row for row in rows if row["method"] == method and row["shot"] == shot]
            places = [datasets.index(row["dataset"]) + (number - (len(DRAWN) - 1) / 2) / 6 for row in chosen]
            gains, halves = ([row[key] for row in chosen] for key in ("vs_ncm", "vs_ncm_ci95"))
            axes.errorbar(places, gains, yerr=halves, fmt="o", capsize=3, label=method)
        axes.axhline(0, color="gray", linewidth=1)
        axes.set_xticks(range(len(datasets)), datasets)
        axes.set(title=f"{shot} shot{'s' if shot > 1 else ''}", ylabel="points above nearest-class-mean")
        axes.grid(alpha=0.3, axis="y")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
