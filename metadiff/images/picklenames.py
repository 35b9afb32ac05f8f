"""What the names in a pickle stand for: makers of our own, found by the name alone, so that nothing is imported or called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from metadiff.errors import DataError
from metadiff.images.picklefile import Payloads
from metadiff.images.plain import ONLY, key, mapping
from metadiff.images.source import shown
from metadiff.images.stored import NUMBERS_AND_TEXTS, Stored

RENAMED = {
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
}

Maker = Callable[[tuple[Any, ...], Payloads], object]


@dataclass(frozen=True)
class Known:
    """A name; what is made when the pickle calls it."""

    name: str
    make: Maker


@dataclass
class Pending:
    """An array or a dtype between the two opcodes that make it: first empty, then with its state."""

    finish: Callable[[object, Payloads], object]
    value: object = None


def known(module: str, name: str) -> Known:
    full = f"{RENAMED.get(module, module)}.{name}"
    if full not in KNOWN:
        raise DataError(f"{shown(f'{module}.{name}'[:100])}: {ONLY}")
    return KNOWN[full]


def _refused(args: tuple[Any, ...], _: Payloads) -> object:
    raise DataError(f"a call of a name with {len(args)} arguments that no array or container needs: {ONLY}")


def _list(args: tuple[Any, ...], payloads: Payloads) -> object:
    match args:
        case ():
            return []
        case (list() | tuple() as items,):
            return [*items]
    return _refused(args, payloads)


def _tuple(args: tuple[Any, ...], payloads: Payloads) -> object:
    items = _list(args, payloads)
    assert isinstance(items, list)
    return tuple(items)


def _set(args: tuple[Any, ...], payloads: Payloads) -> object:
    items = _list(args, payloads)
    assert isinstance(items, list)
    return {key(item) for item in items}


def _dict(args: tuple[Any, ...], payloads: Payloads) -> object:
    match args:
        case ():
            return {}
        case (list() as pairs,) if all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
            return mapping([part for pair in pairs for part in pair])
    return _refused(args, payloads)


def _defaultdict(args: tuple[Any, ...], payloads: Payloads) -> object:
    match args:
        case () | (None,) | (Known(),):
            return {}
    return _refused(args, payloads)


def _encode(args: tuple[Any, ...], payloads: Payloads) -> object:
    """How Python 3 writes bytes for Python 2. A long text was already decoded, see Machine.text."""
    match args:
        case (str() as text, "latin1" | "latin-1"):
            return text.encode("latin-1")
        case (Stored() as raw, "latin1" | "latin-1"):
            return raw
    return _refused(args, payloads)


def _bytes(args: tuple[Any, ...], payloads: Payloads) -> object:
    match args:
        case ():
            return b""
        case (bytes() | Stored() as raw,):
            return raw
    return _encode(args, payloads)


def _reconstructor(args: tuple[Any, ...], payloads: Payloads) -> object:
    match args:
        case (Known() as made, Known() as base, state) if made is base:
            return made.make(() if state is None else (state,), payloads)
    return _refused(args, payloads)


def _dtype(args: tuple[Any, ...], payloads: Payloads) -> object:
    match args:
        case (str() as code, 0, 0 | 1) if NUMBERS_AND_TEXTS.fullmatch(code):
            return Pending(partial(_with_order, np.dtype(code)))
        case (str() as code, *_):
            raise DataError(f"an array of dtype {shown(code[:40])}; only numbers, bools and texts are read")
    return _refused(args, payloads)


def _with_order(dtype: np.dtype[np.generic], state: object, _: Payloads) -> object:
    match state:
        case (3, "<" | ">" | "|" as order, None, None, None, int(), int(), int()):
            return dtype.newbyteorder(order)
    raise DataError("a dtype with fields or of an unknown form; only numbers, bools and texts are read")


def _reconstruct(args: tuple[Any, ...], payloads: Payloads) -> object:
    match args:
        case (Known(name="numpy.ndarray"), (0,), b"b" | "b"):
            return Pending(_array)
    return _refused(args, payloads)


def _array(state: object, payloads: Payloads) -> object:
    match state:
        case (1, tuple() as shape, np.dtype() as dtype, 0 | 1 as fortran, payload):
            return payloads.array(payload, dtype, shape, fortran=bool(fortran))
    raise DataError("an array of an unknown form; write it again with a numpy of this century")


def _frombuffer(args: tuple[Any, ...], payloads: Payloads) -> object:
    match args:
        case (payload, np.dtype() as dtype, tuple() as shape, "C" | "F" as order):
            return payloads.array(payload, dtype, shape, fortran=order == "F")
        case (_, np.dtype(), tuple(), "K", *_):
            raise DataError("an array with turned axes; write it again after numpy.ascontiguousarray")
    return _refused(args, payloads)


def _scalar(args: tuple[Any, ...], payloads: Payloads) -> object:
    match args:
        case (np.dtype() as dtype, bytes() | str() as payload):
            raw = payload.encode("latin-1") if isinstance(payload, str) else payload
            if len(raw) != dtype.itemsize:
                raise DataError(f"a number of dtype {dtype} made of {len(raw)} bytes")
            return _text(raw, dtype) if dtype.kind == "U" else np.frombuffer(raw, dtype)[0].item()
    return _refused(args, payloads)


def _text(raw: bytes, dtype: np.dtype[np.generic]) -> str:
    """numpy fails in its own depths on a character that there is not."""
    return raw.decode("utf-32-be" if dtype.str[0] == ">" else "utf-32-le", "surrogatepass").rstrip("\0")


KNOWN = {
    name: Known(name, make)
    for name, make in {
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray.scalar": _scalar,
        "numpy._core.numeric._frombuffer": _frombuffer,
        "numpy.ndarray": _refused,
        "numpy.dtype": _dtype,
        "_codecs.encode": _encode,
        "builtins.list": _list,
        "builtins.tuple": _tuple,
        "builtins.set": _set,
        "builtins.dict": _dict,
        "builtins.bytes": _bytes,
        "builtins.bytearray": _bytes,
        "builtins.int": _refused,
        "builtins.long": _refused,
        "builtins.object": _refused,
        "collections.OrderedDict": _dict,
        "collections.defaultdict": _defaultdict,
        "copyreg._reconstructor": _reconstructor,
    }.items()
}
ENCODE = KNOWN["_codecs.encode"]
