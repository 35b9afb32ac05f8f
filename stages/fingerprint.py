"""What may change the bytes of a result: params, inputs, code, versions, and the machine as far as torch shows it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metadiff.artifact import file_sha256, verify
from metadiff.errors import ParamsError
from stages import PINNED
from stages.imports import ROOT, closure

if TYPE_CHECKING:
    from metadiff.params import Params, Shared
    from stages.runner import P, Stage


def origin(stage: Stage[P], params: Params, made_with: dict[str, object]) -> dict[str, Any]:
    """Everything that may shape the result; the result's manifest carries it."""
    code, raw = closure(f"stages.{stage.name}"), stage.raw(params)
    return {
        "stage": stage.name,
        "command": f"python -m stages.{stage.name}",
        "params": getattr(params, stage.name).model_dump(mode="json"),
        "shared": {key: getattr(params.shared, key) for key in stage.shared},
        "methods": {name: getattr(params, name).model_dump(mode="json") for name in stage.methods},
        "inputs": {str(folder): verify(folder) for folder in stage.inputs},
        "code": {str(path): file_sha256(ROOT / path) for path in code},
        "raw": {str(raw): identity(raw)} if raw else {},
        "made_with": dict(sorted(made_with.items())),
    }


def fingerprint(facts: dict[str, Any]) -> str:
    """As 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def identity(path: Path) -> str:
    """The content of a user's file, or the names and contents of all files of a folder that are not hidden."""
    if not path.is_dir():
        return file_sha256(path) if path.is_file() else "missing"
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            content = file_sha256(file) if os.access(file, os.R_OK) else "unreadable"
            digest.update(f"{file.relative_to(path)!r} {content}\n".encode())
    return digest.hexdigest()


def prepare_environment(stage: Stage[P], shared: Shared) -> dict[str, object]:
    """Prepare torch where the stage uses it, and say with what the result is made: the promise of equal bytes holds for this."""
    versions: dict[str, object] = {name: importlib.metadata.version(name) for name in stage.versions}
    return versions | prepare_torch(shared) if "device" in stage.shared else versions


def prepare_torch(shared: Shared) -> dict[str, object]:
    """Set what shapes torch's bits in this process, and say what holds; a worker elsewhere must say the same."""
    import torch  # here, since a stage without torch starts in a third of the time

    if shared.device == "cuda" and not torch.cuda.is_available():
        raise ParamsError("params.yaml: shared.device: cuda is asked for, but torch sees no CUDA device here; write cpu")
    torch.set_num_threads(shared.threads)
    torch.set_deterministic_debug_mode("error" if shared.deterministic else "default")  # the other call imports the compiler
    torch.backends.cudnn.deterministic = shared.deterministic
    torch.backends.cudnn.benchmark = not shared.deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32 on every device
    name = torch.cuda.get_device_name() if shared.device == "cuda" else torch.backends.cpu.get_cpu_capability()
    pinned = {name: os.environ[name] for name in PINNED}
    machine = {"machine": platform.machine(), "instructions": name, "threads": shared.threads, "device": shared.device}
    return {"torch": torch.__version__} | machine | pinned
