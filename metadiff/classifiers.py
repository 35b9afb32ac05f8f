"""All classifiers that `evaluate` compares, each as candidates of which validation chooses one.

Shapes: G draws, E episodes, W ways, S shots, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.baselines.ncm import mean_rows
from metadiff.diffusion import gaussian_noise
from metadiff.evaluation import RowsOf
from metadiff.generator import Generator, Kind
from metadiff.methods import Sampling
from metadiff.methods.metadiff import sampling_of
from metadiff.rng import torch_stream

if TYPE_CHECKING:
    from metadiff.params import Evaluate

Generators = Mapping[str, Mapping[Kind, Generator]]  # by model, then by kind of weights
NAMES = {"task": "metadiff"}  # other models keep their name


def classifiers(
    section: Evaluate, posterior: GaussianPosterior, generators: Generators
) -> Iterator[tuple[str, dict[str, RowsOf]]]:
    """The name in metrics.json, and candidates by what sets them apart."""
    yield "ncm", {"": mean_rows}
    yield "gaussian", {f"ridge {ridge:g}": posterior_rows(posterior, ridge) for ridge in section.ridges}
    for model, by_kind in generators.items():
        name, best = NAMES.get(model, model), by_kind["average"]
        how = sampling_of(model, section)
        for kind, generator in by_kind.items():
            yield name if kind == "average" else f"{name}-{kind}", {"": drawn_rows(generator, section, how)}
        if model == "task" and section.draws > 1:
            yield f"{name}-mean", {"": drawn_rows(best, section, how, draws=section.draws)}
        if model != "gradient" and section.guidance:
            yield f"{name}-guided", {f"guidance {g:g}": drawn_rows(best, section, how, guidance=g) for g in section.guidance}


def posterior_rows(posterior: GaussianPosterior, ridge: float) -> RowsOf:
    return lambda support_EWSD, _batch: posterior.rows(support_EWSD, ridge=ridge)[None]


def drawn_rows(generator: Generator, section: Evaluate, sampling: Sampling, *, draws: int = 1, guidance: float = 0.0) -> RowsOf:
    """Noise is a function of the draw and the batch alone: two draws of a task differ, two runs do not."""

    def rows(support_EWSD: Tensor, batch: int) -> Tensor:
        noises = [gaussian_noise(torch_stream(section.seed, "draw", draw, batch)) for draw in range(draws)]
        return torch.stack([generator.rows(support_EWSD, sampling, noise, guidance=guidance) for noise in noises])

    return rows
