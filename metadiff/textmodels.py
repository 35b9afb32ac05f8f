"""What `metatrain` trains to make weights from sentences: the models of `hyperldm.models`, each with its tasks and its judgement;
and the same as they are read back.

Shapes: T tasks, C templates of a sentence, D numbers of its vector, N images of a task, E inputs of the base learner, P weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metadiff.baselines.fromtext import Joint
from metadiff.checkpoint import under
from metadiff.concepts import DescribedTask
from metadiff.courses import Course, PathEnds, hvae_course, maml_course
from metadiff.described import (
    AMBIGUOUS,
    DescribedImages,
    Questions,
    answers,
    concepts_of,
    questions_of,
    sentence_scale,
    sentences_of,
)
from metadiff.diffusion import gaussian_noise
from metadiff.errors import ParamsError
from metadiff.generator import trained_weights
from metadiff.hypernet import LatentSource
from metadiff.inputs import Inputs
from metadiff.learner import Perceptron, build_learner
from metadiff.metatraining import Lesson, MetaTraining, Subject, Weights, backward
from metadiff.questions import LEARNT_FROM
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.standard import Standard
from metadiff.textbuild import OF_LATENTS, TEXT_MODELS, Taught, TextMethod, build_text, text_facts, text_pace
from metadiff.vectors import Vectors

if TYPE_CHECKING:
    from metadiff.params import HyperLDM as Section

Checkpoints = Mapping[str, tuple[dict[str, Tensor], dict[str, Any]]]  # by model


@dataclass(frozen=True)
class TextModels:
    """The parameters, the tasks with the vectors of their sentences, and what the base learner sees of all images."""

    section: Section
    tasks: Sequence[DescribedTask]
    vectors: Vectors
    data: Rows
    learner: Perceptron
    inputs: Inputs
    seen_NE: Tensor
    seed: int
    ends: PathEnds | None = None  # of the recorded paths, for `hvae`

    def subject(self, model: str, source: LatentSource | None = None) -> Subject:
        """``source`` is the trained one, of whose latents others are."""
        facts, course = self.facts(model), self.course(model)
        build = partial(build_text, facts, source=source, known=course.before, device=str(self.seen_NE.device))
        lesson: Lesson[Any, Any] = Lesson(course.draw, backward, course.score)
        training = MetaTraining(text_pace(self.section, model), build(), lesson, seed=self.seed)
        return Subject(training, facts, partial(self.dump, course, build))

    def facts(self, model: str) -> dict[str, Any]:
        sentence, concepts = len(self.scale.mean_D), concepts_of(self.trained)
        facts = text_facts(self.section, model, learner=self.learner, sentence=sentence, concepts=concepts, seed=self.seed)
        return facts | {"encoder": dict(self.vectors.about)}

    def course(self, model: str) -> Course:
        if model == "maml":
            return maml_course(self.section, self.questions, self.tasks, self.data, seed=self.seed)
        if model == "hvae":
            assert self.ends is not None, "whoever asks for it reads the paths"
            return hvae_course(self.section, self.questions, self.tasks, self.ends)
        of_latents = model in OF_LATENTS
        tasks, images = (self.section.latent_batch, 0) if of_latents else (self.section.batch, self.section.images)
        ambiguous = model in ("hyperldm", "mlp")
        return Course(partial(self.questions.draw, tasks=tasks, images=images, ambiguous=ambiguous), self.score())

    def dump(self, course: Course, build: Callable[[], Taught], best: Mapping[str, Weights]) -> Weights:
        """Of the average alone; with the scales and latents that are needed to use a model by itself."""
        tensors = {f"average/{name}": value for name, value in best["average"].items()}
        method = build()
        method.net.load_state_dict(best["average"])
        tensors |= {**course.before, **course.after(method)}
        tensors |= {f"sentences/{name}": value for name, value in vars(self.scale).items()}
        return tensors | {f"inputs/{name}": value for name, value in self.inputs.tensors().items()}

    @cached_property
    def trained(self) -> list[DescribedTask]:
        return [task for task in self.tasks if task.split == "train"]

    @cached_property
    def scale(self) -> Standard:
        return sentence_scale(self.tasks, self.vectors)

    @cached_property
    def questions(self) -> Questions:
        told_TCD = sentences_of(self.trained, self.vectors, self.scale)
        return questions_of(self.trained, told_TCD, self.data, self.seen_NE, splits=LEARNT_FROM)

    def score(self) -> Callable[[TextMethod], float]:
        """Per cent of images of the validation tasks whose sentence has one answer; the same images at every judgement."""
        tasks = [task for task in self.tasks if task.split == "val" and task.kind not in AMBIGUOUS]
        told_TD = sentences_of(tasks, self.vectors, self.scale)[:, 0].to(self.seen_NE.device)
        images, count = DescribedImages.of(tasks, self.data, splits=("val",)), self.section.val_images
        rows_TWS = images.draw(torch.arange(len(tasks)), count, torch_stream(0, "validation", "sentences"))
        inputs_TNE = self.seen_NE[rows_TWS.flatten(1).to(self.seen_NE.device)]

        @torch.no_grad()
        def score(method: TextMethod) -> float:
            scores_TNW = scores_of(method, self.learner, told_TD, inputs_TNE)
            return 100 * float((scores_TNW.argmax(-1) == answers(count).to(scores_TNW.device)).float().mean())

        return score


def scores_of(method: TextMethod, learner: Perceptron, sentence_TD: Tensor, inputs_TNE: Tensor) -> Tensor:
    """(T, N, 2): what a method answers by one draw."""
    if isinstance(method, Joint):
        return method.scores(sentence_TD, inputs_TNE)
    theta_TP = method.weights(sentence_TD, gaussian_noise(torch_stream(0, "validation")))
    return learner.scores(theta_TP, learner.inputs(inputs_TNE))


@dataclass(frozen=True)
class TextGenerators:
    """The trained models by name, with how sentences and images are seen by all of them."""

    methods: Mapping[str, Taught]
    sentences: Standard
    inputs: Inputs
    learner: Perceptron
    facts: Mapping[str, Any]  # of the first, such as its concepts and the encoder of its sentences

    @property
    def latents_of(self) -> str:
        return latents_of(self.facts)

    @property
    def source(self) -> LatentSource:
        """Of whose latents others are; ParamsError if it was not trained."""
        found = self.methods.get(self.latents_of)
        if not isinstance(found, LatentSource):
            raise ParamsError(f"hyperldm.models: {self.latents_of} was not trained; add it and run: dvc repro")
        return found


def latents_of(facts: Mapping[str, Any]) -> str:
    """The name of the source; checkpoints of a time that had no other say nothing of it."""
    return str(facts.get("latents_of", "hnet"))


def undump_text(checkpoints: Checkpoints, *, device: str = "cpu") -> TextGenerators | None:
    """All models from their checkpoints, those of latents after what they are of; None if there are none."""
    methods: dict[str, Taught] = {}
    for model in sorted((model for model in TEXT_MODELS if model in checkpoints), key=OF_LATENTS.__contains__):
        source = methods.get(latents_of(checkpoints[model][1])) if model in OF_LATENTS else None
        methods[model] = undump_method(*checkpoints[model], source=source, device=device)
    if not methods:
        return None
    tensors, facts = checkpoints[next(iter(methods))]
    sentences, inputs = (under(tensors, name, device=device) for name in ("sentences", "inputs"))
    learner = build_learner(facts["learner"])
    assert isinstance(learner, Perceptron), "conflicts.py refuses the others"
    return TextGenerators(methods, Standard(**sentences), Inputs(**inputs), learner, facts)


def undump_method(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, source: Taught | None = None, device: str = "cpu"
) -> Taught:
    """With its average weights, which are trained no more."""
    assert source is None or isinstance(source, LatentSource)
    method = build_text(facts, source=source, known=tensors, device=device)
    method.net.load_state_dict(trained_weights(tensors, method.net, "average", f"{facts['model']} of sentences"))
    method.net.requires_grad_(requires_grad=False)
    return method
