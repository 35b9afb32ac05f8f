"""Named vectors in one file: embeddings of sentences, features of images.

    vectors  (N, D)  float16 or float32, all finite
    names    (B,)    uint8: a JSON list of N different strings, sorted

A checkpoint (checkpoint.py) whose facts say where the vectors are from and hold a sha256 of it all, since safetensors has no
checksum of its own. Equal content gives equal bytes, in whatever order it comes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.errors import CorruptArtifactError, DataError

DTYPES = (np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True)
class Vectors:
    names: tuple[str, ...]
    vectors_ND: NDArray[np.float32]
    about: Mapping[str, Any]  # where they are from

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}


def write_vectors(
    path: Path, names: Sequence[str], vectors_ND: NDArray[np.float16] | NDArray[np.float32], *, about: Mapping[str, Any]
) -> None:
    """A row a name, kept in the precision that they come in; whole under its name, or not there."""
    if fault := _fault(names, vectors_ND):
        raise DataError(f"{path}: cannot be written: {fault}")
    order = sorted(range(len(names)), key=names.__getitem__)
    text = json.dumps([names[place] for place in order]).encode()
    arrays = {"names": np.frombuffer(text, np.uint8).copy(), "vectors": vectors_ND[order]}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_checkpoint(path, tensors, {"about": dict(about), "sha256": _sha256(about, arrays)})


def read_vectors(path: Path) -> Vectors:
    """As float32, whatever the file has. Refuses what is not as it was written."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        tensors, facts = load_checkpoint(path)
        arrays = {name: tensors[name].numpy() for name in ("names", "vectors")}
        about, names = facts["about"], json.loads(arrays["names"].tobytes())
        whole = _sha256(about, arrays) == facts["sha256"]
    except (KeyError, TypeError, ValueError):  # the last is what a checkpoint that is torn is, too
        whole = False
    if not whole:
        raise CorruptArtifactError(f"{path}: damaged, or no file of named vectors; get it again, or make it anew")
    return Vectors(tuple(names), arrays["vectors"].astype(np.float32), about)


def _fault(names: Sequence[str], vectors_ND: NDArray[Any]) -> str:
    """What is wrong with names and their vectors."""
    if vectors_ND.dtype not in DTYPES or vectors_ND.ndim != 2 or 0 in vectors_ND.shape:
        return f"expected a table of float16 or float32, got {vectors_ND.dtype} of shape {vectors_ND.shape}"
    if len(names) != len(vectors_ND):
        return f"{len(names)} names for {len(vectors_ND)} vectors"
    if len(set(names)) < len(names):
        return f"{Counter(names).most_common(1)[0][0]!r} is there twice"
    odd = ~np.isfinite(vectors_ND).all(1)
    return f"the vector of {names[int(odd.argmax())]!r} is not finite" if odd.any() else ""


def _sha256(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Of the facts, of what the arrays are, and of what is in them."""
    shapes = {name: [str(array.dtype), *array.shape] for name, array in sorted(arrays.items())}
    digest = hashlib.sha256(json.dumps([dict(about), shapes], sort_keys=True, allow_nan=False).encode())
    for _, array in sorted(arrays.items()):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
