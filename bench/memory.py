"""Memory of meta-training against the length of its trajectories: only where they end is read of each.

    python -m bench.memory

Each length is measured in a process of its own: the peak of resident memory up to the end of a short training on the ends of
trajectories with 10, 100 and 1,000 kept steps.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import stages  # noqa: F401 - pins the instruction set
from metadiff.conditioning import BaseTasks, Ends
from metadiff.metatraining import MetaTraining, pace_of, rows_lesson
from metadiff.methods.metadiff import build, network_facts
from metadiff.params import load
from metadiff.rows import Rows
from metadiff.trajectory import Trajectories
from metadiff.trajectory_store import open_trajectories, write_trajectories

LENGTHS = (10, 100, 1000)
BLOCKS, BLOCK, WAY, SHOT, DIM = 2, 256, 5, 5, 64
CLASSES, IMAGES, STEPS = 46, 30, 20
RESULT = Path(__file__).parent / "results" / "memory.json"


def blocks(length: int) -> Iterator[Trajectories]:
    rng = np.random.default_rng(0)
    classes = np.stack([rng.permutation(CLASSES)[:WAY] for _ in range(BLOCK)]).astype(np.int32)
    support = np.zeros((BLOCK, WAY, SHOT), np.int32)
    measures = [np.ones((BLOCK, length), np.float32)] * 2
    for _ in range(BLOCKS):
        weights = rng.standard_normal((BLOCK, length, WAY * DIM), dtype=np.float32)
        yield Trajectories(np.arange(BLOCK, dtype=np.int32), classes, support, weights, *measures)


def train(store: Path) -> None:
    """What the stage metatrain does with trajectories."""
    section = load().metatrain.model_copy(update={"target": "trajectory-ends", "spread": 1.0, "steps": STEPS, "val_every": STEPS})
    label = np.repeat(np.arange(CLASSES, dtype=np.int32), IMAGES)
    count = len(label)
    names = np.array([f"class {i}".encode() for i in range(CLASSES)])
    data = Rows(label, np.zeros(count, np.uint8), np.arange(count, dtype=np.int32), np.full(count, b"x"), names, "generated")
    features_ND = torch.randn(count, DIM, generator=torch.Generator().manual_seed(0))
    opened = open_trajectories(store)
    ends = Ends(torch.from_numpy(opened.end_points()).view(-1, WAY, DIM), torch.from_numpy(opened.classes))
    facts = network_facts(section, "task", feature_size=DIM, seed=0)
    tasks = BaseTasks(features_ND, data, ends=ends)
    lesson = rows_lesson(section, tasks, score=lambda _method: 0.0)
    MetaTraining(pace_of(section), build(facts), lesson, seed=0).run()


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory(dir=".") as place:
        for length in LENGTHS:
            store = Path(place) / str(length)
            write_trajectories(store, blocks(length), count=BLOCKS * BLOCK, block=BLOCK, steps=tuple(range(length)), about={})
            size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / 1e6
            command = [sys.executable, "-m", "bench.memory", str(store)]
            peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1e3
            found[length] = {"store_megabytes": round(size, 1), "peak_megabytes": round(peak, 1)}
            print(f"{length:5} kept steps: store {size:7.1f} MB, peak of meta-training {peak:6.1f} MB")
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        train(Path(sys.argv[1]))
        status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak too
        print(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    else:
        main()
