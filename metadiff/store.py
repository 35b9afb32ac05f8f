"""HDF5 files of images and features: the only module that knows h5py.

Every chunk carries a checksum (fletcher32), times are left out, and the rows keep their order, so equal content is equal bytes.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from metadiff.errors import CorruptArtifactError
from metadiff.rows import Rows

FORMAT = 1
ROW_FIELDS = ("label", "split", "group", "source", "classes")
BLOCK = 4096  # rows read at a time


def write_images(path: Path, blocks: Iterable[NDArray[np.uint8]], *, shape: tuple[int, int, int], rows: Rows) -> None:
    """Write images block by block: never more than one block in memory."""
    count = len(rows.label)
    with _writing(path, "images") as file:
        images = _dataset(file, "images", (count, *shape), np.uint8, chunk=max(1, 2**20 // int(np.prod(shape))))
        start = 0
        for block_NHWC in blocks:
            images[start : start + len(block_NHWC)] = block_NHWC
            start += len(block_NHWC)
        if start != count:
            raise ValueError(f"{path}: {start} images for {count} rows")
        _write_rows(file, rows)


def write_features(path: Path, features_ND: NDArray[np.float32], *, rows: Rows) -> None:
    with _writing(path, "features") as file:
        data = _dataset(file, "features", features_ND.shape, np.float32, chunk=max(1, 2**18 // features_ND.shape[1]))
        data[:] = features_ND
        _write_rows(file, rows)


def write_arrays(path: Path, arrays: dict[str, NDArray[np.int32]]) -> None:
    """A file of named integer arrays; a name may hold slashes for groups."""
    with _writing(path, "arrays") as file:
        for name, array in sorted(arrays.items()):
            _dataset(file, name, array.shape, array.dtype, chunk=max(1, 2**18 // max(1, array[0].size)))[:] = array


def read_rows(path: Path) -> Rows:
    with _reading(path) as file:
        return Rows(**{name: file[name][:] for name in ROW_FIELDS}, dataset=file.attrs["dataset"])


def read_features(path: Path) -> NDArray[np.float32]:
    with _reading(path) as file:
        return np.asarray(file["features"][:])


def read_arrays(path: Path) -> dict[str, NDArray[np.int32]]:
    found: dict[str, NDArray[np.int32]] = {}
    with _reading(path) as file:
        file.visititems(lambda name, item: found.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
    return found


def image_shape(path: Path) -> tuple[int, int, int]:
    with _reading(path) as file:
        height, width, channels = file["images"].shape[1:]
        return int(height), int(width), int(channels)


def image_blocks(path: Path, rows: NDArray[np.int64] | None = None, *, block: int = BLOCK) -> Iterator[NDArray[np.uint8]]:
    """The images of the given rows (ascending; all of them by default), block by block."""
    with _reading(path) as file:
        images = file["images"]
        chosen = np.arange(len(images)) if rows is None else rows
        for start in range(0, len(chosen), block):
            part = chosen[start : start + block]
            low, high = int(part[0]), int(part[-1]) + 1
            yield images[low:high][part - low]


@contextmanager
def _writing(path: Path, kind: str) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "w") as file:
            file.attrs["format"] = FORMAT
            file.attrs["kind"] = kind
            yield file
    except (OSError, RuntimeError) as error:  # HDF5 hides the number of the system's error in its text
        number = re.search(r"errno = (\d+)", str(error))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise CorruptArtifactError(f"{path}: format {file.attrs.get('format')}, this version reads format {FORMAT}")
            yield file
    except (OSError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CorruptArtifactError(f"{path}: cannot be read ({error}); make it again: dvc repro") from error


def _dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: type | np.dtype, *, chunk: int) -> h5py.Dataset:
    chunks = (max(1, min(chunk, shape[0])), *shape[1:])
    return file.create_dataset(
        name, shape=shape, dtype=dtype, chunks=chunks, compression="gzip", compression_opts=1, fletcher32=True
    )


def _write_rows(file: h5py.File, rows: Rows) -> None:
    file.attrs["dataset"] = rows.dataset
    for name in ROW_FIELDS:
        values = getattr(rows, name)
        _dataset(file, name, values.shape, values.dtype, chunk=2**16)[:] = values
