"""The picture of README of what sentences ask: what it shows is what the tasks say, and it is small and whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.describedshapes import ASKED, EACH, MARGIN, OUT, SCALE, SEED, SHARES, WIDTH, draw_sheet, kinds_shown
from metadiff.concepts import described_tasks
from metadiff.rng import numpy_stream
from stages.imports import ROOT

TASKS = {task.name: task for task in described_tasks(SHARES, SEED)}
LARGEST = 200_000  # bytes of a picture that README loads


def test_the_picture_is_drawn_whole_and_small(tmp_path: Path) -> None:
    draw_sheet(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size < LARGEST
    with Image.open(tmp_path / "sheet.png") as drawn, Image.open(ROOT / OUT) as tracked:
        assert drawn.size == tracked.size
        assert drawn.width == SCALE * WIDTH
        pixels_HWC = np.asarray(drawn.convert("RGB"))
    edge = SCALE * MARGIN - SCALE
    inside = np.zeros(pixels_HWC.shape[:2], dtype=bool)
    inside[edge:-edge, edge:-edge] = True
    assert (pixels_HWC[~inside] == 255).all()  # nothing is cut
    assert (pixels_HWC[inside] < 100).any()


@pytest.mark.parametrize("name", [name for name, _ in ASKED])
def test_images_are_right_and_wrong_as_the_task_says(name: str) -> None:
    task = TASKS[name]
    right, wrong = kinds_shown(task, numpy_stream(0, name))
    assert len(right) == len(wrong) == EACH
    assert {*right} <= {*task.yes}
    assert {*wrong} <= {*task.near, *task.no}
    assert len({*wrong} & {*task.near}) == (EACH // 2 if task.near else 0)
    assert len({*right}) == min(EACH, len(task.yes))
