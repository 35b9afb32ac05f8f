"""What a task's weights are optimised for: cross-entropy on its support, or on all images of its classes.

Each class of a task weighs the same. `gradient` gives the slope of every task's own loss, `measure` its loss and accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metadiff.learner import BaseLearner, Learner


class Objective(Protocol):
    def at(self, step: int) -> Objective:
        """What the gradient of this step is taken of."""
        ...

    def gradient(self, theta_TP: Tensor) -> Tensor: ...

    def measure(self, theta_TP: Tensor) -> tuple[Tensor, Tensor]: ...


class OnSupport:
    """Every task sees its own few images, as many a class: one batched product.

    ``noise`` gives what is added to them at a step (T, W, S, D): loss and accuracy are measured without it.
    """

    def __init__(self, learner: BaseLearner, support_TWSD: Tensor, noise: Callable[[int], Tensor] | None = None) -> None:
        self.learner, self.support_TWSD, self.noise = learner, support_TWSD, noise
        way, shot = support_TWSD.shape[1:3]
        self.inputs_TNE = learner.inputs(support_TWSD.flatten(1, 2))
        self.target_N = torch.arange(way, device=support_TWSD.device).repeat_interleave(shot)
        self.hot_NW = torch.eye(way, dtype=support_TWSD.dtype, device=support_TWSD.device)[self.target_N]

    def at(self, step: int) -> Objective:
        if self.noise is None:
            return self
        return OnSupport(self.learner, self.support_TWSD + self.noise(step).to(self.support_TWSD))

    def gradient(self, theta_TP: Tensor) -> Tensor:
        return self.learner.slope(theta_TP, self.inputs_TNE, self.hot_NW)

    def measure(self, theta_TP: Tensor) -> tuple[Tensor, Tensor]:
        logits_TNW = self.learner.scores(theta_TP, self.inputs_TNE)
        loss_T = -(logits_TNW.log_softmax(-1) * self.hot_NW).sum(-1).mean(-1)
        return loss_T, (logits_TNW.argmax(-1) == self.target_N).to(loss_T).mean(-1)


@dataclass(frozen=True)
class _Members:
    """A class: its images, and the K tasks in which it is class number `place`."""

    inputs_NE: Tensor
    task_K: Tensor
    place_K: Tensor
    hot_WK: Tensor


class OnClasses:
    """Every task sees all images of its classes. Tasks share the images of a class, so the loop is over classes: no image is
    copied for a task, nothing is padded, and each class costs one product for all its tasks together."""

    def __init__(self, learner: Learner, features_ND: Tensor, label_N: Tensor, classes_TW: Tensor) -> None:
        self.learner = learner
        self.members = tuple(_members(learner.inputs(features_ND), label_N, classes_TW))

    def at(self, step: int) -> Objective:
        return self  # images that tasks share are left as they are

    def gradient(self, theta_TP: Tensor) -> Tensor:
        rows_WTE = self._rows(theta_TP)
        slope_WTE = torch.zeros_like(rows_WTE)
        for of in self.members:
            error_NWK = _logits(of, rows_WTE).softmax(1).sub_(of.hot_WK)
            slope_WKE = (error_NWK.flatten(1).mT @ of.inputs_NE).view(*of.hot_WK.shape, -1)
            slope_WTE.index_add_(1, of.task_K, slope_WKE, alpha=1 / (len(of.inputs_NE) * self.learner.way))
        return self.learner.gradient(theta_TP, slope_WTE.transpose(0, 1))

    def measure(self, theta_TP: Tensor) -> tuple[Tensor, Tensor]:
        rows_WTE = self._rows(theta_TP)
        loss_T, accuracy_T = theta_TP.new_zeros(2, len(theta_TP))
        for of in self.members:
            logits_NWK = _logits(of, rows_WTE)
            loss_K = -(logits_NWK.log_softmax(1) * of.hot_WK).sum(1).mean(0)
            loss_T.index_add_(0, of.task_K, loss_K, alpha=1 / self.learner.way)
            hit_K = (logits_NWK.argmax(1) == of.place_K).to(loss_T).mean(0)
            accuracy_T.index_add_(0, of.task_K, hit_K, alpha=1 / self.learner.way)
        return loss_T, accuracy_T.clamp_max(1)  # shares that add up to 1 by rounding to a little more

    def _rows(self, theta_TP: Tensor) -> Tensor:
        return self.learner.rows(theta_TP).transpose(0, 1).contiguous()


def _members(inputs_NE: Tensor, label_N: Tensor, classes_TW: Tensor) -> Iterator[_Members]:
    way = classes_TW.shape[1]
    for label in sorted(set(classes_TW.flatten().tolist())):
        task_K, place_K = (classes_TW == label).nonzero(as_tuple=True)
        hot_WK = torch.eye(way, dtype=inputs_NE.dtype, device=inputs_NE.device)[:, place_K]
        yield _Members(inputs_NE[label_N == label], task_K, place_K, hot_WK)


def _logits(of: _Members, rows_WTE: Tensor) -> Tensor:
    rows_WKE = rows_WTE.index_select(1, of.task_K)
    logits_NWK: Tensor = (of.inputs_NE @ rows_WKE.flatten(0, 1).mT).view(-1, *of.hot_WK.shape)
    return logits_NWK
