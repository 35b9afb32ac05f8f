"""Archives that anyone may have made: unpacked piece by piece, and refused whole if one member could do harm or is not sound."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from metadiff.errors import DataError
from metadiff.images.files import is_clutter
from metadiff.images.members import Budget, Member, Names, safe_parts
from metadiff.images.source import shown

PIECE = 1 << 20
ENDINGS = (".zip", ".npz", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
BLOCK = 512  # of a tar
LARGEST_HEADER = 1 << 16  # of a member of a tar; tarfile reads each at once
MOST_HEADERS = 1000  # for all members of a tar, which tarfile keeps
LARGEST_DICTIONARY = 256 << 20  # of xz, in memory; its own level 9 takes a quarter
ANY_FAULT = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # of a compression
    RuntimeError,  # of a key or of too many headers in a row
    ValueError,
    struct.error,
    OSError,  # without a number: gzip and bz2 say so that the content is broken
)


def is_archive(path: Path) -> bool:
    """Whether the content is a zip or a tar, however packed; the name says nothing."""
    with path.open("rb") as file:
        head = file.read(4)
    if head in ZIP:
        return True
    with suppress(*ANY_FAULT), _unpacked(path) as file:
        return _tar(file).next() is not None
    return False


def archives_at(path: Path) -> list[Path]:
    """The archive itself, or those anywhere in the folder by their names; a DataError for what is called one and is none."""
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.name.lower().endswith(ENDINGS))
    files = [file for file in files if file.is_file() and not any(map(is_clutter, file.relative_to(path).parts))]
    found = [file for file in files if is_archive(file)]
    for file in files:
        if file not in found:
            with file.open("rb") as stream:
                head = stream.read(512).lstrip().lower()
            what = "an HTML page" if head.startswith((b"<!doctype", b"<html")) else "no archive"
            raise DataError(f"{shown(str(file))}: {what}, whatever its name says: the download failed; bring it again")
    return found


def expected_size(archive: Path) -> int:
    """About how many bytes it unpacks to, as far as it says so at once; for a progress bar."""
    with archive.open("rb") as file, suppress(*ANY_FAULT):
        head = file.read(4)
        if head in ZIP:
            with zipfile.ZipFile(archive) as members:
                return sum(info.file_size for info in members.infolist())
        if head.startswith(b"\x1f\x8b"):
            file.seek(-4, os.SEEK_END)
            return max(int.from_bytes(file.read(4), "little"), archive.stat().st_size)
    return archive.stat().st_size


def unpack(archive: Path, into: Path, *, advance: Callable[[int], None] | None = None) -> None:
    """All files of it, or none and a DataError. ``into`` must be empty; ``advance`` is told the bytes that were written."""
    into.mkdir(parents=True, exist_ok=True)
    if any(into.iterdir()):
        raise DataError(f"{shown(str(into))}: not empty; archives are unpacked into an empty folder")
    try:
        _unpack(archive, into, advance or (lambda _: None))
    except BaseException:
        for left in into.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        raise


def _unpack(archive: Path, into: Path, advance: Callable[[int], None]) -> None:
    where = shown(str(archive))
    try:
        names, budget = Names(), Budget(archive, into)
        for member in _members(archive, budget):
            where = f"{shown(str(archive))}: {shown(member.name[:200])}"
            parts = safe_parts(member)
            budget.announce(member)
            for folder in names.enter(parts, is_folder=member.is_folder):
                (into / folder).mkdir()
                (into / folder).chmod(0o755)
            if not member.is_folder:
                for count in _write(member, into.joinpath(*parts)):
                    budget.spend(count)
                    advance(count)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except ANY_FAULT as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the second: a place that cannot be
            raise
        text = " ".join(ascii(str(error))[1:-1].split())[:80]
        raise DataError(f"{where}: broken or cut ({text or type(error).__name__}); bring the archive again") from None


def _write(member: Member, path: Path) -> Iterator[int]:
    """Never over something, and with no owner, time or mode of the archive. Says of each piece how long it is, then writes it."""
    written = 0
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o644)
        for piece in member.pieces:
            yield len(piece)
            written += file.write(piece)
    if written < member.size:
        raise DataError(f"cut: {written} bytes of {member.size}; bring the archive again")


def _members(path: Path, budget: Budget) -> Iterator[Member]:
    with path.open("rb") as file:
        head = file.read(4)
    return _members_of_zip(path, budget) if head in ZIP else _members_of_tar(path)


def _members_of_zip(path: Path, budget: Budget) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        budget.require_space(sum(info.file_size for info in archive.infolist()))
        for info in archive.infolist():
            # orig_filename: the other one is cut at a NUL
            yield Member(info.orig_filename, info.is_dir(), info.file_size, _harm_of_zip(info), _zip_pieces(archive, info))


def _harm_of_zip(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 0x1:
        return "encrypted"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a device"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"packed in the unusual way {info.compress_type}"
    return ""


def _zip_pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    info.file_size += 1  # zipfile stops at the size that is declared; so the checksum is wrong if there is more
    with archive.open(info) as file:
        while piece := file.read(PIECE):
            yield piece


def _members_of_tar(path: Path) -> Iterator[Member]:
    with _unpacked(path) as file, _tar(file) as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
            pieces = _tar_pieces(file, info.offset_data, info.size)
            size = info.size if info.isreg() else 0
            yield Member(info.name, info.isdir(), size, _harm_of_tar(archive, info), pieces)
        _require_end(file, archive.offset)


def _harm_of_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "a link"
    if info.issparse() or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        return "neither a file nor a folder"
    if len(archive.pax_headers) > MOST_HEADERS:
        return "too many headers"
    return ""


def _tar_pieces(file: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
    file.seek(offset)
    while size > 0 and (piece := file.read(min(PIECE, size))):
        size -= len(piece)
        yield piece


def _require_end(file: BinaryIO, offset: int) -> None:
    """tarfile takes a cut or broken archive for one that ends there. What follows is read too: it has the checksums."""
    file.seek(offset)
    if file.read(BLOCK) != bytes(BLOCK):
        raise DataError("cut or broken: it has no end; bring the archive again")
    if len(file.read(PIECE)) == PIECE:
        raise DataError("content after its end")


class _HeadersOnly:
    """What tarfile sees of a file: as it reads a header at once, however long, a long one is refused."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek = file.seek
        self.tell = file.tell
        self.file = file

    def read(self, size: int) -> bytes:
        if size > LARGEST_HEADER:
            raise DataError(f"a header of {size} bytes")
        return self.file.read(size)


def _tar(file: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=cast(BinaryIO, _HeadersOnly(file)), mode="r:")


def _unpacked(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        head = file.read(PIECE)
    if head.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(path))
    if head.startswith(b"BZh"):
        return cast(BinaryIO, bz2.open(path))
    if head.startswith(b"\xfd7zXZ\x00"):
        lzma.LZMADecompressor(memlimit=LARGEST_DICTIONARY).decompress(head, max_length=1)
        return cast(BinaryIO, lzma.open(path))
    return path.open("rb")
