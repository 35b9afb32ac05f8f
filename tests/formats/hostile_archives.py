"""Archives that write where nobody asked them to, or unpack to what no disk can hold; and images that do so in memory."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.formats.deflated import MEBI, zeros, zip_of

TOP = "images_background/Angelic/character01"
UP = "../" * 30
MANY = 3_000

Member = tuple[str, bytes, int]  # name, content or the target of a link, mode


def hostile_zips(folder: Path, canary: Path) -> dict[str, Path]:
    """By name, where the archive was written."""
    made: dict[str, Callable[[], bytes]] = {name: partial(_zip, members) for name, members in _escapes(canary).items()}
    made |= {
        "NUL in a name": lambda: _zip([(f"{TOP}/a.png#.txt", b"", stat.S_IFREG)]).replace(b"a.png#", b"a.png\0"),
        "bomb in one member": lambda: zip_of(f"{TOP}/a.png", zeros(3072), 3072 * MEBI),
        "bomb of overlapping members": _overlapping,
        "declares less than it has": lambda: zip_of(f"{TOP}/a.png", zeros(3072), 8, crc=zlib.crc32(bytes(8))),
        "many members": lambda: _zip([(f"{TOP}/{number}.png", b"", stat.S_IFREG) for number in range(MANY)]),
    }
    return _written(folder, made, ".zip")


def hostile_tars(folder: Path, canary: Path) -> dict[str, Path]:
    """By name, where the archive was written; ``.tgz`` as CUB is."""
    made: dict[str, Callable[[], bytes]] = {name: partial(_tar, members) for name, members in _escapes(canary).items()}
    link = tarfile.TarInfo(f"{TOP}/a.png")
    link.type, link.linkname = tarfile.LNKTYPE, str(canary)
    made |= {
        "hard link out": lambda: _tar([(f"{TOP}/a.png", b"bad", stat.S_IFREG)], before=link),
        "NUL in a name": lambda: _tar([(f"{TOP}/a.png\0.txt", b"", stat.S_IFREG)]),
        "bomb in one member": _tar_bomb,
        "sparse file": _sparse,
        "many members": lambda: _tar([(f"{TOP}/{number}.png", b"", stat.S_IFREG) for number in range(MANY)]),
    }
    return _written(folder, made, ".tgz")


def bomb_images() -> dict[str, bytes]:
    side = 60_000
    rows = zeros(side * (side // 8 + 1) // MEBI // 16 * 16 + 16)
    return {
        "claims many pixels": _png(side, side, 8, zlib.compress(bytes(1000))),
        "has many pixels": _png(side, side, 1, b"\x78\xda" + rows + b"sum?"),
        "text that inflates": _png(8, 8, 8, zlib.compress(bytes(8 * 25)), text=b"\x78\xda" + zeros(1024) + b"sum?"),
    }


def _escapes(canary: Path) -> dict[str, Sequence[Member]]:
    file, link = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
    inside = f"{TOP}/a.png"
    return {
        "absolute path": [(str(canary), b"bad", file)],
        "parent folders": [(f"{UP}{canary}", b"bad", file)],
        "parent folders in the middle": [(inside, b"good", file), (f"{TOP}/{UP}{canary}", b"bad", file)],
        "file through a link to a folder": [
            (f"{TOP}/out", str(canary.parent).encode(), link),
            (f"{TOP}/out/{canary.name}", b"bad", file),
        ],
        "file through a link to a file": [(inside, str(canary).encode(), link), (inside, b"bad", file)],
        "link to itself": [(inside, b"a.png", link)],
        "link in a circle": [(inside, b"b.png", link), (f"{TOP}/b.png", b"a.png", link)],
        "device": [(inside, b"", stat.S_IFCHR | 0o666)],
        "fifo": [(inside, b"", stat.S_IFIFO | 0o644)],
        "setuid": [(inside, b"#!/bin/sh\n", file | 0o4755)],
        "two of one name": [(inside, b"first", file), (inside, b"second", file)],
        "a file and a folder of one name": [(TOP, b"", file), (inside, b"", file)],
        "backslash in a name": [(f"..\\..\\{canary.name}", b"bad", file)],
        "drive letter": [(f"C:\\{canary.name}", b"bad", file)],
        "newline in a name": [(f"{TOP}/a\nwarning: all is well.png", b"", file)],
        "escape code in a name": [(f"{TOP}/\x1b[2J.png", b"", file)],
        "long name": [(f"{TOP}/{'x' * 5000}.png", b"", file)],
        "deep folders": [("d/" * 5000 + "a.png", b"", file)],
    }


def _zip(members: Sequence[Member]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        seen = set()
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            if name in seen:
                archive.NameToInfo.pop(name)  # or zipfile would warn
            seen.add(name)
            archive.writestr(info, content)
    return stream.getvalue()


def _tar(members: Sequence[Member], *, before: tarfile.TarInfo | None = None) -> bytes:
    kinds = {stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        if before:
            archive.addfile(before)
        for name, content, mode in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kinds.get(stat.S_IFMT(mode), tarfile.REGTYPE), stat.S_IMODE(mode)
            if info.issym():
                info.linkname = content.decode()
            elif info.ischr():
                info.devmajor, info.devminor = 1, 3
            info.size = len(content) if info.isreg() else 0
            if "\0" in name:
                info.name, info.pax_headers = "a.png", {"path": name}
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _overlapping() -> bytes:
    """Ten gigabytes in a hundred kilobytes: each member quotes the header of the next one and goes on with its content."""
    deflated, size, heads, entries = zeros(16), 16 * MEBI, [b""], []
    for number in range(640):
        one = zip_of(f"{number:05d}.png", b"", size)
        at = one.rindex(b"PK\x01\x02")
        head, entry = bytearray(one[:at]), bytearray(one[at : one.rindex(b"PK\x05\x06")])
        taken = len(deflated) + sum(map(len, heads))
        struct.pack_into("<I", head, 18, taken)
        struct.pack_into("<I", entry, 20, taken)
        quote = b"\0" + struct.pack("<HH", len(head), len(head) ^ 0xFFFF)
        heads.append(quote + bytes(head))
        entries.append(entry)
        size += len(head)
    heads[-1] = heads[-1][5:]  # nobody quotes the first
    body = b"".join(reversed(heads)) + deflated
    place = 0
    for listed, head in zip(reversed(entries), reversed(heads), strict=False):
        struct.pack_into("<I", listed, 42, place)
        place += len(head) + (0 if place else 5)
    table = b"".join(entries)
    return body + table + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, len(entries), len(entries), len(table), len(body), 0)


def _tar_bomb() -> bytes:
    info = tarfile.TarInfo(f"{TOP}/a.png")
    info.size = 3072 * MEBI
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zeros(3072, info.tobuf()) + bytes(8)


def _sparse() -> bytes:
    """Ten gigabytes, all of them a hole."""
    stream = io.BytesIO()
    size = str(10_240 * MEBI)
    with tarfile.open(fileobj=stream, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        table = f"1\n{size}\n0\n".encode().ljust(512, b"\0")
        info.size = len(table)
        names = {"major": "1", "minor": "0", "name": f"{TOP}/a.png", "realsize": size}
        info.pax_headers = {f"GNU.sparse.{key}": value for key, value in names.items()}
        archive.addfile(info, io.BytesIO(table))
    return stream.getvalue()


def _png(width: int, height: int, bits: int, pixels: bytes, *, text: bytes = b"") -> bytes:
    """Of grey pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))]
    chunks += [(b"zTXt", b"Comment\0\0" + text)] if text else []
    chunks += [(b"IDAT", pixels), (b"IEND", b"")]
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _written(folder: Path, made: dict[str, Callable[[], bytes]], suffix: str) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, make in made.items():
        found[name] = folder / f"{name.replace(' ', '-')}{suffix}"
        found[name].write_bytes(make())
    return found
