"""The classifiers of `evaluate` that answer described tasks: from the sentence, from a few labelled images, or from both.

Each is a number of candidates, of which validation chooses one. Shapes: G draws, E tasks, S labelled images a way, Q queries,
W = 2 ways (wrong, right), I inputs of the base learner, D numbers of a sentence's vector, Z of a latent, P weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from metadiff.baselines.fromtext import EndToEnd, Joint, LatentRegression
from metadiff.concepts import DescribedTask
from metadiff.described import AMBIGUOUS, answer_loss, answers, concepts_of, trained_texts
from metadiff.diffusion import Noise, gaussian_noise
from metadiff.evaluation import TYPICAL, correct_counts, log_probabilities
from metadiff.hypernet import HNet, LatentSource, fitted
from metadiff.methods.hyperldm import HyperCLIP, HyperLDM
from metadiff.methods.latents import HVAE, MAML
from metadiff.rng import torch_stream
from metadiff.standard import Standard
from metadiff.textmodels import TextGenerators
from metadiff.vectors import Vectors

if TYPE_CHECKING:
    from metadiff.params import Evaluate

FEW = 1  # labelled images a way by which hyperldm-best is chosen
TRIED = 4  # draws of which the best is chosen, and adapted
RIDGES = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Asked:
    """Tasks by their sentence, with labelled images that may be learnt from and those to be answered."""

    sentence_ED: Tensor
    support_EWSI: Tensor
    query_EQI: Tensor

    def to(self, device: str) -> Asked:
        return Asked(*(value.to(device) for value in vars(self).values()))

    def shown(self, count: int) -> Asked:
        """With that many labelled images a way, or as many as there are."""
        return Asked(self.sentence_ED, self.support_EWSI[:, :, :count], self.query_EQI)


@dataclass(frozen=True)
class Told:
    """What sentences training had: their vectors, and the number of the concept that each one asks for."""

    sentence_ND: Tensor
    concept_N: Tensor

    @classmethod
    def of(cls, tasks: Sequence[DescribedTask], vectors: Vectors, scale: Standard) -> Told:
        """Those with one right answer: what others ask for has several latents."""
        trained = [task for task in tasks if task.split == "train"]
        number = {concept: place for place, concept in enumerate(concepts_of(trained))}
        pairs = [(text, number[task.concept]) for task in trained if task.kind not in AMBIGUOUS for text in trained_texts(task)]
        rows = [vectors.row_of[text] for text, _ in pairs]
        concept_N = torch.tensor([concept for _, concept in pairs])
        return cls(scale.standardise(torch.from_numpy(vectors.vectors_ND[rows])), concept_N)

    def to(self, device: str) -> Told:
        return Told(self.sentence_ND.to(device), self.concept_N.to(device))


AnswersOf = Callable[[Asked], Tensor]  # scores (G, E, Q, W), of which the typical temperature makes logits
LatentsOf = Callable[[Asked], Tensor]  # (E, Z)


def described_classifiers(made: TextGenerators, told: Told, section: Evaluate) -> Iterator[tuple[str, dict[str, AnswersOf]]]:
    """By the name in metrics.json, and by what sets candidates apart."""
    for model, method in made.methods.items():
        if isinstance(method, MAML | HVAE):
            continue  # they read no sentences
        if isinstance(method, Joint):
            yield model, {"": partial(_joint_answers, method)}
        elif isinstance(method, EndToEnd | HNet | LatentRegression):
            yield model, {"": partial(_answers, made, partial(_weights, method))}
        elif isinstance(method, HyperCLIP):
            yield model, {f"pull {pull:g}": _from_latents(made, partial(_climbed, method, pull)) for pull in section.pulls}
        else:
            yield from _diffused(made, method, section)
    if made.latents_of not in made.methods:
        return
    yield "uncond", {"": _from_latents(made, partial(_mean_latent, made.source))}
    yield "nearest", {"": _from_latents(made, partial(_nearest, made.source, told))}
    yield "ridge", {f"ridge {ridge:g}": _from_latents(made, partial(_ridge, made.source, told, ridge)) for ridge in RIDGES}
    for count in section.adapt_images:
        yield f"adapt-{count}", _adaptations(made, section, FirstLatent(partial(_mean_latent, made.source), count // 2))
    diffusion = made.methods.get("hyperldm")
    if isinstance(diffusion, HyperLDM):
        best = partial(_best_latent, made, _draws(diffusion, section.seed, section.adapt_gamma, TRIED))
        for count in section.text_adapt_images:
            yield f"text-adapt-{count}", _adaptations(made, section, FirstLatent(best, count // 2))


def sees_images(name: str) -> bool:
    """Whether a classifier learns from labelled images of the task."""
    return name == "hyperldm-best" or name.startswith(("adapt-", "text-adapt-"))


def reads_sentence(name: str) -> bool:
    """Whether what a classifier answers depends on the sentence of the task."""
    return name != "uncond" and not name.startswith("adapt-")


def spreads(made: TextGenerators, section: Evaluate, asked: Asked) -> dict[str, float]:
    """By guidance the deviation of all numbers of latents that were drawn, where those of training have 1."""
    method = made.methods.get("hyperldm")
    if not isinstance(method, HyperLDM):
        return {}
    drawn = {f"hyperldm-g{gamma:g}": _drawn(method, section.seed, gamma, 0, asked) for gamma in section.gammas}
    return {name: float(method.scale.standardise(latent_EZ).std()) for name, latent_EZ in drawn.items()}


def _diffused(made: TextGenerators, method: HyperLDM, section: Evaluate) -> Iterator[tuple[str, dict[str, AnswersOf]]]:
    draws = partial(_draws, method, section.seed)
    for gamma in section.gammas:
        yield f"hyperldm-g{gamma:g}", {"": _from_latents(made, *draws(gamma, 1))}
    yield "shuffled", {"": _from_latents(made, partial(_shuffled, draws(section.gammas[0], 1)[0], section.seed))}
    mean = {gamma: partial(_mean_answers, made, draws(gamma, section.draws)) for gamma in section.gammas}
    best = {gamma: _from_latents(made, partial(_best_latent, made, draws(gamma, TRIED))) for gamma in section.gammas}
    yield "hyperldm-mean", {f"gamma {gamma:g}": answers_of for gamma, answers_of in mean.items()}
    yield "hyperldm-best", {f"gamma {gamma:g}": partial(_shown, FEW, answers_of) for gamma, answers_of in best.items()}


def _answers(made: TextGenerators, weights_of: Callable[[Asked], Tensor], asked: Asked) -> Tensor:
    """Of one draw of weights."""
    return made.learner.scores(weights_of(asked), made.learner.inputs(asked.query_EQI))[None] / TYPICAL


def _from_latents(made: TextGenerators, latents_of: LatentsOf) -> AnswersOf:
    return partial(_answers, made, partial(_decoded, made.source, latents_of))


def _decoded(source: LatentSource, latents_of: LatentsOf, asked: Asked) -> Tensor:
    return source.decode(latents_of(asked))


def _weights(method: EndToEnd | HNet | LatentRegression, asked: Asked) -> Tensor:
    return method.weights(asked.sentence_ED, _no_noise)


def _no_noise(like: Tensor) -> Tensor:
    raise AssertionError("nothing is drawn")


def _joint_answers(method: Joint, asked: Asked) -> Tensor:
    return method.scores(asked.sentence_ED, asked.query_EQI)[None] / TYPICAL


def _shown(count: int, answers_of: AnswersOf, asked: Asked) -> Tensor:
    """By no more labelled images a way."""
    return answers_of(asked.shown(count))


def _draws(method: HyperLDM, seed: int, gamma: float, count: int) -> list[LatentsOf]:
    return [partial(_drawn, method, seed, gamma, draw) for draw in range(count)]


def _drawn(method: HyperLDM, seed: int, gamma: float, draw: int, asked: Asked) -> Tensor:
    return method.latents(asked.sentence_ED, draw_noise(seed, draw), gamma=gamma)


def draw_noise(seed: int, draw: int) -> Noise:
    """A function of the draw alone: two draws of a task differ, two runs do not."""
    return gaussian_noise(torch_stream(seed, "sentences", "draw", draw))


def _shuffled(latents_of: LatentsOf, seed: int, asked: Asked) -> Tensor:
    """Every task is told the sentence of another task."""
    return latents_of(Asked(of_others(asked.sentence_ED, seed), asked.support_EWSI, asked.query_EQI))


def of_others(sentence_ED: Tensor, seed: int) -> Tensor:
    """To each task that of its successor in a random round of them all."""
    round_E = torch.randperm(len(sentence_ED), generator=torch_stream(seed, "sentences", "shuffled"))
    other_ED = torch.empty_like(sentence_ED)
    other_ED[round_E] = sentence_ED[round_E.roll(1)]
    return other_ED


def _mean_answers(made: TextGenerators, draws: Sequence[LatentsOf], asked: Asked) -> Tensor:
    return torch.cat([_from_latents(made, latents_of)(asked) for latents_of in draws])


def _best_latent(made: TextGenerators, draws: Sequence[LatentsOf], asked: Asked) -> Tensor:
    """Of several draws the one that the labelled images fit best."""
    latent_GEZ = torch.stack([latents_of(asked) for latents_of in draws])
    loss_GE = torch.stack([_loss(made, made.source.decode(latent_EZ), asked) for latent_EZ in latent_GEZ])
    return latent_GEZ[loss_GE.argmin(0), torch.arange(loss_GE.shape[1], device=loss_GE.device)]


def _mean_latent(source: LatentSource, asked: Asked) -> Tensor:
    return source.latent_CZ.mean(0).expand(len(asked.sentence_ED), -1)


def _nearest(source: LatentSource, told: Told, asked: Asked) -> Tensor:
    likeness_EN = normalize(asked.sentence_ED, dim=-1) @ normalize(told.sentence_ND, dim=-1).T
    return source.latent_CZ[told.concept_N[likeness_EN.argmax(1)]]


def _ridge(source: LatentSource, told: Told, ridge: float, asked: Asked) -> Tensor:
    """Of latents about their mean, from standardised sentences; in float64."""
    x_ND, latent_NZ = told.sentence_ND.double(), source.latent_CZ[told.concept_N].double()
    mean_Z = latent_NZ.mean(0)
    weight_DZ = torch.linalg.solve(x_ND.T @ x_ND + ridge * torch.eye(x_ND.shape[1]).to(x_ND), x_ND.T @ (latent_NZ - mean_Z))
    found_EZ: Tensor = (asked.sentence_ED.double() @ weight_DZ + mean_Z).float()
    return found_EZ


def _climbed(method: HyperCLIP, pull: float, asked: Asked) -> Tensor:
    return method.latents(asked.sentence_ED, _no_noise, pull=pull)


class FirstLatent:
    """Where adaptation to as many labelled images a way begins: found once for what is asked, though by several candidates."""

    def __init__(self, latents_of: LatentsOf, count: int) -> None:
        self.latents_of, self.count = latents_of, count
        self._found: tuple[Asked, Asked, Tensor] | None = None

    def __call__(self, asked: Asked) -> tuple[Asked, Tensor]:
        """With no more images than may be seen."""
        if self._found is None or self._found[0] is not asked:
            shown = asked.shown(self.count)
            self._found = asked, shown, self.latents_of(shown)
        return self._found[1:]


def _adaptations(made: TextGenerators, section: Evaluate, start: FirstLatent) -> dict[str, AnswersOf]:
    adapted = partial(_adapted, made, start, lr=section.adapt_lr, steps=section.adapt_steps)
    return {f"pull {pull:g}": _from_latents(made, partial(adapted, pull)) for pull in section.adapt_pulls}


def _adapted(made: TextGenerators, start: FirstLatent, pull: float, asked: Asked, *, lr: float, steps: int) -> Tensor:
    """By Adam on the latent, on the labelled images."""
    shown, start_EZ = start(asked)
    return fitted(made.source, start_EZ, lambda theta_EP: _loss(made, theta_EP, shown), pull=pull, lr=lr, steps=steps)


def _loss(made: TextGenerators, theta_EP: Tensor, asked: Asked) -> Tensor:
    """(E,): cross-entropy of the labelled images."""
    inputs_ENI = asked.support_EWSI.flatten(1, 2)
    scores_ENW = made.learner.scores(theta_EP, made.learner.inputs(inputs_ENI))
    return answer_loss(scores_ENW, answers(asked.support_EWSI.shape[2]).to(scores_ENW.device)).mean(1)


def choice_of(candidates: Mapping[str, AnswersOf], asked: Asked, target_Q: Tensor, tasks_E: Tensor) -> tuple[str, Tensor]:
    """The best accuracy on these tasks, the first of equals; and its scores of all."""
    found = {name: answers_of(asked).cpu() for name, answers_of in candidates.items()}

    def right(name: str) -> int:
        return int(correct_counts(log_probabilities(found[name], TYPICAL), target_Q)[tasks_E.numpy()].sum())

    best = max(found, key=right)
    return best, found[best]
