"""The features that a backbone gives of all images of a file: by workers, where there are some, a number of batches at a time."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metadiff.backbone import undump
from metadiff.checkpoint import load_checkpoint
from metadiff.store import image_blocks
from metadiff.training import EXTRACT_BATCH, extract
from stages.executors import computed
from stages.runner import Run

BLOCK = 8 * EXTRACT_BATCH  # images: whole batches, so that how they are cut changes no bit


def features(run: Run[Any], images: Path, backbone: Path, *, count: int) -> NDArray[np.float32]:
    """Of the first ``count`` images, in their order."""
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    jobs = ((str(rows.start), partial(features_of, images, backbone, rows, device=run.device)) for rows in blocks)
    found: dict[str, NDArray[np.float32]] = {}
    with (
        run.progress("features", total=count, unit="images") as advance,
        closing(computed(jobs, machine=run.machine, of_disk=True)) as results,
    ):
        for name, block_ND in results:
            found[name] = block_ND
            advance(len(block_ND))
            run.stop_if_asked("while features were computed", "computes them again")
    return np.concatenate([found[str(rows.start)] for rows in blocks])


def features_of(images: Path, backbone: Path, rows: range, *, device: str) -> NDArray[np.float32]:
    """By a checkpoint of the backbone, so that it can be done anywhere on this machine."""
    net = undump(*load_checkpoint(backbone)).to(device)
    found: NDArray[np.float32] = extract(net, image_blocks(images, np.asarray(rows)), first=rows.start).numpy()
    return found
