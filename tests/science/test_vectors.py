"""Files of named vectors: what goes in comes out, equal content is equal bytes, and a damaged one is never read."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.errors import CorruptArtifactError, DataError
from metadiff.vectors import read_vectors, write_vectors

NAMES = ["pear", "apple", "Äpfel 林檎", 'a "quoted"\nline']
VECTORS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16)
ABOUT = {"encoder": "made up", "version": "1.2"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_vectors(tmp_path / "some.safetensors", NAMES, VECTORS, about=ABOUT)
    return tmp_path / "some.safetensors"


def replace(path: Path, **changes: Any) -> None:  # noqa: ANN401
    """Write the file anew with other tensors or facts, by the checkpoint's own hand."""
    tensors, facts = load_checkpoint(path)
    tensors |= {name: changes.pop(name) for name in [*changes] if name in tensors}
    save_checkpoint(path, tensors, facts | changes)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_name_has_its_vector_again(tmp_path: Path, dtype: type) -> None:
    vectors_ND = np.random.default_rng(1).standard_normal((4, 5)).astype(dtype)
    write_vectors(tmp_path / "a", NAMES, vectors_ND, about=ABOUT)
    found = read_vectors(tmp_path / "a")
    assert found.names == tuple(sorted(NAMES))
    assert found.about == ABOUT
    assert found.vectors_ND.dtype == np.float32
    for name, vector in zip(NAMES, vectors_ND, strict=True):
        assert np.array_equal(found.vectors_ND[found.row_of[name]], vector.astype(np.float32))


def test_equal_content_is_equal_bytes_whatever_the_order(path: Path) -> None:
    other = path.with_name("other")
    write_vectors(other, NAMES[::-1], VECTORS[::-1], about=dict(reversed(ABOUT.items())))
    assert other.read_bytes() == path.read_bytes()


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_vectors(path, ["x"], np.zeros((1, 2), np.float16), about={})
    assert path.read_bytes() == old
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("names", "vectors", "said"),
    [
        (["a", "b", "a"], np.zeros((3, 2), np.float16), "'a' is there twice"),
        (["", ""], np.zeros((2, 2), np.float16), "'' is there twice"),
        (["a"], np.zeros((2, 2), np.float16), "1 names for 2 vectors"),
        (["a"], np.zeros((1, 2)), r"expected a table of float16 or float32, got float64 of shape \(1, 2\)"),
        (["a"], np.zeros(1, np.float16), r"got float16 of shape \(1,\)"),
        (["a"], np.zeros((1, 0), np.float16), r"got float16 of shape \(1, 0\)"),
        ([], np.zeros((0, 2), np.float16), r"got float16 of shape \(0, 2\)"),
        (["b", "a"], np.array([[np.inf], [0]], np.float16), "the vector of 'b' is not finite"),
        (["b", "a"], np.array([[0], [np.nan]], np.float32), "the vector of 'a' is not finite"),
    ],
)
def test_what_cannot_be_read_is_not_written(tmp_path: Path, names: list[str], vectors: NDArray[Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        write_vectors(tmp_path / "a", names, vectors, about={})
    assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []


def refused_or_the_same(path: Path, content: bytes) -> bool:
    """Whether it is refused; what is read must be what was written."""
    path.write_bytes(content)
    try:
        found = read_vectors(path)
    except CorruptArtifactError as error:
        assert str(error) == f"{path}: damaged, or no file of named vectors; get it again, or make it anew"  # noqa: PT017
        return True
    assert found.names == tuple(sorted(NAMES))
    assert found.about == ABOUT
    assert np.array_equal(found.vectors_ND, VECTORS[[NAMES.index(name) for name in found.names]].astype(np.float32))
    return False


def test_every_changed_byte_is_refused_or_changes_nothing(path: Path) -> None:
    whole, masks = path.read_bytes(), (0x01, 0x20, 0x80)  # another digit, another case, no ASCII
    start, harmless = 8 + int.from_bytes(whole[:8], "little"), []
    for place in range(len(whole)):
        for mask in masks if place < start else masks[:1]:
            damaged = bytearray(whole)
            damaged[place] ^= mask
            if not refused_or_the_same(path, bytes(damaged)):
                harmless.append(place)
    assert len(whole) > start + 24
    assert {whole[place] for place in harmless} <= {ord(" ")}  # which fill up the header


def test_every_truncation_and_what_is_added_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    assert all(refused_or_the_same(path, whole[:length]) for length in range(len(whole)))
    assert refused_or_the_same(path, whole + b"\0")


@pytest.mark.parametrize(
    "changes",
    [
        {"about": {"encoder": "another"}},
        {"about": [1]},
        {"sha256": ""},
        {"vectors": torch.zeros(4, 3, dtype=torch.float16)},
        {"vectors": torch.zeros(4, 3, dtype=torch.bfloat16)},
        {"names": torch.zeros(9, dtype=torch.uint8)},
    ],
    ids=str,
)
def test_other_content_under_the_same_checksum_is_refused(path: Path, changes: dict[str, Any]) -> None:
    replace(path, **changes)
    with pytest.raises(CorruptArtifactError, match=r"some\.safetensors: damaged"):
        read_vectors(path)


@pytest.mark.parametrize(
    "change", [lambda vectors: vectors.view(torch.int16), lambda vectors: vectors.view(3, 4)], ids=["type", "shape"]
)
def test_the_same_bytes_as_something_else_are_refused(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    replace(path, vectors=change(load_checkpoint(path)[0]["vectors"]))
    with pytest.raises(CorruptArtifactError, match=r"some\.safetensors: damaged"):
        read_vectors(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04K\x01."], ids=["empty", "text", "pickle"])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    assert refused_or_the_same(path, content)


def test_a_checkpoint_of_weights_is_refused(path: Path) -> None:
    save_checkpoint(path, {"weight": torch.ones(2)}, {"epoch": 1})
    assert refused_or_the_same(path, path.read_bytes())


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.safetensors: no such file"):
        read_vectors(tmp_path / "absent.safetensors")
