"""What a finished run gives for new classes: its backbone, and one of the classifiers that `evaluate` judged.

It is read from a checkout, from an experiment in DVC's cache, or from one file that needs no run.
Shapes: G draws, W classes, N images, H x W pixels, C channels, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from metadiff import backbone
from metadiff.artifact import verify
from metadiff.backbone import Backbone
from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.checkpoint import load_checkpoint
from metadiff.classifiers import NAMES, Generators, row_classifiers
from metadiff.episodes import Episodes
from metadiff.errors import DataError
from metadiff.evaluation import RowsOf, class_rows
from metadiff.generator import undump
from metadiff.lineage import LINEAGE, LOCK, METRICS, RESULTS, experiments, read_chain, restore
from metadiff.params import Evaluate
from metadiff.store import read_features, read_rows
from metadiff.training import extract
from metadiff.weightclassifiers import of_weights

BACKBONE, GENERATOR = Path("data/backbone"), Path("data/generator")
MADE_BY = ("pretrain", "metatrain", "evaluate")
MOMENTS = ("mean_D", "between_DD", "within_DD")
BEST = "best"
BATCH = 8  # images whose maps fit into a processor's cache: half the time of a hundred at once
Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


class Moments(GaussianPosterior):
    """The posterior from its moments, as far as a classifier needs them."""

    def __init__(self, moments: Mapping[str, Tensor]) -> None:
        vars(self).update(moments)


@dataclass(frozen=True)
class Tracked:
    """A backbone with one classifier as it was judged; ``lineage`` says which, what was chosen of it, and where it is from."""

    lineage: Mapping[str, Any]
    backbone: Backbone
    moments: Mapping[str, Tensor]  # of the base features, if the classifier needs them
    checkpoint: Checkpoint | None  # of its generator, if it has one

    @property
    def method(self) -> str:
        return str(self.lineage["method"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.backbone.image_size, self.backbone.image_size, self.backbone.channels

    @property
    def centre_D(self) -> Tensor | None:
        """From where angles are measured."""
        return self.moments["mean_D"].float() if self.lineage["chosen"]["centre"] == "base mean" else None

    @property
    def joint(self) -> bool:
        """True: a class's row depends on the other classes."""
        facts = self.checkpoint[1] if self.checkpoint else {"model": "", "joint": False}
        return self.method.endswith("-guided") or (facts["model"] != "gradient" and bool(facts["joint"]))

    @cached_property
    def encoder(self) -> Backbone:
        return folded(self.backbone)

    @cached_property
    def generators(self) -> Generators:
        if self.checkpoint is None:
            return {}
        kinds = {"average", kind_of(self.method)}
        return {model_of(self.method): {kind: undump(*self.checkpoint, kind=kind) for kind in sorted(kinds)}}

    def temperature(self, shots: float) -> float:
        """The one tuned with the nearest number of shots, the smaller of two."""
        tuned = {int(shot): float(value) for shot, value in self.lineage["chosen"]["temperature"].items()}
        return tuned[min(sorted(tuned), key=lambda shot: abs(shot - shots))]

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, D) features of images as arrays NHW or NHWC; they must be as the backbone was trained."""
        images_NHWC = images[..., None] if images.ndim == 3 else images
        want = "{}x{} with {} channel(s)".format(*self.image_shape)
        if images.dtype != np.uint8:
            raise DataError(f"images of {images.dtype}; expected uint8, 0 to 255, {want}")
        if images_NHWC.shape[1:] != self.image_shape:
            have = "x".join(map(str, images.shape[1:]))
            raise DataError(f"images of {have}; the backbone of {self.lineage['dataset']} takes {want}: resize or convert them")
        return np.asarray(extract(self.encoder, np.require(images_NHWC, requirements=["C", "W"]), batch=BATCH).numpy())

    @torch.no_grad()
    def rows(self, features_ND: Tensor, class_N: NDArray[np.int64]) -> Tensor:
        """(G, 1, W, D) by the candidate that was judged."""
        found = dict(row_classifiers(section_of(self.lineage), Moments(self.moments), self.generators))
        return rows_by_count(found[self.method][self.lineage["chosen"]["candidate"]], features_ND, class_N, joint=self.joint)


def folded(net: Backbone) -> Backbone:
    """A copy with each batch norm folded into its convolution: the same but for rounding, and a third faster."""
    net = deepcopy(net)
    blocks: Any = net.encoder.blocks
    for block in blocks:
        if net.name == "conv4":
            block.conv, block.norm = fuse_conv_bn_eval(block.conv, block.norm), nn.Identity()
        else:
            block.shortcut, block.shortcut_norm = fuse_conv_bn_eval(block.shortcut, block.shortcut_norm), nn.Identity()
            block.convs = nn.ModuleList(map(fuse_conv_bn_eval, block.convs, block.norms))
            block.norms = nn.ModuleList(nn.Identity() for _ in block.convs)
    return net.to(memory_format=torch.channels_last)


def rows_by_count(rows_of: RowsOf, features_ND: Tensor, class_N: NDArray[np.int64], *, joint: bool = False) -> Tensor:
    """(G, 1, W, D): classes with equally many images together, each such group with the noise of a batch of its own."""
    counts_W = np.bincount(class_N)
    groups = np.unique(counts_W)
    if joint and len(groups) > 1:
        raise DataError(
            f"classes have from {groups[0]} to {groups[-1]} images; this method makes all rows of a task together and needs "
            "equally many: leave some out, or choose another method"
        )
    parts, order = [], []
    for number, count in enumerate(groups):
        ways = np.flatnonzero(counts_W == count)
        support_1WS = np.stack([np.flatnonzero(class_N == way) for way in ways])[None].astype(np.int32)
        task = Episodes(ways[None].astype(np.int32), support_1WS, support_1WS)
        parts.append(class_rows(with_noise_of(rows_of, number), features_ND, task))
        order.append(ways)
    return torch.cat(parts, dim=2)[:, :, np.argsort(np.concatenate(order))]


def with_noise_of(rows_of: RowsOf, batch: int) -> RowsOf:
    return lambda support_EWSD, _batch: rows_of(support_EWSD, batch)


def model_of(method: str) -> str:
    """The model behind a name of metrics.json."""
    base = method.partition("-")[0]
    return next((model for model, name in NAMES.items() if name == base), base)


def kind_of(method: str) -> Any:  # noqa: ANN401 - one of generator.Kind
    variant = method.partition("-")[2]
    return variant if variant in ("raw", "untrained") else "average"


def section_of(lineage: Mapping[str, Any]) -> Evaluate:
    try:
        return Evaluate.model_validate_json(json.dumps(lineage["stages"]["evaluate"]["params"]))
    except ValidationError as error:
        raise DataError(f"{LINEAGE}: parameters of evaluate of another version of metadiff ({error.error_count()})") from None


# Reading


def open_tracked(run: str | Path, method: str = BEST) -> Tracked:
    """A checkout's folder, a file that was saved, or the name of an experiment of the checkout in the current folder."""
    path = Path(run)
    if path.is_file():
        return read_file(path, method)
    if path.is_dir():
        here = (path / LOCK).is_file() and (path / ".git").exists()  # else a copy of data/ alone, of which git knows nothing
        return read_run(path, method, told_by_git(path) if here else {})
    known = experiments(Path()) if Path(".git").exists() else {}
    if str(run) not in known:
        named = ", ".join(known) or "none"
        raise DataError(f"{run}: no checkout, no saved file and no experiment of the current folder, which has: {named}")
    with TemporaryDirectory() as place:
        restore(Path(), str(run), MADE_BY, Path(place))
        return read_run(Path(place), method, told_by_git(Path(), str(run)))


def told_by_git(root: Path, experiment: str | None = None) -> dict[str, Any]:
    chain = read_chain(root, experiment)
    return {"title": chain.title, "commit": chain.commit, "changed": list(chain.strange)}


def read_run(root: Path, method: str, told: Mapping[str, Any]) -> Tracked:
    """Of a checkout; refuses artifacts that are not whole or do not belong together."""
    manifests = {str(folder): verify(root / folder) for folder in (BACKBONE, GENERATOR, RESULTS)}
    metrics, stages = (json.loads((root / name).read_bytes()) for name in (METRICS, LINEAGE))
    stages = stages["stages"]
    for folder, sha256 in stages["evaluate"]["inputs"].items():
        if manifests[folder] != sha256:
            raise DataError(f"{root / folder}: another one than {root / RESULTS} judged; run: dvc repro")
    name = named(metrics, method, where=root / METRICS)
    lineage = {
        "dataset": metrics["dataset"],
        "method": name,
        "chosen": metrics["chosen"][name],
        "validation": {shot: cells[name]["accuracy"] for shot, cells in metrics["val"].items()},
        "manifests": manifests,
        "stages": stages,
        **told,
    }
    net = backbone.undump(*load_checkpoint(root / BACKBONE / "backbone.safetensors"))
    return Tracked(lineage, net, read_moments(root, lineage), read_generator(root, name))


def named(metrics: Mapping[str, Any], method: str, *, where: Path) -> str:
    """The classifier that is asked for."""
    name = best(metrics) if method == BEST else method
    if name in usable(metrics):
        return name
    why = f"{where} has no such classifier"
    if name in metrics["chosen"]:
        why = "its whole weights of a base learner cannot be made for new classes yet"
    raise DataError(f"method {name}: {why}; expected best or {', '.join(usable(metrics))}")


def usable(metrics: Mapping[str, Any]) -> list[str]:
    """The classifiers that new classes can be given: those that are a row a class."""
    return [name for name in metrics["chosen"] if not of_weights(name)]


def best(metrics: Mapping[str, Any]) -> str:
    """The highest validation accuracy of these, as a mean over the numbers of shots; the first of equals."""
    cells = metrics["val"].values()
    return max(usable(metrics), key=lambda name: float(np.mean([cell[name]["accuracy"] for cell in cells])))


def read_moments(root: Path, lineage: Mapping[str, Any]) -> dict[str, Tensor]:
    names = MOMENTS if lineage["method"] == "gaussian" else MOMENTS[:1] if lineage["chosen"]["centre"] == "base mean" else ()
    if not names:
        return {}
    path = root / BACKBONE / "features.h5"
    posterior = GaussianPosterior(torch.from_numpy(read_features(path)), read_rows(path))
    return {name: getattr(posterior, name) for name in names}


def read_generator(root: Path, method: str) -> Checkpoint | None:
    """Of its weights the kinds that the classifier needs."""
    path = root / GENERATOR / f"{model_of(method)}.safetensors"
    if method in ("ncm", "gaussian"):
        return None
    tensors, facts = load_checkpoint(path)
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


# One file


def pack(tracked: Tracked | None) -> Checkpoint:
    """Named tensors and facts that JSON can hold, of no fitted classifier yet."""
    if tracked is None:
        return {}, {"lineage": None, "classifier": None}
    weights, about = backbone.dump(tracked.backbone)
    parts = {"backbone": weights, "moments": tracked.moments, "generator": tracked.checkpoint[0] if tracked.checkpoint else {}}
    tensors = {f"{part}/{name}": value for part, found in parts.items() for name, value in found.items()}
    generator = tracked.checkpoint[1] if tracked.checkpoint else None
    return tensors, {"lineage": dict(tracked.lineage), "backbone": about, "generator": generator, "classifier": None}


def unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Tracked | None:
    if facts["lineage"] is None:
        return None

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}

    generator = (part("generator"), facts["generator"]) if facts["generator"] else None
    return Tracked(facts["lineage"], backbone.undump(part("backbone"), facts["backbone"]), part("moments"), generator)
