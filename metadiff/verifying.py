"""Whether every link of a result holds: what made it, as its records, DVC and git tell it, against what lies on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from metadiff.artifact import MANIFEST, read_manifest, record
from metadiff.errors import DataError, ParamsError
from metadiff.lineage import LINEAGE, LOCK, METRICS, PARAMS, RESULTS, Chain, flat, read_chain
from metadiff.params import load

State = Literal["holds", "broken", "absent"]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Link:
    """One thing that must be so for a number to be what it says it is."""

    name: str
    state: State
    details: tuple[str, ...]  # one line each: what does not hold, or why nobody can tell


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
    folder, outs = _folder(lock), {out["path"] for out in lock["outs"]}
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
    deps = {dep["path"]: dep["md5"] for dep in chain.lock[name]["deps"]}
    for path, md5 in deps.items():
        if made.get(path, md5) != md5:
            complaints.append(f"{LOCK}: {name} used {path} {md5[:12]}, there is {made[path][:12]}")
    for path, sha256 in facts["raw"].items():
        if not (root / path).exists():
            absent.append(f"{path}: not here")
        elif not _is_same(root / path, deps.get(path), sha256):
            complaints.append(f"{path}: changed since it was read")
    for folder, sha256 in facts["inputs"].items():
        manifest = root / folder / MANIFEST
        if not manifest.is_file():
            absent.append(f"{folder}: not here; `dvc pull` brings it")
        elif _hashes(manifest)[1] != sha256:
            complaints.append(f"{folder}: another one than {name} used")
    return _link(title, complaints) if complaints or not absent else Link(title, "absent", tuple(absent))


def _is_same(raw: Path, md5: str | None, sha256: str) -> bool:
    """As DVC knows it or, if DVC knows nothing of it, as its file was when it was read."""
    return dvc_md5(raw) == md5 if md5 else raw.is_file() and _hashes(raw)[1] == sha256


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
