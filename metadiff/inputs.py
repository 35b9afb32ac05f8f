"""What a base learner sees of an image: its features, or their leading directions, whitened by what is known of base classes; its
pixels, if the learner is a whole network.

Shapes: N images, D features, E directions, Q pixels, C base classes, M images of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.errors import CorruptArtifactError, DataError
from metadiff.pictures import Pictures
from metadiff.rows import Rows
from metadiff.view import View, whitener

KIND = "inputs"
LEAST = 1e-3  # of the largest variance within classes: in a direction with less they are taken to vary as much


@dataclass(frozen=True, eq=False)
class Inputs(View):
    """A view of features. With a scale of pixels, learners see these instead."""

    mean_Q: Tensor | None = None
    deviation_Q: Tensor | None = None

    def to(self, device: str) -> Inputs:
        return Inputs(**{name: value.to(device) for name, value in self.tensors().items()})

    @property
    def of_pixels(self) -> bool:
        return self.mean_Q is not None

    def seen(self, pictures: Pictures) -> Tensor:
        """(..., E) or, of pixels, (..., Q): what the base learner sees of each."""
        if self.mean_Q is None or self.deviation_Q is None:
            return self.of(pictures.features)
        assert pictures.pixels is not None, "whoever shows images to a network reads their pixels"
        return (pictures.pixels - self.mean_Q) / self.deviation_Q


def whitened(features_ND: Tensor, data: Rows, dim: int) -> Inputs:
    """The ``dim`` principal directions of the base images, scaled so that base classes vary within as a unit Gaussian does.

    The scaling turns nothing (ZCA), and of each direction the largest entry is positive, so the map is the same whatever signs an
    eigensolver gives.
    """
    if dim > features_ND.shape[1]:
        raise DataError(f"images have {features_ND.shape[1]} features, which have no {dim} directions: lower collect.dim")
    x_ND = features_ND[torch.from_numpy(data.of("train"))].double()
    if not x_ND.isfinite().all():
        raise DataError("train: features that are no finite numbers have no principal directions: write collect.dim 0")
    directions_DE = _leading(torch.cov(x_ND.T), dim)
    within_EE = directions_DE.T @ within_classes(features_ND, data) @ directions_DE
    if within_EE.diagonal().sum() <= 0:
        raise DataError("train: all images of a class have the same features, so there is no scale: write collect.dim 0")
    return Inputs(x_ND.mean(0).float(), (directions_DE @ whitener(within_EE, least=LEAST)).float())


def with_pixels(inputs: Inputs, pixels_NQ: Tensor, data: Rows, colours: int) -> Inputs:
    """The pixels of base images get mean 0 and deviation 1, those of each colour together."""
    base_NC = pixels_NQ[torch.from_numpy(data.of("train"))].view(-1, colours)
    count_CL = torch.stack([torch.bincount(base_N, minlength=256) for base_N in base_NC.T])
    level_L, share_CL = torch.arange(256).double(), count_CL.double() / len(base_NC)
    mean_C = share_CL @ level_L
    variance_C = (share_CL * (level_L - mean_C[:, None]).square()).sum(1)
    deviation_C = variance_C.sqrt().clamp_min(1.0)  # a level: of images that are all of one
    places = pixels_NQ.shape[1] // colours
    return replace(inputs, mean_Q=mean_C.float().repeat(places), deviation_Q=deviation_C.float().repeat(places))


def within_classes(features_ND: Tensor, data: Rows) -> Tensor:
    """(D, D): the covariance of base images about the mean of their class, pooled over classes; float64."""
    members = base_classes(data)
    apart_ND = torch.cat([features_ND[rows].double() - features_ND[rows].double().mean(0) for rows in members])
    return apart_ND.T @ apart_ND / (len(apart_ND) - len(members))


def moved(features_ND: Tensor, data: Rows, spread: float) -> Tensor:
    """Features with base classes moved towards the mean of their means, each as a whole, to ``spread`` times their distance.

    The backbone has set the classes it was trained on further apart than it will set new ones.
    """
    if spread == 1:
        return features_ND
    members = base_classes(data)
    found_ND = features_ND.clone()
    for rows_M, move_D in zip(members, moves(class_means(features_ND, members), spread), strict=True):
        found_ND[rows_M] += move_D.float()
    return found_ND


def base_classes(data: Rows) -> list[Tensor]:
    """The rows of each base class, in the order of their labels."""
    rows, labels = data.of("train"), data.label[data.of("train")]
    return [torch.from_numpy(rows[labels == label]) for label in np.unique(labels)]


def class_means(features_ND: Tensor, members: Sequence[Tensor]) -> Tensor:
    """(C, D) in float64."""
    return torch.stack([features_ND[rows].double().mean(0) for rows in members])


def moves(means_CD: Tensor, spread: float) -> Tensor:
    """By how much each class has to be moved."""
    return (spread - 1) * (means_CD - means_CD.mean(0))


def save_inputs(path: Path, inputs: Inputs, facts: Mapping[str, Any]) -> None:
    save_checkpoint(path, inputs.tensors(), {"kind": KIND, **facts})


def load_inputs(path: Path) -> Inputs:
    """Refuses what is no map of features."""
    tensors, facts = load_checkpoint(path)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    mean, basis, level, deviation = (shapes.pop(field.name, None) for field in fields(Inputs))
    mapped = mean == basis is None or (mean and basis and len(basis) == 2 and mean == basis[:1])
    scaled = level == deviation and (level is None or len(level) == 1)
    if facts.get("kind") != KIND or shapes or not (mapped and scaled):
        raise CorruptArtifactError(f"{path}: does not say what a base learner sees of images; make it again: dvc repro collect")
    return Inputs(**tensors)


def _leading(covariance_DD: Tensor, dim: int) -> Tensor:
    """(D, E): the eigenvectors of the largest eigenvalues, the largest first."""
    vectors_DE: Tensor = torch.linalg.eigh(covariance_DD).eigenvectors.flip(1)[:, :dim]
    largest_1E = vectors_DE.gather(0, vectors_DE.abs().argmax(0, keepdim=True))
    return vectors_DE * largest_1E.sign()
