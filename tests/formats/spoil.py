"""Ways to alter what lies in a folder. Each returns the path that it altered."""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests.formats.python2 import python2_pickle
from tests.formats.sample import encoded


def replaced(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """The bytes of one file."""

    def spoil(folder: Path) -> Path:
        path = folder / file
        path.write_bytes(change(path.read_bytes()))
        return path

    return spoil


def edited(file: str, change: Callable[[Any], Any], dump: Callable[[object], bytes] = python2_pickle) -> Callable[[Path], Path]:
    """What one pickle holds: ``change`` alters it, or returns what takes its place."""

    def changed(content: bytes) -> bytes:
        held = pickle.loads(content, encoding="latin1")  # noqa: S301 - we wrote it
        other = change(held)
        return dump(held if other is None else other)

    return replaced(file, changed)


def resaved(file: str, change: Callable[[Any], dict[str, Any]]) -> Callable[[Path], Path]:
    """What one npz holds."""

    def changed(content: bytes) -> bytes:
        stream = io.BytesIO()
        with np.load(io.BytesIO(content)) as held:
            np.savez(stream, **change(held["images"]))
        return stream.getvalue()

    return replaced(file, changed)


def lines(file: str, change: Callable[[list[str]], Iterable[str]]) -> Callable[[Path], Path]:
    """What one text says."""
    return replaced(file, lambda content: "".join(f"{line}\n" for line in change(content.decode().splitlines())).encode())


def first(folder: Path, pattern: str) -> Path:
    return min(folder.rglob(pattern))


def image(pattern: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """The bytes of the first image file that fits."""
    return lambda folder: replaced(str(first(folder, pattern)), change)(folder)


def removed(pattern: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = first(folder, pattern)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return path

    return spoil


def objects(images: np.ndarray) -> np.ndarray:
    """An image an item, as np.array makes of images that differ in size."""
    held = np.empty(len(images), dtype=object)
    held[:] = list(images)
    return held


def with_password(content: bytes) -> bytes:
    """Every member says that it is encrypted."""
    spoilt = bytearray(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos, place = archive.infolist(), archive.start_dir
    for info in infos:
        for at in (info.header_offset + 6, place + 8):
            struct.pack_into("<H", spoilt, at, 1)
        place += 46 + len(info.filename) + len(info.extra) + len(info.comment)
    return bytes(spoilt)


def small_image(side: int = 80, channels: int = 3) -> bytes:
    return encoded(np.zeros((side, side, channels) if channels > 1 else (side, side), dtype=np.uint8))


def copied(source: str, target: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        place = folder / target / first(folder / source, "*").name
        shutil.copytree(first(folder / source, "*"), place)
        return place

    return spoil


def made(place: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        (folder / place).mkdir()
        return folder / place

    return spoil
