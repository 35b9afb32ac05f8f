"""A table of images at the top of a folder: a CSV with the columns `path` and `label`, and `split` and `description` if known."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from metadiff.errors import DataError
from metadiff.images.source import Entry, shown
from metadiff.rows import SPLITS

COLUMNS = {  # what each may be called
    "path": ("path", "file", "filename", "image", "image_name"),
    "label": ("label", "class", "class_name"),
    "split": ("split",),
    "description": ("description",),
}
ENDINGS = (".csv", ".tsv")
SEPARATORS = ",;\t"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
LONGEST_HEADER = 1 << 16


@dataclass(frozen=True)
class Table:
    file: Path
    separator: str
    columns: Mapping[str, int]  # the place of each that has a meaning
    width: int

    def at(self, line: int) -> str:
        return f"{shown(str(self.file))}:{line}"


@dataclass(frozen=True)
class Row:
    """A cell that is not there is empty."""

    line: int
    path: str
    label: str
    split: str
    description: str


def find_table(folder: Path) -> Table | None:
    """The CSV whose header has a path and a label; any other is somebody's notes."""
    candidates = (item for item in sorted(folder.iterdir()) if item.suffix.lower() in ENDINGS and item.is_file())
    found = [table for item in candidates if not item.name.startswith(".") and (table := open_table(item))]
    if len(found) > 1:
        names = ", ".join(shown(table.file.name) for table in found)
        raise DataError(f"{shown(str(folder))}: more than one table of images: {names}; keep one")
    return found[0] if found else None


def read_table(table: Table, files: Mapping[str, Path], *, given_split: bool) -> tuple[dict[Entry, Path], dict[str, str]]:
    """The images that it lists, and what it says of classes; ``files`` are all of its folder, by their names in NFC."""
    if given_split and "split" not in table.columns:
        raise DataError(f"{table.at(1)}: prepare.split: given needs a column split; add it, or write three shares instead")
    rows = list(table_rows(table))
    if not rows:
        raise DataError(f"{table.at(1)}: the table lists no image; write one a line")
    split_of = _one_of_each_class(table, rows, "split") if given_split else {}
    if given_split and set(split_of.values()) != set(SPLITS):
        raise DataError(f"{table.at(1)}: the column split has no {' and no '.join(sorted(set(SPLITS) - set(split_of.values())))}")
    entries: dict[Entry, Path] = {}
    lines: dict[str, int] = {}
    for row in rows:
        source = _source(table, row)
        if lines.setdefault(source, row.line) != row.line:
            raise DataError(f"{table.at(row.line)}: {shown(source)} is listed in line {lines[source]} too; keep one")
        entries[Entry(row.label, source, source, split_of.get(row.label))] = _file(table, row, source, files)
    return entries, _one_of_each_class(table, rows, "description")


def table_rows(table: Table) -> Iterator[Row]:
    """Lines with nothing in them, which spreadsheets leave at the end, are skipped."""
    reader = csv.reader(io.StringIO(_text(table), newline=""), delimiter=table.separator, strict=True)
    line = 1
    try:
        for cells in reader:
            if line > 1 and any(map(str.strip, cells)):
                yield _row(table, cells, line)
            line = reader.line_num + 1  # of what comes next, however many lines a cell has
    except csv.Error as error:
        raise DataError(f"{table.at(line)}: not CSV: {error}; put a cell with quotes in quotes and double those in it") from None


def _row(table: Table, cells: Sequence[str], line: int) -> Row:
    if any(map(str.strip, cells[table.width :])):
        raise DataError(
            f"{table.at(line)}: {len(cells)} cells, the header has {table.width}; put a cell with separators in quotes"
        )
    found = dict.fromkeys(COLUMNS, "")
    for name, place in table.columns.items():
        if place < len(cells):
            found[name] = unicodedata.normalize("NFC", cells[place].strip())
    for name in ("path", "label"):
        if not found[name]:
            raise DataError(f"{table.at(line)}: no {name}; fill the cell or remove the line")
    found["split"] = found["split"].lower()
    found["description"] = " ".join(found["description"].split())
    return Row(line, **found)


def _source(table: Table, row: Row) -> str:
    """The path without detours; refused by its name alone where it leads out of the folder."""
    path = PurePosixPath(row.path)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"{table.at(row.line)}: {shown(row.path)} leaves the folder; write the path from {table.file.name}'s folder on"
        )
    return path.as_posix()


def _file(table: Table, row: Row, source: str, files: Mapping[str, Path]) -> Path:
    if source not in files:
        cure = "write / between folders" if "\\" in source else "mend the path or remove the line"
        raise DataError(f"{table.at(row.line)}: {shown(source)}: no such file in the folder; {cure}")
    file = files[source]
    if file.is_symlink() and not file.resolve().is_relative_to(table.file.parent.resolve()):
        raise DataError(
            f"{table.at(row.line)}: {shown(source)}: a symbolic link that leaves the folder; put the file itself there"
        )
    return file


def _one_of_each_class(table: Table, rows: Sequence[Row], column: str) -> dict[str, str]:
    """What the column says of each class: any of its rows may say it, and none another thing."""
    first: dict[str, tuple[str, int]] = {}
    for row in rows:
        value = getattr(row, column)
        if column == "split" and value not in SPLITS:
            raise DataError(f"{table.at(row.line)}: split must be one of {', '.join(SPLITS)}, got {shown(value) or 'nothing'}")
        known, line = first.setdefault(row.label, (value, row.line)) if value else ("", 0)
        if known != value:
            raise DataError(
                f"{table.at(row.line)}: class {shown(row.label)} has another {column} than in line {line}; a class has one"
            )
    return {label: value for label, (value, _) in first.items()}


def open_table(file: Path) -> Table | None:
    """None: not a table of images."""
    with file.open("rb") as stream:
        raw = stream.readline(LONGEST_HEADER)
    if raw.startswith(UTF16):
        raise DataError(f"{shown(str(file))}: UTF-16; save it as CSV in UTF-8")
    line = (raw.decode("utf-8-sig", "replace").splitlines() or [""])[:1]
    for separator in SEPARATORS:
        names = [name.strip().lower() for name in next(csv.reader(line, delimiter=separator), [])]
        places = {column: [i for i, name in enumerate(names) if name in known] for column, known in COLUMNS.items()}
        if places["path"] and places["label"]:
            table = Table(file, separator, {column: found[0] for column, found in places.items() if found}, len(names))
            _refuse_twin_columns(table, names, places)
            return table
    return None


def _refuse_twin_columns(table: Table, names: Sequence[str], places: Mapping[str, Sequence[int]]) -> None:
    for column, found in places.items():
        if len(found) > 1:
            twins = " and ".join(names[place] for place in found)
            raise DataError(f"{table.at(1)}: the columns {twins} both mean {column}; rename or remove one")


def _text(table: Table) -> str:
    raw = table.file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{table.at(line)}: not UTF-8: byte 0x{raw[error.start]:02x}; save it as CSV in UTF-8") from None
