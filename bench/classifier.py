"""What it takes to learn 5 new classes from 5 images each and to classify 75: images of 84x84 in colour, Conv-4, MetaDiff.

The weights are random, which takes as long as trained ones. Beside it scikit-learn's nearest centroid on the same features, with
the backbone called in a plain loop over images. No instruction set is pinned, as for everyone who imports `metadiff` alone.

    python -m bench.classifier
"""

import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import NearestCentroid

from metadiff import Classifier
from metadiff.backbone import build
from metadiff.checkpoint import save_checkpoint
from metadiff.conditioning import Scale, Scales
from metadiff.generator import dump
from metadiff.methods.metadiff import build as build_method
from metadiff.methods.metadiff import network_facts
from metadiff.params import load
from metadiff.tracked import Tracked
from metadiff.trackedruns import pack
from metadiff.view import View

ROUNDS = 9
WAY, SHOT, QUERIES, SIDE = 5, 5, 75, 84
THREADS = (1, 2)
BOUND = 150  # milliseconds
RESULT = Path(__file__).parent / "results" / "classifier.json"


def untrained() -> Tracked:
    """A run as it would be with images of this size."""
    params = load()
    backbone = build("conv4", channels=3, image_size=SIDE, seed=0).eval()
    facts = network_facts(params.metatrain, "task", feature_size=backbone.feature_size, seed=0)
    weights = build_method(facts).net.state_dict()
    scales = Scales(*(Scale(torch.zeros(backbone.feature_size), torch.tensor(1.0)) for _ in range(2)))
    steps = max(params.evaluate.sampling_steps)
    chosen = {"candidate": f"{steps} steps", "view": "own", "temperature": {"5": 32.0}}
    lineage = {
        "dataset": "generated",
        "method": "metadiff",
        "chosen": chosen,
        "stages": {"evaluate": {"params": params.evaluate.model_dump(mode="json")}},
    }
    view = View(torch.zeros(backbone.feature_size), torch.eye(backbone.feature_size))
    return Tracked(lineage, backbone, {}, (dump({"average": weights}, scales, view=view), facts))


def milliseconds(work: Callable[[], object]) -> dict[str, float]:
    """Of the clock, and of all processors together; after two rounds to warm up."""
    times = []
    for _ in range(ROUNDS + 2):
        clock, processor = time.perf_counter(), time.process_time()
        work()
        times.append((1000 * (time.perf_counter() - clock), 1000 * (time.process_time() - processor)))
    clocks, processors = zip(*times[2:], strict=True)
    return {"median": statistics.median(clocks), "best": min(clocks), "processor": statistics.median(processors)}


def main() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(WAY * SHOT + QUERIES, SIDE, SIDE, 3), dtype=np.uint8)
    support, queries, labels = images[: WAY * SHOT], images[WAY * SHOT :], np.repeat(np.arange(WAY), SHOT)
    tracked = untrained()
    path = RESULT.with_suffix(".safetensors")
    save_checkpoint(path, *pack(tracked))
    ours = Classifier.from_run(path)
    path.unlink()

    @torch.no_grad()
    def plain() -> None:
        features = [tracked.backbone(torch.from_numpy(image[None]))[0].numpy() for image in images]
        warnings.simplefilter("ignore")  # about features that are 0 in every image
        NearestCentroid().fit(features[: WAY * SHOT], labels).predict(features[WAY * SHOT :])

    found: dict[int, dict[str, dict[str, float]]] = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        ways = {"ours": lambda: ours.fit(support, labels).predict(queries), "plain": plain}
        found[threads] = {name: milliseconds(work) for name, work in ways.items()}
        for name, values in found[threads].items():
            print(f"{threads} thread(s), {name:6}" + "".join(f" {about} {value:6.0f} ms " for about, value in values.items()))
    facts = {"milliseconds": found, "bound": BOUND, "rounds": ROUNDS, "instructions": torch.backends.cpu.get_cpu_capability()}
    RESULT.write_text(json.dumps(facts | {"processor": platform.processor()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
