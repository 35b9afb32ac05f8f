"""The curves of `evaluate`, all on validation episodes: by sampling steps, by draws, and along the chains of whole weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from metadiff.candidates import Candidate, OfWeights
from metadiff.chains import chain_states
from metadiff.classifiers import NAMES, Generators, drawn_rows
from metadiff.episodes import Episodes, draw_episodes
from metadiff.evaluation import (
    TYPICAL,
    accuracy,
    best_temperature,
    correct_counts,
    learner_scores,
    learner_weights,
    log_probabilities,
    negative_log_likelihood,
    targets,
)
from metadiff.methods import SAMPLERS, Sampling
from metadiff.pictures import Pictures
from metadiff.rows import Rows
from metadiff.weightclassifiers import WITHOUT_NOISE, WeightGenerators, drawn_weights, finetuned, random_starts
from stages.runner import Run

if TYPE_CHECKING:
    from metadiff.params import Evaluate

FRESH = 1_000_000  # the number of the first episode of curves of whole weights: none is chosen on so many


def sampling_curve(run: Run[Evaluate], generators: Generators, features_ND: Tensor, data: Rows) -> pd.DataFrame:
    """Accuracy by number of sampling steps: one row a number, one column a model, sampler and shot."""
    section, episodes = run.params, curve_episodes(run.params, data)
    models = [model for model in generators if model != "regression"]
    table = pd.DataFrame({"steps": section.curve})
    columns = list(product(models, SAMPLERS, section.shots))
    with run.progress("sampling curve", total=len(columns) * len(section.curve), unit="points") as advance:
        for model, sampler, shot in columns:
            values = []
            for steps in section.curve:
                generator = generators[model]["average"]
                rows = drawn_rows(generator, section, Sampling(sampler, steps))
                values.append(round(accuracy(rows, features_ND, episodes[shot], view=generator.view), 3))
                advance(1)
                run.stop_if_asked("while drawing the sampling curve", "draws it anew, after the classifiers")
            table[f"{NAMES.get(model, model)} {sampler} {shot}-shot"] = values
    return table


def draws_curve(
    run: Run[Evaluate], weights: WeightGenerators, chosen: Mapping[str, Any], pictures: Pictures, data: Rows
) -> pd.DataFrame:
    """Accuracy and likelihood where the probabilities of several classifiers of a task are averaged.

    ``chosen`` is what validation chose of each classifier: so are the rivals' rate and steps. The likelihood is that at the best
    temperature of each point, else it would say how sure of itself each classifier is, which averaging cures in any case.
    """
    section, episodes = run.params, fresh_episodes(run.params, data)
    several = dict(averaged(section, weights, chosen)) if section.draw_curve else {}
    table = pd.DataFrame({"draws": section.draw_curve})
    with run.progress("draws curve", total=len(several) * len(episodes), unit="columns") as advance:
        for (name, candidate), (shot, drawn) in product(several.items(), episodes.items()):
            scores_GEQW = candidate.scores(pictures, drawn)[""]
            found = [measured(scores_GEQW[:draws], drawn) for draws in section.draw_curve]
            table[f"{name} {shot}-shot"], table[f"{name} {shot}-shot nll"] = zip(*found, strict=True)
            advance(1)
            run.stop_if_asked("while drawing the draws curve", "draws it anew, after the classifiers")
    return table


def averaged(section: Evaluate, weights: WeightGenerators, chosen: Mapping[str, Any]) -> Iterator[tuple[str, Candidate]]:
    """The generators, and what they have to beat: as many fine-tuned starts, and the control, whose only draw is a level."""
    draws = section.draw_curve[-1]
    for model in filter(weights.__contains__, [*with_chain(weights), "weights-regression"]):
        several = drawn_weights(weights[model], section, draws=1 if model in WITHOUT_NOISE else draws)
        yield model, OfWeights(several, weights[model].logits)
    for generator in [*weights.values()][:1]:  # all have the same base learner
        starts = random_starts(generator, section, draws=draws)
        ways = finetuned(generator, section, starts, steps=section.finetune_steps)
        choice = chosen.get("finetune-random-mean", chosen["finetune-random"])
        yield "finetune-random", ways[choice["candidate"]]


def chain_curve(run: Run[Evaluate], weights: WeightGenerators, pictures: Pictures, data: Rows) -> pd.DataFrame:
    """Along the chain of one draw, from noise to the end: loss on the support, accuracy and likelihood of the queries."""
    section, episodes, models = run.params, fresh_episodes(run.params, data), with_chain(weights)
    columns: dict[str, Sequence[float]] = {"time": []}
    with run.progress("chains", total=len(models) * len(episodes), unit="columns") as advance:
        for model, (shot, drawn) in product(models, episodes.items()):
            made = weights[model]
            states = [*learner_weights(chain_states(made, section), pictures, drawn)]
            support = replace(drawn, query_EWQ=drawn.support_EWS)
            on_support, on_queries = (learner_scores(states, made.logits, pictures, of) for of in (support, drawn))
            columns["time"] = range(len(on_queries))
            columns[f"{model} {shot}-shot support"] = [support_loss(scores_EQW, support) for scores_EQW in on_support]
            found = [measured(scores_EQW[None], drawn) for scores_EQW in on_queries]
            columns[f"{model} {shot}-shot"], columns[f"{model} {shot}-shot nll"] = zip(*found, strict=True)
            advance(1)
            run.stop_if_asked("while following the chains", "follows them anew, after the classifiers")
    return pd.DataFrame(columns)


def curve_episodes(section: Evaluate, data: Rows, *, first: int = 0) -> dict[int, Episodes]:
    """By number of shots."""
    sizes = {"way": section.way, "query": section.query, "episodes": section.curve_episodes, "seed": section.seed}
    return {shot: draw_episodes(data, "val", shot=shot, first=first, **sizes) for shot in section.shots}


def fresh_episodes(section: Evaluate, data: Rows) -> dict[int, Episodes]:
    """Others than those on which anything was chosen, of the same classes."""
    return curve_episodes(section, data, first=FRESH)


def with_chain(weights: WeightGenerators) -> list[str]:
    return [model for model in weights if model not in WITHOUT_NOISE]


def measured(scores_GEQW: Tensor, episodes: Episodes) -> tuple[float, float]:
    """Accuracy in per cent with probabilities as they are, and the mean negative log-likelihood at the best temperature."""
    target_Q = targets(episodes)
    right = 100 * correct_counts(log_probabilities(scores_GEQW, TYPICAL), target_Q).mean() / len(target_Q)
    best = log_probabilities(scores_GEQW, best_temperature(scores_GEQW, target_Q))
    return round(right, 3), round(negative_log_likelihood(best, target_Q).mean(), 4)


def support_loss(scores_EQW: Tensor, support: Episodes) -> float:
    loss_E = negative_log_likelihood(log_probabilities(scores_EQW[None], TYPICAL), targets(support))
    return round(float(loss_E.mean()), 4)
