"""Published benchmarks: which classes and how many images each has, and in which split; published.json holds the class names.

A data set is recognised by what its files hold (imagefiles.py, arrayfiles.py), held to what was published, and then is a source
like any other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metadiff.errors import DataError
from metadiff.images.arrayfiles import arrays
from metadiff.images.imagefiles import class_folders
from metadiff.images.place import Place, draw_place
from metadiff.images.shelf import Layout, Reading, Shelf
from metadiff.images.source import BadImageError, ClassesApart, Entry, by_name, large_classes, require_classes, shown
from metadiff.rows import SPLITS

LAYOUTS: tuple[Layout, ...] = (class_folders, arrays)
LISTED = 5  # classes named in a message
SAMPLE = 256  # images looked at for their colours
CLASSES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))  # by data set and split
BLUER = 3.0  # levels by which blue may outweigh red: in photographs it is the other way round


@dataclass(frozen=True)
class Published:
    """What is known of a data set."""

    name: str
    title: str
    splits: Mapping[str, Sequence[str]]  # the classes of each
    images: tuple[int, int]  # fewest and most of a class
    totals: tuple[int, int, int]  # images of train, val and test
    home: str  # whose it is
    bring: str  # what belongs into prepare.path
    side: int = 0  # pixels of images that are stored as arrays, or all alike
    partial: bool = False  # people also use a part of it
    photos: bool = True
    inside: str = ""  # the folder that its class folders lie in, where other pictures come along
    md5: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of files as they were published

    @cached_property
    def split_of(self) -> dict[str, str]:
        return {label: split for split, labels in self.splits.items() for label in labels}


FACTS = {
    facts.name: facts
    for facts in (
        Published(
            "omniglot",
            "Omniglot",
            CLASSES["omniglot"],
            (20, 20),
            (20_560, 3_440, 8_460),
            "https://github.com/brendenlake/omniglot",
            "images_background.zip and images_evaluation.zip, or what they unpack to",
            side=105,
            partial=True,
            photos=False,
            md5={
                "images_background.zip": ("68d2efa1b9178cc56df9314c21c6e718",),
                "images_evaluation.zip": ("6b91aef0f799c5bb55b94e3f2daec811",),
                "images_background_small1.zip": ("e704a628b5459e08445c13499850abc4",),
                "images_background_small2.zip": ("b75a71a51d3b13f821f212756fe481fd",),
            },
        ),
        Published(
            "miniimagenet",
            "miniImageNet",
            CLASSES["miniimagenet"],
            (600, 600),
            (38_400, 9_600, 12_000),
            "https://github.com/twitter-research/meta-learning-lstm",
            "the pickles miniImageNet_category_split_*.pickle or mini-imagenet-cache-*.pkl, images with train.csv, val.csv and "
            "test.csv, or a folder of images a class",
            side=84,
            md5={
                "mini-imagenet.tar.gz": ("b38f1eb4251fb9459ecc8e7febf9b2eb",),
                "train.csv": ("9525e1538f67719f18f1936bf8d0782d", "33c79b4a6a882b44bf4aaf38ee3e2bc2"),
                "val.csv": ("ce315ce99b41fbf84fa6acd69315d918", "acb4dc6fcb1089625a1ace73a59f4f46"),
                "test.csv": ("5b89df877c6cbe5d291e43118a2a9591", "529535c90b4adf0f130a47a5153f2a71"),
            },
        ),
        Published(
            "tieredimagenet",
            "tieredImageNet",
            CLASSES["tieredimagenet"],
            (1, 1300),
            (448_695, 124_261, 206_209),
            "https://github.com/renmengye/few-shot-ssl-public",
            "tiered-imagenet.tar, the pickles {train,val,test}_images_png.pkl or the arrays {train,val,test}_images.npz, either "
            "with {train,val,test}_labels.pkl, or a folder of images a class",
            side=84,
            md5={"tiered-imagenet.tar": ("e07e811b9f29362d159a9edd0d838c62",)},
        ),
        Published(
            "cifar-fs",
            "CIFAR-FS",
            CLASSES["cifar-fs"],
            (600, 600),
            (38_400, 9_600, 12_000),
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            "cifar-100-python.tar.gz, CIFAR_FS_{train,val,test}.pickle, or cifar100/data/ with a folder of images a class",
            side=32,
        ),
        Published(
            "fc100",
            "FC100",
            CLASSES["fc100"],
            (600, 600),
            (36_000, 12_000, 12_000),
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            "cifar-100-python.tar.gz or FC100_{train,val,test}.pickle",
            side=32,
        ),
        Published(
            "cub",
            "CUB-200-2011",
            CLASSES["cub"],
            (41, 60),
            (5_885, 2_950, 2_953),
            "https://www.vision.caltech.edu/datasets/cub_200_2011/",
            "CUB_200_2011.tgz or what it unpacks to",
            inside="images",
            md5={"CUB_200_2011.tgz": ("97eceeb196236b17998738112f37df78",)},
        ),
    )
}


@dataclass(frozen=True)
class Benchmark(ClassesApart):
    """A published data set as a source; a group is one image."""

    name: str
    entries: Sequence[Entry]
    places: Sequence[Place]  # an item an entry
    image_size: int
    color: str
    findings: Sequence[str] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    drops_twins: bool = False
    group_is_one_image: bool = True
    twins_are_published: bool = True

    @property
    def descriptions(self) -> dict[str, str]:
        return {entry.label: by_name(entry.label) for entry in self.entries}

    @property
    def nested(self) -> dict[tuple[str, str], int]:
        return {}

    def draw(self, index: int) -> NDArray[np.uint8]:
        return draw_place(self.places[index], image_size=self.image_size, color=self.color)

    def part(self, part: range) -> Benchmark:
        return replace(
            self, entries=self.entries[part.start : part.stop], places=self.places[part.start : part.stop], findings=()
        )


def open_published(
    facts: Published,
    path: Path,
    unpacked: Sequence[Path] = (),
    *,
    image_size: int,
    color: str,
    given_split: bool,
    min_images: int,
    quarter_turns: bool,
    scratch: Path,
) -> Benchmark:
    """Finds out which layout the files have, those in the folder and those of archives; see `open_source` for the rest."""
    where = f"prepare.path {shown(str(path))}"
    if not path.exists():
        raise DataError(f"{where}: no such folder or archive; get {facts.title} from {facts.home} and put there {facts.bring}")
    reading = _read(Shelf.of([path, *unpacked], facts, scratch), where)
    sizes = Counter(item.split for item in reading.items)
    if given_split and (absent := [split for split in SPLITS if not sizes[split]]):
        raise DataError(
            f"{where}: prepare.split: given, but none of the classes that were published for {' and '.join(absent)} are there; "
            f"bring {facts.bring}, or write three shares"
        )
    place_of = {
        Entry(turned, f"{source}{turn}", f"{source}{turn}", split if given_split else None): place._replace(turns=quarters)
        for label, split, source, place in reading.items
        for turned, turn, quarters in _turns(label, split, quarter_turns=quarter_turns)
    }
    entries, left_out = large_classes(place_of, min_images)
    require_classes(entries, left_out, min_images=min_images, where=where)
    source = Benchmark(facts.name, entries, [place_of[entry] for entry in entries], image_size, color, left_out=left_out)
    counts = ", ".join(f"{split} {sizes[split]:,} images" for split in SPLITS)
    findings = [f"found {facts.title}: {reading.layout}; {counts}", *reading.notes]
    findings += [*_other_versions(facts, path), *_held_to(facts, reading, where)]
    if facts.photos and color == "rgb":
        findings += _colours(source)
    return replace(source, findings=findings)


def _read(shelf: Shelf, where: str) -> Reading:
    """By the one layout that fits; what speaks against another one is said."""
    facts, readings, faults = shelf.facts, [], []
    for layout in LAYOUTS:
        try:
            readings.append(layout(shelf))
        except DataError as error:
            faults.append(error)
    found = [reading for reading in readings if reading]
    if len(found) > 1:
        raise DataError(f"{where}: found {' and '.join(reading.layout for reading in found)}; leave one of them there")
    if not found and faults:
        raise faults[0]
    if not found:
        raise DataError(f"{where}: nothing of {facts.title} is there; get it from {facts.home} and put there {facts.bring}")
    return replace(found[0], notes=[*found[0].notes, *(f"not used: {fault}" for fault in faults)])


def _held_to(facts: Published, reading: Reading, where: str) -> list[str]:
    """Lines on what is not as it was published. More than was is refused always, less where nobody uses parts of it."""
    counts, sizes = (Counter(column) for column in zip(*((item.label, item.split) for item in reading.items), strict=True))
    fewest, most = facts.images
    expected = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    again = f"{where}: {facts.title} is not as it was published; get it again from {facts.home}"
    if many := [f"{shown(label)} has {count}" for label, count in sorted(counts.items()) if count > most]:
        raise DataError(f"{len(many)} classes have more than {expected} images: {_some(many)}\n{again}, or is it there twice?")
    notes = []
    if reading.named and (missing := sorted(facts.split_of.keys() - counts)):
        notes.append(f"{len(missing)} of {len(facts.split_of)} classes are missing: {_some(missing)}")
    if few := [f"{shown(label)} has {count}" for label, count in sorted(counts.items()) if count < fewest]:
        notes.append(f"{len(few)} of {len(counts)} classes have fewer than {expected} images: {_some(few)}")
    totals = dict(zip(SPLITS, facts.totals, strict=True))
    other = [f"{split} has {sizes[split]:,} images, not {totals[split]:,}" for split in SPLITS if sizes[split] != totals[split]]
    if other and not facts.partial:
        raise DataError("\n".join([*(notes or other), again]))
    return notes


def _other_versions(facts: Published, path: Path) -> list[str]:
    """Files that have the name of a published one and another content: what counts is whether they pass all other checks."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.name in facts.md5)
    notes = []
    for file in files:
        expected = facts.md5.get(file.name)
        if expected and (found := _md5(file)) not in expected:
            notes.append(f"{shown(file.name)} is not as it was published (md5 {found}, not {' or '.join(expected)})")
    return notes


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _turns(label: str, split: str, *, quarter_turns: bool) -> Iterable[tuple[str, str, int]]:
    """The class, what is added to the name of the image, and how many quarters of a turn."""
    yield label, "", 0
    if quarter_turns and split == "train":
        yield from ((f"{label}@{90 * quarters}", f"@{90 * quarters}", quarters) for quarters in (1, 2, 3))


def _colours(source: Benchmark) -> list[str]:
    """A line if blue outweighs red over the data set: then the channels are likely in the wrong order."""
    means = []
    for index in np.linspace(0, len(source.entries) - 1, min(SAMPLE, len(source.entries))).astype(int):
        try:
            means.append(source.draw(int(index)).mean((0, 1)))
        except BadImageError:
            continue  # it is listed when it is drawn
    if not means:
        return []
    red, _, blue = np.mean(means, axis=0)
    if blue <= red + BLUER:
        return []
    return [f"warning: blue outweighs red ({blue:.0f} to {red:.0f} on average), unlike in photographs: are the channels BGR?"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
