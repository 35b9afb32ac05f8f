"""What batching gives: trajectories a second of a block as one tensor program, and of PyTorch's usual loop, a task at a time.

python -m bench.collect
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import stages  # noqa: F401 - pins the instruction set, as in a run
from metadiff.episodes import Episodes, draw_episodes
from metadiff.params import Collect, load
from metadiff.rows import Rows
from metadiff.trajectory import collect_block, learner_of

ROUNDS = 3
CLASSES, IMAGES, DIM = 46, 77, 256  # as many as the built-in data have
MLP, SEEN = {"learner": "mlp", "hidden": 16, "sees": "support", "shot": 20, "steps": 150}, 64  # perceptrons, and what they see
ALONE = 6  # tasks of the loop: it takes as long for each
RESULT = Path(__file__).parent / "results" / "collect.json"


def generated() -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(CLASSES, dtype=np.int32), IMAGES)
    count = len(label)
    names = np.array([f"class {i}".encode() for i in range(CLASSES)])
    rows = Rows(label, np.zeros(count, np.uint8), np.arange(count, dtype=np.int32), np.full(count, b"x"), names, "generated")
    return rows, (rng.normal(size=(CLASSES, DIM))[label] + rng.normal(size=(count, DIM))).astype(np.float32)


class Cosine(nn.Module):
    """The cosine learner as a module; features come as unit vectors."""

    def __init__(self, section: Collect, dim: int) -> None:
        super().__init__()
        self.scale, self.weight_WD = section.scale, nn.Parameter(section.init_std * torch.randn(section.way, dim))

    def forward(self, inputs_ND: torch.Tensor) -> torch.Tensor:
        return self.scale * inputs_ND @ normalize(self.weight_WD, dim=-1).T


def module_of(section: Collect, dim: int) -> nn.Module:
    if section.learner == "mlp":
        return nn.Sequential(nn.Linear(dim, section.hidden), nn.ReLU(), nn.Linear(section.hidden, section.way))
    return Cosine(section, dim)


def loop(section: Collect, drawn: Episodes, features: torch.Tensor, label_N: np.ndarray, tasks: int) -> None:
    """As it is usually written: a module, autograd, an optimiser, one task after the other."""
    for task in range(tasks):
        if section.sees == "support":
            rows, count = drawn.support_EWS[task].ravel(), section.shot
        else:
            rows, count = np.concatenate([np.flatnonzero(label_N == label) for label in drawn.classes_EW[task]]), IMAGES
        inputs_ND, target_N = normalize(features[rows], dim=-1), torch.arange(section.way).repeat_interleave(count)
        module = module_of(section, features.shape[1])
        optimizer = torch.optim.Adam(module.parameters(), lr=section.lr, betas=(section.momentum, 0.999))
        for _ in range(section.steps):
            optimizer.zero_grad()
            cross_entropy(module(inputs_ND), target_N).backward()
            optimizer.step()


def rate(work: Callable[[], object], tasks: int) -> float:
    """Tasks a second, the median of some rounds after one to warm up."""
    work()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return tasks / statistics.median(times)


def measure(section: Collect, rows: Rows, features_ND: np.ndarray) -> dict[str, float]:
    numbers, sizes = range(section.block), {"way": section.way, "shot": section.shot, "query": 0}
    drawn = draw_episodes(rows, "train", **sizes, episodes=len(numbers), seed=0)
    arrays, learner = {"seen_NE": features_ND, "label_N": rows.label}, learner_of(section, features_ND.shape[1], (28, 28, 1))
    features = torch.from_numpy(features_ND)
    batched = rate(lambda: collect_block(section, learner, numbers, drawn, **arrays, seed=0, device="cpu"), len(numbers))
    alone = rate(lambda: loop(section, drawn, features, rows.label, ALONE), ALONE)
    return {"batched": batched, "loop": alone, "times": batched / alone}


def main() -> None:
    params = load()
    torch.set_num_threads(params.shared.threads)
    torch.use_deterministic_algorithms(True)
    rows, features_ND = generated()
    fixed = {"learner": "cosine", "optimizer": "adam", "sam": 0.0, "weight_decay": 0.0, "noise": 0.0}
    cases = {"support": {"sees": "support"}, "classes": {"sees": "classes"}, "mlp": MLP}
    found = {}
    for name, case in cases.items():
        dim = SEEN if name == "mlp" else DIM
        found[name] = measure(params.collect.model_copy(update=fixed | case), rows, features_ND[:, :dim].copy())
    for name, one in found.items():
        print(f"{name:8} {one['batched']:8.1f} tasks/s batched {one['loop']:8.2f} in a loop: {one['times']:6.1f} times as fast")
    used = {key: getattr(params.collect, key) for key in ("block", "way", "shot", "steps")}
    facts = {
        "tasks_per_second": found,
        "mlp": MLP | {"dim": SEEN},
        "threads": params.shared.threads,
        "processor": platform.processor(),
        "rounds": ROUNDS,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(facts | used, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
