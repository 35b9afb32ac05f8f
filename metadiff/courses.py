"""How models of sentences are taught: a course gives batches and a judgement, and knows what a checkpoint keeps beside weights.

Those of the sources of latents that read no sentences stand here. Shapes: N paths or images, C concepts, T tasks, P weights,
Z numbers of a latent, W = 2 ways (wrong, right).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from metadiff.concepts import DescribedTask
from metadiff.described import AMBIGUOUS, Questions, answers, concepts_of
from metadiff.errors import DataError
from metadiff.learner import Perceptron
from metadiff.methods.latents import HVAE, MAML, SCALE, TABLE
from metadiff.questions import draw_questions, tasks_by_number
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.standard import Standard

if TYPE_CHECKING:
    from metadiff.params import HyperLDM as Section

SHOWN = 64  # images a way, by which `maml` finds the latent of a concept of training
FEW = 5  #   and in validation
HELD = 10  # one concept of so many is kept from the training of `hvae`


def _knows_nothing(_: Any) -> dict[str, Tensor]:  # noqa: ANN401 - whichever method
    return {}


@dataclass(frozen=True)
class Course:
    """``before`` are tensors that a model is built with, ``after`` those that follow from its training; a checkpoint has both."""

    draw: Callable[[Generator], Any]
    score: Callable[[Any], float]
    before: Mapping[str, Tensor] = field(default_factory=dict)
    after: Callable[[Any], dict[str, Tensor]] = _knows_nothing


@dataclass(frozen=True)
class PathEnds:
    """Where the recorded paths of described tasks end, and each one's task by its number among all."""

    weights_NP: Tensor
    task_N: Tensor


def maml_course(section: Section, questions: Questions, tasks: Sequence[DescribedTask], data: Rows, *, seed: int) -> Course:
    draw = partial(questions.draw, tasks=section.batch, images=section.images, ambiguous=False)
    known = partial(_adapted_latents, questions, seed)
    return Course(draw, _few_shot_score(section, tasks, data, questions.inputs_NE), after=known)


@torch.no_grad()
def _adapted_latents(questions: Questions, seed: int, method: MAML) -> dict[str, Tensor]:
    """Of every concept after the inner steps, on images of the first task that asks for it."""
    concepts = questions.concept_T.tolist()
    task_C = torch.tensor([concepts.index(concept) for concept in range(max(concepts) + 1)])
    rows_CWS = questions.images.draw(task_C, SHOWN, torch_stream(seed, "maml", "latents"))
    device = questions.inputs_NE.device
    return {TABLE: method.adapted(questions.inputs_NE[rows_CWS.flatten(1).to(device)])}


def _few_shot_score(section: Section, tasks: Sequence[DescribedTask], data: Rows, inputs_NE: Tensor) -> Callable[[MAML], float]:
    """Per cent of images of the validation tasks, after the inner steps on a few others of the same task."""
    asked = {number: task for number, task in tasks_by_number(tasks, "val").items() if task.kind not in AMBIGUOUS}
    sizes = {"shot": FEW, "query": section.val_images}
    drawn = draw_questions(asked, data, splits=("val",), **sizes, numbers=range(len(asked)), seed=0, repeat=True)
    shown_TNE, judged_TNE = (
        inputs_NE[torch.from_numpy(rows_TWS).long().flatten(1).to(inputs_NE.device)]
        for rows_TWS in (drawn.support_EWS, drawn.query_EWQ)
    )

    @torch.no_grad()
    def score(method: MAML) -> float:
        return _accuracy(method.learner, method.decode(method.adapted(shown_TNE)), judged_TNE)

    return score


def hvae_course(section: Section, questions: Questions, tasks: Sequence[DescribedTask], ends: PathEnds) -> Course:
    """DataError if a concept has no path."""
    place_of = {number: place for place, number in enumerate(tasks_by_number(tasks, "train"))}
    task_N = torch.tensor([place_of[number] for number in ends.task_N.tolist()])
    concept_N = questions.concept_T[task_N]
    concepts = concepts_of([task for task in tasks if task.split == "train"])
    missing = [concept for place, concept in enumerate(concepts) if place not in {*concept_N.tolist()}]
    if missing:
        raise DataError(
            f"data/trajectories: {len(missing)} of {len(concepts)} concepts of training have no path, such as "
            f"{missing[0]!r}: raise collect.tasks and run: dvc repro"
        )
    held_N = concept_N % HELD == 0
    theta_NP = ends.weights_NP.to(questions.inputs_NE.device)
    learnt_NP = theta_NP[~held_N]
    scale = Standard.of(learnt_NP)

    def draw(generator: Generator) -> Tensor:
        return learnt_NP[torch.randint(len(learnt_NP), (section.batch,), generator=generator).to(learnt_NP.device)]

    @torch.no_grad()
    def latents(method: HVAE) -> dict[str, Tensor]:
        """Of every concept the mean of q(z | W) over its paths."""
        mean_NZ, where_N = method.encode(theta_NP)[0], concept_N.to(theta_NP.device)
        table_CZ = mean_NZ.new_zeros(len(concepts), mean_NZ.shape[1]).index_add_(0, where_N, mean_NZ)
        return {TABLE: table_CZ / where_N.bincount(minlength=len(concepts))[:, None]}

    before = {f"{SCALE}/{name}": value for name, value in vars(scale).items()}
    score = _held_out_score(section, questions, theta_NP[held_N], task_N[held_N])
    return Course(draw, score, before, latents)


def _held_out_score(section: Section, questions: Questions, theta_NP: Tensor, task_N: Tensor) -> Callable[[HVAE], float]:
    """Per cent of images of training tasks whose concepts were kept from it, by their paths' weights, encoded and decoded."""
    rows_NWS = questions.images.draw(task_N, section.val_images, torch_stream(0, "validation", "paths"))
    inputs_NSE = questions.inputs_NE[rows_NWS.flatten(1).to(questions.inputs_NE.device)]

    @torch.no_grad()
    def score(method: HVAE) -> float:
        return _accuracy(method.learner, method.decode(method.encode(theta_NP)[0]), inputs_NSE)

    return score


def _accuracy(learner: Perceptron, theta_TP: Tensor, inputs_TNE: Tensor) -> float:
    scores_TNW = learner.scores(theta_TP, learner.inputs(inputs_TNE))
    target_N = answers(inputs_TNE.shape[1] // 2).to(scores_TNW.device)
    return 100 * float((scores_TNW.argmax(-1) == target_N).float().mean())
