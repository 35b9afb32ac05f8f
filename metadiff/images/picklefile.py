"""The bytes of a pickle: the opcodes' arguments, and where the payloads of its arrays lie, which are skipped unread."""

from __future__ import annotations

import codecs
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from metadiff.errors import DataError
from metadiff.images.stored import Stored, byte_count

SMALL = 4096  # bytes; what is longer is not held
LONGEST_TEXT = 1 << 24
LONGEST_LINE = 1024  # of a number or a name
PIECE = 1 << 20
MOST_CODES = 50_000_000  # an array takes about thirty
MOST_CONTAINERS = (
    5_000_000  # an array takes five tuples; a byte makes one of up to 200 bytes, so this bounds what a file can cost
)

STOP = b"."
BYTES = np.dtype(np.uint8)


def _each(sizes: dict[int, bytes]) -> dict[bytes, int]:
    return {bytes([code]): size for size, codes in sizes.items() for code in codes}


# The arguments of every opcode there is: so many bytes; a length of so many bytes and then the payload; so many lines.
FIXED = _each(
    {
        0: b"()]}.012NRabdelostuQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98",
        1: b"Khq\x80\x82",
        2: b"M\x83",
        4: b"Jjr\x84",
        8: b"G\x95",
    }
)
PREFIXED = _each({1: b"UC\x8c\x8a", 4: b"TBX\x8b", 8: b"\x8d\x8e\x96"})
LINES = _each({1: b"ILFSVgpP", 2: b"ci"})
GETS = (b"g", b"h", b"j")
CONTAINERS = {bytes([code]) for code in b"](}ltd\x85\x86\x87\x8f"}

# Whole escapes as Python 2 writes them, so that a long text can be cut between two.
ESCAPES = re.compile(rb"(?:[^\\]++|\\x[0-9a-fA-F]{2}|\\[\\'\"nrt])*+")
LONGEST_ESCAPE = 4


class Stream:
    """A pickle file from its beginning; what it raises is the reason alone."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        if len(found := self.file.read(count)) < count:
            raise DataError("the file ends in the middle; bring it again")
        return found

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def payload(self, width: int) -> tuple[int, int]:
        """Where the payload begins that is next, and its length."""
        length = self.number(width)
        offset = self.file.tell()
        if length > self.size - offset:
            raise DataError(f"{length} bytes are announced and {self.size - offset} are left; the file is cut, bring it again")
        return offset, length

    def line(self) -> bytes:
        """A short one, without its end."""
        found = self.file.readline(LONGEST_LINE)
        if not found.endswith(b"\n"):
            raise DataError("a line without an end" if len(found) < LONGEST_LINE else "a number or name that is too long")
        return found[:-1]

    def line_pieces(self) -> Iterator[bytes]:
        """A line of any length with its end; the first piece is whole if the line is small."""
        piece = self.file.readline(SMALL)
        while piece[-1:] != b"\n":
            if not piece:
                raise DataError("the file ends in the middle; bring it again")
            yield piece
            piece = self.file.readline(PIECE)
        yield piece

    def payload_pieces(self, length: int) -> Iterator[bytes]:
        for start in range(0, length, PIECE):
            yield self.take(min(PIECE, length - start))

    def index(self, code: bytes) -> int:
        """A place of the memo."""
        return self.number(FIXED[code]) if code in FIXED else decimal(self.line())


def decimal(line: bytes) -> int:
    if not re.fullmatch(rb"[+-]?[0-9]+", line):
        raise DataError("a number that is none")
    return int(line)


def fetched(stream: Stream) -> set[int]:
    """The places of the memo that are read again: only these are worth keeping. Walks to the end first, so that there is one."""
    found, containers = set(), 0
    for _ in range(MOST_CODES):
        code = stream.file.read(1)
        containers += code in CONTAINERS
        if containers > MOST_CONTAINERS:
            raise DataError(f"more than {MOST_CONTAINERS} containers")
        if code in GETS:
            found.add(stream.index(code))
        elif (size := FIXED.get(code)) is not None:
            if size:
                stream.take(size)
        elif code in PREFIXED:
            offset, length = stream.payload(PREFIXED[code])
            stream.file.seek(offset + length)
        elif code in LINES:
            for _ in range(LINES[code]):
                for _ in stream.line_pieces():
                    pass
        elif not code:
            raise DataError("the file ends without a stop; it is cut, bring it again")
        else:
            raise DataError(f"byte {code[0]:#04x} is no opcode; the file is broken or no pickle")
        if code == STOP:
            if left := stream.size - stream.file.tell():
                raise DataError(f"{left} bytes after the end of the pickle; expected one pickle alone")
            return found
    raise DataError(f"more than {MOST_CODES} opcodes")


class Payloads:
    """The bytes of arrays: in the pickle itself where they lie in one piece, else decoded into a file in scratch."""

    def __init__(self, path: Path, scratch: Path, *, limit: int) -> None:
        self.path = path
        self.scratch = scratch
        self.limit = limit
        self.last: tuple[object, Stored | None] = (None, None)
        self.shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.decoded: BinaryIO | None = None
        self.decoded_path = path

    def here(self, offset: int, length: int) -> Stored:
        return Stored(self.path, offset, BYTES, (length,))

    def remember(self, value: object, offset: int, length: int) -> None:
        """A small value may turn out to be an array: numpy's state is its payload and then no other."""
        self.last = (value, self.here(offset, length))

    def array(self, payload: object, dtype: np.dtype[np.generic], shape: tuple[int, ...], *, fortran: bool) -> Stored:
        raw = self._stored(payload)
        if (size := byte_count(dtype, shape)) != raw.shape[0]:
            raise DataError(f"an array of shape {shape} and dtype {dtype} takes {size} bytes, found {raw.shape[0]}")
        return Stored(raw.path, raw.offset, dtype, self.shapes.setdefault(shape, shape), fortran)

    def _stored(self, payload: object) -> Stored:
        value, place = self.last
        if payload is value and place is not None:
            return place
        if isinstance(payload, Stored) and payload.dtype == BYTES and len(payload.shape) == 1:
            return payload
        if isinstance(payload, str):  # as Python 2 calls its bytes
            payload = payload.encode("latin-1")
        if not isinstance(payload, bytes):
            raise DataError(f"an array made of a {type(payload).__name__}, expected bytes")
        return self.write([payload])

    def write(self, pieces: Iterable[bytes]) -> Stored:
        """Appends to the file in scratch, which no honest pickle makes larger than itself."""
        if self.decoded is None:
            descriptor, name = tempfile.mkstemp(dir=self.scratch, prefix=f"{self.path.stem}-", suffix=".bytes")
            self.decoded, self.decoded_path = os.fdopen(descriptor, "wb"), Path(name)
        start = end = self.decoded.tell()
        for piece in pieces:
            end += self.decoded.write(piece)
            if end > self.limit:
                raise DataError("its arrays take more than the file itself: one piece of it is used many times")
        return Stored(self.decoded_path, start, BYTES, (end - start,))

    def close(self, *, keep: bool) -> None:
        if self.decoded is not None:
            self.decoded.close()
            if not keep:
                self.decoded_path.unlink()


def as_latin1(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Bytes that were written as a text whose characters are the bytes, piece by piece."""
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    for piece in pieces:
        yield decoder.decode(piece).encode("latin-1")
    yield decoder.decode(b"", final=True).encode("latin-1")


def unquoted(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A line of Python 2's ``repr`` of a string, piece by piece, as the bytes that it means."""
    held = quote = b""
    for piece in pieces:
        if not quote:
            quote, piece = piece[:1], piece[1:]
        held += piece
        ready = held[:-2]  # the last two may be the other quote and the line's end
        end = ESCAPES.match(ready).end()  # type: ignore[union-attr]
        if len(ready) - end >= LONGEST_ESCAPE:
            raise DataError("a string with an unknown escape")
        yield codecs.escape_decode(ready[:end])[0]
        held = held[end:]
    if quote not in (b"'", b'"') or held != quote + b"\n":
        raise DataError("a string without its quotes")


def without_end(pieces: Iterable[bytes]) -> Iterator[bytes]:
    return (piece.removesuffix(b"\n") for piece in pieces)


def is_small(pieces: Iterator[bytes]) -> tuple[bool, Iterator[bytes]]:
    """Whether the line that begins here is one small piece, and its pieces all the same."""
    first = next(pieces)
    return first.endswith(b"\n"), chain([first], pieces)
