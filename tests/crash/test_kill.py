"""Real runs of the pipeline, killed without warning: the next `dvc repro` goes on and ends in the bytes of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests.repository import Repository, draw_pictures, environment, make_tiny, set_params

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

SIZES = {
    "prepare": {"min_images": 20},
    "pretrain": {"epochs": 8, "batch": 32, "val_episodes": 50},
    "collect": {"tasks": 400, "block": 50},
    "metatrain": {"steps": 120, "val_every": 20, "val_episodes": 50},
    "evaluate": {"episodes": 400},
}
STAGES = tuple(SIZES)
MOMENTS = {"prepare": 10, "pretrain": 10, "collect": 4, "metatrain": 4, "evaluate": 4}
HOOKS = str(Path(__file__).parent / "hooks")


def new_repository(root: Path) -> Repository:
    repository = make_tiny(root)
    set_params(root, SIZES)
    shutil.rmtree(root / "pictures")
    draw_pictures(root / "pictures", images=200)
    repository.run("git", "add", "-A")
    repository.run("git", "commit", "-qm", "bigger")
    return repository


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = new_repository(tmp_path_factory.mktemp("undisturbed") / "checkout")
    repository.run("dvc", "repro")
    return repository


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The repository right before each stage."""
    root = tmp_path_factory.mktemp("templates")
    new_repository(root / STAGES[0])
    for done, stage in pairwise(STAGES):
        shutil.copytree(root / done, root / stage, symlinks=True)
        Repository(root / stage).run("dvc", "repro", done)
    return {stage: root / stage for stage in STAGES}


@pytest.fixture
def fresh(request: pytest.FixtureRequest, templates: dict[str, Path], tmp_path: Path) -> Repository:
    """A copy of the repository right before the stage that the test names."""
    root = tmp_path / "checkout"
    shutil.copytree(templates[request.node.callspec.params["stage"]], root, symlinks=True)
    return Repository(root)


def start(repository: Repository, stage: str, **env: str) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    return subprocess.Popen(["dvc", "repro", stage], cwd=repository.root, env=environment() | env, **quiet)  # type: ignore[call-overload]


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, "the run ended before the stage began"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def seconds(repository: Repository, stage: str) -> float:
    """How long an undisturbed run of the stage takes from its lock to its publication."""
    folder = repository.root / "data/.work" / stage
    return (folder / "log").stat().st_mtime - (folder / "lock").stat().st_mtime


def locked(repository: Repository, stage: str) -> object:
    """What dvc.lock says of a stage: the hashes of all that went in and came out."""
    return YAML(typ="safe").load(repository.lock())["stages"][stage]


def assert_same_end(killed: Repository, undisturbed: Repository, stage: str) -> None:
    """All outs are those of a run never killed, no unit was made twice, nothing half-written lies about."""
    assert locked(killed, stage) == locked(undisturbed, stage)
    units = killed.units(stage)
    assert len(units) == len(set(units)), f"made twice: {units}"
    assert set(units) <= set(undisturbed.units(stage))
    left = [str(path) for path in (killed.root / "data").rglob("*") if path.name.endswith((".tmp", ".partial"))]
    assert left == []


@pytest.mark.parametrize(("stage", "moment"), [(stage, n) for stage, count in MOMENTS.items() for n in range(count)])
def test_a_tree_killed_at_any_moment_goes_on_to_the_same_bytes(
    fresh: Repository, undisturbed: Repository, stage: str, moment: int
) -> None:
    process = start(fresh, stage)
    wait_for(fresh.root / "data/.work" / stage / "lock", process)
    time.sleep(random.Random(f"{stage}{moment}").uniform(0, seconds(undisturbed, stage)))
    kill_tree(process)
    fresh.run("dvc", "repro", stage)
    assert_same_end(fresh, undisturbed, stage)


@pytest.mark.parametrize(
    ("stage", "operation"),
    [
        *(("prepare", f"rename:{n}") for n in (1, 2, 5, 6, 7)),
        *(("prepare", f"{name}:{n}") for name in ("replace", "link", "fsync") for n in (1, 3)),
        *(("pretrain", f"rename:{n}") for n in (1, 8, 9, 10)),
        *(("pretrain", f"{name}:{n}") for name in ("replace", "link", "fsync") for n in (2, 4)),
        *((stage, f"rename:{n}") for stage in ("collect", "metatrain", "evaluate") for n in (2, 7, 9)),
    ],
)
def test_a_tree_killed_at_an_exact_operation_goes_on_to_the_same_bytes(
    fresh: Repository, undisturbed: Repository, stage: str, operation: str
) -> None:
    """Between a unit and its name, between the result and its seal, half-way through the publication."""
    process = start(fresh, stage, PYTHONPATH=HOOKS, METADIFF_TEST_KILL=f"{stage}:{operation}")
    assert process.wait(60) == -signal.SIGKILL, "the operation was never reached"
    fresh.run("dvc", "repro", stage)
    assert_same_end(fresh, undisturbed, stage)


@pytest.mark.parametrize("stage", ["pretrain"])
def test_killing_dvc_alone_never_gives_two_writers(fresh: Repository, undisturbed: Repository, stage: str) -> None:
    process = start(fresh, stage)
    wait_for(fresh.root / "data/.work" / stage / "lock", process)
    (orphan,) = [p for p in psutil.Process(process.pid).children(recursive=True) if f"stages.{stage}" in p.cmdline()[-1:]]
    process.kill()
    process.wait()
    second = fresh.run("dvc", "repro", stage, ok=False)
    assert second.returncode != 0
    said = second.stdout + second.stderr
    assert f"{stage}: busy: process {orphan.pid} on " in said
    assert "since 20" in said
    assert "Wait until it ends and run again" in said
    assert "exited with 75" in said
    while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    fresh.run("dvc", "repro", stage)
    assert_same_end(fresh, undisturbed, stage)


def test_a_torn_dvc_lock_is_said_and_one_command_mends_it_at_no_cost(undisturbed: Repository, tmp_path: Path) -> None:
    """DVC rewrites dvc.lock in place. Torn, it is an error or looks like stages that never ran; nothing wrong is ever read."""
    root = tmp_path / "checkout"
    shutil.copytree(undisturbed.root, root, symlinks=True)
    repository = Repository(root)
    repository.run("git", "add", "-A")
    repository.run("git", "commit", "-qm", "run")
    whole = repository.lock()
    for cut in (0, 60, len(whole) // 3, len(whole) // 2, len(whole) - 5):
        (root / "dvc.lock").write_text(whole[:cut])
        said = repository.run("dvc", "status", ok=False)
        assert "dvc.lock" in said.stdout + said.stderr or "Data and pipelines are up to date." not in said.stdout
        repository.run("git", "checkout", "dvc.lock")
    assert "Data and pipelines are up to date." in repository.run("dvc", "repro").stdout


def test_two_clones_in_two_folders_agree_to_the_byte(undisturbed: Repository, tmp_path: Path) -> None:
    """Another folder, another hash seed, a folder listing in another order: the same dvc.lock."""
    root = tmp_path / "elsewhere" / "deeper" / "checkout"
    root.parent.mkdir(parents=True)
    clone = new_repository(root)
    clone.run("dvc", "repro", env={"PYTHONHASHSEED": "12345", "LC_ALL": "C", "TZ": "Asia/Tokyo"})
    assert clone.lock() == undisturbed.lock()
