"""Where a result is from, link by link, from a number down to the images; and whether every link still holds.

data/results/lineage.json names for each stage its command, parameters, inputs, code, versions and files; dvc.lock names the same
artifacts as DVC does; git names the code. A chain holds when all three agree with each other and with what lies on the disk.
"""

from __future__ import annotations

import configparser
import difflib
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from metadiff.artifact import MANIFEST, read_manifest, record
from metadiff.errors import DataError, ParamsError
from metadiff.params import load

RESULTS = Path("data/results")
LINEAGE, METRICS, LOCK, PARAMS = RESULTS / "lineage.json", RESULTS / "metrics.json", Path("dvc.lock"), Path("params.yaml")
State = Literal["holds", "broken", "absent"]
Advance = Callable[[int], None]
MAKE = "make it: dvc repro"


@dataclass(frozen=True)
class Link:
    """One thing that must be so for a number to be what it says it is."""

    name: str
    state: State
    details: tuple[str, ...]  # one line each: what does not hold, or why nobody can tell


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


# Whether it holds


def verify_chain(root: Path, advance: Advance = lambda _count: None) -> Iterator[Link]:
    """Every link of the checkout's result, from the first stage on; ``advance`` counts the outputs that were hashed."""
    chain = read_chain(root)
    for name, facts in chain.stages.items():
        yield _link(f"{name}: record", _record_complaints(root, name, chain))
        yield _link(f"{name}: parameters", _parameters(root, name, facts, chain.lock[name]))
        yield _link(f"{name}: code", _code(root, facts, chain.lock[name]))
        yield _inputs(root, name, facts, chain)
        yield from _outputs(root, name, facts, chain.lock[name], advance)
    yield _numbers(root, chain)
    yield _link("commit", [f"{name}: not as in commit {chain.commit[:7]}; commit or undo it" for name in chain.strange])


def count_outputs(chain: Chain) -> int:
    return sum(len(chain.lock[name]["outs"]) for name in chain.stages)


def _link(name: str, complaints: list[str]) -> Link:
    return Link(name, "broken" if complaints else "holds", tuple(complaints))


def _record_complaints(root: Path, name: str, chain: Chain) -> list[str]:
    """The record says what the artifact's own manifest and dvc.lock say, and leads on to the stages before."""
    facts, lock = chain.stages[name], chain.lock[name]
    complaints = [f"{LINEAGE}: tells nothing of what made {folder}" for folder in facts["inputs"] if folder not in _makers(chain)]
    deps, folder = {dep["path"] for dep in lock["deps"]}, _folder(lock)
    raw = {*facts["raw"]} - _weights(facts)
    complaints += [f"{LOCK}: {name} does not depend on {path}" for path in raw if path not in deps]
    outs = {out["path"] for out in lock["outs"]}
    alone = [path for path in facts["files"] if not {str(folder), str(folder / path)} & outs]
    complaints += [f"{LOCK}: {folder / path} is no output" for path in alone]
    if lock["cmd"] != facts["command"]:
        complaints.append(f"{LOCK}: the command is {lock['cmd']!r}, the result is of {facts['command']!r}")
    if (root / folder / MANIFEST).is_file():
        try:
            manifest = read_manifest(root / folder)
        except DataError as error:
            return [*complaints, str(error)]
        told = record(manifest)
        told["files"] = {path: about for path, about in told["files"].items() if path in facts["files"] or path != LINEAGE.name}
        if told != facts or any(chain.stages.get(stage) != before for stage, before in manifest.get("chain", {}).items()):
            complaints.append(f"{folder / MANIFEST}: tells otherwise than {LINEAGE}")
    return complaints


def _makers(chain: Chain) -> dict[str, str]:
    """The stage that makes each folder."""
    return {str(_folder(chain.lock[name])): name for name in chain.stages}


def _weights(facts: Mapping[str, Any]) -> set[str]:
    """The file of a backbone's weights, of which DVC knows nothing: its graph has no dependency that is there but sometimes."""
    return {str(Path(facts["params"].get("weights", "none")))} & {*facts["raw"]}


def _folder(lock: Mapping[str, Any]) -> Path:
    """Where a stage puts its results: its one output, or the folder of all of them."""
    paths = [Path(out["path"]) for out in lock["outs"]]
    return paths[0] if len(paths) == 1 else paths[0].parent if paths else Path()


def _parameters(root: Path, name: str, facts: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    used = flat({name: facts["params"], "shared": facts["shared"], **facts.get("methods", {})})
    try:
        now = flat(load(root / PARAMS).model_dump(mode="json"))
    except ParamsError as error:
        return str(error).splitlines()
    locked = flat(lock.get("params", {}).get(PARAMS.name, {}))
    complaints = [
        f"{PARAMS}: {key} is {now.get(key)!r}, the result is of {value!r}" for key, value in used.items() if now.get(key) != value
    ]
    return complaints + [
        f"{LOCK}: {key} is {locked[key]!r}, the result is of {value!r}"
        for key, value in used.items()
        if key in locked and locked[key] != value
    ]


def _code(root: Path, facts: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    """The code, and whatever else dvc.lock says that the stage read and no stage made."""
    recorded = {dep["path"]: dep["md5"] for dep in lock["deps"]}
    rest = [path for path in recorded if path not in facts["inputs"] and path not in facts["raw"]]
    complaints = []
    for name in sorted({*facts["code"], *rest}):
        if not (root / name).is_file():
            complaints.append(f"{name}: gone")
            continue
        md5, sha256 = _hashes(root / name)
        if sha256 != facts["code"].get(name, sha256):
            complaints.append(f"{name}: changed since the result was made")
        elif md5 != recorded.get(name):
            complaints.append(f"{name}: {md5[:12]}, {LOCK} says {str(recorded.get(name, 'nothing'))[:12]}")
    return complaints


def _inputs(root: Path, name: str, facts: Mapping[str, Any], chain: Chain) -> Link:
    """Each folder is the one that the stage before made, as it is told and as DVC tells it; raw data is as it was."""
    title, complaints, absent = f"{name}: inputs", [], []
    made = {out["path"]: out["md5"] for stage in chain.stages for out in chain.lock[stage]["outs"]}
    for dep in chain.lock[name]["deps"]:
        path = dep["path"]
        if path in made and made[path] != dep["md5"]:
            complaints.append(f"{LOCK}: {name} used {path} {dep['md5'][:12]}, there is {made[path][:12]}")
        if path in facts["raw"] and not (root / path).exists():
            absent.append(f"{path}: not here")
        elif path in facts["raw"] and dvc_md5(root / path) != dep["md5"]:
            complaints.append(f"{path}: changed since it was read")
    for path in _weights(facts):
        if not (root / path).exists():
            absent.append(f"{path}: not here")
        elif _hashes(root / path)[1] != facts["raw"][path]:
            complaints.append(f"{path}: changed since it was read")
    for folder, sha256 in facts["inputs"].items():
        manifest = root / folder / MANIFEST
        if not manifest.is_file():
            absent.append(f"{folder}: not here; `dvc pull` brings it")
        elif _hashes(manifest)[1] != sha256:
            complaints.append(f"{folder}: another one than {name} used")
    return _link(title, complaints) if complaints or not absent else Link(title, "absent", tuple(absent))


def _outputs(root: Path, name: str, facts: Mapping[str, Any], lock: Mapping[str, Any], advance: Advance) -> Iterator[Link]:
    for out in lock["outs"]:
        path = PurePosixPath(out["path"])
        title = f"{name}: {path}"
        if not (root / path).exists():
            yield Link(title, "absent", ("not here; `dvc pull` brings it",))
        else:
            yield _link(title, _output(root, path, out["md5"], facts["files"]))
        advance(1)


def _output(root: Path, path: PurePosixPath, md5: str, told: Mapping[str, Any]) -> list[str]:
    """Its files have the sha256 that is told of them, all of them have the md5 of dvc.lock."""
    whole = (root / path).is_dir()
    folder = path if whole else path.parent
    names = [name for name in told if whole or name == path.name]
    gone = [name for name in names if not (root / folder / name).is_file()]
    changed = [name for name in names if name not in gone and _hashes(root / folder / name)[1] != told[name]["sha256"]]
    complaints = [f"{folder / name}: missing" for name in gone]
    complaints += [f"{folder / name}: not the file that was made (sha256 differs)" for name in changed]
    found = dvc_md5(root / path)
    if found != md5 and not complaints:
        complaints.append(f"{path}: {found[:12]}, {LOCK} says {md5[:12]}")
    return complaints


def _numbers(root: Path, chain: Chain) -> Link:
    """metrics.json is what the episodes give."""
    import pandas as pd

    from metadiff.judging import summary

    tables = [root / RESULTS / name for name in ("episodes.csv", "calibration.csv")]
    title = f"{METRICS}: computed again from its episodes"
    if not all(path.is_file() for path in tables):
        return Link(title, "absent", (f"{RESULTS}/episodes.csv and calibration.csv are not here; `dvc pull` brings them",))
    try:
        now, told = flat(summary(*map(pd.read_csv, tables))), flat(chain.metrics)
    except (ValueError, KeyError, TypeError) as error:
        return _link(title, [f"{RESULTS}/episodes.csv or calibration.csv: no such tables ({error!r})"])
    wrong = [f"{key} is {told.get(key)}, the episodes give {value}" for key, value in now.items() if told.get(key) != value]
    more = [key for key in told if key.split(".")[0] in ("val", "test") and key not in now]
    return _link(title, wrong[:5] + [f"{key}: there are no such episodes" for key in more[:5]])


# How things are named


def dvc_md5(path: Path) -> str:
    """The md5 that dvc.lock has for a file, or for a folder with the suffix .dir."""
    if not path.is_dir():
        return _hashes(path)[0]
    files = [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    named = {file.relative_to(path).as_posix(): _hashes(file)[0] for file in files}
    entries = [{"md5": named[name], "relpath": name} for name in sorted(named)]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _hashes(path: Path) -> tuple[str, str]:
    """md5 and sha256 in one reading."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


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
