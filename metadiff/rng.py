"""Random numbers by purpose: each stream is a pure function of the seed and the words that name it.

Nothing here touches a global generator, so the order in which streams are used can never change what they give.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive(0, "augment", epoch, step)``."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *purpose: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive(seed, *purpose)))


def torch_stream(seed: int, *purpose: str | int) -> torch.Generator:
    """A stream on the CPU: the same numbers whatever device they are later moved to."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))
