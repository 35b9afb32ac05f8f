"""What of an archive may be written: names that stay in the folder and are one file each, and no more than the disk holds."""

from __future__ import annotations

import errno
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metadiff.errors import DataError

LONGEST_NAME = 1000  # bytes
MOST_MEMBERS = 10_000_000
BOMB_BYTES, BOMB_RATIO = 100 << 20, 1000


@dataclass(frozen=True)
class Member:
    name: str
    is_folder: bool
    size: int
    harm: str  # why it may not be unpacked, or nothing
    pieces: Iterator[bytes]


def safe_parts(member: Member) -> list[str]:
    """The name as folders and a file; refused is what could lead out of the folder or be shown as what it is not."""
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    longest = max((len(os.fsencode(part)) for part in parts), default=0)
    reasons = {
        member.harm: member.harm != "",
        "an absolute path": name.startswith("/"),
        "a path with a drive letter": re.match(r"[A-Za-z]:", name) is not None,
        "a backslash in the name": "\\" in name,
        "a path with ..": ".." in parts,
        "a control character in the name": any(unicodedata.category(character) == "Cc" for character in name),
        "a name that is too long": longest > 255 or len(os.fsencode(name)) > LONGEST_NAME,
        "a file without a name": not parts and not member.is_folder,
        "a folder with content": member.is_folder and member.size > 0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise DataError(f"{reason}; such an archive is not unpacked")
    return parts


class Names:
    """No two members may be one file, also where the file system knows no case or spells letters in its own way."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}  # the name as it was written, by the name as any file system may see it
        self.files: set[str] = set()

    def enter(self, parts: list[str], *, is_folder: bool) -> list[str]:
        """The folders that this member is the first to need."""
        new = []
        names = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        for name in names if is_folder else names[:-1]:
            if _seen(name) in self.files or self.folders.get(_seen(name), name) != name:
                raise DataError("two members have this name when written in one way")
            if _seen(name) not in self.folders:
                self.folders[_seen(name)] = name
                new.append(name)
        if not is_folder:
            if _seen(names[-1]) in self.files or _seen(names[-1]) in self.folders:
                raise DataError("two members have this name when written in one way")
            self.files.add(_seen(names[-1]))
        return new


def _seen(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Budget:
    """What an archive may cost: no more than the disk has free, and no more than data can be packed."""

    def __init__(self, archive: Path, into: Path) -> None:
        self.packed = archive.stat().st_size
        self.into = into
        self.members = self.written = 0

    def announce(self, member: Member) -> None:
        self.members += 1
        if self.members > MOST_MEMBERS:
            raise DataError(f"more than {MOST_MEMBERS} members")
        self.require_space(member.size)

    def require_space(self, size: int) -> None:
        self._refuse_bomb(self.written + size)
        if size > (free := shutil.disk_usage(self.into).free):
            raise OSError(errno.ENOSPC, f"unpacked it takes {size:,} bytes, and {free:,} are free", str(self.into))

    def spend(self, count: int) -> None:
        self.written += count
        self._refuse_bomb(self.written)

    def _refuse_bomb(self, size: int) -> None:
        if size > BOMB_BYTES and size > BOMB_RATIO * self.packed:
            raise DataError(f"{self.packed} bytes become {size} and more; no data are packed so well, it is a bomb")
