"""Blocks give the same bytes wherever they are computed; a worker that dies costs its block's time and nothing else."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from metadiff.artifact import verify
from metadiff.errors import ParamsError
from metadiff.params import Shared
from stages import executors
from stages.collect import STAGE
from stages.executors import VARIABLE, computed
from stages.fingerprint import prepare_torch
from stages.imports import ROOT
from stages.runner import Exit, _guarded
from tests.stages.test_collect import checkout, collect_twice, set_collect, units  # noqa: F401 - checkout is a fixture

MACHINE = Shared(seed=0, threads=1, device="cpu", deterministic=True)
# Slow, since torch starts anew in each worker.
PARALLEL = [pytest.param(name, marks=pytest.mark.slow) for name in ("processes:2", "dask")]


@pytest.fixture(autouse=True)
def restored_torch() -> Iterator[None]:
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def attempt(folder: Path, name: str, *, deaths: int = 0) -> str:
    """Leaves a file a try; the first tries kill their worker when all that it had finished has long been fetched."""
    tries = len(list(folder.glob(f"{name}.*")))
    (folder / f"{name}.{tries}").write_text(str(os.getpid()))
    if tries < deaths:
        time.sleep(5)  # a worker that still imports torch hands nothing over
        os.kill(os.getpid(), signal.SIGKILL)
    return name.upper()


def jobs(folder: Path, **deaths: int) -> Iterator[tuple[str, Callable[[], str]]]:
    for name in "abcdef":
        yield name, partial(attempt, folder, name, deaths=deaths.get(name, 0))


def fail() -> str:
    raise LookupError("a bug")


@pytest.mark.parametrize("executor", ["", "serial", *PARALLEL])
def test_every_job_is_computed_once_by_whoever_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    monkeypatch.setenv(VARIABLE, executor)
    assert dict(computed(jobs(tmp_path), machine=MACHINE)) == {name: name.upper() for name in "abcdef"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.0" for name in "abcdef"]
    here = {int(path.read_text()) == os.getpid() for path in tmp_path.iterdir()}
    assert here == {executor in ("", "serial")}


@pytest.mark.parametrize("executor", ["serial", *PARALLEL])
def test_a_job_that_needs_what_another_gives_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    monkeypatch.setenv(VARIABLE, executor)
    found: dict[str, str] = {}

    def in_turn() -> Iterator[tuple[str, Callable[[], str]] | None]:
        for number, name in enumerate("abcdef"):
            while len(found) < number // 2:  # of two others at a time
                yield None
            yield name, partial(attempt, tmp_path, name)

    for name, result in computed(in_turn(), machine=MACHINE):
        found[name] = result
    assert found == {name: name.upper() for name in "abcdef"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.0" for name in "abcdef"]


def test_jobs_that_read_this_disk_are_not_for_dask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "dask:tcp://127.0.0.1:1")
    assert len(dict(computed(jobs(tmp_path), machine=MACHINE, of_disk=True))) == 6
    assert {int(path.read_text()) for path in tmp_path.iterdir()} == {os.getpid()}


@pytest.mark.parametrize("executor", PARALLEL)
def test_a_worker_that_is_killed_costs_its_own_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    monkeypatch.setenv(VARIABLE, "processes:1" if executor.startswith("processes") else executor)
    assert dict(computed(jobs(tmp_path, c=1), machine=MACHINE)) == {name: name.upper() for name in "abcdef"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(f"{name}.0" for name in "abcdef"), "c.1"])


@pytest.mark.slow
def test_a_job_that_kills_every_worker_is_named_and_ends_as_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "processes:1")
    with pytest.raises(MemoryError, match=r"a worker was killed at each try of .*c.*; memory"):
        dict(computed(jobs(tmp_path, c=99), machine=MACHINE))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] in "abc") == ["a.0", "b.0", "c.0", "c.1"]


@pytest.mark.parametrize(("executor", "width"), [("serial", 1), pytest.param("processes:2", 3, marks=pytest.mark.slow)])
def test_few_more_jobs_are_drawn_than_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, width: int) -> None:
    monkeypatch.setenv(VARIABLE, executor)
    drawn = []

    def all_jobs() -> Iterator[tuple[str, Callable[[], str]]]:
        for name, job in jobs(tmp_path):
            drawn.append(name)
            yield name, job

    results = computed(all_jobs(), machine=MACHINE)
    next(results)
    assert len(drawn) == width
    results.close()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["error", "close"])
def test_no_child_outlives_an_end_before_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv(VARIABLE, "processes:2")
    work = [
        ("a", partial(time.sleep, 0)),
        ("b", partial(time.sleep, 60) if end == "close" else fail),
        ("c", partial(time.sleep, 60)),
    ]
    results, start = computed(work, machine=MACHINE), time.monotonic()
    if end == "close":
        next(results)
        results.close()
    else:
        with pytest.raises(LookupError, match="a bug"):
            dict(results)
    assert time.monotonic() - start < 45
    assert [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())] == []


@pytest.mark.parametrize("asked", ["process", "processes:", "processes:0", "processes:two", "dask:", "dask:8786", "serial:1"])
def test_an_executor_that_there_is_not_is_said_and_nothing_is_published(
    checkout: Path,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: str,
) -> None:
    monkeypatch.setenv(VARIABLE, asked)
    assert _guarded(STAGE) is Exit.PARAMS
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"{VARIABLE}: must be serial, processes, processes:N, dask or dask:tcp://host:port, got {asked!r}"
    assert not Path("data/trajectories").exists()


def test_dask_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "dask")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ParamsError, match="dask needs the package distributed, the extra `dask` of pyproject"):
        dict(computed([], machine=MACHINE))


def test_a_scheduler_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "CONNECT", "1s")
    monkeypatch.setenv(VARIABLE, "dask:tcp://127.0.0.1:9")
    with pytest.raises(ParamsError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        dict(computed([], machine=MACHINE))


def test_a_worker_with_another_torch_is_refused_in_one_line() -> None:
    found = prepare_torch(MACHINE)
    expected = executors._identity(MACHINE) | {"torch": "1.0", "instructions": "AVX512"}
    with pytest.raises(ParamsError) as caught:
        executors._checked(partial(str, 1), MACHINE, expected)
    assert f"torch {found['torch']}, not 1.0, instructions {found['instructions']}, not AVX512;" in str(caught.value)
    assert executors._checked(partial(str, 1), MACHINE, executors._identity(MACHINE)) == "1"


@pytest.mark.parametrize("executor", PARALLEL)
def test_the_stage_gives_the_same_bytes_by_whichever_executor(
    checkout: Path,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
    executor: str,
) -> None:
    collect_twice(monkeypatch, executor)


def started(executor: str, *, tasks: int = 512, steps: int = 600) -> subprocess.Popen[str]:
    """The stage as a program, when its first block is done; 64 blocks are too many to end before a test interferes."""
    set_collect(tasks=tasks, steps=steps)
    environment = os.environ | {"PYTHONPATH": str(ROOT), VARIABLE: executor}
    command = [sys.executable, "-m", "stages.collect"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (Path("data/.work/collect/log").exists() and units()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    return process


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("executor", PARALLEL)
def test_a_signal_to_all_processes_ends_the_stage_after_a_block(checkout: Path, executor: str) -> None:  # noqa: F811
    """As the terminal sends it: to the children too, which must not die of it or complain."""
    process = started(executor)
    children = workers(process)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED, printed
    assert "Traceback" not in printed
    assert 1 <= len(units()) < 64
    assert psutil.wait_procs(children, timeout=20)[1] == []


@pytest.mark.parametrize("executor", PARALLEL)
def test_children_end_with_a_stage_that_is_killed(checkout: Path, executor: str) -> None:  # noqa: F811
    process = started(executor)
    children = workers(process)
    assert len(children) >= 1
    process.kill()
    process.communicate()
    assert psutil.wait_procs(children, timeout=20)[1] == []


@pytest.mark.slow
def test_a_dask_worker_killed_in_the_middle_changes_no_byte(checkout: Path) -> None:  # noqa: F811
    process = started("dask", tasks=96, steps=300)
    workers(process)[0].kill()
    _, printed = process.communicate(timeout=110)
    assert process.returncode == Exit.OK, printed
    assert len(units()) == len(set(units())) == 12
    killed = verify(Path("data/trajectories"))
    shutil.rmtree("data/.work")
    assert _guarded(STAGE) is Exit.OK
    assert verify(Path("data/trajectories")) == killed
