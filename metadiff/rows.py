"""What is known of each image beside its pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Rows:
    """One entry a row, in the order of the images."""

    label: NDArray[np.int32]  # index into classes
    split: NDArray[np.uint8]  # index into SPLITS
    group: NDArray[np.int32]  # images of one group never stand on both sides of an episode's class
    source: NDArray[np.bytes_]  # UTF-8: where the image comes from
    classes: NDArray[np.bytes_]  # UTF-8: the name of each class
    dataset: str

    @property
    def class_names(self) -> list[str]:
        return [name.decode() for name in self.classes]

    def of(self, split: str) -> NDArray[np.int64]:
        """The rows of one split, in order."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        """These rows alone, of the same classes."""
        part = {name: getattr(self, name)[rows] for name in ("label", "split", "group", "source")}
        return Rows(**part, classes=self.classes, dataset=self.dataset)
