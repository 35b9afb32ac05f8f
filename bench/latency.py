"""Whole weights by generation, against fine-tuning: for one task and for many at once, with what either is worth.

    python -m bench.latency studies/mc-di/cells/kanji-radicals-mlp/0                                  heads
    python -m bench.latency studies/networks/cells/omniglot-16/0 --shots 1                            networks
    python -m bench.latency studies/networks/cells/omniglot-64/0 --shots 1 --tasks 200 --rate 0.03    large ones

A cell is a folder in which Mc-Di was trained; what is found of it goes into results/latency_<data set>_<seed>.json. One thread.
Accuracies are on validation episodes, with the very same supports for all, paired with those of one draw; the probabilities of
several draws are averaged.
Heads are fine-tuned from random starts, by Adam; networks from the start that their generators go out from, by SGD, and along
the map of slopes that `local` has learnt, if it has one.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import stages  # noqa: F401 - pins the instruction set
from metadiff.baselines.finetune import Course, SlopeMap, finetune
from metadiff.classifiers import make_weight_generators, read_checkpoints
from metadiff.diffusion import gaussian_noise
from metadiff.episodes import draw_episodes
from metadiff.evaluation import mean_and_ci95, targets
from metadiff.network import Network
from metadiff.picturefiles import read_pictures
from metadiff.pictures import Pictures
from metadiff.rng import numpy_stream, torch_stream
from metadiff.store import read_rows
from metadiff.weightgenerator import WeightGenerator

QUERY, REPEATS = 7, 3
LITTLE, ENOUGH = 1_000, 10_000  # milliseconds
DRAWS = {"heads": (1, 8), "networks": (1, 2)}
OF_HEADS = tuple(Course(lr, steps) for lr in (0.01, 0.03) for steps in (3, 10, 30, 100))
OF_NETWORKS = (16, 100, 300)  # steps
RESULTS = Path(__file__).parent / "results"
Made = Callable[[Pictures], Tensor]  # support (E, W, S) -> weights (G, E, P)


def generated(made: WeightGenerator, draws: int) -> Made:
    return lambda support: made.draws(support, [gaussian_noise(torch_stream(draw, "latency")) for draw in range(draws)])


def tuned_heads(made: WeightGenerator, draws: int, course: Course) -> Made:
    """From random starts; their noise, as that of a generator, is drawn while the clock runs."""

    def heads(support_EWS: Pictures) -> Tensor:
        """All starts of all tasks in one tensor program."""
        count = len(support_EWS)
        stream = numpy_stream(0, "latency")
        start_BP = torch.stack([made.learner.start(stream, made.start_std) for _ in range(draws * count)])
        repeated = Pictures(support_EWS.features.repeat(draws, *(1,) * (support_EWS.features.ndim - 1)))
        end_BP = finetune(made.learner, made.inputs, repeated, start_BP, course)
        return end_BP.view(draws, count, -1)

    return heads


def tuned_networks(made: WeightGenerator, course: Course, turn: SlopeMap | None) -> Made:
    tune = partial(finetune, made.learner, made.inputs, course=course, turn=turn)
    return lambda support: tune(support, made.scale.shift_P.expand(len(support), -1))[None]


def ways(made: WeightGenerator, kind: str, rate: float) -> Iterator[tuple[str, int, Made]]:
    for draws in DRAWS[kind]:
        yield "local", draws, generated(made, draws)
    if kind == "heads":
        for draws in DRAWS[kind]:
            for course in OF_HEADS:
                yield f"fine-tuning, {course}", draws, tuned_heads(made, draws, course)
        return
    turns = {"": None} | ({", turned": made.turn_slope} if made.turn_slope else {})
    for about, turn in turns.items():
        for course in (Course(rate, steps, "sgd") for steps in OF_NETWORKS):
            yield f"fine-tuning, {course}{about}", 1, tuned_networks(made, course, turn)


def milliseconds(weights_of: Made, support_EWS: Pictures) -> float:
    """The least of several runs, or of the first alone if it takes long: so other load on the machine counts least."""
    found: list[float] = []
    while (len(found) < REPEATS or sum(found) < LITTLE) and sum(found) < ENOUGH:
        start = time.perf_counter()
        weights_of(support_EWS)
        found.append(1000 * (time.perf_counter() - start))
    return min(found)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time and worth of generated and of fine-tuned weights.")
    parser.add_argument("cell", type=Path, help="a folder with data/prepared, data/backbone and data/generator")
    parser.add_argument("--shots", type=int, default=5, help="of each class (5)")
    parser.add_argument("--tasks", type=int, default=600, help="at once (600)")
    parser.add_argument("--rate", type=float, default=0.05, help="of SGD, by which networks are fine-tuned (0.05)")
    chosen = parser.parse_args()
    cell, shot, tasks = chosen.cell, chosen.shots, chosen.tasks
    torch.set_num_threads(1)
    path = cell / "data/backbone/features.h5"
    made = make_weight_generators(read_checkpoints(cell / "data/generator"), "cpu")["local"]
    kind = "networks" if isinstance(made.learner, Network) else "heads"
    data, pictures = read_rows(path), read_pictures(path, cell / "data/prepared/images.h5", pixels=made.inputs.of_pixels)
    drawn = draw_episodes(data, "val", way=made.learner.way, shot=shot, query=QUERY, episodes=tasks, seed=0)
    support_EWS = pictures[torch.from_numpy(drawn.support_EWS).long()]
    query_EN, target_Q = pictures[torch.from_numpy(drawn.query_EWQ).long().flatten(1)], targets(drawn)
    found: list[dict[str, object]] = []
    draw_E = None  # per cent right of each task, by one draw of `local`
    for name, draws, weights_of in ways(made, kind, chosen.rate):
        weights_of(support_EWS[:1])  # to warm up, as what follows is for many tasks
        drawn_GEP = weights_of(support_EWS)
        mean_EQW = torch.stack([made.logits(theta_EP, query_EN).softmax(-1) for theta_EP in drawn_GEP]).mean(0)
        right_E = 100 * (mean_EQW.argmax(-1) == target_Q).double().mean(1).numpy()
        draw_E = right_E if draw_E is None else draw_E
        gain, ci95 = mean_and_ci95(right_E - draw_E)
        one, many = milliseconds(weights_of, support_EWS[:1]), milliseconds(weights_of, support_EWS) / tasks
        accuracy = float(right_E.mean())
        row = {"weights from": name, "averaged": draws, "accuracy": accuracy, "to one draw": gain, "ci95": ci95}
        found.append(row | {"ms, one task": one, f"ms a task of {tasks}": many})
        said = f"{accuracy:7.2f} % {gain:+6.2f} ± {ci95:.2f} {one:9.2f} ms for one task {many:8.3f} ms a task of {tasks}"
        print(f"{name:42}{draws:3} {said}", flush=True)
    about = {"cell": str(cell), "shots": shot, "tasks": tasks}
    (RESULTS / f"latency_{cell.parent.name}_{cell.name}.json").write_text(
        json.dumps(about | {"rows": found}, indent=1) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
