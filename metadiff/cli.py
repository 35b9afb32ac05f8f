"""The command `metadiff`: what people ask of their images before a run, and of a finished one."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from metadiff.errors import DataError, NumericError, ParamsError
from metadiff.resultscreens import show_results
from metadiff.screens import (
    PARAMS,
    plain_console,
    show_asked,
    show_chains,
    show_changes,
    show_classes,
    show_comparison,
    show_import,
    show_store,
    show_toy,
    show_trace,
    show_verification,
)

TRAJECTORIES = Path("data/trajectories/trajectories.zarr")
TOY_PLOT = Path("plots/toy.png")
TRACE = Path("plots/trace.html")
SHEET, ASKED = Path("plots/classify.html"), Path("plots/ask.html")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="metadiff", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    results = commands.add_parser("results", help="the result table of the last run")
    results.add_argument("--split", choices=("test", "val"), default="test", help="which classes; test by default")
    results.add_argument("--markdown", action="store_true", help="as a table for pages")
    results.add_argument("--next", action="store_true", help="draw the curves too, and say what to do next")
    inspect = commands.add_parser("inspect", help="what a store of trajectories holds, and a picture of it")
    inspect.add_argument("store", nargs="?", default=TRAJECTORIES, type=Path, help=f"by default {TRAJECTORIES}")
    chains = commands.add_parser("chains", help="a picture of how whole weights are generated for a new task, over its loss")
    chains.add_argument("--model", help="as in mcdi.models; by default the first that was trained")
    chains.add_argument("--episode", type=int, default=0, help="number of the validation episode (default: %(default)s)")
    chains.add_argument("--shot", type=int, help="support images a class; by default the most of evaluate.shots")
    toy = commands.add_parser("toy", help="the smallest proof: Gaussian classes, where the best classifier is known")
    toy.add_argument("--seed", type=int, default=0, help="of the world, the training and the episodes (default: %(default)s)")
    toy.add_argument("--out", type=Path, default=TOY_PLOT, help="where the figure goes (default: %(default)s)")
    trace = commands.add_parser("trace", help="where a number is from: every stage, parameter and file down to the images")
    trace.add_argument("result", nargs="?", default="", help="as in metrics.json, such as test.shot1.metadiff.accuracy")
    trace.add_argument("--experiment", help="of this experiment, as `dvc exp show` names it, instead of the checkout")
    trace.add_argument("--study", help="of this cell of a study, such as few-shot/kanji-radicals/3")
    trace.add_argument("--page", type=Path, default=TRACE, help="where the page with the plots goes (default: %(default)s)")
    changes = commands.add_parser("changes", help="what a change does to the numbers, as a table for pages")
    changes.add_argument("commit", help="with which this checkout is compared, such as main")
    compare = commands.add_parser("compare", help="this run beside all experiments, by the columns that matter")
    compare.add_argument("--classifier", action="append", help="as often as needed; by default metadiff")
    compare.add_argument("--split", choices=("test", "val"), default="val", help="which classes; val by default, to choose by")
    commands.add_parser(
        "verify", help="compute again whatever can be, and name every link from data to numbers that does not hold"
    )
    own = commands.add_parser("import", help="look at a folder of your own images, and propose parameters for them")
    own.add_argument("folder", type=Path, help="with a folder a class, or a CSV with the columns path and label")
    own.add_argument("--write", action="store_true", help=f"put the proposed parameters into {PARAMS}")
    classify = commands.add_parser("classify", help="pictures of new classes told apart by a run, from a few pictures of each")
    classify.add_argument("--support", required=True, type=Path, help="a folder a class, with the pictures to learn from")
    classify.add_argument("--query", required=True, type=Path, help="the pictures to classify; those in class folders are judged")
    classify.add_argument("--run", default=".", help="a checkout, a saved classifier or an experiment (default: this checkout)")
    classify.add_argument(
        "--method", default="best", help="as in metrics.json; by default the best of those for any number of classes"
    )
    classify.add_argument("--csv", type=Path, help="where a table with one row a picture goes")
    classify.add_argument("--page", type=Path, default=SHEET, help="where the page with the pictures goes (default: %(default)s)")
    ask = commands.add_parser(
        "ask", help="pictures in the order in which a sentence is true of them, by a run with models of text"
    )
    ask.add_argument("sentence", help='such as "a red thing that is not striped"')
    ask.add_argument("--images", required=True, type=Path, help="the pictures, in a folder at any depth")
    ask.add_argument("--run", default=".", help="a checkout, a saved classifier or an experiment (default: this checkout)")
    ask.add_argument("--gamma", type=float, default=1.5, help="strength of the guidance, 1 for none (default: %(default)s)")
    ask.add_argument("--draws", type=int, default=8, help="of weights, whose probabilities are averaged (default: %(default)s)")
    ask.add_argument(
        "--encoder", help="where that of the run's sentences lies, if it is a folder or a file; see metadiff/text.py"
    )
    ask.add_argument("--csv", type=Path, help="where a table with one row a picture goes")
    ask.add_argument("--page", type=Path, default=ASKED, help="where the page with the pictures goes (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "inspect":
            show_store(Console(), chosen.store)
        elif chosen.command == "chains":
            show_chains(plain_console(), TRAJECTORIES, model=chosen.model, episode=chosen.episode, shot=chosen.shot)
        elif chosen.command == "trace":
            show_trace(plain_console(), chosen)
        elif chosen.command == "changes":
            show_changes(plain_console(), chosen.commit)
        elif chosen.command == "compare":
            show_comparison(plain_console(), chosen.classifier or ["metadiff"], split=chosen.split)
        elif chosen.command == "verify":
            return show_verification(plain_console())
        elif chosen.command == "classify":
            show_classes(plain_console(), chosen)
        elif chosen.command == "ask":
            show_asked(plain_console(), chosen)
        elif chosen.command == "toy":
            show_toy(Console(), seed=chosen.seed, out=chosen.out)
        elif chosen.command == "import":
            show_import(plain_console(), chosen.folder, write=chosen.write)
        else:
            show_results(plain_console(), split=chosen.split, markdown=chosen.markdown, with_next=chosen.next)
    except (DataError, NumericError, ParamsError) as error:
        print(f"metadiff: {error}", file=sys.stderr)
        codes = {NumericError: os.EX_SOFTWARE, ParamsError: os.EX_USAGE}
        return codes.get(type(error), os.EX_DATAERR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
