"""What `metatrain` trains to generate class rows: the models of `metatrain.models`, each with its tasks and its judgement."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.conditioning import BaseTasks, Ends
from metadiff.diffusion import gaussian_noise
from metadiff.episodes import draw_episodes
from metadiff.evaluation import accuracy
from metadiff.generator import Generator, dump
from metadiff.metatraining import MetaTraining, Subject, pace_of, rows_lesson
from metadiff.methods import Method
from metadiff.methods.metadiff import build, network_facts, sampling_of
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.view import FROM_ORIGIN

if TYPE_CHECKING:
    from metadiff.params import Metatrain


def row_subject(section: Metatrain, *, model: str, features_ND: Tensor, data: Rows, ends: Ends | None, seed: int) -> Subject:
    ridge = section.whitened if model != "gradient" else 0.0  # the reference's network sees features as they are
    view = GaussianPosterior(features_ND, data).whitened(ridge=ridge) if ridge else FROM_ORIGIN
    tasks = base_tasks(section, view.of(features_ND), data, ends, model)
    facts = network_facts(section, model, feature_size=features_ND.shape[1], seed=seed)
    lesson = rows_lesson(section, tasks, validation_score(section, tasks, data, model))
    training = MetaTraining(pace_of(section), build(facts, device=str(features_ND.device)), lesson, seed=seed)
    return Subject(training, facts, partial(dump, scales=tasks.scales, posterior=tasks.posterior, view=view))


def base_tasks(section: Metatrain, features_ND: Tensor, data: Rows, ends: Ends | None, model: str) -> BaseTasks:
    """All in the units of these features. The reference's network knows the means of supports alone."""
    tasks = BaseTasks(features_ND, data, spread=section.spread, ends=ends)
    if section.correct == "posterior" and model != "gradient":
        tasks.posterior = GaussianPosterior(tasks.features_ND, data).settled(ridge=section.ridge)
    return tasks


def validation_score(section: Metatrain, tasks: BaseTasks, data: Rows, model: str) -> Callable[[Method], float]:
    """Per cent on validation episodes, the mean over the numbers of shots: the same episodes and noise at every judgement."""
    sizes = {"way": section.way, "query": section.val_query, "episodes": section.val_episodes}
    episodes = [draw_episodes(data, "val", shot=shot, seed=0, **sizes) for shot in section.shots]
    sampling = sampling_of(model, section.sampler, section.gradient_steps if model == "gradient" else section.sampling_steps)

    def score(method: Method) -> float:
        def rows(support_EWSD: Tensor, batch: int) -> Tensor:
            noise = gaussian_noise(torch_stream(0, "validation", batch))
            return Generator(method, tasks.scales, tasks.posterior).rows(support_EWSD, sampling, noise)[None]

        return sum(accuracy(rows, tasks.features_ND, drawn) for drawn in episodes) / len(episodes)

    return score
