"""The images that are written, and what all writers share."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Sample = Mapping[str, Mapping[str, NDArray[np.uint8]]]  # split -> class -> images_NHWC, three channels in the order RGB


def make_sample(classes: Mapping[str, Sequence[str]], *, images: int = 4, side: int = 84, binary: bool = False) -> Sample:
    """Noise, in which no two images and no two channels are the same; ``binary``: ink and paper alone, as in Omniglot."""
    rng = np.random.default_rng(0)

    def one() -> NDArray[np.uint8]:
        if binary:
            return np.repeat(rng.integers(0, 2, (images, side, side, 1), dtype=np.uint8) * 255, 3, axis=-1).astype(np.uint8)
        return rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)

    return {split: {name: one() for name in names} for split, names in classes.items()}


def global_labels(sample: Sample) -> dict[str, int]:
    """Class -> its number, counted on over train, val and test."""
    return {name: number for number, name in enumerate(name for classes in sample.values() for name in classes)}


def rows(classes: Mapping[str, NDArray[np.uint8]]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Class and image_HWC of every row: the first of each class, then the second of each."""
    for images in zip_longest(*classes.values()):
        yield from ((name, image) for name, image in zip(classes, images, strict=True) if image is not None)


def stacked(classes: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack([image for _, image in rows(classes)])


def encoded(image_HWC: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, kind)
    return stream.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
