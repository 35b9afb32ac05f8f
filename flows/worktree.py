"""A run with other parameters: in a git worktree of its own, over the cache that all share, saved as an experiment of DVC."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from metadiff.params import load

Value = bool | int | float | str | list[bool | int | float | str]
PARAMS = "params.yaml"
EXTERNAL = Path("data/external")  # data that users bring: in no commit


def overridden(text: str, overrides: Mapping[str, Value]) -> str:
    """params.yaml with other values, comments and all; ParamsError names every key that cannot be so."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1000
    document = yaml.load(text)
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        document.setdefault(section, {})[name or section] = _in_one_line(value)
    written = StringIO()
    yaml.dump(document, written)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS
        path.write_text(written.getvalue(), encoding="utf-8")
        try:
            load(path)
        except ValueError as error:
            raise type(error)(re.sub(rf"^{re.escape(str(path))}(:\d+)?", "overrides", str(error), flags=re.MULTILINE)) from None
    return written.getvalue()


def _in_one_line(value: Value) -> object:
    if not isinstance(value, list):
        return value
    items = CommentedSeq(value)
    items.fa.set_flow_style()
    return items


@contextmanager
def experiment(root: Path, name: str, overrides: Mapping[str, Value]) -> Iterator[Path]:
    """The worktree of an experiment, at the checkout's commit. If its run fails it is kept, and the next run goes on in it."""
    if subprocess.run(["git", "check-ref-format", f"refs/exps/00/00/{name}"], check=False).returncode or "/" in name:
        raise ValueError(f"experiment: not a name that git can have: {name!r}; use letters, digits, dots, dashes, underscores")
    text = overridden(_git(root, "show", f"HEAD:{PARAMS}"), overrides)
    folder = root / ".dvc/tmp/flows" / name
    with _alone(root / ".dvc/tmp/flow-locks" / name, name):
        if f"/{name}\n" in _git(root, "for-each-ref", "--format=%(refname)", "refs/exps"):
            raise ValueError(f"experiment: there is one named {name}; take another name, or first: dvc exp remove {name}")
        _check_out(root, folder, _git(root, "rev-parse", "HEAD").strip())
        _dvc(folder, "cache", "dir", "--local", _dvc(root, "cache", "dir").strip())
        if (root / EXTERNAL).is_dir() and not (folder / EXTERNAL).exists():
            (folder / EXTERNAL).symlink_to(root / EXTERNAL, target_is_directory=True)
        (folder / PARAMS).write_text(text, encoding="utf-8")
        _dvc(folder, "checkout", "--quiet", "--force", "--allow-missing")  # what a kill left between is in data/.work too
        yield folder
        remove(root, folder)


def _check_out(root: Path, folder: Path, commit: str) -> None:
    """All files of the commit; in a worktree that is there, what git ignores stays, and with it the resume state."""
    if folder.exists():
        try:
            if Path(_git(folder, "rev-parse", "--show-toplevel").strip()) == folder.resolve():
                _git(folder, "checkout", "--quiet", "--force", "--detach", commit)
                return
        except ValueError:
            pass  # half made or half removed: anew
        shutil.rmtree(folder)
    _git(root, "worktree", "add", "--force", "--quiet", "--detach", str(folder), commit)


def save(folder: Path, name: str, stages: list[str], *, seconds: float) -> None:
    """Of these stages alone, since DVC would miss the outputs of all others, those of studies among them.

    How long it took stands in the commit's message, where `metadiff compare` finds it: no artifact may hold a time.
    """
    _dvc(folder, "exp", "save", "--name", name, "--message", f"{name}: run in {seconds:.0f} seconds", *stages)


def remove(root: Path, folder: Path) -> None:
    _git(root, "worktree", "remove", "--force", "--force", str(folder))


@contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"experiment: another run works on {name} now; wait, or take another name") from None
        yield


def _git(folder: Path, *arguments: str) -> str:
    return _output(["git", *arguments], folder)


def _dvc(folder: Path, *arguments: str) -> str:
    return _output([sys.executable, "-m", "dvc", *arguments], folder)


def _output(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    if done.returncode:
        raise ValueError(f"{' '.join(command[-3:])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
