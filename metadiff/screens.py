"""What the commands of `metadiff` show: tables, lines and where the pictures went."""

import argparse
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Table
from rich.text import Text

from metadiff.artifact import write_synced
from metadiff.errors import DataError, ParamsError
from metadiff.resultscreens import COLUMNS, MEANING, PLOT, result_cells

if TYPE_CHECKING:
    from metadiff.ask import Sheet
    from metadiff.classification import Report
    from metadiff.toy import Scores, Size

WIDTH = 110  # of the table, where no terminal says how wide it is
PARAMS = Path("params.yaml")
IMAGES, FEATURES = Path("data/prepared/images.h5"), Path("data/backbone/features.h5")
GENERATOR = Path("data/generator")
FEW = 20  # pictures that are listed one by one


def plain_console() -> Console:
    """As wide as a table needs, where no terminal says how wide it is."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def show_store(console: Console, path: Path) -> None:
    from metadiff.inspection import draw, progress_table, summary
    from metadiff.trajectory_store import open_trajectories

    store = open_trajectories(path)
    console.print("\n".join(summary(store)), highlight=False, soft_wrap=True)
    console.print(progress_table(store))
    console.print(f"Picture:  {draw(store, PLOT.with_name('trajectories.png'))}", highlight=False, soft_wrap=True)


def show_chains(console: Console, store: Path, *, model: str | None, episode: int, shot: int | None) -> None:
    """On an episode of those by which `evaluate` chooses."""
    from metadiff import chainfigure as figure
    from metadiff.classifiers import make_weight_generators, read_checkpoints
    from metadiff.diffusion import gaussian_noise
    from metadiff.params import load
    from metadiff.picturefiles import read_pictures
    from metadiff.rng import torch_stream
    from metadiff.store import read_rows
    from metadiff.trajectory_store import open_trajectories
    from metadiff.weightclassifiers import WITHOUT_NOISE

    for name, value, least in (("shot", shot, 1), ("episode", episode, 0)):
        if value is not None and value < least:
            raise ParamsError(f"--{name}: must be at least {least}, got {value}")
    section, made = load(PARAMS).evaluate, make_weight_generators(read_checkpoints(GENERATOR), "cpu")
    drawing = [name for name in made if name not in WITHOUT_NOISE]
    model = model or next(iter(drawing), "local")
    if model not in drawing:
        there = ", ".join(drawing) or "none"
        raise DataError(f"{GENERATOR}: no chain of {model}; there are: {there}; name it in mcdi.models and run: dvc repro")
    of_pixels = made[model].inputs.of_pixels
    for path, stage in ((FEATURES, "pretrain"), (IMAGES, "prepare"))[: 1 + of_pixels]:
        if not path.is_file():
            raise DataError(f"{path}: missing; make it: dvc repro {stage}, or dvc pull")
    data, pictures = read_rows(FEATURES), read_pictures(FEATURES, IMAGES, pixels=of_pixels)
    sizes = {"shot": section.shots[-1] if shot is None else shot, "query": section.query, "seed": section.seed}
    task = figure.task_of(made[model], data, pictures, episode=episode, **sizes)
    chains = figure.chain_walks(task, gaussian_noise(torch_stream(section.seed, "chains", episode)))
    optimisers = figure.optimiser_walks(task, chains, open_trajectories(store).attributes["params"])
    title = f"{model} on validation episode {episode} of {data.dataset}: {made[model].learner.way}-way, {sizes['shot']}-shot"
    ends = {"noise": (chains, 0), "chain": (chains, -1), "optimiser": (optimisers, -1)}
    found = ", ".join(f"{name} {figure.mean_loss(task, *walks):.3f}" for name, walks in ends.items())
    picture = figure.draw_chains(PLOT.with_name("chains.png"), task, chains, optimisers, title=title)
    lines = [title, f"cross-entropy of the queries, mean of {figure.DRAWS} draws: {found}", f"Picture:  {picture}"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def show_trace(console: Console, chosen: argparse.Namespace) -> None:
    from metadiff import tracepage
    from metadiff.lineage import numbers, read_chain
    from metadiff.studies import read_cell

    result, page = chosen.result, chosen.page
    chain = read_cell(Path(), chosen.study) if chosen.study else read_chain(Path(), chosen.experiment)
    found = numbers(chain, result) if result else {}
    console.print(tracepage.tree(chain, result, found))
    plots = [] if chosen.experiment or chosen.study else pictures()
    page.parent.mkdir(parents=True, exist_ok=True)
    write_synced(page, tracepage.page(chain, result, found, plots))
    console.print(f"Page: {page}", highlight=False, soft_wrap=True)


def pictures() -> list[Path]:
    """Of the checkout, drawn from what is there."""
    from metadiff.plots import draw_run

    run = draw_run(PLOT)
    return [run] if run else []


def show_comparison(console: Console, classifiers: list[str], *, split: str) -> None:
    """Under the name of each run the parameters in which it differs from the commit of the checkout."""
    from metadiff.comparison import results

    table = Table()
    for column in ("run", "seconds", "data", *COLUMNS[:6]):
        table.add_column(column, justify="left" if column in ("run", "data", "classifier") else "right", no_wrap=True)
    for result in results(Path()):
        names = [result.name, *(f"  {key} {value}" for key, value in result.changes.items())]
        rows = [
            (result.metrics["dataset"], shot.removeprefix("shot"), name, *[*result_cells(cells[name])][:4])
            for shot, cells in result.metrics[split].items()
            for name in filter(cells.__contains__, classifiers)
        ]
        for name, seconds, row in zip_longest(names, [result.seconds], rows, fillvalue=""):
            table.add_row(name, seconds, *row)
        table.add_section()
    console.print(f"{split} classes; {MEANING}", highlight=False, soft_wrap=True)
    wide = Console(width=1000)  # a terminal wraps what is too wide, rich would cut it
    Console(width=wide.measure(table).maximum).print(table)


def show_changes(console: Console, commit: str) -> None:
    from metadiff.comparison import changes

    found = changes(Path(), commit)
    lines = ["| classes | shots | classifier | before | now | difference | |", "|---|---|---|---|---|---|---|"]
    for change in found:
        apart, mark = "", ""
        if change.difference:
            apart = "{:+.2f} ± {:.2f}".format(*change.difference)
            mark = "within noise" if abs(change.difference[0]) <= change.difference[1] else ""
        told = ["{:.2f} ± {:.2f}".format(*values) if values else "" for values in (change.before, change.now)]
        lines.append(f"| {change.split} | {change.shot} | {change.classifier} | {' | '.join(told)} | {apart} | {mark} |")
    lines += ["", "Accuracy in per cent, ± half of the 95 % interval; differences as if the episodes were others."]
    console.print("\n".join(lines) if found else f"No accuracy differs from {commit}.", highlight=False, soft_wrap=True)


def show_verification(console: Console) -> int:
    from metadiff.lineage import read_chain
    from metadiff.verifying import count_outputs, verify_chain

    marks = {"holds": "[green]holds [/green]", "broken": "[red]BROKEN[/red]", "absent": "[yellow]absent[/yellow]"}
    found = []
    with bar("verifying", total=count_outputs(read_chain(Path()))) as advance:
        for link in verify_chain(Path(), advance):
            found.append(link.state)
            console.print(f"{marks[link.state]}  {link.name}", highlight=False, soft_wrap=True)
            for line in link.details:
                console.print(f"        {line}", highlight=False, soft_wrap=True, markup=False)
    broken, absent = found.count("broken"), found.count("absent")
    unseen = f", {absent} could not be looked at" if absent else ""
    console.print(
        f"{broken} of {len(found)} links do not hold{unseen}" if broken else f"{len(found) - absent} links hold{unseen}"
    )
    return 65 if broken else 0


def show_classes(console: Console, chosen: argparse.Namespace) -> None:
    from metadiff import classification, contactsheet
    from metadiff.classifier import Classifier
    from metadiff.images.folder import picture_files

    classifier = Classifier.from_run(chosen.run, chosen.method)
    with bar("classifying", total=len(picture_files(chosen.query))) as advance:
        report = classification.classify(chosen.support, chosen.query, classifier, advance)
    lines = [classification.about(report.lineage), *(f"left out  {line}" for line in classification.told(report.skipped))]
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    console.print(answers_table(report))
    if len(report.answers) > FEW:
        console.print(f"and {len(report.answers) - FEW} more; by class:")
        console.print(classes_table(report))
    if report.accuracy:
        right, known = report.accuracy
        console.print(f"Accuracy: {100 * right / known:.2f} %, {right} of {known} pictures in class folders", highlight=False)
    write_files(console, chosen, table=classification.table(report), page=contactsheet.page(report, chosen.query))


def show_asked(console: Console, chosen: argparse.Namespace) -> None:
    from metadiff import ask, contactsheet
    from metadiff.classification import told
    from metadiff.classifier import Classifier
    from metadiff.images.folder import picture_files

    count = len(picture_files(chosen.images))
    how = {"gamma": chosen.gamma, "draws": chosen.draws, "encoder": chosen.encoder}
    classifier = Classifier.from_text(chosen.sentence, chosen.run, **how)
    with bar("asking", total=count) as advance:
        sheet = ask.ask(chosen.images, classifier, advance)
    lines = [ask.about(sheet.lineage), *(f"left out  {line}" for line in told(sheet.skipped))]
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    console.print(scores_table(sheet))
    found = f"Yes: {len(sheet.of('yes'))} of {len(sheet.scores)} pictures"
    console.print(found + (f", the likeliest {FEW} above" if len(sheet.scores) > FEW else ""), highlight=False)
    write_files(console, chosen, table=ask.table(sheet), page=contactsheet.asked_page(sheet, chosen.images))


def write_files(console: Console, chosen: argparse.Namespace, *, table: str, page: str) -> None:
    """Where they were asked for."""
    for path, text in ((chosen.csv, table), (chosen.page, page)):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(path, text)
            console.print(f"{'Page' if path == chosen.page else 'Table'}: {path}", highlight=False, soft_wrap=True)


def answers_table(report: "Report") -> Table:
    from metadiff.images.source import shown

    table = Table("image", "prediction")
    table.add_column("confidence", justify="right")
    for answer in report.answers[:FEW]:
        mark = Text(f"  not {answer.truth}", style="red") if answer.wrong else Text()
        table.add_row(Text(shown(answer.name)), Text(answer.prediction) + mark, f"{answer.confidence:.3f}")
    return table


def scores_table(sheet: "Sheet") -> Table:
    from metadiff.images.source import shown

    table = Table("image", "answer")
    table.add_column("score", justify="right")
    for score in sheet.scores[:FEW]:
        table.add_row(Text(shown(score.name)), score.answer, f"{score.value:.3f}")
    return table


def classes_table(report: "Report") -> Table:
    from metadiff.classification import by_class

    table = Table("class")
    for column in ("learnt from", "predicted", "confidence", "right"):
        table.add_column(column, justify="right")
    for label, learnt, predicted, confidence, right in by_class(report):
        table.add_row(Text(label), str(learnt), str(predicted), "" if confidence is None else f"{confidence:.3f}", right)
    return table


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


def show_import(console: Console, folder: Path, *, write: bool) -> None:
    """What is there is said first, then why it cannot be used or how it can."""
    from metadiff import importing, proposal
    from metadiff.params import load

    params = load(PARAMS)
    source = importing.open_images(folder)
    with bar("looking", total=len(source.entries)) as advance:
        looks = importing.look_at_all(source.files, source.root, advance)
    found = importing.survey(source, looks)
    console.print("\n".join(importing.report(found)), highlight=False, soft_wrap=True, markup=False)
    console.print(importing.class_table(found))
    settings = proposal.propose(found, params)
    if write:
        proposal.write(settings, PARAMS)
    else:
        proposal.applied(settings, PARAMS)  # what cannot be is said now
    written = f"Written to {PARAMS}" if write else f"Proposed for {PARAMS}"
    lines = [f"\n{written}:\n", proposal.as_yaml(settings), *import_next(folder, proposal.project_path(folder), write=write)]
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


def import_next(folder: Path, path: str, *, write: bool) -> Iterator[str]:
    if Path(path).is_absolute():
        home = f"data/external/{Path(path).name}"
        while Path(home).exists():
            home += "-new"
        yield "The folder lies outside of the project, and a run depends on it where it is. A home for it here, not in git:"
        yield f"  mkdir -p data/external && cp -r {shlex.quote(path)} {shlex.quote(home)}"
        yield f"  metadiff import {shlex.quote(home)} --write\n"
    yield "Next:"
    if not write:
        yield f"  metadiff import {shlex.quote(str(folder))} --write"
    yield "  dvc repro"


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def bar(what: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(n)``; nothing is shown where nobody looks."""
    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns(), Rate(), console=console, disable=not console.is_terminal, transient=True
    ) as progress:
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
