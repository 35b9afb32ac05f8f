"""The ignored work folder of a stage: one writer, units that survive a kill, and a publication that is all or nothing.

    data/.work/<stage>/lock            held for as long as a process works on the stage; says who and since when
    data/.work/<stage>/run-<fp>/units  finished units, each a sealed folder
    data/.work/<stage>/run-<fp>/out    the finished result, sealed; published as often as asked for
    data/.work/<stage>/log             one line an event

DVC deletes a stage's outs before it runs the stage, hence resume state lives here, keyed by everything that shapes the result.
"""

import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from metadiff.artifact import MANIFEST, listed, seal, sync, verify
from metadiff.errors import CorruptArtifactError, DataError


class BusyError(RuntimeError):
    """Another process works on this stage, in this checkout."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the stage's lock or say who does; the kernel lets go of it however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(_holder(folder)) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": _now(), "command": " ".join(sys.orig_argv)}, file)
        file.flush()
        yield


def _holder(folder: Path) -> str:
    try:
        who = json.loads((folder / "lock").read_text(encoding="utf-8"))
    except ValueError:
        return "busy: another process has just begun to work on it. Wait until it ends and run again"
    return (
        f"busy: process {who['pid']} on {who['host']} works on it since {who['since']} ({who['command']}). "
        f"Wait until it ends and run again (what it finishes is kept), or end it first: kill {who['pid']}"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Work:
    """The run folder of one fingerprint."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.run = folder / f"run-{fingerprint}"
        self.units = self.run / "units"
        self.building = self.run / "building"
        self.scratch = self.run / "scratch"
        self.finished = self.run / "out"
        self.units.mkdir(parents=True, exist_ok=True)

    def log(self, event: str) -> None:
        with (self.folder / "log").open("a", encoding="utf-8") as file:
            file.write(f"{_now()} {os.getpid()} {self.run.name} {event}\n")

    def unit(self, name: str) -> Path | None:
        """The folder of a finished unit; one that is not whole is thrown away and made again."""
        folder = self.units / name
        if not folder.is_dir():
            return None
        try:
            verify(folder)
        except CorruptArtifactError as error:
            self.log(f"dropped {name}")
            print(f"resume: {error.args[0].split(';')[0]}: dropped, it will be made again", file=sys.stderr)
            shutil.rmtree(folder)
            return None
        return folder

    @contextmanager
    def make_unit(self, name: str) -> Iterator[Path]:
        """A folder to write one unit into; it gets its name when it is whole and on the disk."""
        folder = _empty(self.units / f".{name}.tmp")
        yield folder
        seal(folder)
        folder.rename(self.units / name)
        sync(self.units)
        self.log(f"unit {name}")

    def drop_unit(self, name: str) -> None:
        shutil.rmtree(self.units / name, ignore_errors=True)

    def begin(self) -> None:
        """Start to build from the units that are there."""
        _empty(self.building)
        self.sweep()
        self.scratch.mkdir()

    def sweep(self) -> None:
        """Remove what is not kept from run to run, of all runs: a killed one cannot do it itself."""
        for scratch in self.folder.glob("run-*/scratch"):
            shutil.rmtree(scratch, ignore_errors=True)

    def discard(self) -> None:
        """Forget this run: it saw inputs of two states."""
        shutil.rmtree(self.run)
        self.log("discarded")

    def finish(self, about: Mapping[str, object]) -> None:
        """Seal what was built, with where it is from; the units are no longer needed."""
        seal(self.building, about=about)
        self.building.rename(self.finished)
        sync(self.run)
        self.log("finished")
        shutil.rmtree(self.units)

    def is_finished(self) -> bool:
        if not self.finished.is_dir():
            return False
        try:
            verify(self.finished)
        except CorruptArtifactError as error:
            print(f"resume: {error.args[0].split(';')[0]}: all of it will be made again", file=sys.stderr)
            shutil.rmtree(self.finished)
            return False
        shutil.rmtree(self.units, ignore_errors=True)  # where a kill came right after the result
        return True

    def publish(self, out: Path) -> None:
        """Put the finished folder under its final name: hard links beside it, then one rename. The work folder keeps its own."""
        staged, retired = self.folder / "new", self.folder / "old"
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
        _link_tree(self.finished, staged)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            _refuse_strangers(out, staged)
            out.rename(retired)
        staged.rename(out)
        sync(out.parent)
        self.log("published")
        shutil.rmtree(retired, ignore_errors=True)
        for other in self.folder.glob("run-*"):
            if other != self.run:
                shutil.rmtree(other)


def _refuse_strangers(out: Path, staged: Path) -> None:
    ours = {path.relative_to(staged) for path in staged.rglob("*")} | {Path(".gitignore"), Path(MANIFEST)}
    if (out / MANIFEST).is_file():
        ours |= {Path(name) for name in listed(out)}
    strangers = sorted(str(path) for path in out.rglob("*") if path.relative_to(out) not in ours)
    if strangers:
        raise DataError(
            f"{', '.join(strangers[:5])}: not made by this stage, and the folder is about to be replaced; move it elsewhere"
        )


def _link_tree(source: Path, target: Path) -> None:
    """Hard links of all files; an error keeps its number, which says whether the disk is full."""
    target.mkdir()
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        else:
            os.link(path, place)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
