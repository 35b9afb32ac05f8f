"""Where an image lies: a range of bytes of a file, encoded or raw."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metadiff.images.decode import MODE, decoded, decoded_stream, squared, upright
from metadiff.images.source import BadImageError


class Place(NamedTuple):
    """A whole file, or ``length`` bytes of it; with a shape they are pixels, without one an image of a common format."""

    path: Path
    offset: int = 0
    length: int = 0  # 0: the whole file
    shape: tuple[int, ...] = ()
    order: str = "rgb"  # of raw pixels: rgb | bgr | planes (one colour after the other)
    side: int = 0  # pixels that an image must have; 0: any number
    turns: int = 0  # quarters, against the clock


def draw_place(place: Place, *, image_size: int, color: str) -> NDArray[np.uint8]:
    """HWC, cropped to the centre, resized and turned."""
    image = _image(place, MODE[color])
    if place.side and image.size != (place.side, place.side):
        raise BadImageError(f"{image.width}x{image.height} pixels, expected {place.side}x{place.side}")
    drawn = squared(image, image_size)
    return np.ascontiguousarray(np.rot90(drawn, place.turns)) if place.turns else drawn


def _image(place: Place, mode: str) -> Image.Image:
    if not place.length:
        with decoded(place.path, root=place.path.parent) as image:
            return upright(image, mode)
    with place.path.open("rb") as file:
        file.seek(place.offset)
        content = file.read(place.length)
    if len(content) < place.length:
        raise BadImageError("truncated")
    if place.shape:
        return Image.fromarray(_pixels(place, content)).convert(mode)
    with decoded_stream(io.BytesIO(content)) as image:
        return upright(image, mode)


def _pixels(place: Place, content: bytes) -> NDArray[np.uint8]:
    pixels = np.frombuffer(content, dtype=np.uint8).reshape(place.shape)
    if place.order == "planes":
        pixels = pixels.transpose(1, 2, 0)
    elif place.order == "bgr":
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels)
