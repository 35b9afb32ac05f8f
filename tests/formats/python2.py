"""What Python 2's ``pickle`` wrote, byte for byte: most published few-shot data sets are such files.

A ``str`` of Python 2 is bytes without an encoding, so ``str`` and ``bytes`` both become one here; ``Unicode`` and ``Long`` mark
the two types that Python 3 has no other name for. ``recorded`` holds what a real Python 2 wrote; the tests compare.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

BATCH = 1000  # items of a list or dict behind one mark


class Unicode(str):
    """Python 2's ``unicode``."""


class Long(int):
    """Python 2's ``long``."""


def python2_pickle(obj: object, protocol: int = 2) -> bytes:
    """Numbers, text, lists, tuples, dicts, and of numpy arrays, scalars and dtypes."""
    if protocol not in (0, 1, 2):
        raise ValueError(f"Python 2 has the protocols 0, 1 and 2, not {protocol}")
    writer = _Writer(protocol)
    writer.save(obj)
    head = b"\x80\x02" if protocol == 2 else b""
    return head + b"".join(writer.out) + b"."


class _Writer:
    """Opcodes so far, and under which number each object was put in the memo."""

    def __init__(self, protocol: int) -> None:
        self.protocol = protocol
        self.out: list[bytes] = []
        self.memo: dict[object, int] = {}
        self.kept: list[object] = []  # an id is an object's own only as long as that lives

    def save(self, obj: Any) -> None:  # noqa: ANN401 - of any type in the table
        if id(obj) in self.memo:
            self.get(id(obj))
            return
        for kind, save in self.savers().items():
            if isinstance(obj, kind):
                save(obj)
                return
        raise TypeError(f"{type(obj).__name__}: not among the types of published data sets")

    def savers(self) -> dict[type, Callable[[Any], None]]:
        """The first that fits: numpy's scalars and the markers before the types that they derive from."""
        return {
            type(None): lambda _: self.out.append(b"N"),
            bool: self.save_bool,
            np.generic: self.save_reduced,
            np.dtype: self.save_reduced,
            np.ndarray: self.save_reduced,
            Long: self.save_long,
            int: self.save_int,
            float: self.save_float,
            Unicode: self.save_unicode,
            str: self.save_str,
            bytes: self.save_str,
            tuple: self.save_tuple,
            list: self.save_list,
            dict: self.save_dict,
        }

    def get(self, key: object) -> None:
        number = self.memo[key]
        self.out.append(self.either(b"g%d\n" % number, b"h" + bytes([number]) if number < 256 else b"j" + _i32(number)))

    def put(self, key: object, obj: object) -> None:
        number = self.memo[key] = len(self.memo)
        self.kept.append(obj)
        self.out.append(self.either(b"p%d\n" % number, b"q" + bytes([number]) if number < 256 else b"r" + _i32(number)))

    def either(self, text: bytes, binary: bytes) -> bytes:
        return binary if self.protocol else text

    def save_bool(self, obj: bool) -> None:
        self.out.append((b"\x89", b"\x88")[obj] if self.protocol == 2 else b"I%02d\n" % obj)

    def save_int(self, obj: int) -> None:
        if not -(2**31) <= obj < 2**31:
            if not -(2**63) <= obj < 2**63:
                raise TypeError(f"{obj}: a long in Python 2; write Long({obj})")
            self.out.append(b"I%d\n" % obj)
        elif 0 <= obj < 2**16:
            self.out.append(self.either(b"I%d\n" % obj, b"K" + bytes([obj]) if obj < 256 else b"M" + struct.pack("<H", obj)))
        else:
            self.out.append(self.either(b"I%d\n" % obj, b"J" + _i32(obj)))

    def save_long(self, obj: int) -> None:
        if self.protocol < 2:
            self.out.append(b"L%dL\n" % obj)
            return
        raw = obj.to_bytes(obj.bit_length() // 8 + 1, "little", signed=True) if obj else b""
        if obj < 0 and len(raw) > 1 and raw[-1] == 0xFF and raw[-2] >= 0x80:
            raw = raw[:-1]  # the shortest that keeps the sign
        self.out.append(b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + _i32(len(raw)) + raw)

    def save_float(self, obj: float) -> None:
        self.out.append(self.either(f"F{obj!r}\n".encode(), b"G" + struct.pack(">d", obj)))

    def save_str(self, obj: str | bytes) -> None:
        raw = obj.encode("latin-1") if isinstance(obj, str) else obj
        short = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + _i32(len(raw))
        self.out.append(self.either(b"S" + _quoted(raw) + b"\n", short + raw))
        self.put(id(obj), obj)

    def save_unicode(self, obj: str) -> None:
        utf8 = obj.encode("utf-8")
        escaped = obj.replace("\\", "\\u005c").replace("\n", "\\u000a").encode("raw-unicode-escape")
        self.out.append(self.either(b"V" + escaped + b"\n", b"X" + _i32(len(utf8)) + utf8))
        self.put(id(obj), obj)

    def save_tuple(self, obj: tuple[object, ...]) -> None:
        if not obj:
            self.out.append(self.either(b"(t", b")"))
            return
        short = self.protocol == 2 and len(obj) <= 3
        if not short:
            self.out.append(b"(")
        for item in obj:
            self.save(item)
        self.out.append(b"\x85\x86\x87"[len(obj) - 1 : len(obj)] if short else b"t")
        self.put(id(obj), obj)

    def save_list(self, obj: list[object]) -> None:
        self.out.append(self.either(b"(l", b"]"))
        self.put(id(obj), obj)
        self.save_items(([item] for item in obj), one=b"a", many=b"e")

    def save_dict(self, obj: dict[object, object]) -> None:
        self.out.append(self.either(b"(d", b"}"))
        self.put(id(obj), obj)
        self.save_items((list(pair) for pair in obj.items()), one=b"s", many=b"u")

    def save_items(self, items: Iterable[list[object]], *, one: bytes, many: bytes) -> None:
        for batch in _batches(items, BATCH if self.protocol else 1):
            if len(batch) > 1:
                self.out.append(b"(")
            for part in batch:
                for obj in part:
                    self.save(obj)
            self.out.append(many if len(batch) > 1 else one)

    def save_reduced(self, obj: Any) -> None:  # noqa: ANN401 - array, scalar or dtype
        """By numpy's own reduction, under the names that its modules had then."""
        called, args, *state = obj.__reduce__()
        self.save_global("numpy" if called is np.dtype else "numpy.core.multiarray", called.__name__)
        if called is np.dtype:
            self.save((bytes(args[0], "ascii"), 0, 1))
        elif isinstance(obj, np.ndarray):
            self.save_reconstruction()
        else:
            self.save(args)
        self.out.append(b"R")
        self.put(id(obj), obj)
        if state:
            self.save(_fresh(state[0]))
            self.out.append(b"b")

    def save_reconstruction(self) -> None:
        """(numpy.ndarray, (0,), 'b'), of which each array writes its own tuples."""
        if self.protocol < 2:
            self.out.append(b"(")
        self.save_global("numpy", "ndarray")
        length = 0
        self.save((length,))  # a literal would be one object, and one entry of the memo, for all arrays
        self.save(_LETTER)
        self.out.append(b"\x87" if self.protocol == 2 else b"t")
        self.put(object(), None)

    def save_global(self, module: str, name: str) -> None:
        if (module, name) in self.memo:
            self.get((module, name))
            return
        self.out.append(f"c{module}\n{name}\n".encode())
        self.put((module, name), None)


_LETTER = "b"  # Python 2 has one object for it, so that all arrays share one entry of the memo


class _Bytes(bytes):
    """Bytes with an identity: CPython has one object for each single byte."""


def _fresh(state: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(_Bytes(item, "ascii") if isinstance(item, str) else item for item in state)


def _batches(items: Iterable[list[object]], size: int) -> Iterator[list[list[object]]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _i32(value: int) -> bytes:
    return struct.pack("<i", value)


def _quoted(raw: bytes) -> bytes:
    """``repr`` of a str in Python 2."""
    return repr(raw)[1:].encode("ascii")
