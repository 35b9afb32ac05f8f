"""From drawn images to a data set: one row an image, one row a class, and what must be left out or refused on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metadiff.errors import DataError
from metadiff.images.source import BadImageError, Source, shown
from metadiff.rows import SPLITS, Rows

LISTED = 20  # bad images named in a message


Drawn = tuple[NDArray[np.uint8] | None, list[dict[str, Any]]]


def draw_block(source: Source) -> Drawn:
    """The images of all entries that can be drawn (None: not one), and a row for each entry, good or bad."""
    images, facts = [], []
    for index, entry in enumerate(source.entries):
        fact: dict[str, Any] = {"source": entry.source, "label": entry.label, "group": entry.group, "split": entry.split}
        try:
            image = source.draw(index)
        except BadImageError as error:
            facts.append(fact | {"reason": str(error)})
        else:
            images.append(image)
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            facts.append(fact | {"reason": "", "sha256": digest, "spread": float(image.std())})
    return (np.stack(images) if images else None), facts


def read_facts(folders: Iterable[Path]) -> pd.DataFrame:
    """The rows of all blocks, with repeated names kept once: a line an image is what memory must hold."""
    blocks = [pd.DataFrame(json.loads((folder / "facts.json").read_bytes())) for folder in folders]
    return pd.concat(blocks, ignore_index=True)


def count_twins(images: pd.DataFrame) -> int:
    """Images whose pixels are also those of an image of another class or split."""
    places = images[["sha256", "label", "split"]].drop_duplicates()["sha256"].value_counts()
    return int(images["sha256"].isin(places.index[places > 1]).sum())


def good_ones(table: pd.DataFrame, *, on_bad: str, listing: Path) -> tuple[pd.DataFrame, list[str]]:
    """The rows that can be used, and lines that name those that cannot; with ``stop`` these lines are an error.

    All that cannot are written to ``listing`` with their reasons.
    """
    bad = table[table["reason"] != ""]
    bad[["source", "reason"]].to_csv(listing, index=False, lineterminator="\n")
    lines = [f"{shown(source)}: {reason}" for source, reason in zip(bad["source"], bad["reason"], strict=True)]
    lines = lines[:LISTED] + ([f"... and {len(lines) - LISTED} more, see {listing}"] if len(lines) > LISTED else [])
    count = f"{len(bad)} of {len(table)} images cannot be used"
    if lines and on_bad == "stop":
        raise DataError("\n".join([*lines, f"{count}; mend or remove them, or set prepare.on_bad: skip"]))
    return table[table["reason"] == ""], [*lines, f"{count} and are left out"] if lines else []


def without_twins(images: pd.DataFrame) -> pd.DataFrame:
    """Of images with the same pixels under several classes only those of the smallest class stay: no class is used up by it."""
    size = images["label"].map(images["label"].value_counts())
    ranked = images.assign(size=size).sort_values(["size", "label"], kind="stable")
    keeper = images["sha256"].map(ranked.drop_duplicates("sha256").set_index("sha256")["label"])
    return images[images["label"] == keeper]


def refuse_small_classes(images: pd.DataFrame, labels: Sequence[str], *, need: int) -> None:
    """No class silently falls below what an episode needs because some of its images are bad."""
    groups = images.groupby("label")["group"].nunique().reindex(labels, fill_value=0)
    small = [f"{shown(label)}: {have} usable images" for label, have in groups.items() if have < need]
    if small:
        raise DataError("\n".join(f"class {line}, prepare.min_images asks for {need}" for line in small))


def class_table(images: pd.DataFrame, descriptions: Mapping[str, str]) -> pd.DataFrame:
    """One row a class, in the order of the names: its place is the label in images.h5; of several splits it is of the first."""
    images = images.assign(split=images["split"].map(SPLITS.index))
    by_class = images.groupby("label", sort=True)
    usable = by_class["group"].nunique()
    table = pd.DataFrame(
        {"split": by_class["split"].min().map(dict(enumerate(SPLITS))), "count": by_class.size(), "usable": usable}
    ).reset_index()
    return table.assign(description=table["label"].map(descriptions))


def pixels(folders: Iterable[Path], table: pd.DataFrame, kept: pd.Index) -> Iterator[NDArray[np.uint8]]:
    """The images that are kept, block by block, from folders that hold all that could be drawn of ``table``, in its order."""
    drawn = table.index[table["reason"] == ""]
    is_kept, start = drawn.isin(kept), 0
    for folder in folders:
        if (folder / "images.npy").exists():
            block_NHWC = np.load(folder / "images.npy", allow_pickle=False)
            yield block_NHWC[is_kept[start : start + len(block_NHWC)]]
            start += len(block_NHWC)


def make_rows(images: pd.DataFrame, classes: pd.DataFrame, *, dataset: str) -> Rows:
    """The table of images as arrays of numbers and names."""
    return Rows(
        label=np.asarray(pd.Categorical(images["label"], categories=classes["label"]).codes, dtype=np.int32),
        split=np.array([SPLITS.index(name) for name in images["split"]], dtype=np.uint8),
        group=pd.factorize(images["group"], sort=True)[0].astype(np.int32),
        source=np.array([source.encode() for source in images["source"]]),
        classes=np.array([label.encode() for label in classes["label"]]),
        dataset=dataset,
    )
