"""The files that somebody brought of a published data set, and what reading them gives."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from metadiff.errors import DataError
from metadiff.images.files import is_clutter, portable
from metadiff.images.place import Place
from metadiff.images.source import shown

if TYPE_CHECKING:
    from metadiff.images.published import Published


class Item(NamedTuple):
    """One image."""

    label: str
    split: str
    source: str
    place: Place


@dataclass(frozen=True)
class Reading:
    """What a layout gives."""

    layout: str  # in words
    items: Sequence[Item]
    notes: Sequence[str] = ()
    named: bool = True  # its classes carry their published names


@dataclass(frozen=True)
class Shelf:
    """The files under their names in the folder or archive, and the data set they should be."""

    files: Mapping[str, Path]
    facts: Published
    scratch: Path

    @classmethod
    def of(cls, roots: Sequence[Path], facts: Published, scratch: Path) -> Shelf:
        """One name is one file: an archive beside what it unpacks to is, two versions of it are not."""
        files: dict[str, Path] = {}
        for name, path in (found for root in roots for found in _walk(root)):
            other = files.setdefault(name, path)
            if other is not path and not filecmp.cmp(other, path, shallow=False):
                raise DataError(f"{shown(name)}: in two archives or folders with different content; remove one of them")
        return cls(files, facts, scratch)

    def split_of(self, label: str, where: str) -> str:
        try:
            return self.facts.split_of[label]
        except KeyError:
            raise DataError(f"{shown(where)}: {shown(label)} is no class of {self.facts.title}") from None


Layout = Callable[[Shelf], Reading | None]


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Links are refused, also those to folders. An array of an .npz is known by the name of that."""
    start = root.parent if root.suffix == ".npz" else root
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_clutter(name))
        for path in (Path(folder, name) for name in [*folders, *sorted(names)] if not is_clutter(name)):
            if path.is_symlink():
                raise DataError(f"{shown(str(path))}: a symbolic link; put there what it leads to")
            if not path.is_dir():
                yield portable(path.relative_to(start).as_posix()), path
