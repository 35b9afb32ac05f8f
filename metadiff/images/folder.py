"""A folder a class, each with images at any depth; or train/, val/ and test/ with such folders inside; or a table of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metadiff.errors import DataError
from metadiff.images.decode import decode_file
from metadiff.images.files import is_clutter, portable
from metadiff.images.listing import find_table, read_table
from metadiff.images.source import ClassesApart, Entry, by_name, large_classes, shown
from metadiff.rows import SPLITS


@dataclass(frozen=True)
class Folder(ClassesApart):
    """Images in files; a group is one image, for nothing says which files show the same thing."""

    root: Path
    entries: Sequence[Entry]
    files: Sequence[Path]  # an item an entry
    image_size: int
    color: str
    said: Mapping[str, str] = field(default_factory=dict)  # of classes, by a table
    left_out: Mapping[str, int] = field(default_factory=dict)  # small classes are refused: each is somebody's own
    drops_twins: bool = False
    group_is_one_image: bool = True
    twins_are_published: bool = False
    findings: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def descriptions(self) -> dict[str, str]:
        """The name is all that a folder says of a class, and a table may say more."""
        return {entry.label: by_name(entry.label) for entry in self.entries} | dict(self.said)

    @property
    def nested(self) -> dict[tuple[str, str], int]:
        return {}

    def draw(self, index: int) -> NDArray[np.uint8]:
        return decode_file(self.files[index], root=self.root, image_size=self.image_size, color=self.color)

    def part(self, part: range) -> Folder:
        return replace(self, entries=self.entries[part.start : part.stop], files=self.files[part.start : part.stop])


def open_folder(path: Path, *, image_size: int, color: str, given_split: bool, min_images: int) -> Folder:
    """Lists the files and opens none."""
    if not path.is_dir():
        raise DataError(f"prepare.path {shown(str(path))}: no such folder")
    table = find_table(path)
    if table:
        files, said = read_table(table, files_by_name(path), given_split=given_split)
    else:
        files, said = _by_class_folders(path, given_split=given_split), {}
    entries, left_out = large_classes(files, min_images)
    if left_out:
        small = "\n".join(f"class {shown(label)}: has {have} images" for label, have in sorted(left_out.items()))
        cure = "add images, remove these classes, or lower it with the shots and queries"
        raise DataError(f"{small}\nprepare.path {shown(str(path))}: prepare.min_images asks for {min_images}; {cure}")
    return Folder(path, entries, [files[entry] for entry in entries], image_size, color, said)


def says_split(path: Path) -> bool:
    """Whether the folder itself tells training classes from others."""
    table = find_table(path)
    if table:
        return "split" in table.columns
    tops = _folders(path)
    return len(tops) > 1 and set(tops) <= set(SPLITS)


def files_by_name(path: Path) -> dict[str, Path]:
    """Every file below, by its name in NFC."""
    found: dict[str, Path] = {}
    for file in _files(path):
        name = portable(file.relative_to(path).as_posix())
        if name in found:
            raise DataError(f"{shown(str(path))}: two files have the name {shown(name)} when written in one way; rename one")
        found[name] = file
    return found


def _by_class_folders(path: Path, *, given_split: bool) -> dict[Entry, Path]:
    files: dict[Entry, Path] = {}
    for split, place in _split_folders(path, given_split=given_split):
        folders = _folders(place)
        if not folders:
            expected = "expected one a class, or a CSV with the columns path and label"
            raise DataError(f"prepare.path {shown(str(place))}: the folder has no class folders; {expected}")
        for label, folder in folders.items():
            files |= _class_entries(path, folder, label=label, split=split)
    _refuse_class_in_two_splits(files)
    return files


def top(unpacked: Path) -> Path:
    """Where the class folders of an unpacked archive are: inside of its only folder, if that is all it has."""
    (root,) = unpacked.glob("*/*")
    inside = [item for item in root.iterdir() if not is_clutter(item.name)]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else root


def class_files(path: Path) -> dict[str, dict[str, Path]]:
    """The files of each class folder by name, whatever they hold."""
    found = {label: picture_files(folder) for label, folder in _folders(_folder(path)).items()}
    if not found:
        raise DataError(f"{shown(str(path))}: the folder has no class folders; expected one a class")
    return {label: {f"{label}/{name}": file for name, file in files.items()} for label, files in found.items()}


def picture_files(path: Path) -> dict[str, Path]:
    """The files at any depth by name, whatever they hold."""
    return {portable(file.relative_to(path).as_posix()): file for file in _files(_folder(path))}


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"{shown(str(path))}: no such folder")
    return path


def _split_folders(path: Path, *, given_split: bool) -> list[tuple[str | None, Path]]:
    tops = _folders(path)
    if not given_split:
        if len(tops) > 1 and set(tops) <= set(SPLITS):
            raise DataError(
                f"prepare.path {shown(str(path))}: the folders {', '.join(sorted(tops))} are splits, not classes; "
                "set prepare.split: given"
            )
        return [(None, path)]
    if set(tops) != set(SPLITS):
        raise DataError(
            f"prepare.path {shown(str(path))}: prepare.split: given needs the folders {', '.join(SPLITS)} and no others, "
            f"found {', '.join(map(shown, sorted(tops))) or 'none'}; write three shares instead, or arrange the classes so"
        )
    return [(split, tops[split]) for split in SPLITS]


def _folders(place: Path) -> dict[str, Path]:
    """The folders of one level by their name in NFC, so that a class is the same wherever the files were packed."""
    found: dict[str, Path] = {}
    for item in sorted(place.iterdir()):
        name = portable(item.name)
        if is_clutter(name):
            continue
        if not item.is_dir():
            _refuse_loose_image(item)
        elif item.is_symlink():
            raise DataError(f"{shown(str(item))}: a symbolic link to a folder; put the folder itself there")
        elif name in found:
            raise DataError(f"{shown(str(place))}: two folders have the name {shown(name)} when written in one way; merge them")
        else:
            found[name] = item
    return found


def _class_entries(root: Path, folder: Path, *, label: str, split: str | None) -> dict[Entry, Path]:
    found: dict[Entry, Path] = {}
    for file in _files(folder):
        source = portable(file.relative_to(root).as_posix())
        entry = Entry(label, source, source, split)
        if entry in found:
            raise DataError(f"{shown(str(folder))}: two files have the name {shown(source)} when written in one way; rename one")
        found[entry] = file
    if not found:
        raise DataError(f"{shown(str(folder))}: the class has no file; fill the folder or remove it")
    return found


def _files(folder: Path) -> Iterator[Path]:
    for item in sorted(folder.iterdir()):
        if is_clutter(portable(item.name)):
            continue
        if item.is_symlink() and item.is_dir():
            raise DataError(f"{shown(str(item))}: a symbolic link to a folder; put the folder itself there")
        if item.is_dir():
            yield from _files(item)
        else:
            yield item


def _refuse_loose_image(item: Path) -> None:
    """A file such as a README beside the folders is nobody's class; an image there was meant to be one."""
    if item.suffix.lower() in Image.registered_extensions():
        raise DataError(f"{shown(str(item))}: an image beside the class folders; move it into one")


def _refuse_class_in_two_splits(files: Mapping[Entry, Path]) -> None:
    split_of: dict[str, str | None] = {}
    for entry in files:
        first = split_of.setdefault(entry.label, entry.split)
        if first != entry.split:
            raise DataError(f"the class {shown(entry.label)} is in {first}/ and in {entry.split}/; a class has one split")
