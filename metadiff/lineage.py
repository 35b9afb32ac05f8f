"""Where a result is from, link by link, from a number down to the images.

data/results/lineage.json names for each stage its command, parameters, inputs, code, versions and files; dvc.lock names the same
artifacts as DVC does; git names the code. Whether all three agree with each other and with what lies on the disk: verifying.py.
"""

from __future__ import annotations

import configparser
import difflib
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from metadiff.errors import DataError

RESULTS = Path("data/results")
LINEAGE, METRICS, LOCK, PARAMS = RESULTS / "lineage.json", RESULTS / "metrics.json", Path("dvc.lock"), Path("params.yaml")
MAKE = "make it: dvc repro"


@dataclass(frozen=True)
class Chain:
    """What is told of a result, in the checkout or in an experiment of DVC."""

    title: str  # of which checkout or experiment
    commit: str  # the one that has the result
    strange: tuple[str, ...]  # files that shaped or hold it and are not so in that commit
    stages: Mapping[str, Mapping[str, Any]]  # from lineage.json, the first stage first
    lock: Mapping[str, Mapping[str, Any]]  # from dvc.lock
    metrics: Mapping[str, Any]


def read_chain(root: Path, experiment: str | None = None) -> Chain:
    """Of the checkout, or of an experiment as `dvc exp show` names it; DataError for records that cannot be read."""
    revision = experiment_commit(root, experiment) if experiment else None
    lock = read_lock(root, revision)
    told = _cached(root, lock, LINEAGE) if revision else content(root, LINEAGE)
    stages = parsed(LINEAGE, told, json.loads)["stages"]
    metrics = parsed(METRICS, content(root, METRICS, revision), json.loads)
    missing = sorted(set(stages) - set(lock))
    if missing:
        raise DataError(f"{LOCK}: knows nothing of {', '.join(missing)}, of which {LINEAGE} tells; {MAKE}")
    commit = revision or last_commit(root, LOCK)
    strange = strangers(root, stages, commit)
    if not revision:
        strange |= {*uncommitted(root, [name for facts in stages.values() for name in facts["code"]])}
    return Chain(experiment or "this checkout", commit, tuple(sorted(strange)), stages, lock, metrics)


def last_commit(root: Path, path: Path) -> str:
    """That which changed the file."""
    return (_git(root, "log", "-1", "--format=%H", "--", str(path)) or _git(root, "rev-parse", "HEAD")).strip()


def strangers(root: Path, stages: Mapping[str, Mapping[str, Any]], commit: str) -> set[str]:
    """The files of code that a commit does not have as the stages ran them."""
    code = {name: sha256 for facts in stages.values() for name, sha256 in facts["code"].items()}
    return {name for name, sha256 in code.items() if _sha256_in(root, commit, name) != sha256}


def read_lock(root: Path, revision: str | None) -> dict[str, Any]:
    """What dvc.lock tells of each stage."""
    return dict(parsed(LOCK, content(root, LOCK, revision), YAML(typ="safe").load)["stages"])


def parsed(path: Path, text: bytes, parse: Callable[[bytes], Any]) -> Any:  # noqa: ANN401
    try:
        return dict(parse(text))
    except (ValueError, TypeError, YAMLError) as error:
        raise DataError(f"{path}: cannot be read as what it should be ({str(error).splitlines()[0]}); {MAKE}") from None


def experiments(root: Path) -> dict[str, str]:
    """The commits of DVC's experiments by name, the newest first: refs/exps/<the commit they start from, in two parts>/<name>."""
    listed = _git(root, "for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    refs = [line.split() for line in listed.splitlines()]
    found: dict[str, str] = {}
    for commit, ref in refs:
        if len(ref.split("/")) == 5:
            found.setdefault(ref.rsplit("/", 1)[1], commit)
    return found


def experiment_commit(root: Path, name: str) -> str:
    found = experiments(root)
    if name not in found:
        raise DataError(f"no experiment {name}; there are: {', '.join(found) or 'none'}")
    return found[name]


def uncommitted(root: Path, code: list[str]) -> list[str]:
    """Of the files that shape or hold a result those that git does not have as they are."""
    watched = sorted({*code, "constraints.txt", "dvc.yaml", *map(str, (PARAMS, LOCK, METRICS))})
    status = _git(root, "status", "--porcelain", "--untracked-files=all", "-z", "--", *watched)
    return [entry[3:] for entry in status.split("\0") if len(entry) > 3]


def _cached(root: Path, lock: Mapping[str, Mapping[str, Any]], path: Path) -> bytes:
    """An output as it lies in DVC's cache."""
    outs = {out["path"]: str(out["md5"]) for stage in lock.values() for out in stage["outs"]}
    return _object(root, outs.get(path.as_posix(), ""), path)


def restore(root: Path, experiment: str, stages: Iterable[str], target: Path) -> None:
    """Put what these stages of an experiment made into a folder, from git and DVC's cache; the checkout stays as it is."""
    revision = experiment_commit(root, experiment)
    lock = read_lock(root, revision)
    for out in (out for stage in stages for out in lock[stage]["outs"]):
        path, md5 = Path(out["path"]), str(out["md5"])
        if path == METRICS:  # lies in git
            files = {path: content(root, METRICS, revision)}
        elif md5.endswith(".dir"):
            inside = json.loads(_object(root, md5, path))
            files = {path / one["relpath"]: _object(root, one["md5"], path / one["relpath"]) for one in inside}
        else:
            files = {path: _object(root, md5, path)}
        for name, data in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)


def _object(root: Path, md5: str, path: Path) -> bytes:
    config = configparser.ConfigParser()
    config.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    cached = root / ".dvc" / str(config.get("cache", "dir", fallback="cache")) / "files/md5" / md5[:2] / md5[2:]
    if not md5 or not cached.is_file():
        raise DataError(f"{path}: that of the experiment is not in DVC's cache here; `dvc exp pull` or `dvc pull` brings it")
    return cached.read_bytes()


def _sha256_in(root: Path, commit: str, name: str) -> str:
    found = subprocess.run(["git", "show", f"{commit}:{name}"], cwd=root, capture_output=True, check=False)
    return hashlib.sha256(found.stdout).hexdigest() if found.returncode == 0 else "none"


def numbers(chain: Chain, result: str) -> dict[str, object]:
    """The numbers under a name such as test.shot1.metadiff.accuracy, or test.shot1.metadiff, by their full names."""
    every = flat(chain.metrics)
    found = {name: value for name, value in every.items() if f"{name}.".startswith(f"{result}.")}
    if not found:
        prefixes = {name.rsplit(".", cut)[0] for name in every for cut in range(name.count(".") + 1)}
        near = difflib.get_close_matches(result, sorted(prefixes | set(every)), n=1, cutoff=0)
        raise DataError(f"{METRICS}: no result {result}; did you mean {near[0]}?")
    return found


def flat(value: object, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    inner = (flat(below, f"{prefix}.{key}" if prefix else str(key)) for key, below in value.items())
    return {name: leaf for part in inner for name, leaf in part.items()}


def refuse_unknown(root: Path, commit: str) -> None:
    """DataError if git has no such commit."""
    _git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", what=f"there is no commit {commit}")


def message(root: Path, commit: str) -> str:
    """What was said of a commit."""
    return _git(root, "log", "-1", "--format=%B", commit)


def content(root: Path, path: Path, revision: str | None = None) -> bytes:
    """Of a file as it is in a commit, or as it lies in the checkout."""
    if revision:
        return _git(root, "show", f"{revision}:{path.as_posix()}").encode()
    if not (root / path).is_file():
        raise DataError(f"{path}: not here; where it was made before `dvc pull` brings it, else {MAKE}")
    return (root / path).read_bytes()


def _git(root: Path, *arguments: str, what: str = "") -> str:
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise DataError(what or f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout
