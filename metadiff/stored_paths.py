"""Recorded paths on the disk, of which rows are read when they are asked for: memory does not grow with the number of paths."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from metadiff.errors import CorruptArtifactError

if TYPE_CHECKING:
    from metadiff.trajectory_store import TrajectoryStore


class StoredPaths:
    """The weights of all paths at the ends of their segments, indexed as a tensor (N, K, P) is by its first axis.

    A row is read without its checksum: `ends`, which whoever scales weights goes through at first, checks all of them.
    """

    def __init__(self, store: TrajectoryStore, segments: int) -> None:
        self._store, self._segments = store, segments
        self._steps = range(len(store.steps))[store.ends_of(segments)][1:]  # noise stands for the start

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, chosen_B: Tensor) -> Tensor:
        return torch.stack([self._path(number) for number in chosen_B.tolist()])

    def ends(self) -> Iterator[Tensor]:
        """(n, P) of each block: every number that rows are made of is read and checked on the way."""
        for block in range(self._store.blocks):
            yield torch.from_numpy(self._store.paths(block, self._segments)[:, -1])

    @cached_property
    def _starts(self) -> list[list[int]]:
        """Of each block's parts."""
        return [self._store.part_starts(block) for block in range(self._store.blocks)]

    def _path(self, number: int) -> Tensor:
        block, row = divmod(number, int(self._store.attributes["block"]))
        path_KP = np.empty((len(self._steps), self._store.size), np.dtype("<f4"))
        with self._store.weights_file(block).open("rb") as file:
            for place, step in enumerate(self._steps):
                file.seek(self._starts[block][step] + row * path_KP[place].nbytes)
                if file.readinto(path_KP[place].data) < path_KP[place].nbytes:
                    raise CorruptArtifactError(
                        f"{file.name}: ends within the weights of task {number}; make it again: dvc repro collect"
                    )
        return torch.from_numpy(path_KP)
