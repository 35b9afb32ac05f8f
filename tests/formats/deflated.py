"""Gigabytes of zeros in a few kilobytes, made in no time."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from functools import cache

MEBI = 1 << 20
END = b"\x03\x00"  # an empty last block


def zeros(mebibytes: int, head: bytes = b"") -> bytes:
    """A deflated stream of ``head`` and then so many zeros: one block of 16 MiB again and again."""
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = press.compress(head) + press.flush(zlib.Z_FULL_FLUSH)
    return start + _block() * (mebibytes // 16) + END


@cache
def _block() -> bytes:
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    return press.compress(bytes(16 * MEBI)) + press.flush(zlib.Z_FULL_FLUSH)


def zip_of(name: str, deflated: bytes, size: int, *, crc: int = 0) -> bytes:
    """An archive of one member that says of itself that it has ``size`` bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, deflated)
    content = bytearray(stream.getvalue())
    for at in (8, content.rindex(b"PK\x01\x02") + 10):
        struct.pack_into("<H", content, at, zipfile.ZIP_DEFLATED)
        struct.pack_into("<III", content, at + 6, crc, len(deflated), size)
    return bytes(content)
