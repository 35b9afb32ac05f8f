"""Pictures of one thing each, of a colour, a fill and a shape, at random else; with the same bytes on every machine.

All is sums, products, roots and comparisons on a finer grid, which is averaged down; no drawing library takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metadiff.concepts import KINDS, DescribedTask, described_tasks, kind_splits
from metadiff.errors import DataError
from metadiff.images.source import Entry, shown
from metadiff.rng import numpy_stream
from metadiff.rows import SPLITS
from metadiff.wording import with_article

SEED = 0  # of the images, whatever split a kind is of
IMAGES = {"train": 80, "val": 48, "test": 96}  # of a kind; in train there are the kinds of training pairs alone
FINER = 4  # points along one pixel
COLOURS = {
    "red": (235, 40, 45),
    "orange": (255, 140, 20),
    "yellow": (250, 235, 50),
    "green": (50, 190, 60),
    "cyan": (60, 220, 235),
    "blue": (55, 85, 245),
    "purple": (165, 65, 215),
    "white": (250, 250, 250),
}
REACH = {"circle": 0.86, "square": 1.11, "triangle": 1.24, "star": 1.15, "cross": 1.08, "heart": 1.05}  # of a size of 1
SIZES = (0.3, 0.375)  # shares of the side of the image
MARGIN = 0.03  # likewise, around all of the thing
TILT = 0.18  # tangent of half the largest angle, about 20 degrees: a square stays one, and a cross is no x
BRIGHTNESS = (0.8, 1.0)
GREYS = (10, 70)
NOISE = 7  # levels, at most twice this far from the true one

OUTLINE = 0.19  # its width, of a size of 1
SHADE = 0.42  # of the colour, between stripes and in dots, so that the shape stays whole

Grid = NDArray[np.float64]
Mask = NDArray[np.bool_]


def _circle(u_FF: Grid, v_FF: Grid) -> Grid:
    return np.asarray(0.86 - np.sqrt(u_FF * u_FF + v_FF * v_FF))


def _square(u_FF: Grid, v_FF: Grid) -> Grid:
    return np.asarray(0.78 - np.maximum(np.abs(u_FF), np.abs(v_FF)))


def _triangle(u_FF: Grid, v_FF: Grid) -> Grid:
    return np.asarray(0.62 - np.maximum(v_FF, np.abs(u_FF) * 0.75**0.5 - 0.5 * v_FF))


def _star(u_FF: Grid, v_FF: Grid) -> Grid:
    """The edge from a tip to the notch beside it, in the fifth of the plane about the tip that is nearest."""
    ahead_FF = -v_FF
    for cosine, sine in ((0.30901699437494745, 0.9510565162951535), (-0.8090169943749475, 0.5877852522924731)):
        ahead_FF = np.maximum(ahead_FF, np.abs(u_FF) * sine - v_FF * cosine)
    aside_FF = np.sqrt(np.maximum(u_FF * u_FF + v_FF * v_FF - ahead_FF * ahead_FF, 0))
    tip, notch_ahead, notch_aside = 1.15, 0.57 * 0.8090169943749475, 0.57 * 0.5877852522924731
    length = ((tip - notch_ahead) ** 2 + notch_aside**2) ** 0.5
    return np.asarray(((tip - ahead_FF) * notch_aside - aside_FF * (tip - notch_ahead)) / length)


def _cross(u_FF: Grid, v_FF: Grid) -> Grid:
    u_FF, v_FF = np.abs(u_FF), np.abs(v_FF)
    return np.asarray(np.maximum(np.minimum(1.0 - u_FF, 0.38 - v_FF), np.minimum(0.38 - u_FF, 1.0 - v_FF)))


def _heart(u_FF: Grid, v_FF: Grid) -> Grid:
    """A square on its corner, and a disc on the middle of each of its upper sides."""
    side = 0.57  # half of it, and the radius
    u_FF, v_FF, middle = np.abs(u_FF), v_FF - 0.15, side * 0.5**0.5
    disc_FF = side - np.sqrt((u_FF - middle) ** 2 + (v_FF + middle) ** 2)
    return np.asarray(np.maximum(side - (u_FF + np.abs(v_FF)) * 0.5**0.5, disc_FF))


def _striped(u_FF: Grid, v_FF: Grid, phase: Sequence[float]) -> Mask:
    along_FF = (u_FF + v_FF) * (0.5**0.5 / 0.6) + phase[0]
    return np.asarray(along_FF - np.floor(along_FF) < 0.5)


def _dotted(u_FF: Grid, v_FF: Grid, phase: Sequence[float]) -> Mask:
    a_FF, b_FF = u_FF / 0.54 + phase[0], v_FF / 0.54 + phase[1]
    a_FF, b_FF = a_FF - np.floor(a_FF) - 0.5, b_FF - np.floor(b_FF) - 0.5
    return np.asarray(a_FF * a_FF + b_FF * b_FF > 0.31 * 0.31)


DEPTHS = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "heart": _heart}
FULL = {"striped": _striped, "dotted": _dotted}  # where the colour is full


def draw_shape(
    colour: str, fill: str, shape: str, stream: np.random.Generator, *, image_size: int, channels: int
) -> NDArray[np.uint8]:
    """A thing somewhere in the picture, all of it inside, large enough to tell what it is."""
    size_share, x_share, y_share, turn, bright, grey_share, *phase = stream.random(8).tolist()
    size = _between(SIZES, size_share)
    room = size * REACH[shape] + MARGIN
    x, y = (room + (1 - 2 * room) * share for share in (x_share, y_share))
    tangent = TILT * (2 * turn - 1)
    cosine, sine = (1 - tangent * tangent) / (1 + tangent * tangent), 2 * tangent / (1 + tangent * tangent)
    across_F = ((np.arange(image_size * FINER) + 0.5) / (image_size * FINER) - x) / size
    down_F = across_F + (x - y) / size
    u_FF = cosine * across_F + sine * down_F[:, None]
    v_FF = cosine * down_F[:, None] - sine * across_F
    depth_FF = DEPTHS[shape](u_FF, v_FF)
    inside_FF = depth_FF > 0
    if fill == "outlined":
        inside_FF &= depth_FF < OUTLINE
    covered_HW = _share(inside_FF)
    full_HW = _share(inside_FF & FULL[fill](u_FF, v_FF, phase)) if fill in FULL else covered_HW
    lit_HW = SHADE * covered_HW + (1 - SHADE) * full_HW
    grey, light = _between(GREYS, grey_share), _between(BRIGHTNESS, bright)
    image_HWC = grey * (1 - covered_HW)[:, :, None] + light * np.array(COLOURS[colour]) * lit_HW[:, :, None]
    if channels == 1:
        image_HWC = image_HWC.mean(axis=2, keepdims=True)
    noise_HWC = stream.integers(-NOISE, NOISE + 1, size=(2, *image_HWC.shape)).sum(axis=0)
    return np.asarray(np.floor(image_HWC + noise_HWC + 0.5).clip(0, 255), dtype=np.uint8)


def _share(painted_FF: Mask) -> Grid:
    """Of each pixel; a count, so that the order of additions is no matter."""
    side = len(painted_FF) // FINER
    return np.asarray(painted_FF.reshape(side, FINER, side, FINER).sum(axis=(1, 3), dtype=np.int64) / (FINER * FINER))


@dataclass(frozen=True)
class Shapes:
    """All kinds; a backbone, which is trained on train, meets the pairs of training alone."""

    entries: Sequence[Entry]
    tasks: Sequence[DescribedTask]
    image_size: int
    channels: int

    name: str = "described-shapes"
    splits_share_classes: bool = True
    group_is_one_image: bool = True
    drops_twins: bool = False
    twins_are_published: bool = False
    findings: Sequence[str] = ()

    @property
    def descriptions(self) -> dict[str, str]:
        return {kind: f"{with_article(kind).capitalize()}." for kind in KINDS}

    @property
    def nested(self) -> dict[tuple[str, str], int]:
        return {}

    @property
    def left_out(self) -> dict[str, int]:
        return {}

    def draw(self, index: int) -> NDArray[np.uint8]:
        """A pure function of the entry's name."""
        entry = self.entries[index]
        stream = numpy_stream(SEED, self.name, entry.source)
        colour, fill, shape = entry.label.split()
        return draw_shape(colour, fill, shape, stream, image_size=self.image_size, channels=self.channels)

    def part(self, part: range) -> Shapes:
        return replace(self, entries=self.entries[part.start : part.stop], tasks=())


def open_shapes(sentences: Path, *, image_size: int, color: str, shares: tuple[float, float, float], seed: int) -> Shapes:
    """The sentences are only looked for: who needs them should not learn hours later that they are missing."""
    if not sentences.is_file():
        raise DataError(f"prepare.path {shown(str(sentences))}: no such file; write it: make sentences")
    entries = [
        Entry(kind, source, source, split)
        for kind, own in zip(KINDS, kind_splits(shares, seed), strict=True)
        for split in (SPLITS if own == "train" else SPLITS[1:])
        for source in (f"{kind}/{split}/{number:04}" for number in range(IMAGES[split]))
    ]
    channels = 3 if color == "rgb" else 1
    return Shapes(sorted(entries), described_tasks(shares, seed), image_size=image_size, channels=channels)


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share
