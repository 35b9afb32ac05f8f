"""Questions of yes or no, drawn as few-shot episodes of two ways: images that a described task is wrong of, and right of.

Question number i is of the task of that number, where after the last task the first comes again. Its images are a pure function
of (seed, i), of that task, and of the images that may be shown. The queries do not depend on the number of shots, and beside the
same queries the support of few shots is the beginning of that of more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from metadiff.concepts import DescribedTask
from metadiff.episodes import Episodes
from metadiff.errors import DataError
from metadiff.rng import numpy_stream
from metadiff.rows import SPLITS, Rows

LEARNT_FROM = ("train", "val")  # whose images training shows: train has none but the kinds of training pairs
WAYS = ("wrong", "right")  # what an image of way 0 and of way 1 is for the sentence
Groups = list[list[int]]  # rows; those of one group go together, and a task is shown one of them


def tasks_by_number(tasks: Sequence[DescribedTask], split: str) -> dict[int, DescribedTask]:
    """Those of a split, by their place among all tasks."""
    found = {number: task for number, task in enumerate(tasks) if task.split == split}
    if not found:
        raise DataError(f"data/prepared: no task of the split {split} has a sentence; prepare.source described-shapes has such")
    return found


def draw_questions(
    tasks: Mapping[int, DescribedTask],
    data: Rows,
    *,
    splits: Collection[str],
    shot: int,
    query: int,
    numbers: Sequence[int],
    seed: int,
    repeat: bool = False,
) -> Episodes:
    """Of each number ``shot`` images a way, and ``query`` others; in place of a class there is the task's own number.

    First one of the kinds that have images left is drawn, then one of its images; every other wrong one is of a kind that is
    nearly right, where the task has such. No image is drawn twice. With ``repeat``, where there are too few, the same come again,
    though never as support and as query: the queries have all that the support leaves, and at least half of them.
    """
    known, groups_of = list(tasks.items()), _groups_of(data, splits)
    chosen = [known[number % len(known)] for number in numbers]
    need = bool(shot) + bool(query) if repeat else shot + query
    support_EWS, query_EWQ = (np.empty((len(chosen), len(WAYS), count), dtype=np.int32) for count in (shot, query))
    for place, (number, (_, task)) in enumerate(zip(numbers, chosen, strict=True)):
        of_query, of_support = (numpy_stream(seed, "sentences", number, *purpose) for purpose in (("queries",), ()))
        query_QW3, shot_SW3 = of_query.random((query, len(WAYS), 3)), of_support.random((shot, len(WAYS), 3))
        wrong, right = _Images(groups_of, (*task.near, *task.no), task.near), _Images(groups_of, task.yes)
        for way, images in enumerate((wrong, right)):
            there = images.count
            if there < max(need, 1):
                raise DataError(_too_few(task, " and ".join(splits), WAYS[way], there=there, need=need))
            asked = min(query, max(there - shot, -(-there // 2)))
            shown = min(shot, there - asked)
            query_EWQ[place, way] = np.resize(images.take(query_QW3[:asked, way]), query)
            support_EWS[place, way] = np.resize(images.take(shot_SW3[:shown, way]), shot)
    numbers_E = np.array([number for number, _ in chosen], dtype=np.int32)
    return Episodes(np.repeat(numbers_E[:, None], len(WAYS), axis=1), support_EWS, query_EWQ)


class _Images:
    """Those of some kinds that a question has not shown yet."""

    def __init__(self, groups_of: Sequence[Groups], kinds: Sequence[int], near: Sequence[int] = ()) -> None:
        self.groups_of, self.left = groups_of, dict[int, Groups]()
        self.kinds, self.near = ([kind for kind in some if groups_of[kind]] for some in (kinds, near))

    @property
    def count(self) -> int:
        return sum(len(self.left.get(kind, self.groups_of[kind])) for kind in self.kinds)

    def take(self, shares_N3: NDArray[np.float64]) -> list[int]:
        """One for each three random shares: which kind, which of its groups, which image of that."""
        return [self._one(place, *shares) for place, shares in enumerate(shares_N3.tolist())]

    def _one(self, place: int, kind_share: float, group_share: float, image_share: float) -> int:
        kinds = self.near if place % 2 and self.near else self.kinds
        kind = kinds[int(kind_share * len(kinds))]
        if kind not in self.left:
            self.left[kind] = self.groups_of[kind].copy()
        left = self.left[kind]
        chosen = int(group_share * len(left))
        left[chosen], left[-1] = left[-1], left[chosen]
        group = left.pop()
        if not left:
            for some in (self.kinds, self.near):
                some[:] = [other for other in some if other != kind]
        return group[int(image_share * len(group))]


def _groups_of(data: Rows, splits: Collection[str]) -> list[Groups]:
    """Of each class its groups in these splits."""
    rows = np.flatnonzero(np.isin(data.split, [SPLITS.index(split) for split in splits]))
    found: list[dict[int, list[int]]] = [{} for _ in data.classes]
    for row, label, group in zip(rows.tolist(), data.label[rows].tolist(), data.group[rows].tolist(), strict=True):
        found[label].setdefault(group, []).append(row)
    return [[*groups.values()] for groups in found]


def _too_few(task: DescribedTask, where: str, way: str, *, there: int, need: int) -> str:
    if not there:
        return f"task {task.name!r}: no image of {where} is {way} for it"
    return f"task {task.name!r}: {need} images of {where} must be {way} for it, there are {there}: lower the shots or queries"
