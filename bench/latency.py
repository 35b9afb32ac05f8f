"""Weights of a head by generation, against fine-tuning: for one task and for 600 at once, with what either is worth.

    python -m bench.latency studies/mc-di/cells/kanji-radicals-mlp/0      a folder in which Mc-Di was trained

One thread. Accuracies are on validation episodes, with the very same supports for all; the probabilities of several heads are
averaged.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import stages  # noqa: F401 - pins the instruction set
from metadiff.baselines.finetune import Course, finetune
from metadiff.classifiers import make_weight_generators, read_checkpoints
from metadiff.diffusion import gaussian_noise
from metadiff.episodes import draw_episodes
from metadiff.evaluation import targets
from metadiff.pictures import Pictures
from metadiff.rng import numpy_stream, torch_stream
from metadiff.store import read_features, read_rows
from metadiff.weightgenerator import WeightGenerator

TASKS, SHOT, QUERY, REPEATS = 600, 5, 7, 3
DRAWS = (1, 8)
RATES, STEPS = (0.01, 0.03), (3, 10, 30, 100)
RESULT = Path(__file__).parent / "results" / "latency.json"
Heads = Callable[[Pictures], Tensor]  # support (E, W, S) -> weights (G, E, P)


def generated(made: WeightGenerator, draws: int) -> Heads:
    return lambda support: made.draws(support, [gaussian_noise(torch_stream(draw, "latency")) for draw in range(draws)])


def tuned(made: WeightGenerator, draws: int, lr: float, steps: int) -> Heads:
    """From random starts; their noise, as that of a generator, is drawn while the clock runs."""

    def heads(support_EWS: Pictures) -> Tensor:
        """All starts of all tasks in one tensor program."""
        count = len(support_EWS)
        stream = numpy_stream(0, "latency")
        start_BP = torch.stack([made.learner.start(stream, made.start_std) for _ in range(draws * count)])
        repeated = Pictures(support_EWS.features.repeat(draws, *(1,) * (support_EWS.features.ndim - 1)))
        end_BP = finetune(made.learner, made.inputs, repeated, start_BP, Course(lr, steps))
        return end_BP.view(draws, count, -1)

    return heads


def ways(made: WeightGenerator) -> Iterator[tuple[str, int, Heads]]:
    for draws in DRAWS:
        yield "local", draws, generated(made, draws)
    for draws in DRAWS:
        for lr in RATES:
            for steps in STEPS:
                yield f"fine-tuning, {steps} steps of {lr:g}", draws, tuned(made, draws, lr, steps)


def milliseconds(heads: Heads, support_EWS: Pictures) -> float:
    """The least of several runs after one to warm up: what else the machine does is not measured."""
    heads(support_EWS)
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        heads(support_EWS)
        found.append(1000 * (time.perf_counter() - start))
    return min(found)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time and worth of generated and of fine-tuned heads.")
    parser.add_argument("cell", type=Path, help="a folder with data/backbone and data/generator")
    cell = parser.parse_args().cell
    torch.set_num_threads(1)
    path = cell / "data/backbone/features.h5"
    data, pictures = read_rows(path), Pictures(torch.from_numpy(read_features(path)))
    made = make_weight_generators(read_checkpoints(cell / "data/generator"), "cpu")["local"]
    drawn = draw_episodes(data, "val", way=made.learner.way, shot=SHOT, query=QUERY, episodes=TASKS, seed=0)
    support_EWS = pictures[torch.from_numpy(drawn.support_EWS).long()]
    query_EN, target_Q = pictures[torch.from_numpy(drawn.query_EWQ).long().flatten(1)], targets(drawn)
    found = []
    for name, draws, heads in ways(made):
        mean_EQW = torch.stack([made.logits(theta_EP, query_EN).softmax(-1) for theta_EP in heads(support_EWS)]).mean(0)
        accuracy = 100 * (mean_EQW.argmax(-1) == target_Q).double().mean().item()
        one, many = milliseconds(heads, support_EWS[:1]), milliseconds(heads, support_EWS) / TASKS
        found.append({"heads from": name, "averaged": draws, "accuracy": accuracy, "ms, one task": one, "ms a task of 600": many})
        print(f"{name:32}{draws:3} {accuracy:7.2f} % {one:9.2f} ms for one task {many:8.3f} ms a task of {TASKS}", flush=True)
    RESULT.write_text(json.dumps({"shots": SHOT, "tasks": TASKS, "rows": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
