"""Where tracked classifiers are found: in a checkout, in an experiment of DVC's cache, or in one file that needs no run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metadiff import backbone
from metadiff.artifact import verify
from metadiff.askmodels import AskModels
from metadiff.backbone import Backbone
from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.checkpoint import load_checkpoint, under
from metadiff.classifiers import CLOSED, WHITENED
from metadiff.errors import DataError
from metadiff.lineage import LINEAGE, LOCK, METRICS, RESULTS, experiments, read_chain, restore
from metadiff.store import read_features, read_rows
from metadiff.tracked import MOMENTS, Checkpoint, Tracked, kind_of, model_of
from metadiff.vectors import Vectors
from metadiff.weightclassifiers import LOOKED_UP, of_weights

BACKBONE, GENERATOR = Path("data/backbone"), Path("data/generator")
MADE_BY = ("pretrain", "metatrain", "evaluate")
BEST = "best"


def open_tracked(run: str | Path, method: str = BEST) -> Tracked:
    return opened(run, of_file=partial(read_file, method=method), of_run=partial(read_run, method=method), made_by=MADE_BY)


def opened(
    run: str | Path,
    *,
    of_file: Callable[[Path], Tracked],
    of_run: Callable[[Path, Mapping[str, Any]], Tracked],
    made_by: Iterable[str],
) -> Tracked:
    """A checkout's folder, a file that was saved, or the name of an experiment of the checkout in the current folder."""
    path = Path(run)
    if path.is_file():
        return of_file(path)
    if path.is_dir():
        here = (path / LOCK).is_file() and (path / ".git").exists()  # else a copy of data/ alone, of which git knows nothing
        return of_run(path, told_by_git(path) if here else {})
    known = experiments(Path()) if Path(".git").exists() else {}
    if str(run) not in known:
        named = ", ".join(known) or "none"
        raise DataError(f"{run}: no checkout, no saved file and no experiment of the current folder, which has: {named}")
    with TemporaryDirectory() as place:
        restore(Path(), str(run), made_by, Path(place))
        return of_run(Path(place), told_by_git(Path(), str(run)))


def told_by_git(root: Path, experiment: str | None = None) -> dict[str, Any]:
    chain = read_chain(root, experiment)
    return {"title": chain.title, "commit": chain.commit, "changed": list(chain.strange)}


def verified(root: Path, more: Iterable[Path] = ()) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """Manifests, metrics.json and every stage's record; refuses artifacts that are not whole or do not belong together."""
    folders = (BACKBONE, GENERATOR, *more)
    manifests = {str(folder): verify(root / folder) for folder in (*folders, RESULTS)}
    metrics, lineage = (json.loads((root / name).read_bytes()) for name in (METRICS, LINEAGE))
    for folder in map(str, folders):  # what else evaluate read is not used here
        if manifests[folder] != lineage["stages"]["evaluate"]["inputs"][folder]:
            raise DataError(f"{root / folder}: another one than {root / RESULTS} judged; run: dvc repro")
    return manifests, metrics, lineage["stages"]


def read_run(root: Path, told: Mapping[str, Any], method: str) -> Tracked:
    """Of a checkout."""
    manifests, metrics, stages = verified(root)
    name = named(metrics, method, learner=stages["collect"]["params"]["learner"], where=root / METRICS)
    lineage = {
        "dataset": metrics["dataset"],
        "method": name,
        "chosen": metrics["chosen"][name],
        "validation": {shot: cells[name]["accuracy"] for shot, cells in metrics["val"].items()},
        "manifests": manifests,
        "stages": stages,
        **told,
    }
    return Tracked(lineage, read_backbone(root), read_moments(root, lineage), read_generator(root, name))


def read_backbone(root: Path) -> Backbone:
    return backbone.undump(*load_checkpoint(root / BACKBONE / "backbone.safetensors"))


def named(metrics: Mapping[str, Any], method: str, *, learner: str, where: Path) -> str:
    """The classifier that is asked for; ``learner`` is that of whole weights."""
    name = best(metrics) if method == BEST else method
    usable = [name for name in metrics["chosen"] if name not in LOOKED_UP and not (learner == "conv" and of_weights(name))]
    if name in usable:
        return name
    why = f"{where} has no such classifier"
    if name in LOOKED_UP:
        why = "its weights are looked up among those of training tasks, which are not read for new classes"
    elif name in metrics["chosen"]:
        why = "its weights are those of a network that sees images, and new classes are told by their features"
    raise DataError(f"method {name}: {why}; expected best or {', '.join(usable)}")


def best(metrics: Mapping[str, Any]) -> str:
    """The highest validation accuracy of those that take any number of classes, as a mean over shots; the first of equals."""
    names: list[str] = [name for name in metrics["chosen"] if not of_weights(name)]
    cells = metrics["val"].values()
    return max(names, key=lambda name: float(np.mean([cell[name]["accuracy"] for cell in cells])))


def read_moments(root: Path, lineage: Mapping[str, Any]) -> dict[str, Tensor]:
    view = lineage["chosen"]["view"]
    all_of_them = lineage["method"].startswith("gaussian") or view.startswith(WHITENED)
    names = MOMENTS if all_of_them else MOMENTS[:1] if view == "base mean" else ()
    if not names:
        return {}
    path = root / BACKBONE / "features.h5"
    posterior = GaussianPosterior(torch.from_numpy(read_features(path)), read_rows(path))
    return {name: getattr(posterior, name) for name in names}


def read_generator(root: Path, method: str) -> Checkpoint | None:
    """Of its weights the kinds that the classifier needs."""
    if method in CLOSED:
        return None
    model = model_of(method, {path.stem for path in (root / GENERATOR).glob("*.safetensors")})
    tensors, facts = load_checkpoint(root / GENERATOR / f"{model}.safetensors")
    return {name: value for name, value in tensors.items() if kind_of(method) == "raw" or not name.startswith("raw/")}, facts


def read_file(path: Path, method: str) -> Tracked:
    tracked = unpack(*load_saved(path))
    if tracked is None:
        raise DataError(f"{path}: saved without a run; load it with Classifier.load")
    if method not in (BEST, tracked.method):
        raise DataError(f"{path}: holds {tracked.method} alone, not {method}; save that from its run")
    return tracked


def load_saved(path: Path) -> Checkpoint:
    tensors, facts = load_checkpoint(path)
    if "classifier" not in facts:
        raise DataError(f"{path}: a checkpoint of a stage; expected a file that Classifier.save wrote")
    return tensors, facts


def pack(tracked: Tracked | None) -> Checkpoint:
    """Named tensors and facts that JSON can hold, of no fitted classifier yet."""
    if tracked is None:
        return {}, {"lineage": None, "classifier": None}
    weights, about = backbone.dump(tracked.backbone)
    parts = {"backbone": weights, "moments": tracked.moments, "generator": tracked.checkpoint[0] if tracked.checkpoint else {}}
    generator = tracked.checkpoint[1] if tracked.checkpoint else None
    facts = {"lineage": dict(tracked.lineage), "backbone": about, "generator": generator, "classifier": None}
    if tracked.asks is not None:
        checkpoints, known = tracked.asks.checkpoints, tracked.asks.known
        parts |= {f"asks/{model}": found for model, (found, _) in checkpoints.items()}
        parts["sentences"] = {"vectors": torch.from_numpy(known.vectors_ND)}
        own = {model: about for model, (_, about) in checkpoints.items()}
        facts["asks"] = {"models": own, "sentences": list(known.names), "about": dict(known.about)}
    return {f"{part}/{name}": value for part, found in parts.items() for name, value in found.items()}, facts


def unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Tracked | None:
    if facts["lineage"] is None:
        return None
    generator = (under(tensors, "generator"), facts["generator"]) if facts["generator"] else None
    asks = None
    if about := facts.get("asks"):
        models = {model: (under(tensors, f"asks/{model}"), own) for model, own in about["models"].items()}
        vectors_ND = tensors["sentences/vectors"].numpy()
        asks = AskModels(models, Vectors(tuple(about["sentences"]), vectors_ND, about["about"]))
    sees = backbone.undump(under(tensors, "backbone"), facts["backbone"])
    return Tracked(facts["lineage"], sees, under(tensors, "moments"), generator, asks)
