"""The command `metadiff`: what people ask of a finished run."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from metadiff.errors import DataError

METRICS = Path("data/results/metrics.json")
CURVES = Path("data/backbone/curves/plots/metrics")
PLOT = Path("plots/curves.png")
NEXT = """
Next:
  dvc exp run -S pretrain.epochs=5       try a parameter; only what it touches runs again
  dvc exp show --only-changed            compare it with this run
  dvc plots show --open                  all curves in the browser"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="metadiff", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    results = commands.add_parser("results", help="the result table of the last run")
    results.add_argument("--next", action="store_true", help="draw the curves too, and say what to do next")
    chosen = parser.parse_args(arguments)
    try:
        show_results(Console(), with_next=chosen.next)
    except DataError as error:
        print(f"metadiff: {error}", file=sys.stderr)
        return 65
    return 0


def show_results(console: Console, *, with_next: bool) -> None:
    if not METRICS.is_file():
        raise DataError(f"{METRICS}: there is no result yet; make one with: make repro")
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    about = f"{metrics['dataset']}: {metrics['way']}-way, {metrics['query']} queries a class, {metrics['episodes']} episodes"
    lines = [about, "accuracy in per cent ± half of the 95 % interval"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    console.print(results_table(metrics))
    if with_next:
        plot = draw_curves() if CURVES.is_dir() else f"none here ({CURVES} is not pulled)"
        lines = [f"Numbers: {METRICS}; one row an episode: {METRICS.with_name('episodes.csv')}", f"Plots:   {plot}", NEXT]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)


def results_table(metrics: dict[str, object]) -> Table:
    table = Table()
    for column, side in (("split", "left"), ("shots", "right"), ("classifier", "left"), ("accuracy", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for row in result_rows(metrics):
        table.add_row(*row)
    return table


def result_rows(metrics: dict[str, object]) -> Iterator[tuple[str, str, str, str]]:
    """(split, shots, classifier, accuracy) of each cell, the test classes first."""
    for split in ("test", "val"):
        for shot, classifiers in dict(metrics[split]).items():  # type: ignore[call-overload]
            for name, cell in classifiers.items():
                yield split, shot.removeprefix("shot"), name, f"{cell['accuracy']:.2f} ± {cell['ci95']:.2f}"


def draw_curves() -> Path:
    """The curves of pretraining as a picture, drawn anew only when they changed."""
    files = sorted(CURVES.rglob("*.tsv"))
    if PLOT.is_file() and PLOT.stat().st_mtime >= max(file.stat().st_mtime for file in files):
        return PLOT
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(files), 3), layout="constrained")
    for axes, file in zip(figure.subplots(1, len(files), squeeze=False)[0], files, strict=True):
        lines = file.read_text(encoding="utf-8").splitlines()[1:]
        steps, values = zip(*(map(float, line.split("\t")) for line in lines), strict=True)
        axes.plot([step + 1 for step in steps], values, marker=".")
        axes.set(title=file.relative_to(CURVES).with_suffix("").as_posix(), xlabel="epoch")
        axes.grid(alpha=0.3)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=120)
    return PLOT


if __name__ == "__main__":
    sys.exit(main())
