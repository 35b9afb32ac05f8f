"""The package kanjivg as it is installed: its files, the lock that holds them to one content, and what a file says.

``python -m metadiff.images.kanjivg > data/builtin/kanjivg.json`` writes the lock anew after an upgrade of the package.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from metadiff.errors import DataError

PACKAGE = "kanjivg"
# Kanji and the radicals that have a code of their own; the package also has kana, latin letters, digits and punctuation.
RANGES = ((0x2E80, 0x2FDF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
NUMBERS = b'<g id="kvg:StrokeNumbers'  # texts after the strokes, of no use here
RELOCK = "python -m metadiff.images.kanjivg > data/builtin/kanjivg.json"


@dataclass(slots=True)
class Group:
    """A <g> of a file: the strokes first to last - 1 and what they are."""

    number: int  # of the <g> in its file, from 0
    first: int
    last: int = 0
    element: str | None = None
    original: str | None = None
    radical: str | None = None
    is_part: bool = False  # only some of the element's strokes, the others are elsewhere


@dataclass(slots=True)
class Character:
    """A file: the path data of its strokes in writing order, with their types, and its groups from the outside in."""

    file: str
    paths: list[str]
    types: list[str]
    groups: list[Group]


def is_kanji(file: str) -> bool:
    """False for other scripts and for variants such as 06728-Kaisho.svg."""
    stem, _, suffix = file.partition(".")
    if suffix != "svg" or "-" in stem:
        return False
    return any(first <= int(stem, 16) <= last for first, last in RANGES)


def installed() -> dict[str, bytes]:
    """The content of every kanji's file by its name, wherever the package manager has put it."""
    try:
        files = importlib.metadata.files(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"the package {PACKAGE} is not installed; pip install {PACKAGE}") from None
    try:
        return {file.name: Path(file.locate()).read_bytes() for file in files or () if is_kanji(file.name)}
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename} of the package {PACKAGE} is missing; pip install --force-reinstall {PACKAGE}"
        ) from None


def make_lock(contents: Mapping[str, bytes]) -> dict[str, str | int]:
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\0{len(contents[name])}\0".encode() + contents[name])
    return {
        "package": PACKAGE,
        "version": importlib.metadata.version(PACKAGE),
        "files": len(contents),
        "sha256": digest.hexdigest(),
        "licence": "CC BY-SA 3.0",
        "attribution": "KanjiVG, copyright Ulrich Apel",
        "url": "https://kanjivg.tagaini.net",
    }


def read_locked(lock: Path) -> list[Character]:
    """Every kanji of the installed package, which must be what the lock says."""
    wanted = _read_lock(lock)
    contents = installed()
    found = make_lock(contents)
    for key in ("version", "files", "sha256"):
        if wanted[key] != found[key]:
            raise DataError(
                f"{lock}: {key} is {wanted[key]}, but the installed package {PACKAGE} has {found[key]}; "
                f"pip install --force-reinstall {PACKAGE}=={wanted['version']}, or lock the new content: {RELOCK}"
            )
    return [parse(name, contents[name]) for name in sorted(contents)]


def _read_lock(lock: Path) -> dict[str, str | int]:
    try:
        wanted = json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{lock}: no such file; write it: {RELOCK}") from None
    except ValueError:
        raise DataError(f"{lock}: not JSON; write it anew: {RELOCK}") from None
    if not isinstance(wanted, dict) or not {"version", "files", "sha256"} <= wanted.keys() or wanted.get("package") != PACKAGE:
        raise DataError(f"{lock}: not a lock of the package {PACKAGE}; write it anew: {RELOCK}")
    return wanted


def parse(file: str, content: bytes) -> Character:
    """Attributes go by their written name: the files do not agree on what the prefix kvg stands for."""
    character, stack = Character(file, [], [], []), []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "path":
            character.paths.append(attributes["d"])
            character.types.append(attributes.get("kvg:type", ""))
        elif tag == "g":
            stack.append(_group(len(character.groups), len(character.paths), attributes))
            character.groups.append(stack[-1])

    def end(tag: str) -> None:
        if tag == "g":
            stack.pop().last = len(character.paths)

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(content.partition(NUMBERS)[0])
    return character


def _group(number: int, first: int, attributes: dict[str, str]) -> Group:
    return Group(
        number=number,
        first=first,
        element=attributes.get("kvg:element"),
        original=attributes.get("kvg:original"),
        radical=attributes.get("kvg:radical"),
        is_part="kvg:part" in attributes or "kvg:partial" in attributes,
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(make_lock(installed()), indent=2) + "\n")
