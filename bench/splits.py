"""How hard each split of the built-in classes is on raw pixels, before anything is learnt: which `prepare.split_seed` is typical.

The default is the seed whose test and validation classes are nearest to all classes together. No trained model is looked at.

    python -m bench.splits          (after `dvc repro prepare`)
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metadiff.episodes import draw_episodes
from metadiff.evaluation import correct_counts
from metadiff.images.splits import split_classes
from metadiff.params import load
from metadiff.rows import SPLITS, Rows
from metadiff.store import image_blocks, read_rows

IMAGES = Path("data/prepared/images.h5")
SEEDS = range(16)
SHOTS = (1, 5)
RESULT = Path(__file__).parent / "results" / "splits.json"


def nearest_centroid(support_EWSD: Tensor, query_EQD: Tensor) -> Tensor:
    return -torch.cdist(query_EQD, support_EWSD.mean(2))


def accuracies(pixels_ND: Tensor, data: Rows, split: str) -> list[float]:
    """Per cent at each shot, over 600 5-way episodes of 15 queries a class."""
    sizes = {"way": 5, "query": 15, "episodes": 600, "seed": 0}
    drawn = [draw_episodes(data, split, shot=shot, **sizes) for shot in SHOTS]
    return [round(float(correct_counts(nearest_centroid, pixels_ND, episodes).mean() / 0.75), 1) for episodes in drawn]


def main() -> None:
    data, shares = read_rows(IMAGES), load().prepare.split
    assert shares != "given"
    raw_ND = np.concatenate([*image_blocks(IMAGES)]).reshape(len(data.label), -1).astype(np.float32)
    pixels_ND = torch.from_numpy((raw_ND - raw_ND.mean(0)) / (raw_ND.std(0) + 1e-6))
    together = accuracies(pixels_ND, replace(data, split=np.full_like(data.split, SPLITS.index("test"))), "test")
    print(f"all classes together: {together}")
    found = {}
    for seed in SEEDS:
        of_class = split_classes(data.class_names, shares=shares, seed=seed, nested={})
        split_C = np.array([SPLITS.index(of_class[name]) for name in data.class_names], dtype=np.uint8)
        test, val = (accuracies(pixels_ND, replace(data, split=split_C[data.label]), split) for split in ("test", "val"))
        away = round(sum(abs(a - b) for a, b in zip(test + val, together * 2, strict=True)), 1)
        found[seed] = {"test": test, "val": val, "away": away}
        print(f"seed {seed:2}: test {test}, val {val}, away {away}")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"all": together, "seeds": found}, indent=1) + "\n", encoding="utf-8")
    print(f"nearest: seed {min(found, key=lambda seed: found[seed]['away'])}")


if __name__ == "__main__":
    main()
