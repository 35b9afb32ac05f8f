"""From drawn images to a data set: what is left out or refused, and that pixels and rows stay together."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from metadiff.errors import DataError
from metadiff.images.catalogue import (
    class_table,
    count_twins,
    draw_block,
    good_ones,
    make_rows,
    pixels,
    read_facts,
    refuse_small_classes,
    without_twins,
)
from metadiff.images.source import BadImageError, Entry


def image(value: int) -> np.ndarray:
    return np.full((2, 2, 1), value, dtype=np.uint8) + np.arange(4, dtype=np.uint8).reshape(2, 2, 1)


def source(values: list[tuple[str, int]], first: int = 0) -> SimpleNamespace:
    """Images of one value each, numbered from ``first`` on; a negative one is bad."""

    def draw(index: int) -> np.ndarray:
        if values[index][1] < 0:
            raise BadImageError("empty file")
        return image(values[index][1])

    entries = [Entry(label, f"group-{i}", f"{label}/{i}") for i, (label, _) in enumerate(values, first)]
    return SimpleNamespace(entries=entries, draw=draw)


def drawn(folder: Path, values: list[tuple[str, int]], *, block: int = 2) -> tuple[pd.DataFrame, list[Path]]:
    """Blocks as the stage keeps them, and the table of all entries."""
    folders = []
    for start in range(0, len(values), block):
        folders.append(folder / str(start))
        folders[-1].mkdir()
        images, facts = draw_block(source(values[start : start + block], start))
        (folders[-1] / "facts.json").write_text(json.dumps(facts))
        if images is not None:
            np.save(folders[-1] / "images.npy", images)
    return read_facts(folders), folders


def test_bad_images_are_named_and_left_out_or_stop_the_run(tmp_path: Path) -> None:
    table, _ = drawn(tmp_path, [("ash", 1), ("ash", -1), ("oak", 3), ("oak", 4)])
    good, lines = good_ones(table, on_bad="skip", listing=tmp_path / "bad.csv")
    assert list(good["source"]) == ["ash/0", "oak/2", "oak/3"]
    assert lines == ["ash/1: empty file", "1 of 4 images cannot be used and are left out"]
    assert (tmp_path / "bad.csv").read_text() == "source,reason\nash/1,empty file\n"
    with pytest.raises(DataError, match=r"^ash/1: empty file\n1 of 4 .*; mend or remove them, or set prepare\.on_bad: skip$"):
        good_ones(table, on_bad="stop", listing=tmp_path / "bad.csv")


def test_many_bad_images_are_shortened_on_the_terminal_and_whole_in_the_list(tmp_path: Path) -> None:
    table, _ = drawn(tmp_path, [("ash", -1)] * 30)
    with pytest.raises(DataError, match=r"\.\.\. and 10 more, see .*bad\.csv"):
        good_ones(table, on_bad="stop", listing=tmp_path / "bad.csv")
    assert len((tmp_path / "bad.csv").read_text().splitlines()) == 31


def test_no_bad_image_says_nothing(tmp_path: Path) -> None:
    table, _ = drawn(tmp_path, [("ash", 1), ("oak", 2)])
    good, lines = good_ones(table, on_bad="stop", listing=tmp_path / "bad.csv")
    assert len(good) == 2
    assert lines == []


def test_twins_stay_with_the_smallest_class(tmp_path: Path) -> None:
    values = [("big", 1), ("big", 2), ("big", 3), ("small", 1), ("small", 9), ("also", 2), ("also", 2)]
    table, _ = drawn(tmp_path, values)
    kept = without_twins(table)
    assert list(kept["source"]) == ["big/2", "small/3", "small/4", "also/5", "also/6"]  # twins within a class are its own affair


def test_a_class_too_small_is_named_even_when_nothing_of_it_is_left(tmp_path: Path) -> None:
    table, _ = drawn(tmp_path, [("ash", 1), ("ash", 2), ("oak", 3), ("elm", -1)])
    good, _ = good_ones(table, on_bad="skip", listing=tmp_path / "bad.csv")
    refuse_small_classes(good, ["ash"], need=2)
    with pytest.raises(DataError) as caught:
        refuse_small_classes(good, ["ash", "elm", "oak"], need=2)
    assert str(caught.value).splitlines() == [
        "class elm: 0 usable images, prepare.min_images asks for 2",
        "class oak: 1 usable images, prepare.min_images asks for 2",
    ]


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_pixels_and_rows_stay_together_whatever_is_left_out(tmp_path: Path, block: int) -> None:
    values = [("b", 10), ("b", -1), ("a", 30), ("a", 40), ("c", -1), ("c", -1), ("a", 10), ("b", 80)]
    table, folders = drawn(tmp_path, values, block=block)
    good, _ = good_ones(table, on_bad="skip", listing=tmp_path / "bad.csv")
    images = without_twins(good).assign(split=lambda t: t["label"].map({"a": "train", "b": "test"}))
    classes = class_table(images, {"a": "An a.", "b": "A b."})
    rows = make_rows(images, classes, dataset="letters")
    found = np.concatenate([*pixels(folders, table, images.index)])
    assert rows.class_names == ["a", "b"]
    assert list(classes["description"]) == ["An a.", "A b."]
    assert len(found) == len(rows.source)
    for pixel, name, label, split in zip(found, rows.source, rows.label, rows.split, strict=True):
        index = int(name.decode().split("/")[1])
        assert (pixel == image(values[index][1])).all()
        assert rows.class_names[label] == values[index][0]
        assert ("train", "val", "test")[split] == {"a": "train", "b": "test"}[values[index][0]]


def test_twins_are_counted_across_classes_and_splits_but_not_within_a_class() -> None:
    rows = [
        ("a", "train", "x"),
        ("a", "train", "x"),
        ("a", "train", "y"),
        ("b", "train", "y"),
        ("c", "val", "z"),
        ("d", "test", "z"),
    ]
    assert count_twins(pd.DataFrame(rows, columns=["label", "split", "sha256"])) == 4
