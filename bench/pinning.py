"""What the pinned instruction set costs: epochs of pretraining with AVX2 and with all that this processor has, in turns.

python -m bench.pinning
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 3
IMAGES = 1920  # 30 batches of 64
FREE = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "DEFAULT", "MKL_CBWR": "AUTO"}
WAYS: dict[str, dict[str, str]] = {"pinned to AVX2": {}, "all instructions": FREE}
RESULT = Path(__file__).parent / "results" / "pinning.json"


def measure() -> None:
    """In a process of its own, for the choice is made when torch starts: seconds of one epoch after one to warm up."""
    import numpy as np
    import torch

    import stages  # noqa: F401 - pins, unless the environment says otherwise
    from metadiff.backbone import build
    from metadiff.params import load
    from metadiff.training import Pretraining

    params = load()
    torch.set_num_threads(params.shared.threads)
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (IMAGES, 32, 32, 1), dtype=np.uint8)
    training = Pretraining(
        params.pretrain,
        backbone=build("conv4", channels=1, image_size=32, seed=0),
        images_NHWC=images_NHWC,
        labels_N=rng.integers(0, 46, IMAGES),
        validation_NHWC=images_NHWC[:64],
        score=lambda _: 0.0,
        seed=0,
    )
    training.run_epoch()
    start = time.perf_counter()
    training.run_epoch()
    print(json.dumps({"seconds": time.perf_counter() - start, "instructions": torch.backends.cpu.get_cpu_capability()}))


def main() -> None:
    found: dict[str, list[dict[str, object]]] = {way: [] for way in WAYS}
    clean = {name: value for name, value in os.environ.items() if name not in FREE}
    for _ in range(ROUNDS):
        for way, environment in WAYS.items():
            run = subprocess.run(
                [sys.executable, "-m", "bench.pinning", "child"],
                env=clean | environment,
                capture_output=True,
                text=True,
                check=True,
            )
            found[way].append(json.loads(run.stdout))
    rates = {way: IMAGES / statistics.median(float(str(one["seconds"])) for one in runs) for way, runs in found.items()}
    free = rates["all instructions"]
    for way, rate in rates.items():
        print(f"{way:18} {found[way][0]['instructions']:8} {rate:8.0f} images/s  {rate / free:5.2f} of the unpinned speed")
    facts = {"images_per_second": rates, "pinned_over_free": rates["pinned to AVX2"] / free, "processor": platform.processor()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(facts | {"rounds": ROUNDS, "images": IMAGES}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    measure() if "child" in sys.argv else main()
