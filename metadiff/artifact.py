"""A folder of files with a manifest: names, sizes and sha256, so that nothing broken is ever read as if it were whole."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metadiff.errors import CorruptArtifactError

MANIFEST = "manifest.json"
FORMAT = 1


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


def seal(folder: Path, *, made_with: Mapping[str, object] | None = None) -> None:
    """Write the manifest of everything in a folder, after syncing it; the folder is complete from here on."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in names}
    for name in names:
        sync(folder / name)
    manifest = {"format": FORMAT, "made_with": dict(sorted((made_with or {}).items())), "files": files}
    write_json(folder / MANIFEST, manifest)


def listed(folder: Path) -> dict[str, dict[str, object]]:
    """The files that the manifest names, with their sizes and sha256."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CorruptArtifactError(f"{path}: missing, so nothing says whether {folder} is complete; make it again: dvc repro")
    try:
        manifest = json.loads(path.read_bytes())
        found, files = manifest["format"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError):
        raise CorruptArtifactError(f"{path}: not a manifest; make the folder again: dvc repro") from None
    if found != FORMAT:
        raise CorruptArtifactError(
            f"{path}: format {found}, this version reads format {FORMAT}; make the folder again: dvc repro"
        )
    return files


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
