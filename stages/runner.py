"""What every stage has in common, so that a stage module holds nothing but its science.

`main(STAGE)` checks params.yaml, takes the stage's lock, verifies the inputs against their manifests, finds the work folder that
belongs to exactly these params, inputs, code and versions, lets the stage build what is missing there, and publishes the result.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from metadiff.artifact import FORMAT, ancestry, inventory, record
from metadiff.errors import DataError, NumericError, ParamsError
from metadiff.params import HyperLDM, McDi, Params, Section, Shared, load
from stages.fingerprint import fingerprint, origin, prepare_environment
from stages.progress import progress
from stages.work import BusyError, Work, only_writer

if TYPE_CHECKING:
    from dvclive.live import Live

WORK = Path("data/.work")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Exit(IntEnum):
    """How a stage ends (the numbers of sysexits.h); README has the table for users."""

    OK = 0
    PARAMS = 64
    DATA = 65
    NUMERIC = 70
    MEMORY = 71
    DISK = 74
    BUSY = 75
    INTERRUPTED = 130
    TERMINATED = 143


class Stopped(BaseException):
    """A signal asked the stage to stop."""


P = TypeVar("P", bound=Section)


@dataclass(frozen=True)
class Stage(Generic[P]):
    """What a stage says of itself. Its name is its section of params.yaml and its module."""

    name: str
    out: Path
    build: Callable[[Run[P]], None]
    inputs: tuple[Path, ...] = ()  # folders of other stages
    raw: Callable[[Params], Path | None] = lambda _: None  # a file or folder of the user's, not made by a stage
    versions: tuple[str, ...] = ()  # packages whose version may change the bytes of the result
    shared: tuple[str, ...] = ()  # the keys of `shared` that it uses
    methods: tuple[str, ...] = ()  # the sections of methods that it uses beside its own
    lower: str = ""  # the parameter to lower where memory runs out


class Run(Generic[P]):
    """One run of a stage: its own section of the params, where to write, how to be resumable."""

    def __init__(self, stage: Stage[P], params: Params, work: Work, lineage: Mapping[str, Any]) -> None:
        self.stage = stage
        self._lineage = lineage
        self.params: P = getattr(params, stage.name)
        self._all = params
        self._shared = params.shared
        self.out = work.building
        self._work = work
        self._signal: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._remember)

    @property
    def seed(self) -> int:
        assert "seed" in self.stage.shared, f"{self.stage.name} does not declare that it uses shared.seed"
        return self._shared.seed

    @property
    def device(self) -> str:
        assert "device" in self.stage.shared, f"{self.stage.name} does not declare that it uses shared.device"
        return self._shared.device

    @property
    def machine(self) -> Shared | None:
        """How torch was set here, for workers that have to set it so too; None if the stage does not use it."""
        return self._shared if {"threads", "device", "deterministic"} <= {*self.stage.shared} else None

    @property
    def mcdi(self) -> McDi:
        assert "mcdi" in self.stage.methods, f"{self.stage.name} does not declare that it uses mcdi"
        return self._all.mcdi

    @property
    def hyperldm(self) -> HyperLDM:
        assert "hyperldm" in self.stage.methods, f"{self.stage.name} does not declare that it uses hyperldm"
        return self._all.hyperldm

    @property
    def scratch(self) -> Path:
        """A folder for what is made anew at each run and not kept."""
        return self._work.scratch

    @contextmanager
    def unit(self, name: str) -> Iterator[Path]:
        """Write one unit of work into the folder given; the place where a signal takes effect."""
        with self._work.make_unit(name) as folder:
            yield folder
        self.stop_if_asked(f"after {name}")

    def stop_if_asked(self, when: str, then: str = "goes on from here") -> None:
        """Between two pieces of work: end here if a signal came."""
        if self._signal is not None:
            raise Stopped(f"stopped by {signal.Signals(self._signal).name} {when}; the next run {then}")

    def finished_unit(self, name: str) -> Path | None:
        return self._work.unit(name)

    def whole_unit(self, name: str) -> Path:
        """One that was written in this run."""
        folder = self.finished_unit(name)
        if not folder:
            raise OSError(f"the unit {name} changed right after it was written; is the disk sound?")
        return folder

    def drop_unit(self, name: str) -> None:
        self._work.drop_unit(name)

    @contextmanager
    def progress(self, what: str, *, total: int, done: int = 0, unit: str) -> Iterator[Callable[[int], None]]:
        with progress(f"{self.stage.name}: {what}", total=total, done=done, unit=unit) as advance:
            yield advance

    def lineage(self) -> dict[str, Any]:
        """The record of every stage from the images on, and of this one with what it has written so far."""
        own = record(self._lineage) | {"files": inventory(self.out)}
        return {"format": FORMAT, "stages": self._lineage["chain"] | {self.stage.name: own}}

    def say(self, *lines: str) -> None:
        for line in lines:
            print(f"{self.stage.name}: {line}", file=sys.stderr)

    def reserve(self, size: int) -> None:
        """Refuse early what cannot fit on the disk."""
        free = shutil.disk_usage(self._work.folder).free
        if free < size:
            raise OSError(errno.ENOSPC, f"about {size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free", str(WORK))

    def live(self, history: Iterable[dict[str, float]]) -> Live:
        """DVCLive inside the result, told again what an earlier run had logged: its files are those of a run never stopped."""
        from dvclive.live import Live

        live = Live(str(self.out / "curves"), dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False)
        for row in history:
            log_row(live, row)
        return live

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """The moment of publication: signals wait."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None:
            raise Stopped(
                f"stopped at once by a second {signal.Signals(number).name}; the unit at hand is lost, the others are kept"
            )
        self._signal = number
        self.say(f"{signal.Signals(number).name}: finishing the unit at hand first; once more to stop at once")

    @property
    def stopped_by(self) -> int:
        return signal.SIGTERM if self._signal is None else self._signal


def log_row(live: Live, row: dict[str, float]) -> None:
    for name, value in row.items():
        live.log_metric(name, value)
    live.next_step()  # type: ignore[no-untyped-call]


def main(stage: Stage[P]) -> None:
    """Run a stage as a program: never a traceback for what a user can mend, and always an exit code that says which."""
    code = _guarded(stage)
    if code is Exit.DISK:  # HDF5 cannot close its files on a full disk, and would crash the interpreter at its end
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _guarded(stage: Stage[P]) -> Exit:
    def fail(code: Exit, error: BaseException | str) -> Exit:
        for line in str(error).splitlines():
            print(f"{stage.name}: {line}", file=sys.stderr)
        return code

    try:
        return _run(stage)
    except ParamsError as error:
        print(error, file=sys.stderr)
        return Exit.PARAMS
    except DataError as error:
        return fail(Exit.DATA, error)
    except NumericError as error:
        return fail(Exit.NUMERIC, error)
    except BusyError as error:
        return fail(Exit.BUSY, error)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return fail(Exit.DISK, f"{error}; nothing was published. Free some space and run again: finished units are kept")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return fail(Exit.MEMORY, f"out of memory; lower {stage.lower} and run again ({' '.join(str(error).split())})")


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _run(stage: Stage[P]) -> Exit:
    params = load("params.yaml")
    with only_writer(WORK / stage.name):
        made_with = prepare_environment(stage, params.shared)
        facts = origin(stage, params, made_with)
        lineage = facts | {"chain": ancestry(stage.inputs)}
        work = Work(WORK / stage.name, fingerprint(facts))
        run = Run(stage, params, work, lineage)
        try:
            if work.is_finished():
                run.say("finished before with these params, inputs and code: published again (`make fresh` to recompute)")
            else:
                work.begin()
                stage.build(run)
                if origin(stage, params, made_with) != facts:
                    work.discard()
                    raise DataError("its inputs or its code changed while it ran, so the result is of no one state; run again")
                work.finish(lineage)
            run.stop_if_asked("before its result was published")
            with run.undisturbed():
                work.publish(stage.out)
        except Stopped as stop:
            run.say(str(stop))
            return Exit(128 + run.stopped_by)
        finally:
            work.sweep()
    return Exit.OK
