"""All episodes at once in few steps, against the reference's procedure: one episode at a time, 1000 steps, the graph kept.

    python -m bench.sampling      after make repro

Both use the denoiser of the last run and the same test episodes of one shot. The reference's speed is measured on a few of them,
since all would take hours; its accuracy on all, by the same 1000 steps in one batch.
"""

import json
import time
from pathlib import Path

import torch

import stages  # noqa: F401 - pins the instruction set
from metadiff.checkpoint import load_checkpoint
from metadiff.diffusion import Noise, gaussian_noise
from metadiff.episodes import Episodes, draw_episodes
from metadiff.evaluation import accuracy
from metadiff.generator import Generator, undump
from metadiff.methods.metadiff import Sampling
from metadiff.params import load
from metadiff.rng import torch_stream
from metadiff.store import read_features, read_rows

EPISODES, FEW = 600, 4
OURS, REFERENCE = Sampling("ddim", 5), Sampling("mean-step", 1000)
FEATURES, TASK = Path("data/backbone/features.h5"), Path("data/generator/task.safetensors")
RESULT = Path(__file__).parent / "results" / "sampling.json"


def noise(batch: int) -> Noise:
    return gaussian_noise(torch_stream(0, "bench", batch))


def seconds_at_once(generator: Generator, support_EWSD: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        generator.rows(support_EWSD, OURS, noise(0))
    return time.perf_counter() - start


def seconds_one_by_one(generator: Generator, support_EWSD: torch.Tensor) -> float:
    """Gradients are on, as in the reference, whose network needs them: every step stays in memory until the episode ends."""
    start = time.perf_counter()
    for number in range(FEW):
        generator.rows(support_EWSD[number : number + 1], REFERENCE, noise(number))
    return time.perf_counter() - start


def percent(generator: Generator, sampling: Sampling, features_ND: torch.Tensor, drawn: Episodes) -> float:
    with torch.no_grad():
        return accuracy(
            lambda support, batch: generator.rows(support, sampling, noise(batch))[None], features_ND, drawn, view=generator.view
        )


def main() -> None:
    torch.set_num_threads(load().shared.threads)
    data, features_ND = read_rows(FEATURES), torch.from_numpy(read_features(FEATURES))
    drawn = draw_episodes(data, "test", way=5, shot=1, query=15, episodes=EPISODES, seed=0)
    support_EWSD = features_ND[torch.from_numpy(drawn.support_EWS).long()]
    generator = undump(*load_checkpoint(TASK), kind="average")
    seconds_at_once(generator, support_EWSD)  # to warm up
    rates = {"at once": EPISODES / seconds_at_once(generator, support_EWSD)}
    rates["one by one"] = FEW / seconds_one_by_one(generator, support_EWSD)
    accuracies = {"at once": percent(generator, OURS, features_ND, drawn)}
    accuracies["one by one"] = percent(generator, REFERENCE, features_ND, drawn)
    for way, sampling in (("at once", OURS), ("one by one", REFERENCE)):
        print(f"{way:11} {sampling.sampler:10}{sampling.steps:5} steps {rates[way]:10.2f} episodes/s {accuracies[way]:7.2f} %")
    ratio = rates["at once"] / rates["one by one"]
    print(f"ratio {ratio:,.0f}, difference {accuracies['at once'] - accuracies['one by one']:+.2f} points")
    facts = {"episodes_per_second": rates, "ratio": ratio, "accuracy": accuracies, "episodes": EPISODES, "timed_one_by_one": FEW}
    RESULT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
