"""What `metatrain` trains to generate whole weights: the models of `mcdi.models`, each with its tasks and its judgement.

Shapes: N paths, K segments, P weights, W ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metadiff.baselines.finetune import Course, adapted
from metadiff.baselines.gaussian import GaussianPosterior, Posterior
from metadiff.baselines.start import Start, Tour, build_start, start_tasks
from metadiff.conditioning import BaseTasks
from metadiff.diffusion import gaussian_noise
from metadiff.episodes import draw_episodes
from metadiff.errors import DataError
from metadiff.evaluation import targets
from metadiff.inputs import Inputs
from metadiff.learner import BaseLearner, build_learner
from metadiff.metatraining import Lesson, MetaTraining, Pace, Subject, backward, pace_of
from metadiff.methods.mcdi import McDi, build_weights, weight_facts
from metadiff.objectives import OnSupport
from metadiff.paths import PathImages, Paths, PathTasks, WeightScale, as_shown, followed
from metadiff.pictures import Pictures
from metadiff.reptile import Reptile
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.stored_paths import StoredPaths
from metadiff.trajectory import kept_steps
from metadiff.trajectory_store import TrajectoryStore
from metadiff.weightgenerator import WeightGenerator, dump_weights

if TYPE_CHECKING:
    from metadiff.params import McDi as Section


def weight_pace(section: Section, model: str) -> Pace:
    if model == "reptile":
        pace = Pace(section.start_tours, section.start_rate, weight_decay=0.0, ema=0.0, val_every=section.val_every)
        return replace(pace, optimizer=section.start_optimizer, rate="mcdi.start_rate")
    decay = section.weight_decay if section.optimizer == "adam" else 0.0  # of SGD it would be coupled to the rate alone
    return replace(pace_of(section), rate="mcdi.lr", weight_decay=decay)


@dataclass(frozen=True)
class WeightModels:
    """The parameters, images with the features that the backbone gave them, and paths with what their learner saw of an image."""

    section: Section
    pictures: Pictures
    data: Rows
    store: TrajectoryStore
    inputs: Inputs
    seed: int
    followed: dict[bytes, Tensor] = field(default_factory=dict)  # by the start of paths that several models may have

    def subject(self, model: str, start_P: Tensor | None = None) -> Subject:
        """``start_P`` are the weights that it generates a difference to, if to any: what `reptile` has learnt."""
        facts = weight_facts(self.section, model, learner=self.store.attributes["learner"], seed=self.seed)
        facts |= {"start_std": self.store.attributes["params"]["init_std"]}
        if model == "reptile":
            blank_P = torch.zeros(self.learner.size, device=self.device)
            return self._start(facts, WeightScale(blank_P, blank_P + 1))
        if start_P is not None:
            path_NKP = self.paths_from(start_P)
            return self._generator(facts, path_NKP, WeightScale.of(self.learner, path_NKP[:, -1], start_P))
        paths = StoredPaths(self.store, self.section.segments)
        ends = (end_NP.to(self.device) for end_NP in paths.ends())
        return self._generator(facts, paths, WeightScale.over(self.learner, ends))

    def _start(self, facts: dict[str, Any], scale: WeightScale) -> Subject:
        section, method = self.section, build_start(facts, device=str(self.device))
        shots = (self._on_tour,) if section.start_turn else section.shots
        draw = start_tasks(self.images, self.seen_NE, tasks=section.batch, way=self.learner.way, shots=shots)
        return self._subject(method, facts, scale, draw, Tour(self._course, section.start_turn).slope)

    @property
    def _course(self) -> Course:
        return Course(self.section.start_lr, self.section.start_steps, self.section.start_inner)

    @property
    def _on_tour(self) -> int:
        """Images of a class: others at every step, as far as each class has them."""
        there = int(self.images.counts_C.min())
        if self.section.start_turn > there:
            raise DataError(f"train: a class has {there} images: lower mcdi.start_turn from {self.section.start_turn}")
        return min(there, self.section.start_steps * self.section.start_turn)

    def _generator(self, facts: dict[str, Any], paths: Paths, scale: WeightScale) -> Subject:
        section, method = self.section, build_weights(facts, scale, device=str(self.device))
        shown = self.seen_NE if self.inputs.of_pixels else None
        tasks = PathTasks(self.images, paths, PathImages.of(self.store), scale, posterior=self.posterior, shown_NE=shown)
        reptile = Reptile(section.inner, section.inner_lr, section.inner_steps, literal=section.optimizer == "sgd")
        slope = backward if facts["model"] == "weights-regression" else reptile.slope
        return self._subject(method, facts, scale, partial(tasks.draw, tasks=section.batch, shots=section.shots), slope)

    def _subject(
        self,
        method: McDi | Start,
        facts: dict[str, Any],
        scale: WeightScale,
        draw: Callable[..., Any],
        slope: Callable[..., Tensor],
    ) -> Subject:
        made = WeightGenerator(method, self.inputs, scale, facts["start_std"], self.posterior)
        lesson: Lesson[Any, Any] = Lesson(draw, slope, self.score(made, adapt=isinstance(method, Start)))
        training = MetaTraining(weight_pace(self.section, facts["model"]), method, lesson, seed=self.seed)
        return Subject(training, facts, partial(dump_weights, made=made))

    @property
    def device(self) -> torch.device:
        return self.pictures.device

    @cached_property
    def learner(self) -> BaseLearner:
        return build_learner(self.store.attributes["learner"])

    @cached_property
    def images(self) -> BaseTasks:
        """The base images as a generator of heads is told of them."""
        return BaseTasks(self.inputs.of(self.shown.features), self.data)

    @cached_property
    def shown(self) -> Pictures:
        return as_shown(self.store, self.pictures, self.data)

    @cached_property
    def seen_NE(self) -> Tensor:
        """What the paths' learner saw of any image."""
        return self.inputs.seen(self.shown)

    @cached_property
    def posterior(self) -> Posterior | None:
        if self.section.correct == "means":
            return None
        return GaussianPosterior(self.images.features_ND, self.data).settled(ridge=self.section.ridge)

    def paths_from(self, start_P: Tensor) -> Tensor:
        """(N, K, P): the paths of the same optimiser from here, on the same supports."""
        start = start_P.cpu().numpy().tobytes()
        if start not in self.followed:
            kept = kept_steps(self.store.attributes["params"]["steps"], self.section.segments + 1)
            self.followed[start] = followed(self.store, self.learner, self.seen_NE, start_P, kept=kept[1:])
        return self.followed[start]

    def score(self, made: WeightGenerator, *, adapt: bool) -> Callable[[McDi | Start], float]:
        """Per cent on validation episodes, the mean over the numbers of shots; with the same noise at every judgement."""
        section, way = self.section, self.learner.way
        sizes = {"way": way, "query": section.val_query, "episodes": section.val_episodes}
        episodes = [draw_episodes(self.data, "val", shot=shot, seed=0, **sizes) for shot in section.shots]

        @torch.no_grad()
        def score(_method: McDi | Start) -> float:
            shares = []
            for drawn in episodes:
                support_EWS, query_EQ = (
                    self.pictures[torch.from_numpy(ids).long().to(self.device)]
                    for ids in (drawn.support_EWS, drawn.query_EWQ.reshape(len(drawn.query_EWQ), -1))
                )
                theta_EP = made.weights(support_EWS, gaussian_noise(torch_stream(0, "validation")))
                if adapt:
                    theta_EP = adapted(OnSupport(self.learner, self.inputs.seen(support_EWS)), theta_EP, self._course)
                hit_EQ = made.logits(theta_EP, query_EQ).argmax(-1) == targets(drawn).to(self.device)
                shares.append(100 * hit_EQ.double().mean().item())
            return sum(shares) / len(shares)

        return score
