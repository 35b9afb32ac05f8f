"""The pictures of docs/own-images.md, from drawn shapes: how images are laid out, and what the stage prepare makes of each.

python -m bench.ownimages
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import ExifTags, Image, ImageDraw

from metadiff.errors import DataError
from metadiff.images.decode import decode_file

DOCS = Path("docs")
SHAPES = {"oak": (3, "#3b7a3b"), "ash": (5, "#c0803a"), "elm": (8, "#5a6fb0")}
TABLE = """path,label,split,description
2024/a7f3.jpg,oak,train,A tree with lobed leaves.
2024/a7f4.jpg,ash,val,
2025/0001.png,elm,test,
...
"""


def photo(label: str, seed: int, *, width: int = 160, height: int = 160) -> Image.Image:
    """A shape of as many corners as its class has, somewhere on a ground of its own."""
    rng = np.random.default_rng(seed)
    ground_HWC = np.linspace(rng.integers(150, 200, 3), rng.integers(200, 250, 3), height)[:, None].repeat(width, 1)
    image = Image.fromarray(ground_HWC.astype(np.uint8))
    corners, color = SHAPES[label]
    place = width / 2 + rng.integers(-8, 9), height / 2 + rng.integers(-8, 9), int(rng.integers(40, 60))
    ImageDraw.Draw(image).regular_polygon(place, corners, rotation=int(rng.integers(360)), fill=color)
    return image


def samples(folder: Path) -> dict[str, Path]:
    """A file of each kind, by what becomes of it."""
    files = {
        "wide: the square\nin its middle": folder / "wide.jpg",
        "turned by EXIF:\nupright": folder / "turned.jpg",
        "transparent:\non white": folder / "clear.png",
        "16 bits, gray:\nscaled to 8": folder / "deep.png",
        "cut off:\nlisted, not used": folder / "cut.jpg",
        "7 pixels high:\nlisted, not used": folder / "flat.png",
    }
    wide, turned, clear, deep, cut, flat = files.values()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo("oak", 1, width=240).save(wide)
    photo("ash", 2, height=220).rotate(90, expand=True).save(turned, exif=exif)
    whole = photo("elm", 3).convert("RGBA")
    whole.putalpha(Image.fromarray((np.asarray(whole)[..., 0] < 120).astype(np.uint8) * 255))
    whole.save(clear)
    Image.fromarray(np.asarray(photo("oak", 4).convert("L")).astype(np.uint16) * 257).save(deep)
    photo("ash", 5).save(cut)
    cut.write_bytes(cut.read_bytes()[:1200])
    photo("elm", 6).resize((60, 7)).save(flat)
    return files


def show(axes: Axes, image: Image.Image | np.ndarray | None, text: str = "") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if image is None:
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=9, color="firebrick", wrap=True)
        axes.set_xlim(0, 1)
        axes.set_aspect("equal")
    else:
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)


def draw_prepared(out: Path) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    with TemporaryDirectory() as scratch:
        files = samples(Path(scratch))
        axes = figure.subplots(2, len(files))
        for above, below, (title, file) in zip(*axes, files.items(), strict=True):
            above.set_title(title, fontsize=9)
            try:
                small_HWC = decode_file(file, root=Path(scratch), image_size=32, color="rgb")
            except DataError as error:
                show(below, None, str(error).replace(", ", ",\n"))
            else:
                show(below, small_HWC)
            show(above, as_stored(file))
    axes[0][0].set_ylabel("the file")
    axes[1][0].set_ylabel("32 x 32, prepared")
    figure.savefig(out, dpi=80)


def as_stored(file: Path) -> np.ndarray | None:
    """The pixels in the order of the file; nothing of one that cannot be read."""
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image)
    except OSError:
        return None
    return (pixels // 257).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def draw_layout(out: Path) -> None:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    left.suptitle("a folder a class", fontsize=11)
    axes = left.subplots(len(SHAPES), 4)
    for row, label in zip(axes, SHAPES, strict=True):
        row[0].set_ylabel(f"{label}/", rotation=0, ha="right", va="center", fontsize=10, family="monospace")
        for index, place in enumerate(row):
            show(place, photo(label, 10 * len(label) + 7 * index + ord(label[0])))
    right.suptitle("or one table at the top", fontsize=11)
    right.text(0.06, 0.5, TABLE, family="monospace", fontsize=8.5, va="center", linespacing=1.8)
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    draw_layout(DOCS / "own-images-layout.png")
    draw_prepared(DOCS / "own-images-prepared.png")
