"""Named tensors and a few facts about them in one file: safetensors, so nothing is ever unpickled.

Equal content gives equal bytes, whatever the file is called. A file under its final name is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from metadiff.artifact import sync
from metadiff.errors import CorruptArtifactError

FORMAT = 1
KEY = "metadiff"  # the only entry of safetensors' metadata: several would be written in no fixed order


def checkpoint_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """What the file of a checkpoint holds."""
    whole = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    note = json.dumps({"format": FORMAT, "facts": dict(facts)}, sort_keys=True, allow_nan=False)
    return to_bytes(whole, metadata={KEY: note})


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write to a temporary file of the same folder, sync, rename, sync the folder."""
    content = checkpoint_bytes(tensors, facts)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the facts; refuses what is not a whole checkpoint of this format."""
    try:
        with safe_open(path, framework="pt") as file:
            note = (file.metadata() or {})[KEY]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        content = json.loads(note)
        found, facts = content["format"], content["facts"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CorruptArtifactError(
            f"{path}: not a whole metadiff checkpoint ({error}); delete it and run the stage again"
        ) from None
    if found != FORMAT:
        raise CorruptArtifactError(f"{path}: format {found}, this version reads format {FORMAT}; run the stage again")
    return tensors, facts


def under(tensors: Mapping[str, Tensor], name: str, *, device: str = "cpu") -> dict[str, Tensor]:
    """Those of a part, as ``raw`` of raw/weight, by what follows the part's name."""
    return {key.removeprefix(f"{name}/"): value.to(device) for key, value in tensors.items() if key.startswith(f"{name}/")}
