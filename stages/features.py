"""The features that a backbone gives of all images of a file: by workers, where there are some, a number of batches at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metadiff.artifact import write_array
from metadiff.backbone import undump
from metadiff.checkpoint import load_checkpoint
from metadiff.store import image_blocks
from metadiff.training import EXTRACT_BATCH, extract
from stages.executors import Job, computed_units
from stages.runner import Run

FILE = "features.npy"


def features(run: Run[Any], images: Path, backbone: Path, *, count: int, batches: int = 8) -> NDArray[np.float32]:
    """Of the first ``count`` images, in their order; a unit is of whole batches, so that how they are cut changes no bit."""
    block = batches * EXTRACT_BATCH
    starts = range(0, count, block)
    blocks = {f"features-{number:05d}": range(start, min(start + block, count)) for number, start in enumerate(starts)}

    def job_of(name: str) -> Job[NDArray[np.float32]]:
        return partial(features_of, images, backbone, blocks[name], device=run.device)

    sizes = {name: len(rows) for name, rows in blocks.items()}
    folders = computed_units(run, sizes, job_of, save_unit, what="features", unit="images", of_disk=True)
    return np.concatenate([np.load(folder / FILE, allow_pickle=False) for folder in folders])


def save_unit(folder: Path, found_ND: NDArray[np.float32]) -> None:
    write_array(folder / FILE, found_ND)


def features_of(images: Path, backbone: Path, rows: range, *, device: str) -> NDArray[np.float32]:
    """By a checkpoint of the backbone, so that it can be done anywhere on this machine."""
    net = undump(*load_checkpoint(backbone)).to(device)
    found: NDArray[np.float32] = extract(net, image_blocks(images, np.asarray(rows)), first=rows.start).numpy()
    return found
