"""The picture of README that shows what sentences ask of the described shapes: images that are right, and that are not.

python -m bench.describedshapes
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metadiff.concepts import KINDS, DescribedTask, described_tasks
from metadiff.images.shapes import draw_shape
from metadiff.rng import numpy_stream

OUT = Path("docs/described-shapes.png")
SHARES, SEED = (0.65, 0.1, 0.25), 10
ASKED = (  # a task of each sort, and what is said of it
    ("striped", "one property"),
    ("blue star", "two properties"),
    ("green dotted square", "three properties"),
    ("red not striped", "one, and not another"),
    ("yellow or heart", "one or another"),
    ("heart of some colour: cyan", "ambiguous: here cyan is meant"),
)
EACH = 4  # images that are right, and that are not
SIDE, SCALE = 42, 2  # pixels of an image, and how large one of them is in the file
STEP, BETWEEN, HEAD = 45, 15, 35  # from one image to the next, more before the wrong ones, and what stands above them
MARGIN, GAP, WIDTH = 10, 18, 800  # of the whole, between its rows, and in README
LEVEL = 15  # between levels of a colour: the noise of the images would make the file large
BLOCK = 2 * EACH * STEP - (STEP - SIDE) + BETWEEN  # width
COLUMNS, DPI = 2, 100 * SCALE
INK, SOFT = "#1f2328", "#6e7781"

Image = NDArray[np.uint8]


def kinds_shown(task: DescribedTask, stream: np.random.Generator) -> tuple[list[int], list[int]]:
    """Right ones, and wrong ones of which half are nearly right, where the task has such; as different as there are."""
    near = some(task.near, EACH // 2, stream) if task.near else []
    return some(task.yes, EACH, stream), [*near, *some(task.no, EACH - len(near), stream)]


def some(kinds: tuple[int, ...], count: int, stream: np.random.Generator) -> list[int]:
    return [int(kind) for kind in np.resize(stream.permutation(kinds), count)]


def images(task: DescribedTask) -> Iterator[Image]:
    """The right ones, then the wrong ones."""
    stream = numpy_stream(SEED, "sheet", task.name)
    for kind in (kind for kinds in kinds_shown(task, stream) for kind in kinds):
        yield draw_shape(*KINDS[kind].split(), stream, image_size=SIDE, channels=3)


def draw_sheet(out: Path) -> None:
    task_of = {task.name: task for task in described_tasks(SHARES, SEED)}
    rows = -(-len(ASKED) // COLUMNS)
    height = rows * (HEAD + SIDE + GAP) - GAP + 2 * MARGIN
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=DPI, facecolor="white")
    for place, (name, sort) in enumerate(ASKED):
        row, column = divmod(place, COLUMNS)
        left = MARGIN if column == 0 else WIDTH - MARGIN - BLOCK
        top = MARGIN + row * (HEAD + SIDE + GAP)
        say(figure, left, top, height, f"“{task_of[name].texts[0]}”", size=8.5, color=INK)
        say(figure, left + BLOCK, top + 2, height, sort, size=7, color=SOFT, to="right")
        say(figure, left, top + 19, height, "yes", size=7, color=SOFT)
        say(figure, left + EACH * STEP + BETWEEN, top + 19, height, "no", size=7, color=SOFT)
        for number, image in enumerate(images(task_of[name])):
            x = left + number * STEP + BETWEEN * (number >= EACH)
            large = (image // LEVEL * LEVEL).repeat(SCALE, 0).repeat(SCALE, 1)
            figure.figimage(large, SCALE * x, SCALE * (height - top - HEAD - SIDE))
    figure.savefig(out, dpi=DPI, pil_kwargs={"optimize": True})


def say(figure: Figure, x: float, y: float, height: float, text: str, *, size: float, color: str, to: str = "left") -> None:
    """From this point of the picture on, counted from above, or up to it."""
    figure.text(x / WIDTH, 1 - y / height, text, va="top", ha=to, fontsize=size, color=color)


if __name__ == "__main__":
    draw_sheet(OUT)
