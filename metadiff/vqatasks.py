"""Tasks of Meta-VQA as tensors: a model is told the question, and an adapter's weights are judged by the answers to images.

Shapes: T tasks, E examples of all of them, B tasks of a batch, N images and A answers of a task (padded where others have more),
D numbers of a vector, P weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from metadiff.adapter import NONE, Adapter, Generated
from metadiff.described import LEAST, Groups, SentenceBatch
from metadiff.errors import DataError
from metadiff.metavqa import MetaVQA, VQATask
from metadiff.rng import numpy_stream
from metadiff.standard import Standard

HELD = 10  # one training task of so many is for validation


@dataclass(frozen=True)
class Features:
    """Of all images and sentences; on the device where a model is."""

    images_ID: Tensor
    texts_TD: Tensor

    @classmethod
    def of(cls, data: MetaVQA, device: str) -> Features:
        return cls(*(torch.from_numpy(rows).to(device) for rows in (data.images_ID, data.texts_TD)))


@dataclass(frozen=True)
class VQABatch(SentenceBatch):
    features: Features
    image_BN: Tensor  # a row of the images
    answer_BA: Tensor  # a row of the texts, or none
    target_BN: Tensor  # the number of an answer, or none where there is no image

    def scores(self, learner: Adapter, theta_BP: Tensor) -> Tensor:
        """(B, N, A)."""
        images_BND, answers_BAD = self.features.images_ID[self.image_BN], self.features.texts_TD[self.answer_BA]
        return learner.scores(theta_BP, images_BND, answers_BAD, self.answer_BA != NONE)

    def losses(self, learner: Adapter, theta_BP: Tensor) -> Tensor:
        """(B,): mean cross-entropy of each task's images."""
        scores_BNA = self.scores(learner, theta_BP)
        losses = cross_entropy(scores_BNA.flatten(0, 1), self.target_BN.flatten(), ignore_index=NONE, reduction="none")
        return losses.view_as(self.target_BN).sum(1) / (self.target_BN != NONE).sum(1)

    def loss(self, learner: Generated, theta_BP: Tensor) -> Tensor:
        assert isinstance(learner, Adapter)
        return self.losses(learner, theta_BP).mean()

    def right(self, learner: Adapter, theta_BP: Tensor) -> Tensor:
        """(B,): of how many images the best answer is the right one."""
        return (self.scores(learner, theta_BP).argmax(-1) == self.target_BN).sum(1)


@dataclass(frozen=True)
class VQATasks:
    features: Features
    sentence_TD: Tensor  # standardised
    answers: Groups
    support: Groups  # numbers of examples,
    query: Groups
    pooled: Groups  # and both together
    image_E: Tensor
    target_E: Tensor

    @classmethod
    def of(cls, tasks: Sequence[VQATask], features: Features, scale: Standard) -> VQATasks:
        parts = [part for task in tasks for part in (task.support_S2, task.query_Q2)]
        runs = [range(*ends) for ends in pairwise([0, *np.cumsum([len(part) for part in parts]).tolist()])]
        pooled = [range(support.start, query.stop) for support, query in zip(runs[::2], runs[1::2], strict=True)]
        image_E, target_E = torch.from_numpy(np.concatenate(parts)).unbind(1)
        told_TD = scale.standardise(features.texts_TD[[task.question_row for task in tasks]])
        answers = Groups.of([task.answer_row_A.tolist() for task in tasks])
        support, query, both = (Groups.of(group) for group in (runs[::2], runs[1::2], pooled))
        return cls(features, told_TD, answers, support, query, both, image_E, target_E)

    def __len__(self) -> int:
        return len(self.sentence_TD)

    def draw(self, generator: Generator, *, tasks: int, images: int) -> VQABatch:
        """Any tasks, and of each any images, of the support or the query."""
        which_B = torch.randint(len(self), (tasks,), generator=generator)
        return self.batch(which_B, self.pooled.draw(which_B, images, generator))

    def batch(self, which_B: Tensor, example_BN: Tensor) -> VQABatch:
        """These tasks with these examples, or none."""
        device = self.sentence_TD.device
        told_B, target_BN = which_B.to(device), self.target_E[example_BN].masked_fill(example_BN == NONE, NONE)
        rows = (part.to(device) for part in (self.image_E[example_BN], self.answers.whole(which_B), target_BN))
        plain_B = torch.ones_like(told_B, dtype=torch.bool)
        return VQABatch(self.sentence_TD[told_B], told_B, which_B, plain_B, self.features, *rows)

    def shown(self, which_B: Tensor) -> VQABatch:
        return self.batch(which_B, self.support.whole(which_B))

    def asked(self, which_B: Tensor) -> VQABatch:
        return self.batch(which_B, self.query.whole(which_B))

    def told(self, sentence_TD: Tensor) -> VQATasks:
        """The same tasks by other sentences."""
        return replace(self, sentence_TD=sentence_TD)


@dataclass(frozen=True)
class VQASplits:
    train: VQATasks
    val: VQATasks
    test: VQATasks
    questions: dict[str, list[str]]  # of each

    @classmethod
    def of(cls, data: MetaVQA, *, seed: int, device: str) -> VQASplits:
        """A tenth of the training tasks is set aside for validation; DataError if there are too few."""
        if min(len(data.train), len(data.test)) < 2:
            raise DataError(f"{len(data.train)} training and {len(data.test)} test tasks: it takes two of each")
        order = numpy_stream(seed, "metavqa", "validation").permutation(len(data.train))
        held = {*order[: max(1, len(order) // HELD)].tolist()}
        tasks = {
            "train": [task for place, task in enumerate(data.train) if place not in held],
            "val": [data.train[place] for place in sorted(held)],
            "test": [*data.test],
        }
        features = Features.of(data, device)
        scale = Standard.of(features.texts_TD[[task.question_row for task in tasks["train"]]], least=LEAST)
        train, val, test = (VQATasks.of(some, features, scale) for some in tasks.values())
        return cls(train, val, test, {split: [task.question for task in some] for split, some in tasks.items()})
