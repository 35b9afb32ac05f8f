"""The ladder of Meta-VQA: models that make an adapter's weights from a question, taught on training tasks, and what they are held
against: CLIP as it is, weights that know no question, and latents that are adapted to the images of a task's support.

Shapes: T tasks, B of them at a time, Z numbers of a latent, P weights, D numbers of a sentence's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from metadiff.adapter import Adapter
from metadiff.asking import TRIED, of_others
from metadiff.baselines.fromtext import EndToEnd, LatentRegression
from metadiff.diffusion import Noise, gaussian_noise
from metadiff.errors import NumericError
from metadiff.evaluation import mean_and_ci95
from metadiff.hypernet import HNet, LatentSource, fitted
from metadiff.metatraining import Lesson, MetaTraining, backward
from metadiff.methods.hyperldm import HyperCLIP, HyperLDM
from metadiff.rng import torch_stream
from metadiff.textbuild import OF_LATENTS, build_text, text_facts, text_pace
from metadiff.vqatasks import VQABatch, VQASplits, VQATasks

if TYPE_CHECKING:
    from metadiff.params import Evaluate
    from metadiff.params import HyperLDM as Section

MODELS = ("hnet", "hyperldm", "hyperclip", "mlp", "end-to-end")  # the first has the latents of the next three
IMAGES = 32  # of a task, in a step of training
AT_A_TIME = 64  # tasks that are answered at a time

Method = HNet | HyperLDM | HyperCLIP | LatentRegression | EndToEnd
SentenceWeights = Callable[[Tensor, Noise], Tensor]  # sentences (B, D) to (B, P), or to latents (B, Z)
TaskWeights = Callable[[VQATasks, Tensor], Tensor]  # tasks, and the numbers of B of them, to the same


@dataclass(frozen=True)
class Ladder:
    section: Section
    evaluate: Evaluate
    splits: VQASplits
    learner: Adapter
    seed: int

    def taught(self, model: str, source: LatentSource | None, advance: Callable[[int], None]) -> tuple[Method, int]:
        """And the step whose weights it has: the best by validation tasks, of a source the last. ``advance`` hears of each."""
        concepts, sentence = self.splits.questions["train"], self.splits.train.sentence_TD.shape[1]
        facts = text_facts(self.section, model, learner=self.learner, sentence=sentence, concepts=concepts, seed=self.seed)
        method: Any = build_text(facts, source=source, device=str(self.splits.train.sentence_TD.device))
        tasks, images = (self.section.latent_batch, 0) if model in OF_LATENTS else (self.section.batch, IMAGES)

        def draw(generator: Generator) -> VQABatch:
            advance(1)
            return self.splits.train.draw(generator, tasks=tasks, images=images)

        lesson: Lesson[Any, Any] = Lesson(draw, backward, self._score)
        training = MetaTraining(text_pace(self.section, model), method, lesson, seed=self.seed)
        while not training.finished:
            training.run()
        method.net.load_state_dict(training.best["average"])
        method.net.requires_grad_(requires_grad=False)
        return method, training.best_step

    def _score(self, method: Method) -> float:
        return float(100 * self.shares(self.splits.val, self._told(method.weights)).mean())

    def rows(self, methods: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each method's row, in per cent of images; of its candidates that which is best on validation tasks."""
        for name, candidates in self.candidates(methods):
            val = {how: float(100 * self.shares(self.splits.val, weights_of).mean()) for how, weights_of in candidates.items()}
            best = max(val, key=val.__getitem__)
            share_T = self.shares(self.splits.test, candidates[best])
            count_T = self.splits.test.query.count_T.numpy()
            mean, ci95 = mean_and_ci95(100 * share_T)
            pooled = float(100 * (share_T * count_T).sum() / count_T.sum())
            yield name, {"accuracy": mean, "ci95": ci95, "pooled": pooled, "val": val[best], "chosen": best}

    def candidates(self, methods: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, TaskWeights]]]:
        """By the name of the row, and by what sets them apart."""
        source, diffusion, plain = methods["hnet"], methods["hyperldm"], self.evaluate.gammas[0]
        yield "clip", {"": self._unchanged}
        yield "uncond", {"": _decoded(source, partial(_mean_latent, source))}
        for model in ("hnet", "mlp", "end-to-end"):
            yield model, {"": self._told(methods[model].weights)}
        climbed = methods["hyperclip"].weights
        yield "hyperclip", {f"pull {pull:g}": self._told(partial(climbed, pull=pull)) for pull in self.evaluate.pulls}
        for gamma in self.evaluate.gammas:
            yield f"hyperldm-g{gamma:g}", {"": self._told(partial(diffusion.weights, gamma=gamma))}
        yield "shuffled", {"": partial(self._misled, self._told(partial(diffusion.weights, gamma=plain)))}
        drawn = partial(diffusion.latents, gamma=self.evaluate.adapt_gamma)
        best = partial(self._best, source, [self._told(drawn, draw) for draw in range(TRIED)])
        for name, start_of in (("adapt", partial(_mean_latent, source)), ("text-adapt", best)):
            pulls = self.evaluate.adapt_pulls
            yield name, {f"pull {pull:g}": _decoded(source, partial(self._adapted, source, start_of, pull)) for pull in pulls}

    @torch.no_grad()
    def shares(self, tasks: VQATasks, weights_of: TaskWeights) -> NDArray[np.float64]:
        """(T,): of each task's query images, those that are answered right."""
        right_T = torch.zeros(len(tasks), dtype=torch.long)
        order_T = tasks.support.count_T.argsort(stable=True)  # tasks of like sizes need little padding
        for which_B in torch.split(order_T, AT_A_TIME):
            theta_BP = weights_of(tasks, which_B)
            if not theta_BP.isfinite().all():
                raise NumericError("generated weights are not finite: train their generator with a lower hyperldm.lr")
            right_T[which_B] = tasks.asked(which_B).right(self.learner, theta_BP).cpu()
        return (right_T.double() / tasks.query.count_T).numpy()

    def _unchanged(self, tasks: VQATasks, which_B: Tensor) -> Tensor:
        """CLIP as it is."""
        return tasks.sentence_TD.new_zeros(len(which_B), self.learner.size)

    def _told(self, weights_of: SentenceWeights, draw: int = 0) -> TaskWeights:
        """By the question; two draws of one run differ, two runs do not."""

        def told(tasks: VQATasks, which_B: Tensor) -> Tensor:
            stream = torch_stream(self.seed, "metavqa", "draw", draw, int(which_B[0]))
            return weights_of(tasks.sentence_TD[which_B.to(tasks.sentence_TD.device)], gaussian_noise(stream))

        return told

    def _misled(self, weights_of: TaskWeights, tasks: VQATasks, which_B: Tensor) -> Tensor:
        """Every task is told the question of another."""
        return weights_of(tasks.told(of_others(tasks.sentence_TD, self.seed)), which_B)

    def _best(self, source: LatentSource, draws: Sequence[TaskWeights], tasks: VQATasks, which_B: Tensor) -> Tensor:
        """Of several drawn latents of each task that which its support fits best."""
        shown, latent_GBZ = tasks.shown(which_B), torch.stack([latents_of(tasks, which_B) for latents_of in draws])
        loss_GB = torch.stack([shown.losses(self.learner, source.decode(latent_BZ)) for latent_BZ in latent_GBZ])
        return latent_GBZ[loss_GB.argmin(0), torch.arange(len(which_B), device=loss_GB.device)]

    def _adapted(self, source: LatentSource, start_of: TaskWeights, pull: float, tasks: VQATasks, which_B: Tensor) -> Tensor:
        """By the whole support of each task."""
        losses_of, how = partial(tasks.shown(which_B).losses, self.learner), self.evaluate
        return fitted(source, start_of(tasks, which_B), losses_of, pull=pull, lr=how.adapt_lr, steps=how.adapt_steps)


def _mean_latent(source: LatentSource, tasks: VQATasks, which_B: Tensor) -> Tensor:
    return source.latent_CZ.mean(0).expand(len(which_B), -1)


def _decoded(source: LatentSource, latents_of: TaskWeights) -> TaskWeights:
    return lambda tasks, which_B: source.decode(latents_of(tasks, which_B))
