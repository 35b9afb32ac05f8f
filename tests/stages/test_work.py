"""The work folder: units that survive, publications that are whole, one writer."""

import os
import shutil
from pathlib import Path

import pytest

from metadiff.artifact import verify
from metadiff.errors import DataError
from stages.work import BusyError, Work, only_writer


def unit(work: Work, name: str, text: str) -> None:
    with work.make_unit(name) as folder:
        (folder / "x").write_text(text)


def finished(work: Work, **files: str) -> Work:
    work.building.mkdir(exist_ok=True)
    for name, text in files.items():
        (work.building / name).write_text(text)
    work.finish({"numpy": "1"})
    return work


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_unit_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    work = Work(tmp_path, "aa")
    assert work.unit("one") is None
    with pytest.raises(RuntimeError, match="boom"), work.make_unit("one") as folder:
        (folder / "x").write_text("half")
        raise RuntimeError("boom")
    assert work.unit("one") is None
    unit(work, "one", "whole")
    found = Work(tmp_path, "aa").unit("one")
    assert found
    assert (found / "x").read_text() == "whole"


def test_a_broken_unit_is_dropped_said_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(tmp_path, "aa")
    unit(work, "one", "good")
    (work.units / "one" / "x").write_text("evil")
    assert work.unit("one") is None
    assert "one/x: changed since it was made" in capsys.readouterr().err
    assert not (work.units / "one").exists()
    assert "dropped one" in (tmp_path / "log").read_text()


def test_publishing_gives_a_sealed_folder_and_keeps_the_work(tmp_path: Path) -> None:
    out = tmp_path / "data" / "prepared"
    work = finished(Work(tmp_path / "work", "aa"), a="1", b="2")
    work.publish(out)
    first = contents(out)
    assert set(first) == {"a", "b", "manifest.json"}
    verify(out)
    shutil.rmtree(out)  # as DVC does before it runs a stage again
    assert work.is_finished()
    work.publish(out)
    assert contents(out) == first
    assert not (tmp_path / "work" / "new").exists()
    assert not (tmp_path / "work" / "old").exists()


def test_publishing_replaces_an_older_result_and_then_forgets_its_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished(Work(tmp_path / "work", "aa"), a="1").publish(out)
    (out / ".gitignore").write_text("/a\n")
    finished(Work(tmp_path / "work", "bb"), a="2").publish(out)
    assert (out / "a").read_text() == "2"
    assert sorted(path.name for path in (tmp_path / "work").glob("run-*")) == ["run-bb"]


def test_a_file_that_is_not_ours_is_never_swept_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished(Work(tmp_path / "work", "aa"), a="1").publish(out)
    (out / "my notes.txt").write_text("dear diary")
    work = finished(Work(tmp_path / "work", "bb"), a="2")
    with pytest.raises(DataError, match=r"my notes\.txt: not made by this stage"):
        work.publish(out)
    assert (out / "my notes.txt").read_text() == "dear diary"
    assert (out / "a").read_text() == "1"


def test_a_finished_result_that_was_changed_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = finished(Work(tmp_path, "aa"), a="1")
    (work.finished / "a").write_text("2")
    assert not work.is_finished()
    assert "all of it will be made again" in capsys.readouterr().err
    assert not work.finished.exists()


@pytest.mark.parametrize("step", range(1, 14))
def test_a_stop_at_any_rename_link_or_sync_leaves_old_or_new_never_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The disk fails at the k-th operation of finish and publish; what lies under the final name is whole, and a rerun mends."""
    out, folder = tmp_path / "out", tmp_path / "work"
    finished(Work(folder, "aa"), a="1", b="1").publish(out)
    old = contents(out)
    reference = finished(Work(tmp_path / "reference", "bb"), a="2", b="2")
    work = Work(folder, "bb")
    work.building.mkdir()
    for name in ("a", "b"):
        (work.building / name).write_text("2")
    left = [step]

    def failing(name: str) -> None:
        real = getattr(os, name)

        def operation(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, operation)

    for name in ("rename", "replace", "link", "fsync"):
        failing(name)
    with pytest.raises(OSError, match="No space"):
        work.finish({"numpy": "1"})
        work.publish(out)
    monkeypatch.undo()
    new = contents(reference.finished)
    assert not out.exists() or contents(out) in (old, new)
    again = Work(folder, "bb")
    if not again.is_finished():
        shutil.rmtree(again.building, ignore_errors=True)
        again.building.mkdir()
        finished(again, a="2", b="2")
    again.publish(out)
    assert contents(out) == new


def test_the_second_writer_is_told_who_is_at_work(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(BusyError) as caught, only_writer(tmp_path):
        pass
    message = str(caught.value)
    assert f"process {os.getpid()} on " in message
    assert "since 20" in message
    assert f"kill {os.getpid()}" in message
    with only_writer(tmp_path):
        pass
