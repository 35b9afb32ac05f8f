"""Published data sets as image files, under names that hold their class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from metadiff.errors import DataError
from metadiff.images.listing import Table, open_table, table_rows
from metadiff.images.place import Place
from metadiff.images.shelf import Item, Reading, Shelf
from metadiff.images.source import shown
from metadiff.rows import SPLITS

if TYPE_CHECKING:
    from metadiff.images.published import Published

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
WNID = re.compile(r"n\d{8}")


def class_folders(shelf: Shelf) -> Reading | None:
    """Each image in a folder with its class's name, or named by its class; where there are lists, they say which images."""
    inside = shelf.facts.inside
    images = {
        name: path
        for name, path in shelf.files.items()
        if name.lower().endswith(PICTURES) and (not inside or inside in PurePosixPath(name).parts[:-1])
    }
    if not images:
        return None
    listed = _listed(shelf, images)
    if listed is not None:
        return listed
    side = 0 if shelf.facts.photos else shelf.facts.side  # photographs lie about in their own sizes too
    items, strangers = [], []
    for name, path in images.items():
        label = _label_in(name, shelf.facts)
        if label is None:
            strangers.append(name)
        else:
            items.append(Item(label, shelf.facts.split_of[label], name, Place(path, side=side)))
    if not items:
        return None
    if strangers:
        raise DataError(
            f"{shown(strangers[0])}: its name and folders name no class of {shelf.facts.title}; "
            f"so do {len(strangers) - 1} more of {len(images)} images; remove or rename them"
        )
    elsewhere = Counter(folder for item in items if (folder := _split_folder(item.source)) not in (None, item.split))
    notes = [
        f"{count:,} images in folders called {folder} are published for another split" for folder, count in elsewhere.items()
    ]
    return Reading("a folder of images a class, the split as published", items, notes)


def _label_in(name: str, facts: Published) -> str | None:
    """The class that a file's path names: its folder, two folders (an alphabet's character), or its first letters."""
    parts = PurePosixPath(name).parts
    folders: tuple[str, ...] = (*parts[-2:-1], "/".join(parts[-3:-1]), *parts[-3:-2])
    found = next((folder for folder in folders if folder in facts.split_of), None)
    first = next((wnid for wnid in WNID.findall(parts[-1][:9]) if wnid in facts.split_of), None)
    if found and first and found != first:
        raise DataError(
            f"{shown(name)}: the file is named as of {first} and lies in {found}; put it into the folder of its class"
        )
    return found or first


def _split_folder(name: str) -> str | None:
    return next((part for part in PurePosixPath(name).parts[:-1] if part in SPLITS), None)


def _listed(shelf: Shelf, images: Mapping[str, Path]) -> Reading | None:
    """Images under any folder, as train.csv, val.csv and test.csv list them by name and class."""
    named = {name: path for name, path in shelf.files.items() if PurePosixPath(name).name in {f"{split}.csv" for split in SPLITS}}
    lists = {PurePosixPath(name).stem: table for name, path in named.items() if (table := open_table(path))}
    if not lists:
        return None
    if len(lists) < len(SPLITS):
        absent = [f"{split}.csv" for split in SPLITS if split not in lists]
        raise DataError(
            f"{', '.join(absent)}: no list of files and classes, unlike {', '.join(map(shown, named))}; bring all three"
        )
    by_name: dict[str, str] = {}
    for name in images:
        other = by_name.setdefault(PurePosixPath(name).name, name)
        if other != name:
            raise DataError(
                f"{shown(name)} and {shown(other)} have one name, by which the lists mean one of them; remove the other"
            )
    items: dict[str, Item] = {}
    for split, table in lists.items():
        for item in _items(table, split, shelf, {name: images[place] for name, place in by_name.items()}):
            if items.setdefault(item.source, item) is not item:
                raise DataError(f"{shown(table.file.name)}: {shown(item.source)} is listed twice")
    left = len(images) - len(items)
    notes = [f"{left:,} images are in no list and are left out"] if left else []
    return Reading("images listed in train.csv, val.csv and test.csv", list(items.values()), notes)


def _items(table: Table, split: str, shelf: Shelf, images: Mapping[str, Path]) -> list[Item]:
    items = []
    for row in table_rows(table):
        file = PurePosixPath(row.path).name
        if file not in images:
            raise DataError(f"{table.at(row.line)}: there is no image {shown(row.path)}")
        if shelf.split_of(row.label, table.at(row.line)) != split:
            published = shelf.facts.split_of[row.label]
            raise DataError(f"{table.at(row.line)}: {row.label} is published as a class for {published}, not {split}")
        items.append(Item(row.label, split, file, Place(images[file])))
    return items
