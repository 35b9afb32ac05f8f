"""The Prefect flow `metadiff`: the stages of DVC's graph in their order, each as `dvc repro --single-item`.

    python -m flows.full --help              without a server
    prefect deployment run metadiff/full     on the server of `make flow`

DVC alone decides what runs, what is restored and what is left; Prefect shows it, tries again what can heal, and keeps the report.
A run with overrides or a name is an experiment: it works in a git worktree, and `dvc exp show` lists it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    get_current_settings,
    temporary_settings,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import report
from flows.dvcrepo import stage_order
from flows.process import Finished, run
from flows.worktree import Value, save
from flows.worktree import experiment as experiment_worktree

ROOT = Path(__file__).resolve().parent.parent
BUSY, MEMORY = 75, 71  # what may be gone at the next try
TRIES = {BUSY: 4, MEMORY: 2}
ENDED = re.compile(r"exited with (-?\d+)")
DVC_BUSY = ("Unable to acquire lock", "is busy")
PROGRESS = {"METADIFF_PROGRESS": "10"}  # seconds between two lines


class StageError(RuntimeError):
    """A stage ended with another code than 0; the last lines it said are in the message."""

    def __init__(self, stage: str, code: int, tail: tuple[str, ...]) -> None:
        super().__init__(stage, code, tail)
        self.stage, self.code, self.tail = stage, code, tail

    def __str__(self) -> str:
        return "\n".join([f"{self.stage} ended with {self.code}", *self.tail])


@flow(name="metadiff")
def metadiff(
    overrides: dict[str, Value] | None = None,
    experiment: str | None = None,
    targets: list[str] | None = None,
    gpu: bool = False,
) -> None:
    """Run what is stale of the pipeline.

    Args:
        overrides: parameters by their dotted names, such as {"metatrain.lr": 0.001}; the run is then an experiment
        experiment: the name under which `dvc exp show` lists it; by default that of this run, if there are overrides
        targets: stages, or the dvc.yaml of a study; by default all of the pipeline
        gpu: compute on the GPU (shared.device: cuda)
    """
    changed = dict(overrides or {}) | ({"shared.device": "cuda"} if gpu else {})
    name = experiment or (str(flow_run.get_name()) if changed else None)
    with workplace(name, changed) as root:
        order = stage_order(root, targets)
        get_run_logger().info("%s: %s", root, ", ".join(order))
        start = time.monotonic()
        for stage in order:
            stage_task.with_options(name=stage, tags={"gpu"} if gpu else set())(root, stage)
        seconds = time.monotonic() - start
        if "evaluate" in order:
            report.publish(root, experiment=name)
        if name:
            save(root, name, order, seconds=seconds)
            get_run_logger().info("saved as the experiment %s: dvc exp show", name)


@contextmanager
def workplace(name: str | None, overrides: dict[str, Value]) -> Iterator[Path]:
    """The checkout itself, or the worktree of an experiment."""
    if name is None:
        yield ROOT
    else:
        with experiment_worktree(ROOT, name, overrides) as folder:
            try:
                yield folder
            except BaseException:
                kept = "kept: the next run named %s goes on there; to be rid of it: git worktree remove --force %s"
                get_run_logger().info(kept, name, folder)
                raise


def may_heal(_task: object, task_run: TaskRun, state: State[Any]) -> bool:
    """Another process ends some day; memory may be free at the second try. Bad parameters, data and numbers stay so."""
    error = state.data.exception if hasattr(state.data, "exception") else state.result(raise_on_failure=False)
    return isinstance(error, StageError) and task_run.run_count < TRIES.get(error.code, 1)


@task(cache_policy=NO_CACHE, retries=max(TRIES.values()) - 1, retry_delay_seconds=[5, 20, 60], retry_condition_fn=may_heal)
def stage_task(root: Path, stage: str) -> None:
    say = get_run_logger().info
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    done = run(command, cwd=root, say=lambda line: say("%s", line), env=PROGRESS)
    if done.code:
        raise StageError(stage, stage_code(done), done.tail)


def stage_code(done: Finished) -> int:
    """The stage's own exit code, which DVC only prints."""
    codes = [int(code) for line in done.tail for code in ENDED.findall(line)]
    if not codes and any(word in line for line in done.tail for word in DVC_BUSY):
        return BUSY
    return codes[-1] if codes else done.code


def server_settings() -> dict[Any, Any]:
    """The server of `make flow` where it answers, else one for this run alone."""
    try:
        with urllib.request.urlopen(f"{get_current_settings().api.url}/health", timeout=5):  # noqa: S310 - the project's own setting
            return {}
    except (OSError, ValueError):
        return {PREFECT_API_URL: None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.full", description="Run the flow here, without a server.")
    parser.add_argument("targets", nargs="*", help="stages, or the dvc.yaml of a study; by default all of the pipeline")
    parser.add_argument(
        "-S", "--set", action="append", default=[], metavar="KEY=VALUE", help="metatrain.lr=0.001, as often as needed"
    )
    parser.add_argument("-n", "--experiment", help="the name under which `dvc exp show` lists it")
    parser.add_argument("--gpu", action="store_true", help="shared.device: cuda")
    chosen = parser.parse_args(arguments)
    try:
        pairs = [text.partition("=") for text in chosen.set]
        overrides = {key: YAML(typ="safe").load(value) for key, _, value in pairs}
        empty = [key for key, value in overrides.items() if value is None]
        if empty:
            parser.error(f"--set: a value is missing: {', '.join(empty)}; write KEY=VALUE")
        with temporary_settings(server_settings()):
            metadiff(overrides or None, chosen.experiment, chosen.targets or None, chosen.gpu)
    except StageError as error:
        print(error, file=sys.stderr)
        return error.code if error.code > 0 else 128 - error.code
    except (ValueError, YAMLError) as error:
        print(error, file=sys.stderr)
        return os.EX_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
