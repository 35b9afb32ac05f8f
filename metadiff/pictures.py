"""What is known of images when classifiers are made: features for all, and pixels for base learners that are whole networks.

Row number i is the same image in both. Shapes: N images, D features, Q pixels (height, width, colour).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """Images, one a row or in any other arrangement: `pictures[rows]` are those of these rows, arranged as the rows are."""

    features: Tensor  # (..., D)
    pixels: Tensor | None = None  # (..., Q), from 0 to 255

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Tensor | slice) -> Pictures:
        return Pictures(self.features[rows], None if self.pixels is None else self.pixels[rows])

    def expand(self, times: int) -> Pictures:
        """The same ones as often, along a new first axis."""
        pixels = None if self.pixels is None else self.pixels.expand(times, *self.pixels.shape)
        return Pictures(self.features.expand(times, *self.features.shape), pixels)

    @property
    def device(self) -> torch.device:
        return self.features.device

    def to(self, device: str) -> Pictures:
        return Pictures(self.features.to(device), None if self.pixels is None else self.pixels.to(device))
