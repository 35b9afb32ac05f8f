"""What a finished run gives for new classes: its backbone, and one of the classifiers that `evaluate` judged.

It is read from a checkout, from an experiment in DVC's cache, or from one file that needs no run.
Shapes: G draws, W classes, N images, H x W pixels, C channels, D features, P weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
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
from metadiff.askmodels import AskModels
from metadiff.backbone import Backbone
from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.candidates import Candidate, OfRows
from metadiff.checkpoint import load_checkpoint
from metadiff.classifiers import CLOSED, NAMES, WHITENED, Generators, row_classifiers, views
from metadiff.errors import DataError
from metadiff.generator import undump
from metadiff.lineage import LINEAGE, LOCK, METRICS, RESULTS, experiments, read_chain, restore
from metadiff.methods.mcdi import WEIGHT_MODELS
from metadiff.newclasses import one_task, rows_by_count
from metadiff.params import Evaluate
from metadiff.pictures import Pictures
from metadiff.store import read_features, read_rows
from metadiff.training import extract
from metadiff.vectors import Vectors
from metadiff.weightclassifiers import LOOKED_UP, WeightGenerators, of_weights, weight_classifiers
from metadiff.weightgenerator import undump_weights

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
    asks: AskModels | None = None  # makes the classifier of a sentence, and of no images

    @property
    def method(self) -> str:
        return str(self.lineage["method"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.backbone.image_size, self.backbone.image_size, self.backbone.channels

    @property
    def joint(self) -> bool:
        """True: what is made of a class depends on the other classes."""
        if self.method.endswith("-guided") or of_weights(self.method):
            return True
        facts = self.checkpoint[1] if self.checkpoint else {"model": "", "joint": False}
        return facts["model"] != "gradient" and bool(facts["joint"])

    @property
    def way(self) -> int | None:
        """The number of classes, where it is fixed."""
        return next((generator.learner.way for generator in self.weight_generators.values()), None)

    @cached_property
    def encoder(self) -> Backbone:
        return folded(self.backbone)

    @cached_property
    def generators(self) -> Generators:
        if self.checkpoint is None or of_weights(self.method):
            return {}
        kinds = {"average", kind_of(self.method)}
        return {self.checkpoint[1]["model"]: {kind: undump(*self.checkpoint, kind=kind) for kind in sorted(kinds)}}

    @cached_property
    def weight_generators(self) -> WeightGenerators:
        if self.checkpoint is None or not of_weights(self.method):
            return {}
        return {self.checkpoint[1]["model"]: undump_weights(*self.checkpoint)}

    @property
    def candidate(self) -> Candidate:
        """The one that was judged, in the view that was chosen."""
        if self.asks is not None:
            return self.asks.candidate
        section, chosen = section_of(self.lineage), self.lineage["chosen"]
        if of_weights(self.method):
            return dict(weight_classifiers(section, self.weight_generators))[self.method][chosen["candidate"]]
        posterior, view = Moments(self.moments), chosen["view"]
        found = dict(row_classifiers(section, posterior, self.generators))
        return OfRows(found[self.method][chosen["candidate"]], {view: views(section)[view](posterior)})

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
    def adapt(self, features_ND: Tensor, class_N: NDArray[np.int64]) -> Tensor:
        """By the candidate that was judged: a row a class, (G, 1, W, D), or whole weights, (G, 1, P)."""
        if self.asks is not None:
            raise DataError("made of a sentence, so it learns from no images; for that take Classifier.from_run")
        candidate, count = self.candidate, int(class_N.max()) + 1
        if self.way not in (None, count):
            raise DataError(
                f"{count} classes; {self.method} makes weights for {self.way} classes alone: give as many, or choose another "
                "method, such as ncm"
            )
        if isinstance(candidate, OfRows) and not self.joint:
            return rows_by_count(candidate.rows_of, features_ND, class_N)
        return candidate.adapt(Pictures(features_ND), one_task(class_N))


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


def model_of(method: str, trained: Container[str]) -> str:
    """The model behind a name of metrics.json; of a random start the first of whole weights, as all have the same learner."""
    if of_weights(method):
        base = method.removesuffix("-mean").removeprefix("finetune-")
        return base if base != "random" else next(model for model in WEIGHT_MODELS if model in trained)
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


# One file


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

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}

    generator = (part("generator"), facts["generator"]) if facts["generator"] else None
    asks = None
    if about := facts.get("asks"):
        models = {model: (part(f"asks/{model}"), own) for model, own in about["models"].items()}
        vectors_ND = part("sentences")["vectors"].numpy()
        asks = AskModels(models, Vectors(tuple(about["sentences"]), vectors_ND, about["about"]))
    return Tracked(facts["lineage"], backbone.undump(part("backbone"), facts["backbone"]), part("moments"), generator, asks)
