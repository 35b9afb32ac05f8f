"""The smallest proof: a world in which the best classifier is known, and how near to it each generator of rows comes.

Class means are drawn from N(0, Sb) and the images of a class from N(its mean, I). Sb is wide in some directions and narrow in
others, and turned, so that no single feature tells which: how far a support mean can be trusted differs by direction, and has to
be learned from base classes. Images are round because any world whose Sw is known can be whitened until they are; then the rule
that suits a row is the nearest row, and all rows are judged by it, on the very same episodes of classes that nobody has seen.

With S shots the mean of a class, given its support, is N(m, P) with m = G (support mean), G = Sb (Sb + I / S)^-1, P = Sb - G Sb.
``bayes`` is the Bayes classifier proper: the class under whose prediction N(m, P + I) a query is likeliest. P is the same for
all classes, so it is the nearest m too, only with distances measured by P + I; ``posterior`` is m under the rule of all others.
A diffusion that has learned its task draws from N(m, P), and a draw is a worse row than the mean: ``posterior-draw`` is what one
true draw is worth, to be compared with ``metadiff``, one draw in many steps; and m with ``metadiff-mean``, the mean
of draws in few steps, which come in pairs that start from opposite noise, so that few of them do.

All that is free here was chosen on the world of seed 1, which has directions and classes of its own; README's table is of seed 0,
which was seen before the numbers of sampling steps of single draws were last changed.
Shapes: G draws, E episodes, W ways, S shots, Q queries of an episode, D features, C classes, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.conditioning import BaseTasks, Batch
from metadiff.diffusion import Noise, gaussian_noise
from metadiff.episodes import Episodes, draw_episodes
from metadiff.evaluation import correct_counts, targets
from metadiff.generator import Generator
from metadiff.metatraining import MetaTraining, pace_of, rows_lesson
from metadiff.methods import Method, Sampling
from metadiff.methods.metadiff import build, network_facts
from metadiff.params import Metatrain, Model
from metadiff.rng import numpy_stream, torch_stream
from metadiff.rows import SPLITS, Rows

WIDEST, NARROWEST = 4.0, 0.02  # variances of the class means along the axes of Sb, the others between in equal ratios
MODELS: tuple[Model, ...] = ("task", "regression", "gradient")
WAY, SHOTS = 5, (1, 5)
WIDE = 40  # ways of a training task: rows are learned one by one, and many in few tasks are quicker to draw
DDIM = Sampling("ddim", 10)
FINE = Sampling("ddim", 50)  # with few steps a single draw is too near to the mean
MEAN_STEP = Sampling("mean-step", 100)  # how the reference samples; its 1000 steps end in the same place
CLASSIFIERS = (
    *("ncm", "gradient-untrained", "gradient", "regression"),
    *("posterior-draw", "metadiff", "metadiff-mean", "posterior", "bayes"),
)
Advance = Callable[[int], None]
Scores = Mapping[int, Mapping[str, NDArray[np.float64]]]  # per cent of each episode, by shots and classifier


@dataclass(frozen=True)
class Size:
    """What a run costs; the defaults take less than a minute on one core."""

    features: int = 16
    base: int = 2000  # classes to learn from,
    images: int = 50  #   with as many images each
    test: int = 1000  # classes to be judged on
    query: int = 15
    episodes: int = 2000
    steps: int = 1000  # of training, for each model
    draws: int = 8  # of metadiff-mean


@dataclass(frozen=True)
class World:
    """Images of base and of test classes, and what only the maker of a world knows."""

    features_ND: Tensor
    data: Rows
    means_CD: Tensor  # float64, as are
    between_DD: Tensor  #   these two
    axes_DD: Tensor  # the directions of Sb, one a column, the widest first


def make_world(size: Size, seed: int) -> World:
    rng = numpy_stream(seed, "toy", "world")
    axes_DD = np.linalg.qr(rng.standard_normal((size.features, size.features)))[0]
    variance_D = np.geomspace(WIDEST, NARROWEST, size.features)
    counts = np.repeat([size.images, max(SHOTS) + size.query], [size.base, size.test])
    label = np.repeat(np.arange(len(counts)), counts)
    means_CD = rng.standard_normal((len(counts), size.features)) * np.sqrt(variance_D) @ axes_DD.T
    x_ND = means_CD[label] + rng.standard_normal((len(label), size.features))
    split = np.where(label < size.base, SPLITS.index("train"), SPLITS.index("test"))
    data = Rows(
        label=label.astype(np.int32),
        split=split.astype(np.uint8),
        group=np.arange(len(label), dtype=np.int32),
        source=np.zeros(len(label), "S1"),
        classes=np.array([f"class {number}".encode() for number in range(len(counts))]),
        dataset="toy",
    )
    between_DD = torch.from_numpy((axes_DD * variance_D) @ axes_DD.T)
    return World(torch.from_numpy(x_ND).float(), data, torch.from_numpy(means_CD), between_DD, torch.from_numpy(axes_DD))


def posterior(support_EWSD: Tensor, between_DD: Tensor) -> tuple[Tensor, Tensor]:
    """m of each class and the P of all, by the true Sb; float64."""
    around_DD = torch.eye(len(between_DD), dtype=torch.float64) / support_EWSD.shape[2]
    gain_DD = torch.linalg.solve(between_DD + around_DD, between_DD).T
    return support_EWSD.double().mean(2) @ gain_DD.T, between_DD - gain_DD @ between_DD


def nearest(rows_EWD: Tensor, queries_EQD: Tensor, covariance_DD: Tensor | None = None) -> Tensor:
    """(E, Q, W): the nearer a row, the higher; distances are Euclidean or, given a covariance, measured by it."""
    if covariance_DD is not None:
        root_DD = torch.linalg.cholesky(torch.linalg.inv(covariance_DD))
        rows_EWD, queries_EQD = rows_EWD @ root_DD, queries_EQD.double() @ root_DD
    return -torch.cdist(queries_EQD.to(rows_EWD.dtype), rows_EWD)


def learn(world: World, size: Size, seed: int, advance: Advance) -> dict[str, Generator]:
    """The three models, and the gradient's as it began: the reference evaluates an average of weights that it never updates."""
    tasks = BaseTasks(world.features_ND, world.data)
    begun = Generator(training(tasks, size, "gradient", seed).method, tasks.scales)
    return {"gradient-untrained": begun} | {
        model: Generator(train(training(tasks, size, model, seed), advance), tasks.scales) for model in MODELS
    }


def training(tasks: BaseTasks, size: Size, model: str, seed: int) -> MetaTraining[Method, Batch]:
    fixed: dict[str, Any] = {"batch": 8, "lr": 2e-3, "weight_decay": 0.01, "ema": 0.995, "hidden": 64, "dropout": 0.0}
    fixed |= {"joint": False, "sum_over_shots": False, "schedule": "linear", "times": 1000, "bf16": False, "compile": False}
    fixed |= {
        "target": "class-means",
        "whitened": 0.0,
        "spread": 1.0,
        "correct": "means",
        "ridge": 1.0,
        "sampler": DDIM.sampler,
        "sampling_steps": DDIM.steps,
        "gradient_steps": DDIM.steps,
    }
    fixed |= {"val_every": 50, "val_query": size.query, "val_episodes": size.episodes}
    section = Metatrain(models=MODELS, way=min(WIDE, size.base), shots=SHOTS, steps=size.steps, **fixed)
    method = build(network_facts(section, model, feature_size=size.features, seed=seed))
    lesson = rows_lesson(section, tasks, score=lambda _method: 0.0)
    return MetaTraining(pace_of(section), method, lesson, seed=seed)


def train(begun: MetaTraining[Method, Batch], advance: Advance) -> Method:
    """With the average of the weights after the last step: nothing is chosen on the way."""
    while not begun.finished:
        done = begun.step
        begun.run()
        advance(begun.step - done)
    begun.method.net.load_state_dict(begun.average)
    return begun.method


@torch.no_grad()
def judge(world: World, generators: Mapping[str, Generator], size: Size, seed: int, advance: Advance) -> Scores:
    """Every classifier on the very same episodes; ``advance`` counts episodes."""
    scores: dict[int, dict[str, NDArray[np.float64]]] = {shot: {} for shot in SHOTS}
    for shot in SHOTS:
        episodes = test_episodes(world, size, shot, seed)
        support_EWSD = world.features_ND[torch.from_numpy(episodes.support_EWS).long()]
        queries_EQD = world.features_ND[torch.from_numpy(episodes.query_EWQ).long().flatten(1)]
        predicted_DD = posterior(support_EWSD, world.between_DD)[1] + torch.eye(size.features, dtype=torch.float64)
        for name, rows_EWD in class_rows(world, generators, support_EWSD, draws=size.draws, seed=seed):
            found_EQW = nearest(rows_EWD, queries_EQD, predicted_DD if name == "bayes" else None)
            scores[shot][name] = 100 * correct_counts(found_EQW, targets(episodes)) / queries_EQD.shape[1]
            advance(size.episodes)
    return scores


def test_episodes(world: World, size: Size, shot: int, seed: int) -> Episodes:
    return draw_episodes(world.data, "test", way=WAY, shot=shot, query=size.query, episodes=size.episodes, seed=seed)


def class_rows(
    world: World, generators: Mapping[str, Generator], support_EWSD: Tensor, *, draws: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """The rows of each of CLASSIFIERS, (E, W, D)."""
    mean_EWD, covariance_DD = posterior(support_EWSD, world.between_DD)
    noise = gaussian_noise(torch_stream(seed, "toy", "posterior"))
    yield "ncm", support_EWSD.mean(2)
    for name, sampling in (("gradient-untrained", MEAN_STEP), ("gradient", MEAN_STEP), ("regression", DDIM)):
        yield name, drawn(generators[name], support_EWSD, sampling, draws=1, seed=seed)[0]
    yield "posterior-draw", mean_EWD + noise(mean_EWD) @ torch.linalg.cholesky(covariance_DD).T
    yield "metadiff", drawn(generators["task"], support_EWSD, FINE, draws=1, seed=seed)[0]
    yield "metadiff-mean", drawn(generators["task"], support_EWSD, DDIM, draws=draws, seed=seed).mean(0)
    yield "posterior", mean_EWD
    yield "bayes", mean_EWD


def drawn(generator: Generator, support_EWSD: Tensor, sampling: Sampling, *, draws: int, seed: int) -> Tensor:
    """(G, E, W, D). No row looks at the others, so all stand in one wide task, where the network sees each time once."""
    wide = support_EWSD.flatten(0, 1)[None].repeat(1, draws, 1, 1)
    noise = gaussian_noise(torch_stream(seed, "toy", "draws"))
    rows = generator.rows(wide, sampling, in_pairs(noise) if draws > 1 else noise)
    return rows.view(draws, *support_EWSD.shape[:2], -1)


def in_pairs(noise: Noise) -> Noise:
    """The second half of the ways starts from the opposite of what the first half starts from."""

    def draw(like: Tensor) -> Tensor:
        first, second = like.chunk(2, dim=1)
        half = noise(first)
        return torch.cat([half, -half[:, : second.shape[1]]], dim=1)

    return draw
