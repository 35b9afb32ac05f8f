"""What a finished run gives for new classes: its backbone, and one of the classifiers that `evaluate` judged.

Where it is found: `metadiff.trackedruns`.
Shapes: G draws, W classes, N images, H x W pixels, C channels, D features, P weights.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from metadiff.askmodels import AskModels
from metadiff.backbone import Backbone
from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.candidates import Candidate, OfRows
from metadiff.classifiers import NAMES, Generators, row_classifiers
from metadiff.errors import DataError
from metadiff.generator import undump
from metadiff.lineage import LINEAGE
from metadiff.methods.mcdi import WEIGHT_MODELS
from metadiff.newclasses import one_task, rows_by_count
from metadiff.params import Evaluate
from metadiff.pictures import Pictures
from metadiff.resnet101 import ResNet101
from metadiff.training import extract
from metadiff.weightclassifiers import TURNED, TURNED_BY, WeightGenerators, of_weights, weight_classifiers
from metadiff.weightgenerator import undump_weights

MOMENTS = ("mean_D", "between_DD", "within_DD")
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
        found = {made.name: made for made in row_classifiers(section, posterior, self.generators)}[self.method]
        return OfRows(found.makers[chosen["candidate"]], {view: found.views[view](posterior)})

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
    if isinstance(net.encoder, ResNet101):
        net.encoder.fold()
        return net.to(memory_format=torch.channels_last)
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
        if method == TURNED:
            return TURNED_BY
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
