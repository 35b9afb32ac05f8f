"""Trajectories: the path that an optimiser takes through the weights of a base learner, for many training tasks at once.

Task number i, with its classes, its support and its start, is a pure function of (seed, i). All tasks of a block are one tensor
program: torch's optimisers work element by element, so one of them over the batch theta_TP is one of its own for every task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.episodes import Episodes
from metadiff.learner import BaseLearner, Learner, Perceptron
from metadiff.network import Network
from metadiff.objectives import Objective, OnClasses, OnSupport
from metadiff.rng import numpy_stream, torch_stream

if TYPE_CHECKING:
    from metadiff.params import Collect

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
NOT_FINITE, NOT_IMPROVED = "not finite", "not improved"


@dataclass(frozen=True)
class Trajectories:
    """T tasks at K kept steps; classes (of a described task its number) and support are row numbers of the data's own tables."""

    task_T: Ints
    classes_TW: Ints
    support_TWS: Ints
    weights_TKP: Floats
    loss_TK: Floats
    accuracy_TK: Floats

    def take(self, chosen: NDArray[np.bool_] | slice) -> Trajectories:
        return Trajectories(**{name: values[chosen] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Rule:
    """How an optimiser is set: `momentum` is that of SGD or Adam's first beta, `sam` the radius of the sharpness, 0 for none.

    The decay of the weights is decoupled (Loshchilov and Hutter 2019): of Adam it makes AdamW.
    """

    optimizer: str
    lr: float
    momentum: float
    sam: float
    weight_decay: float = 0.0


def kept_steps(steps: int, keep: int) -> tuple[int, ...]:
    """Equidistant, as far as whole numbers are, from the start to the end."""
    return tuple(i * steps // (keep - 1) for i in range(keep))


def learner_of(section: Collect, dim: int, shape: tuple[int, int, int]) -> BaseLearner:
    """One that sees as many numbers of a feature vector or, if it is a network, images of this height, width and colours."""
    if section.learner == "conv":
        return Network("conv", section.way, shape[0], shape[2], section.channels)
    if section.learner == "mlp":
        return Perceptron("mlp", section.way, dim, section.hidden)
    return Learner(section.learner, section.way, dim, section.scale)


def starts(numbers: range, learner: BaseLearner, *, std: float, seed: int, common: bool = False) -> Tensor:
    """Random weights, a stream a task or, if they have a common start, one for all."""
    if common:
        return learner.start(numpy_stream(seed, "collect", "start"), std).repeat(len(numbers), 1)
    return torch.stack([learner.start(numpy_stream(seed, "collect", "start", number), std) for number in numbers])


def noises(numbers: range, shape: tuple[int, ...], *, std: float, seed: int) -> Callable[[int], Tensor]:
    """What gives the Gaussian noise of a step, a stream a task and step: it does not depend on the other tasks of a block."""

    def noise(step: int) -> Tensor:
        streams = (torch_stream(seed, "collect", "noise", number, step) for number in numbers)
        return std * torch.stack([torch.randn(shape, generator=stream) for stream in streams])

    return noise


@torch.no_grad()
def follow(objective: Objective, start_TP: Tensor, *, rule: Rule, kept: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (T, K, P), loss and accuracy (T, K) at each kept step, the last of which is the end."""
    theta_TP = start_TP.clone().requires_grad_()
    optimizer = _optimizer(rule, theta_TP)
    weights, measures = [], []
    for step in range(kept[-1] + 1):
        if step:
            theta_TP.grad = _slope(objective.at(step), theta_TP.detach(), radius=rule.sam)
            theta_TP.mul_(1 - rule.lr * rule.weight_decay)
            optimizer.step()
        if step in kept:
            weights.append(theta_TP.detach().clone())
            measures.append(torch.stack(objective.measure(theta_TP.detach())))
    loss_TK, accuracy_TK = torch.stack(measures, dim=-1)
    return torch.stack(weights, dim=1), loss_TK, accuracy_TK


def _optimizer(rule: Rule, theta_TP: Tensor) -> torch.optim.Optimizer:
    if rule.optimizer == "sgd":
        return torch.optim.SGD([theta_TP], lr=rule.lr, momentum=rule.momentum)
    return torch.optim.Adam([theta_TP], lr=rule.lr, betas=(rule.momentum, 0.999))


def _slope(objective: Objective, theta_TP: Tensor, *, radius: float) -> Tensor:
    """The gradient or, for sharpness-aware minimisation (Foret et al. 2021, eq. 3), that at the worst point of a task's ball."""
    slope_TP = objective.gradient(theta_TP)
    if not radius:
        return slope_TP
    return objective.gradient(theta_TP + radius * slope_TP / slope_TP.norm(dim=1, keepdim=True).clamp_min(1e-12))


def collect_block(
    section: Collect,
    learner: BaseLearner,
    numbers: range,
    drawn: Episodes,
    *,
    seen_NE: Floats,
    label_N: Ints,
    seed: int,
    device: str,
) -> Trajectories:
    """The trajectories of the tasks of these numbers, good and bad, from what is seen of images: it runs on any worker."""
    objective = _objective(section, learner, numbers, drawn, seen_NE=seen_NE, label_N=label_N, seed=seed, device=device)
    start_TP = starts(numbers, learner, std=section.init_std, seed=seed, common=section.start == "common").to(device)
    rule = Rule(section.optimizer, section.lr, section.momentum, section.sam, section.weight_decay)
    path = follow(objective, start_TP, rule=rule, kept=kept_steps(section.steps, section.keep))
    weights_TKP, loss_TK, accuracy_TK = (part.cpu().numpy() for part in path)
    task_T = np.arange(numbers.start, numbers.stop, dtype=np.int32)
    return Trajectories(task_T, drawn.classes_EW, drawn.support_EWS, weights_TKP, loss_TK, accuracy_TK)


def _objective(
    section: Collect,
    learner: BaseLearner,
    numbers: range,
    drawn: Episodes,
    *,
    seen_NE: Floats,
    label_N: Ints,
    seed: int,
    device: str,
) -> Objective:
    seen = torch.from_numpy(seen_NE).to(device)
    if section.sees == "support":
        support_TWSE = seen[torch.from_numpy(drawn.support_EWS).long().to(device)]
        noise = noises(numbers, tuple(support_TWSE.shape[1:]), std=section.noise, seed=seed)
        return OnSupport(learner, support_TWSE, noise if section.noise else None)
    assert isinstance(learner, Learner), "conflicts.py refuses the others"
    label, classes = (torch.from_numpy(ids).long().to(device) for ids in (label_N, drawn.classes_EW))
    return OnClasses(learner, seen, label, classes)


def refusals(found: Trajectories) -> dict[str, NDArray[np.bool_]]:
    """For each reason the tasks that must not be used: a kept number that is not finite, or a loss that did not become lower."""
    finite_T = np.asarray(np.isfinite(found.weights_TKP).all((1, 2)) & np.isfinite(found.loss_TK).all(1))
    return {NOT_FINITE: ~finite_T, NOT_IMPROVED: finite_T & ~(found.loss_TK[:, -1] < found.loss_TK[:, 0])}
