"""labelled images of any source -> images.h5, classes.csv and checks.json; where sentences ask more, tasks and vectors of theirs.

The unit of work is a block of images: a killed run goes on after the last block it finished, and all processors draw. What comes
as archives is unpacked first. Every image that cannot be used is listed with its reason in bad.csv; the run then stops, or goes
on without them, as params.yaml says. Memory holds a line of text an image, never the images.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from metadiff.artifact import write_array, write_json
from metadiff.errors import DataError, ParamsError
from metadiff.images import KANJI, PUBLISHED, SHAPES, Source, open_source
from metadiff.images.archives import archives_at, expected_size, unpack
from metadiff.images.catalogue import (
    Drawn,
    class_table,
    count_twins,
    draw_block,
    good_ones,
    make_rows,
    pixels,
    read_facts,
    refuse_small_classes,
    without_twins,
)
from metadiff.images.source import by_name
from metadiff.images.splits import crossing, split_classes
from metadiff.rows import SPLITS, Rows
from metadiff.store import write_images
from metadiff.tasks import SENTENCES, read_tasks, write_tasks
from stages.checks import manifest_contract
from stages.executors import Job, computed_units
from stages.runner import Run, Stage, main

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metadiff.concepts import DescribedTask
    from metadiff.params import Prepare
    from metadiff.text import Encoder

BLOCK = 512  # images a unit
MANY = 8  # blocks, from where on starting processes is worth it


def build(run: Run[Prepare]) -> None:
    section = run.params
    path = Path(section.path)
    source = open_source(
        section.source,
        path=path,
        image_size=section.image_size,
        color=section.color,
        given_split=section.split == "given",
        min_images=section.min_images,
        shares=None if section.split == "given" else section.split,
        split_seed=section.split_seed,
        quarter_turns=section.quarter_turns,
        unpacked=unpacked(run, path),
        scratch=run.scratch,
    )
    run.say(*source.findings)
    encoder = None if section.encoder == "none" else encoder_of(section.encoder, path)
    if source.left_out:
        run.say(f"{len(source.left_out)} classes of fewer than {section.min_images} images are left out")
    size, channels = section.image_size, 3 if section.color == "rgb" else 1
    run.reserve(3 * len(source.entries) * size * size * channels)
    folders = draw(run, source)
    table = read_facts(folders)
    images, complaints = good_ones(table, on_bad=section.on_bad, listing=run.out / "bad.csv")
    run.say(*complaints)
    if source.drops_twins:
        alone = without_twins(images)
        if len(alone) < len(images):
            run.say(f"{len(images) - len(alone)} images look exactly like one of another class and are left out")
        images = alone
    refuse_small_classes(images, sorted(table["label"].unique()), need=section.min_images)
    if section.split != "given" and not source.splits_share_classes:
        images = images.assign(split=images["label"].map(split(run, source)))
    classes = class_table(images, source.descriptions)
    facts = images.assign(height=size, width=size, channels=channels)
    one_image, need = source.group_is_one_image, section.min_images
    if source.twins_are_published and (twins := count_twins(images)):
        run.say(f"{twins} images look exactly like one of another class or split; so they were published")
    checks = manifest_contract(
        facts,
        classes,
        size=size,
        channels=channels,
        need=need,
        group_is_one_image=one_image,
        twins_are_published=source.twins_are_published,
        splits_share_classes=source.splits_share_classes,
    )
    rows = make_rows(images, classes, dataset=source.name)
    write_images(run.out / "images.h5", pixels(folders, table, images.index), shape=(size, size, channels), rows=rows)
    listed = classes.rename(columns={"label": "name"})[["name", "split", "count", "description"]]
    listed.to_csv(run.out / "classes.csv", index_label="id", lineterminator="\n")
    write_json(run.out / "checks.json", checks)
    if source.tasks:
        write_tasks(run.out / "tasks.json", source.tasks)
    if encoder:
        run.say(*nameless(source))
        embed(run, rows, encoder)
    sizes = ", ".join(f"{name} {sum(classes['split'] == name)}" for name in SPLITS)
    run.say(f"{source.name}: {len(images):,} images of {len(classes)} classes ({sizes})")


def encoder_of(name: str, path: Path) -> Encoder:
    """Before anything is drawn: who lacks it should not learn so hours later."""
    from metadiff import text  # with torch, which drawing does without

    try:
        return text.encoder_of(name, cached=path)
    except ParamsError as error:
        raise ParamsError(f"params.yaml: prepare.encoder: {error}") from None


def nameless(source: Source) -> list[str]:
    """What the sentences of classes are of which only the name is known."""
    if source.tasks:
        return []
    told = source.descriptions
    named = [label for label in sorted({entry.label for entry in source.entries}) if told.get(label) == by_name(label)]
    if not named:
        return []
    return [f"{len(named)} classes have no description: their sentence is their name, as in {by_name(named[0])!r}"]


def embed(run: Run[Prepare], rows: Rows, encoder: Encoder) -> None:
    """The sentences of all tasks as vectors, with what made them."""
    from metadiff.vectors import write_vectors

    tasks = read_tasks(run.out, rows)
    if not tasks:
        raise DataError("prepare.encoder: nothing here has a description to encode; write none")
    sentences = sorted({text for task in tasks for text in task.texts})
    write_vectors(run.out / SENTENCES, sentences, encoder.encode(sentences), about=encoder.about)
    run.say(f"{len(sentences):,} sentences of {len(tasks):,} tasks")
    if known := known_from_training(tasks):
        run.say(f"{len(known):,} sentences of val or test are of training too, as {known[0]!r}: they measure nothing new")


def known_from_training(tasks: Sequence[DescribedTask]) -> list[str]:
    """Sentences of other splits that training has."""
    of_train = {text for task in tasks if task.split == "train" for text in task.texts}
    return sorted({text for task in tasks if task.split != "train" for text in task.texts} & of_train)


def draw(run: Run[Prepare], source: Source) -> list[Path]:
    """A folder a block: the pixels of its images, and a sheet of facts with one row an entry."""
    count = len(source.entries)
    parts = {f"block-{start // BLOCK:05d}": range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)}
    sizes = {name: len(part) for name, part in parts.items()}

    def job_of(name: str) -> Job[Drawn]:
        return partial(draw_block, source.part(parts[name]))

    where = "processes" if len(parts) >= MANY else "serial"
    return computed_units(run, sizes, job_of, save_block, what="drawing", unit="images", default=where)


def save_block(folder: Path, drawn: Drawn) -> None:
    images, facts = drawn
    if images is not None:
        write_array(folder / "images.npy", images)
    write_json(folder / "facts.json", facts)


def unpacked(run: Run[Prepare], path: Path) -> Path | None:
    """A folder for each archive, that at the path or those in the folder, with what it contains; None if there are none.

    Not kept from run to run: to make sure that thousands of small files are whole takes longer than to unpack them.
    """
    may_be = run.params.source in PUBLISHED or (run.params.source not in (*KANJI, SHAPES) and path.is_file())
    archives = archives_at(path) if may_be else []
    if not archives:
        return None
    place = run.scratch / "unpacked"
    with run.progress("unpacking", total=sum(map(expected_size, archives)), unit="bytes") as advance:

        def written(count: int) -> None:
            run.stop_if_asked("while unpacking", "begins with that again")
            advance(count)

        for number, archive in enumerate(archives):
            unpack(archive, place / f"{number}" / archive.name, advance=written)
    return place


def split(run: Run[Prepare], source: Source) -> dict[str, str]:
    """The split of each class; what cannot be kept together of classes that are drawn inside each other is said."""
    shares, seed = run.params.split, run.params.split_seed
    assert shares != "given"
    of_class = split_classes({entry.label for entry in source.entries}, shares=shares, seed=seed, nested=source.nested)
    across = crossing(source.nested, of_class)
    if across:
        times = sum(count for _, _, count in across)
        run.say(f"{len(across)} pairs of classes, one drawn inside the other {times:,} times, fall into different splits")
    return of_class


STAGE = Stage(
    name="prepare",
    out=Path("data/prepared"),
    build=build,
    raw=lambda params: Path(params.prepare.path),
    versions=("fonttools", "great-expectations", "h5py", "kanjivg", "numpy", "pandas", "pillow"),
    lower="prepare.image_size",
)

if __name__ == "__main__":
    main(STAGE)
