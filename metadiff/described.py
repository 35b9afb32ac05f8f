"""Described tasks as tensors: the vectors of their sentences, and images that a sentence is right or wrong of.

Shapes: T tasks, C templates of a sentence, D numbers of its vector; B tasks of a batch, W = 2 ways (no, yes), S images a way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from metadiff.adapter import NONE, Generated
from metadiff.concepts import DescribedTask
from metadiff.errors import DataError
from metadiff.learner import Perceptron
from metadiff.rows import SPLITS, Rows
from metadiff.standard import Standard
from metadiff.vectors import Vectors

AMBIGUOUS = ("some", "either")  # kinds of task whose sentence has several right answers
LEAST = 1e-3  # deviation of a number of a sentence's vector


def sentence_scale(tasks: Sequence[DescribedTask], vectors: Vectors) -> Standard:
    """Over the sentences of training."""
    told = sorted({text for task in tasks if task.split == "train" for text in trained_texts(task)})
    if not told:
        raise DataError("tasks.json: no task of the split train has a sentence")
    rows = [vectors.row_of[text] for text in told]
    return Standard.of(torch.from_numpy(vectors.vectors_ND[rows]), least=LEAST)


def trained_texts(task: DescribedTask) -> tuple[str, ...]:
    """All templates but the last, where there are several."""
    return task.texts[:-1] or task.texts


def sentences_of(tasks: Sequence[DescribedTask], vectors: Vectors, scale: Standard) -> Tensor:
    """(T, C, D), standardised; all tasks of a data set have as many templates."""
    rows = np.array([[vectors.row_of[text] for text in task.texts] for task in tasks])
    return scale.standardise(torch.from_numpy(vectors.vectors_ND[rows]))


@dataclass(frozen=True)
class Groups:
    """Of each task some numbers, such as those of classes, padded; and how many they are."""

    member_TK: Tensor
    count_T: Tensor

    @classmethod
    def of(cls, groups: Sequence[Collection[int]]) -> Groups:
        padded_TK = pad_sequence([torch.tensor([*group], dtype=torch.long) for group in groups], batch_first=True)
        return cls(padded_TK, torch.tensor([len(group) for group in groups]))

    def draw(self, which_B: Tensor, count: int, generator: Generator) -> Tensor:
        """(B, count), any of them with equal chance."""
        share_BS = torch.rand(len(which_B), count, generator=generator)
        place_BS = (share_BS * self.count_T[which_B, None]).long()
        return self.member_TK[which_B].gather(1, place_BS)

    def whole(self, which_B: Tensor) -> Tensor:
        """(B, K): all of them, and none where a task has fewer than others."""
        count_B1 = self.count_T[which_B, None]
        member_BK = self.member_TK[which_B, : int(count_B1.max())]
        return member_BK.masked_fill(torch.arange(member_BK.shape[1]) >= count_B1, NONE)


@dataclass(frozen=True)
class DescribedImages:
    """Where the images of T tasks are drawn from: a class of those that are right or wrong, then one of its images."""

    yes: Groups
    near: Groups
    wrong: Groups  # near ones too
    rows_LN: Tensor  # the images of each class, padded
    count_L: Tensor

    @classmethod
    def of(cls, tasks: Sequence[DescribedTask], data: Rows, *, splits: Collection[str]) -> DescribedImages:
        there = np.flatnonzero(np.isin(data.split, [SPLITS.index(split) for split in splits]))
        rows = [torch.from_numpy(there[data.label[there] == label]) for label in range(len(data.classes))]
        found = {label for label, members in enumerate(rows) if len(members)}
        groups: tuple[list[list[int]], list[list[int]], list[list[int]]] = ([], [], [])
        for task in tasks:
            yes, near = ([label for label in labels if label in found] for labels in (task.yes, task.near))
            wrong = [label for label in (*task.near, *task.no) if label in found]
            if not yes or not wrong:
                raise DataError(f"task {task.name!r}: no image of {' and '.join(splits)} is {'wrong' if yes else 'right'} for it")
            for group, labels in zip(groups, (yes, near or wrong, wrong), strict=True):
                group.append(labels)
        yes_kinds, near_kinds, wrong_kinds = (Groups.of(group) for group in groups)
        counts = torch.tensor([len(members) for members in rows])
        return cls(yes_kinds, near_kinds, wrong_kinds, pad_sequence(rows, batch_first=True), counts)

    def draw(self, which_B: Tensor, count: int, generator: Generator) -> Tensor:
        """(B, 2, count): rows of images that are wrong, half of them nearly right where a task has such, and of right ones."""
        near_BS = self.near.draw(which_B, count // 2, generator)
        wrong_BS = self.wrong.draw(which_B, count - count // 2, generator)
        label_BWS = torch.stack([torch.cat([near_BS, wrong_BS], 1), self.yes.draw(which_B, count, generator)], 1)
        place_BWS = (torch.rand(label_BWS.shape, generator=generator) * self.count_L[label_BWS]).long()
        return self.rows_LN[label_BWS, place_BWS]


@dataclass(frozen=True)
class Questions:
    """What a network learns from: batches of tasks, by their sentence, what they ask for, and some images."""

    sentence_TCD: Tensor
    concept_T: Tensor
    images: DescribedImages
    inputs_NE: Tensor  # what the base learner sees of an image
    plain_T: Tensor  # whether a task's sentence has one right answer

    def draw(self, generator: Generator, *, tasks: int, images: int, ambiguous: bool) -> QuestionBatch:
        pool_P = torch.arange(len(self.concept_T)) if ambiguous else self.plain_T.nonzero()[:, 0]
        which_B = pool_P[torch.randint(len(pool_P), (tasks,), generator=generator)]
        templates = self.sentence_TCD.shape[1]
        template_B = torch.randint(max(1, templates - 1), (tasks,), generator=generator)
        rows_BWS = self.images.draw(which_B, images, generator) if images else torch.zeros(tasks, 2, 0, dtype=torch.long)
        device = self.inputs_NE.device
        return QuestionBatch(
            self.sentence_TCD[which_B, template_B].to(device),
            self.concept_T[which_B].to(device),
            which_B,
            self.plain_T[which_B].to(device),
            self.inputs_NE[rows_BWS.flatten(1).to(device)],
        )


@dataclass(frozen=True)
class SentenceBatch(ABC):
    """Tasks by their sentences, whatever their images are."""

    sentence_BD: Tensor
    concept_B: Tensor
    task_B: Tensor
    plain_B: Tensor

    @abstractmethod
    def loss(self, learner: Generated, theta_BP: Tensor) -> Tensor:
        """Mean cross-entropy of the images, each task's by weights of its own."""

    def with_noise(self, deviation: float, generator: Generator) -> Self:
        """On the sentences."""
        noise_BD = torch.randn(self.sentence_BD.shape, generator=generator).to(self.sentence_BD)
        return replace(self, sentence_BD=self.sentence_BD + deviation * noise_BD)


@dataclass(frozen=True)
class QuestionBatch(SentenceBatch):
    inputs_BNE: Tensor  # those of images that are wrong, then as many that are right

    @property
    def target_N(self) -> Tensor:
        return answers(self.inputs_BNE.shape[1] // 2).to(self.inputs_BNE.device)

    def loss(self, learner: Generated, theta_BP: Tensor) -> Tensor:
        assert isinstance(learner, Perceptron)
        return answer_loss(learner.scores(theta_BP, learner.inputs(self.inputs_BNE)), self.target_N).mean()


def answer_loss(scores_BNW: Tensor, target_N: Tensor) -> Tensor:
    """(B, N): cross-entropy of each answer; all tasks have the same right ones."""
    losses = cross_entropy(scores_BNW.flatten(0, 1), target_N.repeat(len(scores_BNW)), reduction="none")
    return losses.view(scores_BNW.shape[:2])


def answers(count: int) -> Tensor:
    """Of as many images that are wrong, then as many that are right."""
    return torch.arange(2).repeat_interleave(count)


def questions_of(
    tasks: Sequence[DescribedTask], sentence_TCD: Tensor, data: Rows, inputs_NE: Tensor, *, splits: Collection[str]
) -> Questions:
    number = {concept: place for place, concept in enumerate(concepts_of(tasks))}
    concept_T = torch.tensor([number[task.concept] for task in tasks])
    plain_T = torch.tensor([task.kind not in AMBIGUOUS for task in tasks])
    return Questions(sentence_TCD, concept_T, DescribedImages.of(tasks, data, splits=splits), inputs_NE, plain_T)


def concepts_of(tasks: Sequence[DescribedTask]) -> list[str]:
    return sorted({task.concept for task in tasks})
