"""Time and memory of preparing a data set against the number of its images.

    python -m bench.prepare

Data sets as large as parts of tieredImageNet, in its own layout: pickles of 84x84 PNG images with labels of its 608 classes. Each
is prepared by the stage in a process of its own, on all processors; memory is that of all its processes together (what they share
counted once), as the kernel tells it ten times a second.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from metadiff.images.published import FACTS
from stages.prepare import STAGE
from stages.runner import main as main_of_stage

SIZES = (25_536, 50_464, 200_640)
WHOLE = 779_165  # images of tieredImageNet
DISTINCT = 5_000
SIDE = 84
ROOT = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).parent / "results" / "prepare.json"


def pictures() -> list[bytes]:
    """PNG images as large as those of photographs: smooth colours with grain."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.integers(-6, 7, smooth.shape, dtype=np.int16)
        stream = io.BytesIO()
        Image.fromarray((smooth + grain + (12, 0, -12)).clip(0, 255).astype(np.uint8)).save(stream, "PNG")
        made.append(stream.getvalue())
    return made


def write(folder: Path, made: list[bytes], count: int) -> int:
    """Of each class as many images, about ``count`` in all; the list is written item by item, as no machine need hold it."""
    folder.mkdir()
    splits = FACTS["tieredimagenet"].splits
    share = count // sum(map(len, splits.values()))
    number = 0
    for split, labels in splits.items():
        label_N = np.repeat(np.arange(len(labels), dtype=np.int32), share)
        with (folder / f"{split}_images_png.pkl").open("wb") as file:
            file.write(b"\x80\x03]")
            for item in stream(made, number, len(label_N)):
                file.write(item)
            file.write(b".")
        number += len(label_N)
        about = {"label_specific": label_N, "label_specific_str": list(labels)}
        (folder / f"{split}_labels.pkl").write_bytes(pickle.dumps(about, protocol=2))
    return number


def stream(made: list[bytes], first: int, count: int) -> Iterator[bytes]:
    for number in range(first, first + count):
        buffer = np.frombuffer(made[number % DISTINCT], np.uint8)[:, None]
        yield pickle.dumps(buffer, protocol=3)[2:-1] + b"a"  # without its beginning and end, appended to the list


def prepare(place: Path, brought: Path) -> tuple[float, float]:
    """Seconds, and megabytes at most."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["prepare"] |= {"source": "tieredimagenet", "path": str(brought), "image_size": SIDE, "color": "rgb", "split": "given"}
    place.mkdir()
    yaml.dump(params, place / "params.yaml")
    start, peak = time.perf_counter(), 0.0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "bench.prepare", "part"], cwd=place, env=environment)
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, peak / 1e6


def stage_on_a_part() -> None:
    """The stage, which would refuse a part of this data set."""
    FACTS["tieredimagenet"] = replace(FACTS["tieredimagenet"], partial=True)
    main_of_stage(STAGE)


def memory(pid: int) -> float:
    """Bytes of a process and its children: pages that several share are counted in parts."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return 0
    own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return own + sum(memory(int(child)) for child in children)


def main() -> None:
    found, made = [], pictures()
    for size in SIZES:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            brought = Path(folder) / "brought"
            count = write(brought.resolve(), made, size)
            megabytes = sum(path.stat().st_size for path in brought.iterdir()) / 1e6
            seconds, peak = prepare(Path(folder) / "run", brought.resolve())
        found.append(
            {"images": count, "megabytes_brought": round(megabytes), "seconds": round(seconds, 1), "peak_megabytes": round(peak)}
        )
        print(f"{count:8,} images, {megabytes:6,.0f} MB: {seconds:6.1f} s, at most {peak:6,.0f} MB of memory")
    (slope, start), (more, least) = (
        np.polyfit([row["images"] for row in found], [row[key] for row in found], 1) for key in ("peak_megabytes", "seconds")
    )
    whole = {"images": WHOLE, "seconds": round(least + more * WHOLE), "peak_megabytes": round(start + slope * WHOLE)}
    print(f"{slope * 1e3:.2f} kB and {more * 1e3:.2f} ms an image")
    print(f"by that, tieredImageNet takes {whole['seconds'] / 60:.0f} minutes and {whole['peak_megabytes']:,} MB")
    RESULT.write_text(
        json.dumps({"cores": os.cpu_count(), "measured": found, "tieredimagenet_by_the_slope": whole}, indent=1) + "\n"
    )


if __name__ == "__main__":
    stage_on_a_part() if sys.argv[1:] == ["part"] else main()
