"""The command `metadiff`: what people ask of a finished run."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from metadiff.errors import DataError

COLUMNS = ("shots", "classifier", "accuracy", "to ncm", "to gaussian", "to regression", "nll", "ece")
MEANING = "accuracy in per cent and paired differences, ± half of the 95 % interval over episodes, not over classes or seeds"
WIDTH = 110  # of the table, where no terminal says how wide it is
METRICS = Path("data/results/metrics.json")
PLOT = Path("plots/run.png")
TRAJECTORIES = Path("data/trajectories/trajectories.zarr")
NEXT = """
Next:
  dvc exp run -S metatrain.dropout=0.3   try a parameter; only what it touches runs again
  dvc exp show --only-changed            compare it with this run
  dvc plots show --open                  all curves in the browser"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="metadiff", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    results = commands.add_parser("results", help="the result table of the last run")
    results.add_argument("--split", choices=("test", "val"), default="test", help="which classes; test by default")
    results.add_argument("--next", action="store_true", help="draw the curves too, and say what to do next")
    inspect = commands.add_parser("inspect", help="what a store of trajectories holds, and a picture of it")
    inspect.add_argument("store", nargs="?", default=TRAJECTORIES, type=Path, help=f"by default {TRAJECTORIES}")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "inspect":
            show_store(Console(), chosen.store)
        else:
            console = Console()
            console = console if console.is_terminal else Console(width=WIDTH)
            show_results(console, split=chosen.split, with_next=chosen.next)
    except DataError as error:
        print(f"metadiff: {error}", file=sys.stderr)
        return 65
    return 0


def show_results(console: Console, *, split: str, with_next: bool) -> None:
    if not METRICS.is_file():
        raise DataError(f"{METRICS}: there is no result yet; make one with: make repro")
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    episodes = f"{metrics['query']} queries a class, {metrics['episodes']} episodes of {split} classes"
    about = f"{metrics['dataset']}: {metrics['way']}-way, {episodes}"
    lines = [
        about,
        MEANING,
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    console.print(results_table(metrics, split=split))
    if with_next:
        from metadiff.plots import draw_run  # with pandas and matplotlib, which take a second

        plot = draw_run(PLOT) or "none here (data/ is not pulled)"
        lines = [f"Numbers: {METRICS}; one row an episode: {METRICS.with_name('episodes.csv')}", f"Plots:   {plot}", NEXT]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)


def show_store(console: Console, path: Path) -> None:
    from metadiff.inspection import draw, progress_table, summary
    from metadiff.trajectory_store import open_trajectories

    store = open_trajectories(path)
    console.print("\n".join(summary(store)), highlight=False, soft_wrap=True)
    console.print(progress_table(store))
    console.print(f"Picture:  {draw(store, PLOT.with_name('trajectories.png'))}", highlight=False, soft_wrap=True)


def results_table(metrics: dict[str, Any], *, split: str) -> Table:
    table = Table()
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "classifier" else "right")
    for shot, classifiers in metrics[split].items():
        for name, cell in classifiers.items():
            table.add_row(shot.removeprefix("shot"), name, *result_cells(cell))
        table.add_section()
    return table


def result_cells(cell: dict[str, Any]) -> Iterator[str]:
    yield f"{cell['accuracy']:.2f} ± {cell['ci95']:.2f}"
    for rival in ("ncm", "gaussian", "regression"):
        yield difference(cell.get(f"vs_{rival}"))
    yield f"{cell['nll']:.3f}"
    yield f"{cell['ece']:.1f}"


def difference(cell: dict[str, float] | None) -> str:
    return f"{cell['diff']:+.2f} ± {cell['ci95']:.2f}" if cell else ""


if __name__ == "__main__":
    sys.exit(main())
