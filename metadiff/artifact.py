"""A folder of files with a manifest: names, sizes and sha256, so that nothing broken is ever read as if it were whole."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metadiff.errors import CorruptArtifactError, DataError

MANIFEST = "manifest.json"
FORMAT = 2


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_synced(path: Path, text: str) -> None:
    """Write a small text file so that it is on the disk, whole, before its name is: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """JSON as people and git read it: one key a line, in the order given, characters as they are."""
    write_synced(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """NumPy's own format; through memory, since NumPy's way to a file loses the number of the system's error."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    path.write_bytes(content.getbuffer())


def sync(path: Path) -> None:
    """Ask the disk to keep what was written under this file or folder name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path, *, about: Mapping[str, object] | None = None) -> None:
    """Write the manifest of everything in a folder, and where it is from, after syncing it; it is complete from here on."""
    files = inventory(folder)
    for name in files:
        sync(folder / name)
    write_json(folder / MANIFEST, {"format": FORMAT, **(about or {}), "files": files})


def inventory(folder: Path) -> dict[str, dict[str, object]]:
    """The size and sha256 of every file in a folder, by name."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in names}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Refuses one that is missing, torn, or of another format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CorruptArtifactError(f"{path}: missing, so nothing says whether {folder} is complete; make it again: dvc repro")
    try:
        manifest = json.loads(path.read_bytes())
        found, _ = manifest["format"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError):
        raise CorruptArtifactError(f"{path}: not a manifest; make the folder again: dvc repro") from None
    if found != FORMAT:
        raise CorruptArtifactError(
            f"{path}: format {found}, this version reads format {FORMAT}; make the folder again: dvc repro"
        )
    return dict(manifest)


def record(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest tells of its own stage: command, params, inputs, code, versions, files."""
    return {name: value for name, value in manifest.items() if name not in ("format", "stage", "chain")}


def ancestry(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The record of every stage behind these folders, the first one first; refuses folders that do not belong together."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        manifest = read_manifest(folder)
        own = {manifest["stage"]: record(manifest)} if "stage" in manifest else {}
        for stage, facts in (manifest.get("chain", {}) | own).items():
            if found.setdefault(stage, facts) != facts:
                raise DataError(f"{folder}: made with another result of {stage} than the other inputs; run: dvc repro")
    return found


def listed(folder: Path) -> dict[str, dict[str, object]]:
    """The files that the manifest names, with their sizes and sha256."""
    return dict(read_manifest(folder)["files"])


def verify(folder: Path) -> str:
    """Compare every file with the manifest; returns the manifest's own sha256, which stands for the whole folder."""
    for name, want in sorted(listed(folder).items()):
        path = folder / name
        if not path.is_file():
            raise CorruptArtifactError(f"{path}: missing, though {folder / MANIFEST} lists it; make the folder again: dvc repro")
        size, digest = path.stat().st_size, file_sha256(path)
        if {"bytes": size, "sha256": digest} != want:
            raise CorruptArtifactError(
                f"{path}: changed since it was made (sha256 {digest[:12]}, {size} bytes; the manifest says "
                f"{str(want['sha256'])[:12]}, {want['bytes']} bytes); make the folder again: dvc repro"
            )
    return file_sha256(folder / MANIFEST)
