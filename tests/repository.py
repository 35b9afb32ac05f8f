"""A copy of the project in a temporary git and DVC repository, small enough to run for real."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.imports import ROOT

COPIED = ("metadiff", "stages", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", ".ci", "data", "Makefile")
FILES = ("dvc.yaml", "params.yaml", "constraints.txt", "pyproject.toml")
FLOWS = ("flows", "prefect.yaml")  # everything else works without them
OFFLINE = str(Path(__file__).parent / "pipeline/offline")  # refuses every connection, and to import Prefect
# Every stage in a second or two; 12 classes so that each split has enough for episodes.
TINY = {
    "prepare": {"source": "folder", "path": "pictures", "image_size": 16, "split": [0.4, 0.3, 0.3], "min_images": 8},
    "pretrain": {"epochs": 3, "batch": 16, "val_way": 2, "val_query": 3, "val_episodes": 5},
    "collect": {"tasks": 20, "block": 8, "way": 2, "shot": 2, "steps": 10, "keep": 3},
    "metatrain": {
        "way": 2,
        "shots": [1, 2],
        "steps": 6,
        "val_every": 3,
        "hidden": 8,
        "gradient_steps": 4,
        "val_query": 4,
        "val_episodes": 5,
    },
    "evaluate": {
        "way": 2,
        "shots": [1, 2],
        "query": 4,
        "episodes": 20,
        "val_episodes": 15,
        "gradient_steps": 4,
        "curve": [1, 2],
        "curve_episodes": 3,
    },
    "shared": {"threads": 1},
}


class Repository:
    """A checkout in which commands run as a user would type them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, ok: bool = True, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=environment() | dict(env or {}), capture_output=True, text=True, check=False
        )
        if ok and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.root / file).read_text()
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
        (self.root / file).write_text(text.replace(old, new))

    def lock(self) -> str:
        return (self.root / "dvc.lock").read_text()

    def units(self, stage: str) -> list[str]:
        """The units that runs of this stage have finished, in order."""
        lines = (self.root / "data/.work" / stage / "log").read_text().splitlines()
        return [line.split()[-1] for line in lines if " unit " in line]


def environment() -> dict[str, str]:
    author = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}
    return os.environ | author | quiet


def copy_project(root: Path, *more: str) -> Repository:
    """The committed files of the project that a run needs, in a fresh git repository."""
    skip = shutil.ignore_patterns(
        "__pycache__", ".work", "prepared", "backbone", "trajectories", "generator", "external", "results"
    )
    for name in (*COPIED, *more):
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, ignore=skip) if source.is_dir() else shutil.copy(source, target)
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    repository = Repository(root)
    repository.run("git", "init", "-q", "-b", "main", ".")
    return repository


def set_params(root: Path, changes: Mapping[str, Mapping[str, object]], *, base: Path | None = None) -> None:
    """Those of a folder, changed; or those of another, such as the project's own."""
    yaml = YAML()
    params = yaml.load((base or root) / "params.yaml")
    for section, values in changes.items():
        params[section].update(values)
    yaml.dump(params, root / "params.yaml")


def draw_pictures(folder: Path, *, classes: int = 12, images: int = 9) -> None:
    """Class folders of small pictures: stripes of an angle that is the class's own, with noise."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[:20, :20]
    for label in range(classes):
        rng = np.random.default_rng(label)
        (folder / f"class-{label:02d}").mkdir(parents=True)
        for i in range(images):
            wave = np.sin((x * np.cos(label / 4) + y * np.sin(label / 4)) / 2 + rng.uniform(0, 6))
            pixels = np.clip(127 + 90 * wave + rng.normal(0, 12, x.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class-{label:02d}" / f"{i}.png")


@pytest.fixture
def tiny(tmp_path: Path) -> Repository:
    """A committed project with tiny parameters and a folder of pictures, never run."""
    return make_tiny(tmp_path / "checkout")


def make_tiny(root: Path, *more: str) -> Repository:
    root.mkdir()
    repository = copy_project(root, *more)
    set_params(root, TINY)
    draw_pictures(root / "pictures")
    repository.run("git", "add", "-A")
    repository.run("git", "commit", "-qm", "first")
    return repository


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A finished and committed run, made without a network and without Prefect; by one worker for all of them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers of this run
    root = folder / "finished/checkout"
    with (folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished/done").exists():
            shutil.rmtree(root.parent, ignore_errors=True)
            root.parent.mkdir()
            make_finished(root)
            (folder / "finished/done").touch()
    return Repository(root)


def make_finished(root: Path) -> None:
    repository = make_tiny(root)
    tried = root.parent / "connections"
    repository.run("dvc", "repro", env={"PYTHONPATH": OFFLINE, "METADIFF_TEST_CONNECTIONS": str(tried)})
    assert not tried.exists(), tried.read_text()
    repository.run("git", "add", "-A")
    repository.run("git", "commit", "-qm", "run")


@pytest.fixture
def copy(finished: Repository, tmp_path: Path) -> Repository:
    shutil.copytree(finished.root, tmp_path / "checkout", symlinks=True)
    return Repository(tmp_path / "checkout")
