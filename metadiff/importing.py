"""A look at somebody's own images before they are used: what is there, what is wrong with it, and what is there twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median

from PIL import Image
from rich.table import Table

from metadiff.errors import DataError
from metadiff.images.folder import Folder, files_by_name, open_folder, says_split
from metadiff.images.listing import find_table
from metadiff.images.looking import Look, look
from metadiff.images.source import Entry, shown
from metadiff.rows import SPLITS

PART = 16  # images that a process looks at before it reports
LISTED = 3  # names of a kind, so that a report fits on a screen


@dataclass(frozen=True)
class Survey:
    source: Folder
    looks: Sequence[Look]  # one an entry
    given_split: bool  # the folder itself says which classes are for training
    table: str = ""  # the name of the table of images
    unlisted: int = 0  # images in the folder that it does not name

    @cached_property
    def good(self) -> list[tuple[Entry, Look]]:
        return [(entry, seen) for entry, seen in zip(self.source.entries, self.looks, strict=True) if not seen.reason]

    @cached_property
    def bad(self) -> list[tuple[Entry, Look]]:
        return [(entry, seen) for entry, seen in zip(self.source.entries, self.looks, strict=True) if seen.reason]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Usable images a class, the smallest class first; one without any is there too."""
        usable = Counter(entry.label for entry, _ in self.good)
        counts = {entry.label: usable[entry.label] for entry in self.source.entries}
        return dict(sorted(counts.items(), key=lambda item: (item[1], item[0])))

    @cached_property
    def split(self) -> dict[str, str | None]:
        return {entry.label: entry.split for entry in self.source.entries}

    @cached_property
    def by_size(self) -> list[Look]:
        return sorted((seen for _, seen in self.good), key=lambda seen: (seen.width * seen.height, seen.width))


def open_images(folder: Path) -> Folder:
    """As the stage `prepare` will read them, with all classes however small."""
    if not folder.is_dir():
        raise DataError(
            f"{shown(str(folder))}: {'not a folder' if folder.exists() else 'no such folder'}; name the one with images"
        )
    return open_folder(folder, image_size=16, color="rgb", given_split=says_split(folder), min_images=1)


def survey(source: Folder, looks: Sequence[Look]) -> Survey:
    table, unlisted = find_table(source.root), 0
    if table:
        listed = {entry.source for entry in source.entries}
        endings = Image.registered_extensions()
        names = files_by_name(source.root)
        unlisted = sum(Path(name).suffix.lower() in endings for name in names if name not in listed)
    found = Survey(source, looks, says_split(source.root), table.file.name if table else "", unlisted)
    if not found.good:
        entry, seen = found.bad[0]
        first = f"{shown(entry.source)}: {seen.reason}"
        raise DataError(
            f"{shown(str(source.root))}: none of {len(looks)} files is an image that can be used; the first is {first}"
        )
    return found


def look_at_all(files: Sequence[Path], root: Path, advance: Callable[[int], None]) -> list[Look]:
    """On all cores, in processes: what is wrong with an image comes out as warnings, which threads share."""
    parts = [files[start : start + PART] for start in range(0, len(files), PART)]
    cores = min(os.cpu_count() or 1, len(parts))
    pool = ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), initializer=_live_with_the_command)
    looks = []
    try:
        for found in pool.map(partial(_look_at_part, root=root), parts):
            looks += found
            advance(len(found))
    except BrokenProcessPool:
        cure = "free some, or make huge images smaller"
        raise DataError(
            f"{shown(str(root))}: a process that looked at images was killed, mostly for want of memory; {cure}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return looks


def _look_at_part(files: Sequence[Path], *, root: Path) -> list[Look]:
    return [look(file, root=root) for file in files]


def _live_with_the_command() -> None:
    """In a process of the pool: Ctrl-C is for the command, and without the command there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def report(found: Survey) -> Iterator[str]:
    yield f"{shown(str(found.source.root))}: {len(found.looks):,} files of {len(found.counts)} classes"
    if found.table:
        rest = f"; {found.unlisted:,} images of the folder are not in it" if found.unlisted else ""
        yield _line("table", f"{shown(found.table)}{rest}")
    if found.given_split:
        classes = Counter(found.split.values())
        yield _line("split", ", ".join(f"{name} {classes[name]}" for name in SPLITS) + " classes, as the data says")
    small, large = (next(iter(order)) for order in (found.counts, reversed(found.counts)))
    middle = median(found.counts.values())
    ends = [f"{found.counts[label]:,} ({shown(label)})" for label in (small, large)]
    yield _line("images a class", f"smallest {ends[0]}, median {middle:,.0f}, largest {ends[1]}")
    yield _line("pixels", _sizes(found.by_size))
    colored = sum(seen.colored for _, seen in found.good)
    yield _line("color", f"{colored:,} in color, {len(found.good) - colored:,} gray")
    kinds = Counter(sorted(seen.kind for _, seen in found.good))
    yield _line("formats", ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()))
    yield _line("metadata", _metadata(found.good))
    yield from _duplicates(found.good)
    yield from _similar_names(found.counts)
    if found.bad:
        yield _line("bad", f"{len(found.bad):,} cannot be used")
        yield from _some(f"{shown(entry.source)}: {seen.reason}" for entry, seen in found.bad)


def class_table(found: Survey) -> Table:
    """All classes, or of many the smallest and the largest."""
    bad = Counter(entry.label for entry, _ in found.bad)
    rows = [(shown(label), f"{count:,}", f"{bad[label]:,}" if bad[label] else "") for label, count in found.counts.items()]
    left_out = len(rows) - 2 * LISTED - 1
    if left_out > 1:
        rows = [*rows[:LISTED], (f"... {len(rows) - 2 * LISTED} more", "", ""), *rows[-LISTED:]]
    table = Table()
    for column in ("class", "usable images", "bad"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _line(name: str, text: str) -> str:
    return f"  {name:<16}{text}"


def _some(lines: Iterable[str]) -> Iterator[str]:
    """The first few, and how many more there are."""
    every = list(lines)
    yield from (_line("", f"  {line}") for line in every[:LISTED])
    if len(every) > LISTED:
        yield _line("", f"  ... and {len(every) - LISTED:,} more")


def _sizes(by_size: Sequence[Look]) -> str:
    names = {"smallest": by_size[0], "median": by_size[len(by_size) // 2], "largest": by_size[-1]}
    if len({(seen.width, seen.height) for seen in by_size}) == 1:
        return f"all {by_size[0].width}x{by_size[0].height}"
    return ", ".join(f"{name} {seen.width}x{seen.height}" for name, seen in names.items())


def _metadata(good: Sequence[tuple[Entry, Look]]) -> str:
    positions = sum(seen.has_position for _, seen in good)
    others = sum(seen.has_exif and not seen.has_position for _, seen in good)
    if not positions + others:
        return "no EXIF"
    return f"{positions:,} with GPS positions, {others:,} with other EXIF; it is not copied, pixels alone are"


def _duplicates(good: Sequence[tuple[Entry, Look]]) -> Iterator[str]:
    """Pictures that are there more than once: by their pixels, and so also where the format differs."""
    groups: defaultdict[str, list[tuple[Entry, Look]]] = defaultdict(list)
    for entry, seen in good:
        groups[seen.pixels_sha256].append((entry, seen))
    twins = [group for group in groups.values() if len(group) > 1]
    if not twins:
        yield _line("duplicates", "none")
    for across, where in ((True, "across classes"), (False, "within a class")):
        kind = [group for group in twins if (len({entry.label for entry, _ in group}) > 1) == across]
        if kind:
            same = sum(len({seen.file_sha256 for _, seen in group}) == 1 for group in kind)
            yield _line("duplicates", f"{len(kind):,} {where}, {same:,} of them byte for byte")
            yield from _some(" = ".join(shown(entry.source) for entry, _ in group) for group in kind)


def _similar_names(labels: Iterable[str]) -> Iterator[str]:
    """Of classes that are likely to be one, written in two ways."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        groups["".join(label.casefold().split())].append(shown(label))
    twins = [" = ".join(group) for group in groups.values() if len(group) > 1]
    if twins:
        yield _line("names", f"{len(twins):,} written in more than one way: they differ in case or spaces alone")
        yield from _some(twins)
