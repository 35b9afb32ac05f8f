"""What the file of an image tells by itself, before anything is made of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags

from metadiff.images.decode import decoded, upright
from metadiff.images.source import BadImageError

TELLING = {  # of EXIF: what says who, when, where and with what; the rest describes the pixels
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Copyright,
    ExifTags.IFD.Exif,
}
BANDS = 16


@dataclass(frozen=True)
class Look:
    """Of an image that cannot be used the reason alone is known."""

    reason: str = ""
    kind: str = ""  # JPEG, PNG, ...
    width: int = 0  # upright
    height: int = 0
    colored: bool = False  # some pixel is
    file_sha256: str = ""
    pixels_sha256: str = ""
    has_exif: bool = False
    has_position: bool = False


def look(path: Path, *, root: Path) -> Look:
    try:
        with decoded(path, root=root) as image:
            kind, exif = image.format or "", image.getexif()
            position = exif.get_ifd(ExifTags.IFD.GPSInfo)
            pixels_HWC = np.asarray(upright(image, "RGB"))
    except BadImageError as error:
        return Look(reason=str(error))
    height, width = pixels_HWC.shape[:2]
    pixels = hashlib.sha256(b"%d " % width)
    pixels.update(pixels_HWC.data)
    with path.open("rb") as file:
        file_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Look(
        kind=kind,
        width=width,
        height=height,
        colored=_is_colored(pixels_HWC),
        file_sha256=file_sha256,
        pixels_sha256=pixels.hexdigest(),
        has_exif=bool(position) or not TELLING.isdisjoint(exif),
        has_position=ExifTags.GPS.GPSLatitude in position,
    )


def _is_colored(pixels_HWC: NDArray[np.uint8]) -> bool:
    """Band by band, since most photos show it in the first."""
    return any(bool((band != band[..., :1]).any()) for band in np.array_split(pixels_HWC, BANDS))
