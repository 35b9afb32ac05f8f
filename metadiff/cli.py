"""The command `metadiff`: what people ask of a finished run."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from metadiff.errors import DataError, NumericError

if TYPE_CHECKING:
    from metadiff.toy import Scores, Size

COLUMNS = ("shots", "classifier", "accuracy", "to ncm", "to gaussian", "to regression", "nll", "ece")
MEANING = "accuracy in per cent and paired differences, ± half of the 95 % interval over episodes, not over classes or seeds"
WIDTH = 110  # of the table, where no terminal says how wide it is
METRICS = Path("data/results/metrics.json")
PLOT = Path("plots/run.png")
TRAJECTORIES = Path("data/trajectories/trajectories.zarr")
TOY_PLOT = Path("plots/toy.png")
NEXT = """
Next:
  dvc exp run -S metatrain.dropout=0.5   try a parameter; only what it touches runs again
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
    toy = commands.add_parser("toy", help="the smallest proof: Gaussian classes, where the best classifier is known")
    toy.add_argument("--seed", type=int, default=0, help="of the world, the training and the episodes (default: %(default)s)")
    toy.add_argument("--out", type=Path, default=TOY_PLOT, help="where the figure goes (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "inspect":
            show_store(Console(), chosen.store)
        elif chosen.command == "toy":
            show_toy(Console(), seed=chosen.seed, out=chosen.out)
        else:
            console = Console()
            console = console if console.is_terminal else Console(width=WIDTH)
            show_results(console, split=chosen.split, with_next=chosen.next)
    except (DataError, NumericError) as error:
        print(f"metadiff: {error}", file=sys.stderr)
        return 70 if isinstance(error, NumericError) else 65
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


def show_toy(console: Console, *, seed: int, out: Path, size: "Size | None" = None) -> None:
    import torch

    from metadiff import toy
    from metadiff.toyfigure import draw_toy

    torch.set_num_threads(1)  # the networks are too small for more
    size = size or toy.Size()
    world = toy.make_world(size, seed)
    with bar("training", total=len(toy.MODELS) * size.steps) as advance:
        generators = toy.learn(world, size, seed, advance)
    with bar("classifying", total=len(toy.SHOTS) * len(toy.CLASSIFIERS) * size.episodes) as advance:
        scores = toy.judge(world, generators, size, seed, advance)
    about = f"toy: {toy.WAY}-way, {size.query} queries a class, {size.episodes} episodes of {size.test} unseen Gaussian classes"
    lines = [about, "accuracy and paired differences in per cent ± half of the 95 % interval"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    console.print(toy_table(scores))
    draw_toy(out, scores, world, generators, size, seed)
    console.print(f"Figure: {out}", highlight=False, soft_wrap=True)


@contextmanager
def bar(what: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(n)``; nothing is shown where nobody looks."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def toy_table(scores: "Scores") -> Table:
    from metadiff.evaluation import mean_and_ci95

    table = Table()
    for column, side in (
        ("shots", "right"),
        ("classifier", "left"),
        ("accuracy", "right"),
        ("- ncm", "right"),
        ("- bayes", "right"),
    ):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for shot, cells in scores.items():
        for name, values in cells.items():
            apart = [mean_and_ci95(values - cells[rival]) if rival != name else None for rival in ("ncm", "bayes")]
            accuracy = "{:.2f} ± {:.2f}".format(*mean_and_ci95(values))
            table.add_row(str(shot), name, accuracy, *("{:+.2f} ± {:.2f}".format(*pair) if pair else "" for pair in apart))
    return table


if __name__ == "__main__":
    sys.exit(main())
