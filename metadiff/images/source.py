"""What every source of labelled images offers: a list of entries, known before anything is drawn, and one image at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from metadiff.errors import DataError

if TYPE_CHECKING:
    from metadiff.concepts import DescribedTask


class BadImageError(DataError):
    """One image that cannot be used; the message is the reason alone, the caller knows the entry."""


@dataclass(frozen=True, order=True, slots=True)
class Entry:
    """One image: sorted by class, then group, then source, and so in the same order on every machine."""

    label: str
    group: str  # images of one group never stand on both sides of an episode's class
    source: str  # where the image comes from: unique, and the same on every machine
    split: str | None = None  # where the source itself says so


class Source(Protocol):
    @property
    def name(self) -> str:
        """Of the data set, as results carry it."""

    @property
    def entries(self) -> Sequence[Entry]: ...

    @property
    def descriptions(self) -> Mapping[str, str]:
        """A sentence a class."""

    @property
    def nested(self) -> Mapping[tuple[str, str], int]:
        """How often the second class is drawn inside the first."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """The classes that are too small to be used, and how many groups each has."""

    @property
    def drops_twins(self) -> bool:
        """True: images with the same pixels under two classes are expected; one class keeps them, see catalogue.py."""

    @property
    def group_is_one_image(self) -> bool:
        """True: no group may be in two splits."""

    @property
    def twins_are_published(self) -> bool:
        """True: images with the same pixels in two splits are part of a published data set: said, not refused."""

    @property
    def splits_share_classes(self) -> bool:
        """True: the images of a class are split, by the source itself; a class stands for the first split that it is in."""

    @property
    def tasks(self) -> Sequence[DescribedTask]:
        """What sentences ask of the images, beyond which class they are of."""

    @property
    def findings(self) -> Sequence[str]:
        """What was found on the disk, in words."""

    def draw(self, index: int) -> NDArray[np.uint8]:
        """Entry ``index`` as HWC with one channel or three, or a BadImageError that says why not."""

    def part(self, part: range) -> Source:
        """These entries alone, to be sent to another process."""


class ClassesApart:
    """What is true of most sources: a class is of one split, and nothing else is asked of its images."""

    splits_share_classes: bool = False
    tasks: Sequence[DescribedTask] = ()


def large_classes(entries: Iterable[Entry], min_images: int) -> tuple[list[Entry], dict[str, int]]:
    """The entries of classes with enough groups, sorted, and the number of groups of each class that has too few.

    Groups are counted, not images: an episode may take its support from any of them and never uses a group twice, so only the
    number of groups says whether enough are left for the query.
    """
    ordered = sorted(entries)
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for entry in ordered:
        groups[entry.label].add(entry.group)
    left_out = {label: len(found) for label, found in groups.items() if len(found) < min_images}
    return [entry for entry in ordered if entry.label not in left_out], left_out


def require_classes(entries: Sequence[Entry], left_out: Mapping[str, int], *, min_images: int, where: str) -> None:
    if not entries:
        most = max(left_out.values(), default=0)
        raise DataError(
            f"{where}: no class has prepare.min_images ({min_images}) images; the largest of {len(left_out)} has {most}"
        )


def by_name(label: str) -> str:
    """A sentence on a class of which nothing else is known."""
    return f"A picture of {shown(label).replace('_', ' ')}."


def shown(name: str) -> str:
    """A name of a file or class that is safe in a message of one line."""
    return name.encode("utf-8", "backslashreplace").decode() if name.isprintable() else ascii(name)[1:-1]
