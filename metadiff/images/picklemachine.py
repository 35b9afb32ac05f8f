"""What a pickle's opcodes do: they push values onto a stack, gather those since a mark, and keep some in a memo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from metadiff.errors import DataError
from metadiff.images.picklefile import LONGEST_TEXT, SMALL, Payloads, Stream, as_latin1, decimal, is_small, unquoted, without_end
from metadiff.images.picklenames import ENCODE, Known, Pending, known
from metadiff.images.plain import key, mapping

NEWEST = 5  # protocol
LONGEST_INT = 1024  # bytes

Kind = TypeVar("Kind")


class Machine:
    """A method a kind of opcode; what one raises is the reason alone."""

    def __init__(self, stream: Stream, payloads: Payloads, places: set[int]) -> None:
        self.stream = stream
        self.payloads = payloads
        self.places = places
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.memoized = 0
        self.put = False
        self.called = 0  # items and bytes that calls have made

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, kind: type[Kind]) -> Kind:
        """What the next opcode adds to."""
        if type(self.stack[-1]) is not kind:
            raise DataError(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} must be")
        top: Kind = self.stack[-1]
        return top

    def last(self, count: int) -> tuple[Any, ...]:
        values = tuple(self.stack[-count:])
        if len(values) < count:
            raise DataError("an opcode for which there is nothing; the file is broken")
        del self.stack[-count:]
        return values

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.drop()

    def drop(self) -> None:
        self.stack = self.marks.pop()

    def append(self, items: Iterable[Any]) -> None:
        self.top(list).extend(items)

    def add(self, items: list[Any]) -> None:
        self.top(set).update(map(key, items))

    def set_items(self, flat: list[Any]) -> None:
        self.top(dict).update(mapping(flat))

    def keep(self, index: int) -> None:
        """Into the memo. Picklers number its places themselves or let them be counted, never both."""
        self.put = True
        if self.memoized:
            raise DataError("a memo both numbered and counted, which no pickler writes")
        if index in self.places:
            self.memo[index] = self.stack[-1]

    def memoize(self) -> None:
        if self.put:
            raise DataError("a memo both numbered and counted, which no pickler writes")
        if self.memoized in self.places:
            self.memo[self.memoized] = self.stack[-1]
        self.memoized += 1

    def get(self, code: bytes) -> object:
        value = self.memo[self.stream.index(code)]
        return value.value if type(value) is Pending and value.value is not None else value

    def integer(self, width: int) -> int:
        if (length := self.stream.number(width)) > LONGEST_INT:
            raise DataError(f"a number of {length} bytes")
        return int.from_bytes(self.stream.take(length), "little", signed=True)

    def integer_line(self) -> int:
        line = self.stream.line()
        return line == b"01" if line in (b"00", b"01") else decimal(line)  # so protocol 0 writes False and True

    def payload(self, width: int) -> object:
        """Bytes, or where they lie."""
        offset, length = self.stream.payload(width)
        if length > SMALL:
            self.stream.file.seek(offset + length)
            return self.payloads.here(offset, length)
        return self._remembered(self.stream.take(length), offset, length)

    def string(self, width: int) -> object:
        """Python 2's, which is a text or bytes."""
        offset, length = self.stream.payload(width)
        if length > SMALL:
            self.stream.file.seek(offset + length)
            return self.payloads.here(offset, length)
        return self._remembered(self.stream.take(length).decode("latin-1"), offset, length)

    def _remembered(self, value: object, offset: int, length: int) -> object:
        self.payloads.remember(value, offset, length)
        return value

    def text(self, width: int) -> object:
        length = self.stream.number(width)
        if length > SMALL and self._is_to_be_encoded():
            return self.payloads.write(as_latin1(self.stream.payload_pieces(length), "utf-8"))
        if length > LONGEST_TEXT:
            raise DataError(f"a text of {length} bytes, expected at most {LONGEST_TEXT}")
        return self.stream.take(length).decode("utf-8", "surrogatepass")

    def text_line(self) -> object:
        small, pieces = is_small(self.stream.line_pieces())
        if not small and self._is_to_be_encoded():
            return self.payloads.write(as_latin1(without_end(pieces), "raw-unicode-escape"))
        return b"".join(without_end(self._short(pieces))).decode("raw-unicode-escape")

    def string_line(self) -> object:
        small, pieces = is_small(self.stream.line_pieces())
        return b"".join(unquoted(pieces)).decode("latin-1") if small else self.payloads.write(unquoted(pieces))

    def _short(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > LONGEST_TEXT:
                raise DataError(f"a text of more than {LONGEST_TEXT} bytes")
            yield piece

    def _is_to_be_encoded(self) -> bool:
        """Whether the text that is next is bytes as Python 3 writes them for Python 2."""
        below = self.stack or (self.marks[-1] if self.marks else [])
        return below[-1:] == [ENCODE]

    def name(self) -> Known:
        module, name = (self.stream.line().decode() for _ in range(2))
        return known(module, name)

    def name_on_stack(self) -> Known:
        module, name = self.last(2)
        if type(module) is not str or type(name) is not str:
            raise DataError("a name that is no text")
        return known(module, name)

    def call(self) -> object:
        made, args = self.last(2)
        if type(made) is not Known or type(args) is not tuple:
            raise DataError(f"a call of a {type(made).__name__}, expected a name")
        value = made.make(args, self.payloads)
        self.called += len(value) if isinstance(value, (str, bytes, list, tuple, set, dict)) else 0
        if self.called > self.stream.size:
            raise DataError("its values take more than the file itself: one piece of it is used many times")
        return value

    def build(self) -> object:
        pending, state = self.last(2)
        if type(pending) is not Pending or pending.value is not None:
            raise DataError("a state for something other than an array")
        pending.value = pending.finish(state, self.payloads)
        return pending.value

    def start(self) -> None:
        if (protocol := self.stream.number(1)) > NEWEST:
            raise DataError(f"protocol {protocol}, expected 0 to {NEWEST}; write it again with an older one")

    def frame(self) -> None:
        if (length := self.stream.number(8)) > self.stream.size - self.stream.file.tell():
            raise DataError(f"a frame of {length} bytes that goes beyond the file's end; bring it again")
