"""A sealed folder: whatever happens to a file in it is found and named."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metadiff.artifact import MANIFEST, ancestry, listed, read_manifest, record, seal, verify, write_json
from metadiff.errors import CorruptArtifactError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "curves").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)) * 9)
    (folder / "b.bin").write_bytes(b"bb")
    (folder / "curves" / "loss.tsv").write_text("1\t2\n")
    seal(folder, about={"stage": "prepare", "made_with": {"numpy": "1"}})
    return folder


def test_a_whole_folder_is_verified_and_stands_for_its_content(folder: Path, tmp_path: Path) -> None:
    first = verify(folder)
    assert list(listed(folder)) == ["a.bin", "b.bin", "curves/loss.tsv"]
    assert json.loads((folder / MANIFEST).read_text())["made_with"] == {"numpy": "1"}
    before = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    seal(folder, about={"stage": "prepare", "made_with": {"numpy": "1"}})
    assert (folder / MANIFEST).read_bytes() == before
    assert verify(folder) == first
    (folder / "b.bin").write_bytes(b"cc")
    (folder / MANIFEST).unlink()
    seal(folder, about={"stage": "prepare", "made_with": {"numpy": "1"}})
    assert verify(folder) != first


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_any_file_is_found_and_named(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["a.bin", "b.bin", "curves/loss.tsv"]))
    path = folder / name
    content = path.read_bytes()
    match data.draw(st.sampled_from(["flip", "cut", "grow", "delete"])):
        case "flip":
            at = data.draw(st.integers(0, len(content) - 1))
            path.write_bytes(content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :])
        case "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        case "grow":
            path.write_bytes(content + b"\0")
        case "delete":
            path.unlink()
    with pytest.raises(CorruptArtifactError, match=name):
        verify(folder)
    path.write_bytes(content)
    verify(folder)


def test_swapped_files_are_found(folder: Path) -> None:
    (folder / "a.bin").rename(folder / "c")
    (folder / "b.bin").rename(folder / "a.bin")
    (folder / "c").rename(folder / "b.bin")
    with pytest.raises(CorruptArtifactError, match=r"a\.bin: changed since it was made .* make the folder again: dvc repro"):
        verify(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing, so nothing says"),
        ("", "not a manifest"),
        ("[]", "not a manifest"),
        ("{}", "not a manifest"),
        ('{"format": 1, "files": 3}', "not a manifest"),
        ('{"format": 99, "files": {}}', "format 99, this version reads format 2"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(folder: Path, text: str | None, message: str) -> None:
    (folder / MANIFEST).unlink() if text is None else (folder / MANIFEST).write_text(text)
    with pytest.raises(CorruptArtifactError, match=message):
        verify(folder)


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})


def made(folder: Path, stage: str, content: str, *inputs: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").write_text(content)
    told = {"stage": stage, "inputs": {path.name: verify(path) for path in inputs}}
    seal(folder, about=told | {"chain": ancestry(inputs)})
    return folder


def test_a_manifest_tells_of_every_stage_behind_it_the_first_one_first(tmp_path: Path) -> None:
    one = made(tmp_path / "one", "prepare", "1")
    two = made(tmp_path / "two", "pretrain", "2", one)
    three = made(tmp_path / "three", "metatrain", "3", one, two)
    told = ancestry([two, three])
    assert list(told) == ["prepare", "pretrain", "metatrain"]
    assert told["pretrain"] == record(read_manifest(two)) == {"inputs": {"one": verify(one)}, "files": listed(two)}


def test_folders_of_two_states_are_refused(tmp_path: Path) -> None:
    two = made(tmp_path / "two", "pretrain", "2", made(tmp_path / "one", "prepare", "1"))
    three = made(tmp_path / "three", "metatrain", "3", two)
    other = made(tmp_path / "other", "pretrain", "of another training", tmp_path / "one")
    with pytest.raises(DataError, match=r"three: made with another result of pretrain than the other inputs; run: dvc repro"):
        ancestry([other, three])
