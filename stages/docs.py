"""Pages that show every data contract of the results in data/, and what was found: `make docs-data`, for those who look."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from metadiff.artifact import verify
from metadiff.images import PUBLISHED, SHAPES
from metadiff.images.catalogue import class_table
from metadiff.params import Params, load
from metadiff.rows import SPLITS
from metadiff.store import image_blocks, image_shape, read_features, read_rows
from metadiff.tasks import read_tasks
from metadiff.trajectory_store import open_trajectories
from stages.checks import build_docs
from stages.contracts import Table, features_tables, manifest_tables, results_tables, trajectories_tables, trajectory_facts

DATA = Path("data")
FOLDERS = ("prepared", "backbone", "trajectories", "results")
FOLDER = DATA / ".work" / "docs"


def tables(params: Params) -> Iterator[Table]:
    """The facts of all contracts, measured anew on the published files."""
    images, classes = image_facts(DATA / "prepared" / "images.h5")
    size, _, channels = image_shape(DATA / "prepared" / "images.h5")
    alone = images["group"].is_unique
    yield from manifest_tables(
        images,
        classes,
        size=size,
        channels=channels,
        need=params.prepare.min_images,
        group_is_one_image=alone,
        twins_are_published=params.prepare.source in PUBLISHED,
        splits_share_classes=params.prepare.source == SHAPES,
    )
    yield from features_tables(read_features(DATA / "backbone" / "features.h5"), rows=len(images))
    store, data = open_trajectories(DATA / "trajectories" / "trajectories.zarr"), read_rows(DATA / "backbone" / "features.h5")
    tasks = read_tasks(DATA / "prepared", data) if store.tasks_of == "sentences" else ()
    facts = pd.concat([trajectory_facts(store.block(block), data, tasks) for block in range(store.blocks)], ignore_index=True)
    asked = params.collect
    sizes = {"drawn": asked.tasks, "way": asked.way, "shot": asked.shot}
    yield from trajectories_tables(facts, accepted=len(store), **sizes, tasks_of=store.tasks_of)
    results = pd.read_csv(DATA / "results" / "episodes.csv")
    section, names = params.evaluate, sorted(results["classifier"].unique())
    yield from results_tables(results, episodes=section.episodes_of, shots=section.shots, classifiers=names)


def image_facts(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row an image and one row a class, from the pixels themselves."""
    rows = read_rows(path)
    names = np.array(rows.class_names)
    height, width, channels = image_shape(path)
    images = [image for block in image_blocks(path) for image in block]
    facts = {"source": [source.decode() for source in rows.source], "label": names[rows.label]}
    facts |= {"split": np.array(SPLITS)[rows.split], "group": rows.group, "height": height, "width": width, "channels": channels}
    facts |= {
        "sha256": [hashlib.sha256(image.tobytes()).hexdigest() for image in images],
        "spread": [image.std() for image in images],
    }
    table = pd.DataFrame(facts)
    return table, class_table(table, {})


def main() -> None:
    missing = [name for name in FOLDERS if not (DATA / name / "manifest.json").is_file()]
    if missing:
        sys.exit(f"docs: {', '.join(f'data/{name}' for name in missing)} not there; run: make repro")
    for name in FOLDERS:
        verify(DATA / name)
    print(f"The pages are in {build_docs(FOLDER, tables(load('params.yaml')))}")


if __name__ == "__main__":
    main()
