"""A file that anyone may have written -> a square image of bytes, or a short reason why not."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from metadiff.images.source import BadImageError

SMALLEST = 8  # pixels a side; less is a broken download or a web beacon
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
RUNS_A_PROGRAM = ("EPS",)  # Pillow hands these to Ghostscript
MODE = {"rgb": "RGB", "gray": "L"}


def decode_file(path: Path, *, root: Path, image_size: int, color: str) -> NDArray[np.uint8]:
    """HWC. ``root`` is the tree that a link may not leave; pixels are turned upright as EXIF says and cropped to the centre."""
    with decoded(path, root=root) as found:
        image = upright(found, MODE[color])
    return squared(image, image_size)


def squared(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """HWC: the middle square, resized; as it is where it has that size."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: a resize of a box looks at pixels outside of it.
    square = image.crop((left, top, left + side, top + side))
    small = square.resize((image_size, image_size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(small, dtype=np.uint8).reshape(image_size, image_size, -1)


@contextmanager
def decoded(path: Path, *, root: Path) -> Iterator[Image.Image]:
    """The image as it is in the file, with its metadata."""
    _refuse_odd_files(path, root)
    try:
        stream = path.open("rb")
    except PermissionError:
        raise BadImageError("no permission to read it") from None
    with stream, decoded_stream(stream) as image:
        yield image


@contextmanager
def decoded_stream(stream: BinaryIO) -> Iterator[Image.Image]:
    """What a decoder raises on a broken image is anything at all, so all of it, in the block too, is a reason; except an error
    of the disk itself.
    """
    Image.init()
    formats = [name for name in Image.ID if name not in RUNS_A_PROGRAM]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(stream, formats=formats) as image:
                _refuse_tiny(image)
                image.load()
                yield image
        except (BadImageError, MemoryError):
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise BadImageError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None
        except UnidentifiedImageError:
            raise BadImageError("not an image of a known format") from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise BadImageError(_reason(error)) from None


def upright(image: Image.Image, mode: str) -> Image.Image:
    """Turned as EXIF says, on white, in 8 bits; pixels alone, no metadata."""
    return _in_mode(ImageOps.exif_transpose(image), mode)


def _refuse_odd_files(path: Path, root: Path) -> None:
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise BadImageError("a symbolic link to nothing" if path.is_symlink() else "no longer there") from None
    if not real.is_relative_to(root.resolve()):
        raise BadImageError("a symbolic link that leaves the folder")
    status = real.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadImageError("not an ordinary file")
    if status.st_size == 0:
        raise BadImageError("empty file")


def _reason(error: Exception) -> str:
    text = " ".join(ascii(str(error))[1:-1].split())[:80]
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated"
    return f"broken ({text or type(error).__name__})"


def _refuse_tiny(image: Image.Image) -> None:
    if min(image.size) < SMALLEST:
        raise BadImageError(f"{image.width}x{image.height} pixels, expected at least {SMALLEST}x{SMALLEST}")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        image = _eight_bits(image)
    elif image.mode == "F":
        raise BadImageError("floating-point pixels, expected 8 or 16 bits")
    elif image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), above)
    return image.convert("RGB").convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    wide_HW = np.asarray(image).astype(np.int64)
    if wide_HW.min() < 0 or wide_HW.max() > 65535:
        raise BadImageError("32-bit pixels, expected 8 or 16 bits")
    return Image.fromarray(((wide_HW * 255 + 32767) // 65535).astype(np.uint8))
