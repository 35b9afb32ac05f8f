"""An array that stays in the file it came in: where its bytes lie and what they mean, so that a million of them cost little."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from metadiff.errors import DataError
from metadiff.images.source import shown

NUMBERS_AND_TEXTS = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,5}")  # of dtypes: what holds no object and no field


@dataclass(frozen=True, slots=True)
class Stored:
    """An array whose bytes lie in a file, unread."""

    path: Path
    offset: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool = False

    def read(self) -> NDArray[np.generic]:
        """All of it, in memory."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            flat = np.fromfile(file, self.dtype, math.prod(self.shape))
        if flat.size != math.prod(self.shape):
            raise DataError(f"{shown(str(self.path))}: has become shorter than it was; bring it again")
        if self.dtype.kind == "U" and flat.size and flat.view(self.dtype.str[0] + "u4").max() > sys.maxunicode:
            raise DataError(f"{shown(str(self.path))}: a text at byte {self.offset} has a character that there is not")
        return flat.reshape(self.shape, order="F" if self.fortran else "C")

    def view(self) -> NDArray[np.generic]:
        """The same, mapped into memory and read as far as it is looked at."""
        if 0 in self.shape or self.dtype.kind == "U":  # nothing can be mapped; texts are looked at first
            return self.read()
        order = "F" if self.fortran else "C"
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape, order=order)  # type: ignore[call-overload,no-any-return]


def byte_count(dtype: np.dtype[np.generic], shape: tuple[Any, ...]) -> int:
    """What an array of this shape takes; a DataError with the reason alone if there can be none."""
    if len(shape) > 32 or not all(type(length) is int and 0 <= length <= sys.maxsize for length in shape):
        raise DataError("an array whose shape is not up to 32 counts")
    if math.prod(length or 1 for length in shape) * dtype.itemsize > sys.maxsize:
        raise DataError("an array larger than any memory")
    size: int = math.prod(shape) * dtype.itemsize
    return size


def stored_npy(path: Path) -> Stored:
    """The array of a .npy file, by its header."""
    with path.open("rb") as file:
        try:
            version = npy.read_magic(file)
            read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            shape, fortran, dtype = read_header(file)
        except (ValueError, KeyError, TypeError, RecursionError, MemoryError):
            raise DataError(f"{shown(str(path))}: not a .npy file of format 1 or 2; save it with numpy.save") from None
        offset = file.tell()
    if reason := _unreadable(dtype, shape, path.stat().st_size - offset):
        raise DataError(f"{shown(str(path))}: {reason}")
    return Stored(path, offset, dtype, shape, fortran)


def _unreadable(dtype: np.dtype[np.generic], shape: tuple[int, ...], found: int) -> str:
    if not NUMBERS_AND_TEXTS.fullmatch(dtype.str[1:]):
        return f"an array of dtype {str(dtype)[:40]}; only numbers, bools and texts are read"
    if (expected := byte_count(dtype, shape)) != found:
        return f"its header promises {expected} bytes, found {found}; bring it again"
    return ""
