"""Checkpoints: what goes in comes out, equal content is equal bytes, and nothing broken is ever read as if it were whole."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.errors import CorruptArtifactError

TENSORS = {
    "weight": torch.arange(24, dtype=torch.float32).view(2, 3, 2, 2),
    "count": torch.tensor(7),
    "nothing": torch.zeros(0, 4),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
}
FACTS: dict[str, Any] = {"epoch": 3, "score": 0.1 + 0.2, "history": [{"loss": 1e-9}], "name": "漢字"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "a.safetensors", TENSORS, FACTS)
    return tmp_path / "a.safetensors"


def test_tensors_and_facts_come_back_exactly(path: Path) -> None:
    tensors, facts = load_checkpoint(path)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def test_equal_content_is_equal_bytes_whatever_the_name_order_and_memory_layout(path: Path) -> None:
    other = path.with_name("quite-another-name")
    shuffled = dict(reversed(TENSORS.items()))
    shuffled["weight"] = shuffled["weight"].contiguous(memory_format=torch.channels_last)
    save_checkpoint(other, shuffled, dict(reversed(FACTS.items())))
    assert other.read_bytes() == path.read_bytes()


def test_the_file_is_replaced_and_no_temporary_file_is_left(path: Path) -> None:
    save_checkpoint(path, {"x": torch.ones(1)}, {})
    assert load_checkpoint(path) == ({"x": torch.ones(1)}, {})
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full) if step == "fsync" else monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"x": torch.ones(9)}, {})
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_content_is_synced_before_the_name_and_the_folder_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "file")
        fsync(descriptor)

    def watched_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    save_checkpoint(path, TENSORS, FACTS)
    assert done == ["file", "rename", "folder"]


def test_every_truncation_is_refused_by_name(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptArtifactError, match=r"a\.safetensors: not a whole metadiff checkpoint"):
            load_checkpoint(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_flipped_bit_is_loaded_or_refused_but_never_a_traceback(path: Path, data: st.DataObject) -> None:
    save_checkpoint(path, TENSORS, FACTS)
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        load_checkpoint(path)
    except CorruptArtifactError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x80\x04K\x01."], ids=["empty", "text", "pickle"])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"a\.safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize("note", [None, {}, {"metadiff": "[]"}, {"metadiff": "{"}, {"metadiff": '{"format": 1}'}])
def test_safetensors_of_others_are_refused(path: Path, note: dict[str, str] | None) -> None:
    save_file(TENSORS, path, metadata=note)
    with pytest.raises(CorruptArtifactError, match="not a whole metadiff checkpoint"):
        load_checkpoint(path)


def test_another_format_is_refused_with_both_values(path: Path) -> None:
    save_file(TENSORS, path, metadata={"metadiff": json.dumps({"format": 41, "facts": {}})})
    with pytest.raises(CorruptArtifactError, match=r"a\.safetensors: format 41, this version reads format 1"):
        load_checkpoint(path)


def test_a_missing_file_is_not_called_corrupt(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_facts_that_are_not_finite_are_refused_before_anything_is_written(path: Path) -> None:
    old = path.read_bytes()
    with pytest.raises(ValueError, match="Out of range float"):
        save_checkpoint(path, TENSORS, {"loss": float("nan")})
    assert path.read_bytes() == old
