"""The built-in sources through the real stage, with their real size."""

import sys
from pathlib import Path

import pytest

from metadiff.store import image_blocks, read_rows
from tests.repository import copy_project, set_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


SIZES = {"kanji-radicals": (70, 5483), "kanji-components": (184, 16993)}  # classes, images


@pytest.mark.parametrize("source", SIZES)
def test_a_builtin_source_keeps_its_contract(tmp_path: Path, source: str) -> None:
    classes, images = SIZES[source]
    repository = copy_project(tmp_path)
    set_params(repository.root, {"prepare": {"source": source}})
    said = repository.run(sys.executable, "-m", "stages.prepare").stderr
    rows = read_rows(repository.root / "data/prepared/images.h5")
    assert len(rows.class_names) == classes
    assert len(rows.label) == images
    seen: dict[bytes, int] = {}
    number = 0
    for block in image_blocks(repository.root / "data/prepared/images.h5"):
        for image in block:
            assert seen.setdefault(image.tobytes(), int(rows.split[number])) == rows.split[number]
            number += 1
    assert f"{source}: {images:,} images of {classes} classes" in said
