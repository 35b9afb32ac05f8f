"""All classifiers that `evaluate` compares, each as candidates of which validation chooses one.

Shapes: G draws, E episodes, W ways, S shots, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.baselines.ncm import mean_rows
from metadiff.baselines.nearest import PathEnds, TrainingTasks
from metadiff.candidates import Candidate, OfRows
from metadiff.checkpoint import load_checkpoint
from metadiff.diffusion import gaussian_noise
from metadiff.evaluation import RowsOf
from metadiff.generator import Generator, Kind, undump
from metadiff.methods import Sampling
from metadiff.methods.mcdi import WEIGHT_MODELS
from metadiff.methods.metadiff import MODELS, sampling_of
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.textbuild import TEXT_MODELS
from metadiff.view import FROM_ORIGIN, View
from metadiff.weightclassifiers import WeightGenerators, weight_classifiers
from metadiff.weightgenerator import undump_weights

if TYPE_CHECKING:
    from metadiff.params import Evaluate

Checkpoints = Mapping[str, tuple[dict[str, Tensor], dict[str, Any]]]  # by model
Generators = Mapping[str, Mapping[Kind, Generator]]  # by model, then by kind of weights
NAMES = {"task": "metadiff"}  # other models keep their name
WHITENED = "whitened"
CLOSED = ("ncm", "gaussian", "ncm-whitened", "gaussian-whitened")  # made without any generator


def read_checkpoints(folder: Path) -> Checkpoints:
    """The tensors and facts of each model that was trained."""
    paths = sorted(folder.glob("*.safetensors"), key=lambda path: (*MODELS, *WEIGHT_MODELS, *TEXT_MODELS).index(path.stem))
    return {path.stem: load_checkpoint(path) for path in paths}


def make_generators(checkpoints: Checkpoints, device: str) -> Generators:
    """By model and kind of weights. That of the gradient as it began is what the reference's code evaluates."""
    kinds: dict[str, tuple[Kind, ...]] = {"regression": ("average",), "gradient": ("average", "untrained")}
    return {
        model: {kind: undump(*checkpoint, kind=kind, device=device) for kind in kinds.get(model, ("average", "raw"))}
        for model, checkpoint in checkpoints.items()
        if model in MODELS
    }


def make_weight_generators(checkpoints: Checkpoints, device: str) -> WeightGenerators:
    return {
        model: undump_weights(*checkpoint, device=device) for model, checkpoint in checkpoints.items() if model in WEIGHT_MODELS
    }


def make_training_tasks(
    ends: PathEnds | None, weights: WeightGenerators, features_ND: Tensor, data: Rows
) -> TrainingTasks | None:
    """Those that generators of whole weights learned from; all of these have the same base learner."""
    if ends is None or not weights:
        return None
    first = next(iter(weights.values()))
    return TrainingTasks(ends, features_ND, data, learner=first.learner, inputs=first.inputs)


def classifiers(
    section: Evaluate,
    posterior: GaussianPosterior,
    generators: Generators,
    weights: WeightGenerators,
    tasks: TrainingTasks | None = None,
) -> Iterator[tuple[str, dict[str, Candidate]]]:
    """The name in metrics.json, and candidates by what sets them apart."""
    for name, makers, views in row_classifiers(section, posterior, generators):
        seen = {about: view_of(posterior) for about, view_of in views.items()}
        yield name, {about: OfRows(rows_of, seen) for about, rows_of in makers.items()}
    yield from weight_classifiers(section, weights, tasks)


Views = Mapping[str, Callable[[GaussianPosterior], View]]
AS_FEATURES_ARE: Views = {
    "origin": lambda _posterior: FROM_ORIGIN,
    "base mean": lambda posterior: View(posterior.mean_D.float()),
}


class RowClassifier(NamedTuple):
    """Its name in metrics.json, what may make its rows, and in which views angles with these may be measured."""

    name: str
    makers: Mapping[str, RowsOf]
    views: Views = AS_FEATURES_ARE


def row_classifiers(section: Evaluate, posterior: GaussianPosterior, generators: Generators) -> Iterator[RowClassifier]:
    """Those that are a row a class."""
    expected = {
        f"ridge {ridge:g}, spread {spread:g}": posterior_rows(posterior, ridge, spread)
        for ridge, spread in product(section.ridges, section.spreads)
    }
    yield RowClassifier("ncm", {"": mean_rows})
    yield RowClassifier("gaussian", expected)
    if units := {f"{WHITENED}, ridge {ridge:g}": partial(GaussianPosterior.whitened, ridge=ridge) for ridge in section.whitened}:
        yield RowClassifier(f"ncm-{WHITENED}", {"": mean_rows}, units)
        yield RowClassifier(f"gaussian-{WHITENED}", expected, units)
    for model, by_kind in generators.items():
        name, best, hows = NAMES.get(model, model), by_kind["average"], samplings(model, section)
        made = partial(RowClassifier, views=AS_FEATURES_ARE if best.view.basis_DE is None else {"own": partial(own_view, best)})
        for kind, generator in by_kind.items():
            ways = {about: drawn_rows(generator, section, how) for about, how in hows.items()}
            yield made(name if kind == "average" else f"{name}-{kind}", ways)
        if model == "task" and section.draws > 1:
            several = {about: drawn_rows(best, section, how, draws=section.draws) for about, how in hows.items()}
            yield made(f"{name}-mean", several)
        if model != "gradient" and section.guidance:
            guided = {
                f"guidance {strength:g}, {about}".removesuffix(", "): drawn_rows(best, section, how, guidance=strength)
                for strength, (about, how) in product(section.guidance, hows.items())
            }
            yield made(f"{name}-guided", guided)


def own_view(generator: Generator, _posterior: GaussianPosterior) -> View:
    return generator.view


def samplings(model: str, section: Evaluate) -> dict[str, Sampling]:
    """In how many steps rows may be drawn; the control takes one, and that of the gradient those of the reference."""
    if model == "task":
        return {f"{steps} steps": Sampling(section.sampler, steps) for steps in section.sampling_steps}
    return {"": sampling_of(model, section.sampler, section.gradient_steps)}


def posterior_rows(posterior: GaussianPosterior, ridge: float, spread: float) -> RowsOf:
    return lambda support_EWSD, _batch: posterior.rows(support_EWSD, ridge=ridge, spread=spread)[None]


def drawn_rows(generator: Generator, section: Evaluate, sampling: Sampling, *, draws: int = 1, guidance: float = 0.0) -> RowsOf:
    """Noise is a function of the draw and the batch alone: two draws of a task differ, two runs do not."""

    def rows(support_EWSD: Tensor, batch: int) -> Tensor:
        noises = [gaussian_noise(torch_stream(section.seed, "draw", draw, batch)) for draw in range(draws)]
        return torch.stack([generator.rows(support_EWSD, sampling, noise, guidance=guidance) for noise in noises])

    return rows
