"""Of each generator of whole weights, on validation episodes: whether it gives weights that it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metadiff.candidates import Candidate, OfWeights
from metadiff.conditioning import BaseTasks
from metadiff.diffusion import gaussian_noise
from metadiff.episodes import Episodes
from metadiff.evaluation import BATCH, learner_scores, targets
from metadiff.memory import SAMPLE, Remembered, compared, overlap, verdict
from metadiff.paths import PathImages, as_shown, followed
from metadiff.pictures import Pictures
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.symmetry import with_classes
from metadiff.weightclassifiers import WITHOUT_NOISE, WeightGenerators, drawn_weights
from metadiff.weightgenerator import WeightGenerator
from stages.curves import curve_episodes
from stages.runner import Run

if TYPE_CHECKING:
    from metadiff.params import Evaluate
    from metadiff.trajectory_store import TrajectoryStore


def memory_facts(
    run: Run[Evaluate],
    weights: WeightGenerators,
    store: TrajectoryStore,
    tuned: Candidate,
    *,
    pictures: Pictures,
    data: Rows,
) -> dict[str, Any]:
    """By model; how far fine-tuned classifiers err on the same queries is what to compare the overlap of errors with."""
    section, drawing = run.params, {model: made for model, made in weights.items() if model not in WITHOUT_NOISE}
    if not drawing:
        return {}
    episodes = curve_episodes(section, data)[max(section.shots)]
    tuned_EQ = tuned.scores(pictures, episodes)[""][0].argmax(-1)
    known: dict[bytes, Remembered] = {}  # by the start of the paths: most generators learn from the same ones
    facts: dict[str, Any] = {}
    with run.progress("memory", total=len(drawing), unit="generators") as advance:
        for model, made in drawing.items():
            start = made.scale.shift_P.cpu().numpy().tobytes()
            if start not in known:
                known[start] = Remembered(ends_of(made, store, pictures, data), made.scale, made.learner)
            several = OfWeights(drawn_weights(made, section, draws=2), made.logits)
            drawn_GEP = several.adapt(pictures, episodes)
            facts[model] = {"reconstruction": reconstruction(made, known[start], store, section, pictures=pictures, data=data)}
            facts[model] |= memory_of(made, known[start], drawn_GEP, tuned_EQ, pictures=pictures, episodes=episodes)
            run.say(f"{model} {facts[model]['verdict']}")
            advance(1)
            run.stop_if_asked("while looking at what was learned by heart", "looks anew, after the classifiers")
    return facts


def ends_of(made: WeightGenerator, store: TrajectoryStore, pictures: Pictures, data: Rows) -> Tensor:
    """Where the paths ended that it learned from: the recorded ones or, if they all begin at one start, others from there."""
    most = compared(made.learner.size)
    if not made.scale.shift_P.any():
        return torch.from_numpy(store.end_points(most)).to(pictures.device)
    seen_NE, kept = made.inputs.seen(as_shown(store, pictures, data)), (store.attributes["params"]["steps"],)
    return followed(store, made.learner, seen_NE, made.scale.shift_P, kept=kept, most=most)[:, 0]


@torch.no_grad()
def reconstruction(
    made: WeightGenerator, known: Remembered, store: TrajectoryStore, section: Evaluate, *, pictures: Pictures, data: Rows
) -> float:
    """How far from a path's end its generator comes out, told of images that it has seen; 1: as far as the nearest other end."""
    shown, ends_AP = as_shown(store, pictures, data), known.end_BP[:SAMPLE]
    rows_AWS = own_supports(store, shown.features, data, max(section.shots), section.seed)[: len(ends_AP)]
    drawn_AP = made.weights(shown[rows_AWS.to(shown.device)], gaussian_noise(torch_stream(section.seed, "reconstruction")))
    return round(float(known.distances(drawn_AP, ends_AP).median()) / known.typical, 4)


def own_supports(store: TrajectoryStore, features_ND: Tensor, data: Rows, shot: int, seed: int) -> Tensor:
    """(N, W, S): rows of some of the images that the first paths have seen."""
    seen = PathImages.of(store)
    if seen.rows_NWS is not None:
        return seen.rows_NWS[:SAMPLE, :, :shot]
    images = BaseTasks(features_ND, data)
    classes_NW = images.numbers_of(seen.classes_NW[:SAMPLE])
    return images.rows(classes_NW, min(shot, int(images.counts_C.min())), torch_stream(seed, "reconstruction", "images"))


@torch.no_grad()
def memory_of(
    made: WeightGenerator,
    known: Remembered,
    drawn_GEP: Tensor,
    tuned_EQ: Tensor,
    *,
    pictures: Pictures,
    episodes: Episodes,
) -> dict[str, Any]:
    """Of its first draw: medians of distances, the errors that it shares, and the verdict."""
    near, target_Q = known.near(drawn_GEP[0]), targets(episodes)
    nearest_EP = with_classes(known.end_BP[near.index_A], near.order_AW, made.learner)
    heads_GEP = torch.cat([drawn_GEP, nearest_EP[None]])
    first_EQ, second_EQ, nearest_EQ = learner_scores(
        torch.split(heads_GEP, BATCH, dim=1), made.logits, pictures, episodes
    ).argmax(-1)
    distance_E = np.asarray(near.distance_A.cpu())
    rivals = {"nearest": nearest_EQ, "draws": second_EQ, "finetune-random": tuned_EQ}
    return {
        "to_training": round(float(np.median(distance_E)), 4),
        "among_training": round(known.typical, 4),
        "ratio": round(float(np.median(distance_E)) / known.typical, 4),
        "training_weights": len(known.end_BP),
        "overlap": {name: round(overlap(first_EQ, other_EQ, target_Q), 4) for name, other_EQ in rivals.items()},
        "verdict": verdict(distance_E, known.typical),
    }
