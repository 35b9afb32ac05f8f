"""The classifiers of `evaluate` that are whole weights of a base learner: generated, fine-tuned on the support, or looked up.

Shapes: G draws, E episodes, W ways, S shots, N images, P weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metadiff.baselines.finetune import Course, SlopeMap, finetune
from metadiff.baselines.nearest import NEIGHBOURS, NOISE, TrainingTasks, average_weights, nearest_weights, noisy_weights
from metadiff.candidates import Candidate, OfWeights
from metadiff.diffusion import gaussian_noise
from metadiff.errors import ParamsError
from metadiff.evaluation import WeightsOf
from metadiff.methods.mcdi import WEIGHT_MODELS
from metadiff.pictures import Pictures
from metadiff.rng import numpy_stream, torch_stream
from metadiff.weightgenerator import WeightGenerator

if TYPE_CHECKING:
    from metadiff.params import Evaluate

WITHOUT_NOISE = ("weights-regression", "reptile")
TURNED, TURNED_BY = "finetune-turned", "local"  # fine-tuned along the map that this generator has learnt
FINETUNED = ("finetune-reptile", TURNED, "finetune-random")  # the last also as the mean of several starts
LOOKED_UP = ("nearest-weights", "nearest-weights-mean", "average-weights", "noisy-weights")
WeightGenerators = Mapping[str, WeightGenerator]  # by model


def of_weights(name: str) -> bool:
    """Whether a classifier of metrics.json is one of these."""
    return name in LOOKED_UP or name.removesuffix("-mean") in (*WEIGHT_MODELS, *FINETUNED)


def weight_classifiers(
    section: Evaluate, weights: WeightGenerators, tasks: TrainingTasks | None = None
) -> Iterator[tuple[str, dict[str, Candidate]]]:
    """The name in metrics.json, and candidates by what sets them apart; without ``tasks`` no weights are looked up."""
    for model, generator in weights.items():
        if generator.learner.way != section.way:
            ways = generator.learner.way
            raise ParamsError(f"evaluate.way: must be collect.way {ways}, for which {model} generates weights, got {section.way}")
        one_draw = drawn_weights(generator, section)
        if model == "reptile":
            yield model, finetuned(generator, section, one_draw, steps=(section.finetune_few,))
            yield f"finetune-{model}", finetuned(generator, section, one_draw, steps=section.finetune_steps)
        else:
            yield model, {"": OfWeights(one_draw, generator.logits)}
        if model not in WITHOUT_NOISE and section.draws > 1:
            several = drawn_weights(generator, section, draws=section.draws)
            yield f"{model}-mean", {"": OfWeights(several, generator.logits)}
    if (turning := weights.get(TURNED_BY)) and turning.turn_slope and section.finetune_sgd_lrs:
        yield TURNED, finetuned(turning, section, base_of(turning), steps=section.finetune_steps, turn=turning.turn_slope)
    for generator in [*weights.values()][:1]:  # all have the same base learner
        for name, draws in {"finetune-random": 1, "finetune-random-mean": section.draws}.items():
            if draws > 1 or name == "finetune-random":
                starts_of = random_starts(generator, section, draws=draws)
                yield name, finetuned(generator, section, starts_of, steps=section.finetune_steps)
        if tasks is not None:
            for name, found in looked_up(tasks, section).items():
                yield name, {about: OfWeights(weights_of, generator.logits) for about, weights_of in found.items()}


def drawn_weights(generator: WeightGenerator, section: Evaluate, *, draws: int = 1) -> WeightsOf:
    """Noise is a function of the draw and the batch alone, as for class rows."""

    def weights(support_EWS: Pictures, batch: int) -> Tensor:
        noises = [gaussian_noise(torch_stream(section.seed, "draw", draw, batch)) for draw in range(draws)]
        return generator.draws(support_EWS, noises)

    return weights


def base_of(generator: WeightGenerator) -> WeightsOf:
    """What it generates a difference to, for every task."""
    return lambda support_EWS, _batch: generator.scale.shift_P.expand(1, len(support_EWS), -1)


def looked_up(tasks: TrainingTasks, section: Evaluate) -> dict[str, dict[str, WeightsOf]]:
    """What needs no generator: by name, and by what validation may prefer."""
    found: dict[str, dict[str, WeightsOf]] = {"nearest-weights": {"": nearest_weights(tasks)}}
    if section.draws > 1:
        found["nearest-weights-mean"] = {"": nearest_weights(tasks, section.draws)}
    found["average-weights"] = {f"{count} neighbours": average_weights(tasks, count) for count in NEIGHBOURS}
    found["noisy-weights"] = {f"noise {share:g}": noisy_weights(tasks, section.seed, share) for share in NOISE}
    return found


def random_starts(generator: WeightGenerator, section: Evaluate, *, draws: int = 1) -> WeightsOf:
    """Draws of the weights that training trajectories begin with, a stream a task: the first is the same however many follow."""

    def starts(support_EWS: Pictures, batch: int) -> Tensor:
        streams = [numpy_stream(section.seed, "finetune", batch, number) for number in range(len(support_EWS))]
        start_GP = [[generator.learner.start(stream, generator.start_std) for stream in streams] for _ in range(draws)]
        return torch.stack([torch.stack(start_EP) for start_EP in start_GP]).to(support_EWS.device)

    return starts


def finetuned(
    generator: WeightGenerator,
    section: Evaluate,
    starts_of: WeightsOf,
    *,
    steps: tuple[int, ...],
    turn: SlopeMap | None = None,
) -> dict[str, Candidate]:
    """From each draw of starts, in every way that validation may prefer; a map of slopes is learnt for plain SGD alone."""

    def weights_of(course: Course) -> WeightsOf:
        def weights(support_EWS: Pictures, batch: int) -> Tensor:
            tune = partial(finetune, generator.learner, generator.inputs, support_EWS, course=course, turn=turn)
            return torch.stack([tune(start_EP) for start_EP in starts_of(support_EWS, batch)])

        return weights

    courses = [] if turn else [Course(lr, count) for lr, count in product(section.finetune_lrs, steps)]
    courses += [Course(lr, count, "sgd") for lr, count in product(section.finetune_sgd_lrs, steps)]
    return {str(course): OfWeights(weights_of(course), generator.logits) for course in courses}
