"""The results of a study's cells -> table.json, a flat row for what each method is asked; figures; README's table.

    python -m stages.table few-shot   writes studies/few-shot/table.json and gain.png, and draws.png where it has draws_of
    python -m stages.table --pages    writes the table of every study into README.md or its `page`, between two marks

A row is of a data set, a method and a number of shots, on test episodes. With `table_of: sentences` it is of a method, a kind of
described task, and whether training has seen a sentence in such words, on test tasks; and the figure is ladder.png. What an
interval means is said in stages/intervals.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metadiff.artifact import write_json
from metadiff.errors import DataError
from metadiff.evaluation import mean_and_ci95
from stages.answers import asked_episodes, asked_sentences, content, per_cent
from stages.figures import draw_draws, draw_gains, draw_ladder
from stages.imports import ROOT
from stages.intervals import MOST_SEEDS, Values, interval
from stages.study import STUDIES, results_folder, seeds_of, source_of, splits_by_seed, varied_of

TABLES = ("episodes", "sentences")  # what a table may be of

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stages.table", description="The table of a study.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("study", nargs="?", choices=sorted(path.parent.name for path in STUDIES.glob("*/params.yaml")))
    what.add_argument("--pages", action="store_true", help="write the tables that there are into README.md and docs")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.pages:
            for path in sorted(STUDIES.glob("*/table.json")):
                write_page(path.parent)
        else:
            write_table(STUDIES / chosen.study)
    except DataError as error:
        print(error, file=sys.stderr)
        return os.EX_DATAERR
    return 0


def write_table(study: Path) -> None:
    varied = varied_of(study)
    if table_of(varied) not in TABLES:
        raise DataError(f"{study / 'params.yaml'}: table_of: expected {' or '.join(TABLES)}, got {table_of(varied)}")
    for name in varied["datasets"]:
        if len(seeds_of(varied, name)) > MOST_SEEDS:
            raise DataError(f"{study / 'params.yaml'}: seeds: at most {MOST_SEEDS}, got {len(seeds_of(varied, name))}")
    against, rivals = varied.get("against", "ncm"), varied["rivals"]
    if table_of(varied) == "episodes" and against not in rivals:
        raise DataError(f"{study / 'params.yaml'}: against: expected one of rivals, {', '.join(rivals)}, got {against}")
    rows = [row for name in varied["datasets"] for row in dataset_rows(study, name, varied)]
    curves = chosen_curves(study, varied) if "draws_of" in varied else {}
    write_json(study / "table.json", rows)
    if table_of(varied) == "sentences":
        draw_ladder(study / "ladder.png", rows, varied["drawn"])
    else:
        draw_gains(study / "gain.png", rows, varied["drawn"], against=against)
    if curves:
        draw_draws(study / "draws.png", varied["draws_of"], curves)
    for row in rows:
        print(" | ".join(columns(row, rivals_in(rows)).values()))


def table_of(varied: Mapping[str, Any]) -> str:
    return str(varied.get("table_of", "episodes"))


def dataset_rows(study: Path, dataset: str, varied: Mapping[str, Any]) -> list[Row]:
    """``names`` are those that classifiers of the results have in the table, where it has others."""
    results, names = [results_folder(study, dataset, seed) for seed in seeds_of(varied, dataset)], varied["names"]
    sentences, same = table_of(varied) == "sentences", not splits_by_seed(source_of(study, dataset)[0])
    told = [json.loads(content(result / "seconds.json")) for result in results]
    seconds = pd.DataFrame([of.get("described", {}) if sentences else of for of in told]).mean(numeric_only=True)
    spread = [json.loads(content(result / "metrics.json")).get("spread_of_latents", {}) for result in results if sentences]
    memory = [json.loads(path.read_bytes()) for path in (result / "memory.json" for result in results) if path.is_file()]
    rows = []
    for asked in asked_sentences(results) if sentences else asked_episodes(results):
        found = [*asked.by_seed[0]["classifier"].unique()]
        accuracy = {names.get(name, name): per_cent(asked, name) for name in found}
        if len(accuracy) < len(found):
            raise DataError(f"{study / 'params.yaml'}: names: two classifiers of {dataset} have one name; leave one out")
        for name, original in zip(accuracy, found, strict=True):
            row = {"dataset": dataset, "method": name} | asked.about
            if sentences:
                row["shot"] = labelled_images(original, varied)
            row |= compared(name, accuracy, asked.unit, rivals=varied["rivals"], same=same)
            row["nll"] = round(float(np.mean([of.loc[of["classifier"] == original, "nll"].mean() for of in asked.by_seed])), 4)
            row |= {"spread": [of[original] for of in spread]} if any(original in of for of in spread) else {}
            far = [of[original]["reconstruction"] for of in memory if original in of]
            row |= {"reconstruction": far} if far else {}
            rows.append(row | ({"seconds": round(float(seconds[original]), 3)} if original in seconds else {}))
    return rows


def compared(name: str, accuracy: Mapping[str, list[Values]], unit: str, *, rivals: list[str], same: bool) -> Row:
    """Of a method: how often it is right, and how much more often than each rival, on the very same."""
    own = accuracy[name]
    count = len(own[0]) if same else sum(map(len, own))
    row: Row = {"seeds": len(own), f"{unit}s": count} | interval("accuracy", "ci95", own, same=same)
    for rival in rivals:
        if rival in accuracy and rival != name:
            apart = [ours - theirs for ours, theirs in zip(own, accuracy[rival], strict=True)]
            row |= interval(f"vs_{rival}", f"vs_{rival}_ci95", apart, same=same)
            row[f"seeds_above_{rival}"] = sum(mean > half for mean, half in map(mean_and_ci95, apart))
    return row


def labelled_images(method: str, varied: Mapping[str, Any]) -> int:
    """That it is shown of a test task: as its name says or the study's `labelled`."""
    adapted = re.search(r"adapt-(\d+)$", method)
    return int(adapted[1]) if adapted else int(varied.get("labelled", {}).get(method, 0))


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


def shown_rows(study: Path) -> list[Row]:
    """Those on its page: `shown` of its params; of sentences two groups of kinds, with the accuracy in unseen words."""
    varied, rows = varied_of(study), json.loads((study / "table.json").read_bytes())
    rows = [row for row in rows if row["method"] in varied["shown"]]
    if not all("reconstruction" in row for row in rows):  # is only of chains
        rows = [{key: value for key, value in row.items() if key != "reconstruction"} for row in rows]
    if table_of(varied) != "sentences":
        return rows
    unseen = {(row["kind"], row["method"]): accuracy_of(row) for row in rows if row["text"] == "unseen"}
    rows = [row for row in rows if row["text"] == "seen" and row["kind"] in ("plain", "ambiguous")]
    return [row | {"unseen": unseen.get((row["kind"], row["method"]), "")} for row in rows]


def rivals_in(rows: list[Row]) -> list[str]:
    """Those with which others are compared, in the order of the rows."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return [method for method in methods if any(f"vs_{method}" in row for row in rows)]


def columns(row: Row, rivals: list[str]) -> dict[str, str]:
    """What is shown of a row, by its heading."""
    if "kind" in row:
        shown = {"sentences": row["kind"], "classifier": row["method"], "images": str(row["shot"]), "accuracy": accuracy_of(row)}
        shown |= {"in unseen words": row["unseen"]} if "unseen" in row else {"words": row["text"]}
    else:
        shown = {"data": row["dataset"], "shots": str(row["shot"]), "classifier": row["method"], "accuracy": accuracy_of(row)}
    for rival in rivals:
        apart = f"{row[f'vs_{rival}']:+.2f} ± {row[f'vs_{rival}_ci95']:.2f}" if f"vs_{rival}" in row else ""
        shown[f"to {rival}"] = apart
    shown |= {"reconstruction": f"{np.mean(row['reconstruction']):.3f}"} if "reconstruction" in row else {}
    return shown | {"nll": f"{row['nll']:.3f}", "s / 1000 tasks": f"{row['seconds']:.2f}" if "seconds" in row else ""}


def accuracy_of(row: Row) -> str:
    return f"{row['accuracy']:.2f} ± {row['ci95']:.2f}"


def markdown(rows: list[Row]) -> str:
    shown = [columns(row, rivals_in(rows)) for row in rows]
    lines = [[*shown[0]], ["---"] * len(shown[0]), *([*row.values()] for row in shown)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def marks(study: str) -> tuple[str, str]:
    return f"<!-- {study}: written by make tables -->\n", f"\n<!-- end of {study} -->"


def page(study: Path) -> Path:
    """Where its table is shown."""
    return ROOT / str(varied_of(study).get("page", "README.md"))


def write_page(study: Path) -> None:
    path, (begin, end) = page(study), marks(study.name)
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise DataError(f"{path.name}: no place for the table of {study.name}; write the lines {begin.strip()} and {end.strip()}")
    path.write_text(before + begin + markdown(shown_rows(study)) + end + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
