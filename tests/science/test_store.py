"""HDF5 files: exact round trips, equal bytes for equal content, and no flipped byte unseen."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metadiff.errors import CorruptArtifactError
from metadiff.rows import Rows
from metadiff.store import (
    image_blocks,
    image_shape,
    read_arrays,
    read_features,
    read_rows,
    write_arrays,
    write_features,
    write_images,
)

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def content(count: int = 50) -> tuple[np.ndarray, Rows]:
    rng = np.random.default_rng(0)
    names = np.array([name.encode() for name in ("木", "林", "b")])
    rows = Rows(
        label=rng.integers(0, 3, count).astype(np.int32),
        split=rng.integers(0, 3, count).astype(np.uint8),
        group=np.arange(count, dtype=np.int32),
        source=np.array([f"06728.svg#{i}".encode() for i in range(count)]),
        classes=names,
        dataset="漢字",
    )
    return rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), rows


def write(path: Path, images: np.ndarray, rows: Rows) -> Path:
    write_images(path, (images[i : i + 7] for i in range(0, len(images), 7)), shape=images.shape[1:], rows=rows)
    return path


def test_images_and_rows_come_back_exactly(tmp_path: Path) -> None:
    images, rows = content()
    path = write(tmp_path / "images.h5", images, rows)
    assert image_shape(path) == (8, 8, 3)
    assert (np.concatenate(list(image_blocks(path, block=13))) == images).all()
    assert (np.concatenate(list(image_blocks(path, rows.of("val"), block=4))) == images[rows.split == 1]).all()
    back = read_rows(path)
    assert back.class_names == ["木", "林", "b"]
    assert back.dataset == "漢字"
    for name in ("label", "split", "group", "source", "classes"):
        assert getattr(back, name).dtype == getattr(rows, name).dtype
        assert (getattr(back, name) == getattr(rows, name)).all()
    assert (back.take(back.of("test")).source == rows.source[rows.split == 2]).all()


def test_features_and_arrays_come_back_exactly(tmp_path: Path) -> None:
    _, rows = content()
    features = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)
    write_features(tmp_path / "features.h5", features, rows=rows)
    assert (read_features(tmp_path / "features.h5") == features).all()
    arrays = {"val/shot1/ids": np.arange(12, dtype=np.int32).reshape(3, 4), "test/ids": np.zeros((2, 1), np.int32)}
    write_arrays(tmp_path / "ids.h5", arrays)
    back = read_arrays(tmp_path / "ids.h5")
    assert back.keys() == arrays.keys()
    assert all((back[name] == arrays[name]).all() for name in arrays)


def test_equal_content_is_equal_bytes_however_it_is_cut_into_blocks(tmp_path: Path) -> None:
    images, rows = content()
    first = write(tmp_path / "a.h5", images, rows)
    write_images(tmp_path / "b.h5", [images[:1], images[1:]], shape=(8, 8, 3), rows=rows)
    assert first.read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_too_few_images_for_the_rows_is_an_error(tmp_path: Path) -> None:
    images, rows = content()
    with pytest.raises(ValueError, match="49 images for 50 rows"):
        write_images(tmp_path / "a.h5", [images[1:]], shape=(8, 8, 3), rows=rows)


def read_everything(path: Path) -> tuple[bytes, ...]:
    rows = read_rows(path)
    parts = (getattr(rows, name).tobytes() for name in ("label", "split", "group", "source", "classes"))
    return (np.concatenate(list(image_blocks(path))).tobytes(), rows.dataset.encode(), *parts)


@given(st.integers(0, 10**9), st.integers(0, 7))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_an_error_or_changes_nothing_that_is_read(tmp_path: Path, at: int, bit: int) -> None:
    """Chunks carry checksums; the file's own headers do not, but a flip there must not become other images unseen."""
    images, rows = content()
    path = write(tmp_path / "images.h5", images, rows)
    good, data = read_everything(path), bytearray(path.read_bytes())
    with h5py.File(path) as file:
        stored = [file[name].id.get_chunk_info(0) for name in ("images", "label", "split", "group", "source", "classes")]
    chunk = stored[at % len(stored)]
    data[chunk.byte_offset + at % chunk.size] ^= 1 << bit
    path.write_bytes(data)
    try:
        assert read_everything(path) == good
    except CorruptArtifactError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right, a third is not


def test_what_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(CorruptArtifactError, match=r"images\.h5: cannot be read"):
        read_rows(path)
    images, rows = content()
    write(path, images, rows)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(CorruptArtifactError, match="truncated"):
        read_rows(path)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = 7
    with pytest.raises(CorruptArtifactError, match="format 7, this version reads format 1"):
        read_rows(path)
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "absent.h5")


def test_a_full_disk_is_an_error_with_its_number_and_the_path(tmp_path: Path) -> None:
    """HDF5 wraps the system's error in one of its own; the stage tells a full disk from a bug by the number."""
    code = """
import os, resource, sys
from pathlib import Path
import numpy as np
from metadiff.artifact import write_array
from metadiff.store import write_arrays
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
noise = np.random.default_rng(0).integers(0, 2**31 - 1, 90_000, dtype=np.int32)
for write in (lambda: write_array(Path("a.npy"), noise), lambda: write_arrays(Path("a.h5"), {"noise": noise})):
    try:
        write()
    except OSError as error:
        print(error.errno, error.filename, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=ENVIRONMENT)
    numbers = [line.split()[0] for line in done.stdout.splitlines()]
    assert numbers == [str(errno.EFBIG)] * 2, done.stdout + done.stderr
    assert "a.h5" in done.stdout
