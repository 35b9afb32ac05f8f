"""What a run has found, as a table: how well each classifier does on episodes and, where sentences are asked, on those."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from metadiff.errors import DataError

COLUMNS = ("shots", "classifier", "accuracy", "to ncm", "to gaussian", "to regression", "nll", "ece")
MEANING = "accuracy in per cent and paired differences, ± half of the 95 % interval over episodes, not over classes or seeds"
TOLD = ("sentences", "classifier", "accuracy", "in unseen words", "nll")
TOLD_MEANING = "questions of yes or no that a sentence asks; accuracy in per cent, ± half of the 95 % interval over sentences"
METRICS = Path("data/results/metrics.json")
PLOT = Path("plots/run.png")
NEXT = """
Next:
  dvc exp run -S metatrain.dropout=0.5   try a parameter; only what it touches runs again
  metadiff compare                       compare it with this run
  metadiff trace test.shot1.metadiff     where these numbers are from, down to the images"""


def show_results(console: Console, *, split: str, markdown: bool = False, with_next: bool = False) -> None:
    if not METRICS.is_file():
        raise DataError(f"{METRICS}: there is no result yet; make one with: make repro")
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    count = metrics.get("val_episodes", metrics["episodes"]) if split == "val" else metrics["episodes"]  # once they were as many
    episodes = f"{metrics['query']} queries a class, {count} episodes of {split} classes"
    console.print(f"{metrics['dataset']}: {metrics['way']}-way, {episodes}\n{MEANING}", highlight=False, soft_wrap=True)
    if markdown:
        console.print(f"\n{results_markdown(metrics, split=split)}", highlight=False, soft_wrap=True)
    else:
        console.print(results_table(metrics, split=split))
    if told := metrics.get("described", {}).get(split):
        console.print(f"\n{TOLD_MEANING}", highlight=False, soft_wrap=True)
        console.print(f"\n{told_markdown(told)}" if markdown else told_table(told), highlight=False, soft_wrap=markdown)
    if with_next:
        from metadiff.plots import draw_run  # with pandas and matplotlib, which take a second

        plot = draw_run(PLOT) or "none here (data/ is not pulled)"
        lines = [f"Numbers: {METRICS}; one row an episode: {METRICS.with_name('episodes.csv')}", f"Plots:   {plot}", NEXT]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)


def results_table(metrics: dict[str, Any], *, split: str) -> Table:
    table = Table()
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "classifier" else "right")
    for shot, classifiers in metrics[split].items():
        for name, cell in classifiers.items():
            table.add_row(shot.removeprefix("shot"), name, *result_cells(cell))
        table.add_section()
    return table


def results_markdown(metrics: dict[str, Any], *, split: str) -> str:
    rows = [
        (shot.removeprefix("shot"), name, *result_cells(cell))
        for shot, classifiers in metrics[split].items()
        for name, cell in classifiers.items()
    ]
    return markdown_table([COLUMNS, ("---",) * len(COLUMNS), *rows])


def told_table(told: dict[str, Any]) -> Table:
    table = Table()
    for column in TOLD:
        table.add_column(column, justify="right" if column in TOLD[2:] else "left")
    for group in told["seen"]:
        for row in told_rows(told, group):
            table.add_row(*row)
        table.add_section()
    return table


def told_markdown(told: dict[str, Any]) -> str:
    rows = [row for group in told["seen"] for row in told_rows(told, group)]
    return markdown_table([TOLD, ("---",) * len(TOLD), *rows])


def told_rows(told: dict[str, Any], group: str) -> Iterator[tuple[str, ...]]:
    """The best first; a class of one's own is described in one way, so no words of it are unseen."""
    seen, unseen = told["seen"][group], told.get("unseen", {}).get(group, {})
    for name in sorted(seen, key=lambda name: -seen[name]["accuracy"]):
        yield group, name, accuracy(seen[name]), accuracy(unseen[name]) if name in unseen else "", f"{seen[name]['nll']:.3f}"


def markdown_table(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def accuracy(cell: dict[str, Any]) -> str:
    return f"{cell['accuracy']:.2f} ± {cell['ci95']:.2f}"


def result_cells(cell: dict[str, Any]) -> Iterator[str]:
    yield accuracy(cell)
    for rival in ("ncm", "gaussian", "regression"):
        yield difference(cell.get(f"vs_{rival}"))
    yield f"{cell['nll']:.3f}"
    yield f"{cell['ece']:.1f}"


def difference(cell: dict[str, float] | None) -> str:
    return f"{cell['diff']:+.2f} ± {cell['ci95']:.2f}" if cell else ""
