"""Pickles that anyone may have written, read by a small machine of our own: nothing that the file names is imported or called.

Data sets come as pickles, and the standard library's reader runs what is in them. Here every opcode stands in a table, the few
names that numpy's arrays need are known by heart (picklenames.py), and the bytes of arrays stay where they are (picklefile.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from metadiff.errors import DataError
from metadiff.images.picklefile import STOP, Payloads, Stream, decimal, fetched
from metadiff.images.picklemachine import Machine
from metadiff.images.plain import mapping, require_plain
from metadiff.images.source import shown

BUFFER = 1 << 18


def read_pickle(path: Path, *, scratch: Path) -> object:
    """Plain containers and values, and a Stored for each array; bytes above 4 KB are a Stored of bytes too.

    What cannot be referred to in the file itself is decoded into a file in ``scratch``, which must stay as long as the result.
    """
    with path.open("rb", buffering=BUFFER) as file:
        _refuse_other_files(path, file.read(512))
        stream, kept = Stream(file), False
        payloads = Payloads(path, scratch, limit=stream.size)
        try:
            file.seek(0)
            places = fetched(stream)
            file.seek(0)
            value = _run(Machine(stream, payloads, places))
            require_plain(value)
            kept = True
        except ValueError as error:
            reason = str(error) if isinstance(error, DataError) else "a text or number that cannot be decoded"
            raise DataError(f"{shown(str(path))}: position {file.tell()}: {reason}") from None
        finally:
            payloads.close(keep=kept)
    return value


def _refuse_other_files(path: Path, head: bytes) -> None:
    found = head.lstrip().lower()
    reason = ""
    if not head:
        reason = "an empty file, not a pickle: the download failed"
    elif found.startswith((b"<!doctype", b"<html", b"<?xml")):
        reason = "an HTML page, not a pickle: the download failed"
    elif found.startswith(b"version https://git-lfs"):
        reason = "a pointer of git-lfs, not the file itself: run git lfs pull"
    if reason:
        raise DataError(f"{shown(str(path))}: {reason}")


def _run(machine: Machine) -> object:
    read = machine.stream.file.read
    try:
        while (code := read(1)) != STOP:
            if (push := PUSHED.get(code)) is not None:
                value = push(machine)  # may take a new stack
                machine.stack.append(value)
            else:
                DONE[code](machine)
        value = machine.stack.pop()
    except (IndexError, KeyError):
        raise DataError("an opcode for which there is nothing; the file is broken") from None
    if left := len(machine.stack) + len(machine.marks):
        raise DataError(f"{left} values are left at the end, expected one; the file is broken")
    return value


def _refusing(what: str) -> Callable[[Machine], object]:
    def refuse(_: Machine) -> object:
        raise DataError(what)

    return refuse


def _instance(machine: Machine) -> object:
    """Of an old class, by its name; no such name is known but those of containers."""
    raise DataError(f"an instance of {machine.name().name}, expected a plain container")


# What leaves one value more on the stack, after taking what it needs.
PUSHED: dict[bytes, Callable[[Machine], object]] = {
    b"N": lambda _: None,
    b"\x88": lambda _: True,
    b"\x89": lambda _: False,
    b"]": lambda _: [],
    b"}": lambda _: {},
    b")": lambda _: (),
    b"\x8f": lambda _: set(),
    b"K": lambda machine: machine.stream.take(1)[0],
    b"M": lambda machine: machine.stream.number(2),
    b"J": lambda machine: int.from_bytes(machine.stream.take(4), "little", signed=True),
    b"\x8a": lambda machine: machine.integer(1),
    b"\x8b": lambda machine: machine.integer(4),
    b"I": Machine.integer_line,
    b"L": lambda machine: decimal(machine.stream.line().removesuffix(b"L")),
    b"F": lambda machine: float(machine.stream.line()),
    b"G": lambda machine: struct.unpack(">d", machine.stream.take(8))[0],
    b"C": lambda machine: machine.payload(1),
    b"B": lambda machine: machine.payload(4),
    b"\x8e": lambda machine: machine.payload(8),
    b"\x96": lambda machine: machine.payload(8),
    b"U": lambda machine: machine.string(1),
    b"T": lambda machine: machine.string(4),
    b"\x8c": lambda machine: machine.text(1),
    b"X": lambda machine: machine.text(4),
    b"\x8d": lambda machine: machine.text(8),
    b"S": Machine.string_line,
    b"V": Machine.text_line,
    b"l": Machine.since_mark,
    b"t": lambda machine: tuple(machine.since_mark()),
    b"d": lambda machine: mapping(machine.since_mark()),
    b"\x85": lambda machine: machine.last(1),
    b"\x86": lambda machine: machine.last(2),
    b"\x87": lambda machine: machine.last(3),
    b"g": lambda machine: machine.get(b"g"),
    b"h": lambda machine: machine.get(b"h"),
    b"j": lambda machine: machine.get(b"j"),
    b"c": Machine.name,
    b"\x93": Machine.name_on_stack,
    b"R": Machine.call,
    b"\x81": Machine.call,
    b"b": Machine.build,
    b"i": _instance,
    b"o": _refusing("an instance of a class, expected plain containers"),
    b"\x92": _refusing("an instance of a class, expected plain containers"),
    b"\x91": _refusing("a frozenset, expected plain containers"),
    b"P": _refusing("a persistent id: parts of the pickle lie elsewhere"),
    b"Q": _refusing("a persistent id: parts of the pickle lie elsewhere"),
    b"\x82": _refusing("a name of the extension registry"),
    b"\x83": _refusing("a name of the extension registry"),
    b"\x84": _refusing("a name of the extension registry"),
    b"\x97": _refusing("an out-of-band buffer: the array is not in the file"),
    b"\x98": _refusing("an out-of-band buffer: the array is not in the file"),
    b"2": _refusing("a duplicate, which no pickler writes"),
}
# What changes what is there.
DONE: dict[bytes, Callable[[Machine], None]] = {
    b"(": Machine.mark,
    b"0": Machine.pop,
    b"1": Machine.drop,
    b"a": lambda machine: machine.append(machine.last(1)),
    b"e": lambda machine: machine.append(machine.since_mark()),
    b"s": lambda machine: machine.set_items([*machine.last(2)]),
    b"u": lambda machine: machine.set_items(machine.since_mark()),
    b"\x90": lambda machine: machine.add(machine.since_mark()),
    b"p": lambda machine: machine.keep(machine.stream.index(b"p")),
    b"q": lambda machine: machine.keep(machine.stream.index(b"q")),
    b"r": lambda machine: machine.keep(machine.stream.index(b"r")),
    b"\x94": Machine.memoize,
    b"\x80": Machine.start,
    b"\x95": Machine.frame,
}
