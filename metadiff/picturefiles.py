"""Pictures from the files of a backbone's features and of the images that it saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from metadiff.pictures import Pictures
from metadiff.store import image_blocks, read_features


def read_pictures(features: Path, images: Path, *, pixels: bool) -> Pictures:
    """The images themselves only where they are needed."""
    seen = torch.from_numpy(np.concatenate([*image_blocks(images)])).flatten(1) if pixels else None
    return Pictures(torch.from_numpy(read_features(features)), seen)
