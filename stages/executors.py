"""Where units of work are computed. The environment variable METADIFF_EXECUTOR says it:

    serial                 in this process
    processes[:N]          in N processes of this machine; by default as many as its processors serve, shared.threads each
    dask                   in a Dask cluster of as many processes, started here
    dask:tcp://host:port   by the workers of the Dask scheduler that listens there

Where it is not set, images are drawn in processes and all else is computed in the stage's own.
What `pretrain` and `metatrain` share out reads files of this machine, so that Dask has no part in it: it is then computed in
the stage's own process.
It is no parameter, because the bytes are the same whichever: a worker sets torch as the stage does, and where it cannot (another
version, another instruction set) it is refused. Dask sends Python objects as pickles: use a scheduler that you trust.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from metadiff.errors import ParamsError
from stages.fingerprint import prepare_torch

if TYPE_CHECKING:
    from metadiff.params import Shared
    from stages.runner import Run

VARIABLE = "METADIFF_EXECUTOR"
TRIES = 2  # a block whose worker dies as often is not tried again
CONNECT = "10s"
T = TypeVar("T")
Job = Callable[[], T]  # of module functions and plain values, so that it can be sent


class Serial(Executor):
    """The standard interface, without any worker."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401 - as in the base class
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


Jobs = Iterable[tuple[str, Job[T]] | None]  # None: there is no other before one of those handed out has come back


def computed(
    jobs: Jobs[T], *, machine: Shared | None, default: str = "serial", of_disk: bool = False
) -> Generator[tuple[str, T]]:
    """Each job's name and result, as they come; few more are drawn than can run at once. One lost with its worker runs again.

    ``machine`` says how torch is set, where jobs use it; ``default`` where they run if nobody says otherwise; ``of_disk`` that
    they read files of this machine.
    """
    left, deaths = iter(jobs), Counter[str]()
    while True:
        held: dict[str, Job[T]] = {}
        try:
            asked, threads = os.environ.get(VARIABLE) or default, machine.threads if machine else 1
            if of_disk and asked.partition(":")[0] == "dask":
                asked = "serial"
            with _workers(asked, threads=threads) as (executor, width):
                yield from _stream(executor, left, held, width=width, machine=machine)
                return
        except BrokenExecutor:
            deaths.update(held.keys())
            _refuse_the_deadly(sorted(name for name, count in deaths.items() if count >= TRIES))
            print(f"a worker died at {', '.join(sorted(held))}: once more", file=sys.stderr)
            left = chain(held.items(), left)


def computed_units(
    run: Run[Any],
    sizes: Mapping[str, int],
    job_of: Callable[[str], Job[T]],
    save: Callable[[Path, T], None],
    *,
    what: str,
    unit: str,
    default: str = "serial",
    of_disk: bool = False,
) -> list[Path]:
    """A folder a unit of work, in the order of ``sizes``, which says how large each is; those that are there are kept."""
    left = [name for name in sizes if not run.finished_unit(name)]
    done = sum(sizes.values()) - sum(sizes[name] for name in left)
    with (
        run.progress(what, total=sum(sizes.values()), done=done, unit=unit) as advance,
        closing(
            computed(((name, job_of(name)) for name in left), machine=run.machine, default=default, of_disk=of_disk)
        ) as results,
    ):
        for name, found in results:
            with run.unit(name) as folder:
                save(folder, found)
            advance(sizes[name])
    return [run.whole_unit(name) for name in sizes]


def _stream(
    executor: Executor, jobs: Iterator[tuple[str, Job[T]] | None], held: dict[str, Job[T]], *, width: int, machine: Shared | None
) -> Iterator[tuple[str, T]]:
    """``held`` has at any time the jobs that were handed out and have not come back."""
    here, expected = isinstance(executor, Serial), _identity(machine)
    running: dict[Future[T], str] = {}
    while True:
        for drawn in islice(jobs, width - len(running)):
            if drawn is None:
                break
            name, job = drawn
            held[name] = job
            running[executor.submit(job if here else partial(_checked, job, machine, expected))] = name
        if not running:
            return
        done = wait(running, return_when=FIRST_COMPLETED).done
        while done:
            future = done.pop()
            name = running.pop(future)
            result = _result(future, name)
            del held[name], future  # or Dask would compute it again where a worker dies that still has it
            yield name, result


def _checked(job: Job[T], machine: Shared | None, expected: dict[str, object]) -> T:
    """On the worker: the same torch, set the same way, or nothing."""
    found = _identity(machine)
    if found != expected:
        odd = ", ".join(f"{key} {found[key]}, not {expected[key]}" for key in expected if found[key] != expected[key])
        raise ParamsError(
            f"{VARIABLE}: a worker would give other bytes: {odd}; give it the locked packages and the same processor"
        )
    return job()


def _identity(machine: Shared | None) -> dict[str, object]:
    return (prepare_torch(machine) if machine else {}) | {"numpy": np.__version__}


def _result(future: Future[T], name: str) -> T:
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ == "KilledWorker":  # Dask's word for a job that outlived no worker; it has tried several
            _refuse_the_deadly([name])
        raise


def _refuse_the_deadly(names: list[str]) -> None:
    if names:
        raise MemoryError(f"a worker was killed at each try of {', '.join(names)}; memory is what a system kills for")


@contextmanager
def _workers(asked: str, *, threads: int) -> Iterator[tuple[Executor, int]]:
    """An executor, and how many jobs it should hold at once."""
    kind, _, rest = asked.partition(":")
    count = max(1, (os.cpu_count() or 1) // threads)
    if asked == "serial":
        yield Serial(), 1
    elif asked == "processes" or (kind == "processes" and rest.isdecimal() and 1 <= int(rest) <= 1024):
        with _processes(int(rest or count)) as found:
            yield found
    elif asked == "dask" or (kind == "dask" and "://" in rest):
        with _dask(rest, count=count) as found:
            yield found
    else:
        raise ParamsError(f"{VARIABLE}: must be serial, processes, processes:N, dask or dask:tcp://host:port, got {asked!r}")


@contextmanager
def _processes(count: int) -> Iterator[tuple[Executor, int]]:
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_live_with_the_stage)
    try:
        yield executor, count + 1
    except BaseException:
        for child in {*multiprocessing.active_children()} - before:
            child.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _live_with_the_stage() -> None:
    """In a child: signals are for the stage, which lets the blocks at hand end; without the stage there is nothing to do."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def dask_setup(_worker: object) -> None:
    """Called by each Dask worker started here before its first block, since it preloads this module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask(address: str, *, count: int) -> Iterator[tuple[Executor, int]]:
    """Dask runs a block again elsewhere when its worker dies, and starts another worker where it started the first."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise ParamsError(f"{VARIABLE}: dask needs the package distributed, the extra `dask` of pyproject.toml") from None
    large_arguments = {"distributed.admin.large-graph-warning-threshold": "1 GiB"}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(large_arguments))
        if not address:
            sizes = {"n_workers": count, "threads_per_worker": 1, "processes": True}
            quiet = {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL, "preload": "stages.executors"}
            cluster = LocalCluster(**sizes, **quiet)  # type: ignore[no-untyped-call]
            address = stack.enter_context(cluster).scheduler_address
        try:
            client = stack.enter_context(Client(address, timeout=CONNECT, set_as_default=False))  # type: ignore[no-untyped-call]
        except OSError:
            raise ParamsError(f"{VARIABLE}: no Dask scheduler answers at {address}") from None
        executor = client.get_executor(pure=False)
        stack.callback(executor.shutdown, wait=False)
        yield executor, 2 * max(1, sum(client.ncores().values()))
