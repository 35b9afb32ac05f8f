"""What it costs to read a pickle without running it, beside the standard library, which runs it and holds all of its arrays.

    python -m bench.pickles

100,000 buffers of 8 KB, as data sets keep images, and one array of 500 MB. Protocol 2 as Python 3 writes it has the bytes in
another form, which is decoded into a file. A process each: seconds of the processor, the peak of resident memory beyond the
interpreter's own, and opcodes a second.
"""

import json
import pickle
import pickletools
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from metadiff.images.pickles import read_pickle

BUFFERS, BUFFER, ARRAY = 100_000, 8 << 10, 500_000_000
WAYS = ("metadiff", "standard library")
RESULT = Path(__file__).parent / "results" / "pickles.json"


def write(path: Path, kind: str, protocol: int) -> None:
    """The buffers are windows on a few random bytes, so that writing them takes no memory; they differ in length as images do."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 1 << 20, dtype=np.uint8)
    lengths = BUFFER + rng.integers(-1000, 1000, BUFFERS)
    value = [noise[:length] for length in lengths] if kind == "buffers" else np.zeros(ARRAY, np.uint8)
    with path.open("wb") as file:
        pickle.dump(value, file, protocol)


def read(path: Path, way: str) -> tuple[float, int]:
    """Seconds of the processor, and the peak of resident memory in kB beyond what the interpreter itself takes."""
    before = resident("VmRSS")
    start = time.process_time()
    if way == "metadiff":
        value = read_pickle(path, scratch=path.parent)
    else:
        with path.open("rb") as file:
            value = pickle.load(file)  # noqa: S301
    seconds = time.process_time() - start
    assert value is not None
    return seconds, resident("VmHWM") - before


def resident(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage would tell the parent's peak too
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0])


def opcodes(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in pickletools.genops(file))


def main() -> None:
    found = []
    with tempfile.TemporaryDirectory(dir=".") as place:
        path = Path(place) / "a.pkl"
        for kind, protocol in (("buffers", 2), ("buffers", 4), ("array", 4)):
            write(path, kind, protocol)
            count, size = opcodes(path), path.stat().st_size / 1e6
            print(f"{kind}, protocol {protocol}: {size:.0f} MB, {count} opcodes")
            for way in WAYS:
                command = [sys.executable, "-m", "bench.pickles", str(path), way]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                seconds, peak = json.loads(printed)
                row = {"way": way, "seconds": round(seconds, 2), "peak_megabytes": round(peak / 1e3, 1)}
                found.append({"what": kind, "protocol": protocol, "megabytes": round(size, 1), "opcodes": count} | row)
                print(f"  {way:17} {seconds:6.2f} s, {peak / 1e3:8.1f} MB, {count / seconds:9.0f} opcodes a second")
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(read(Path(sys.argv[1]), sys.argv[2])))
    else:
        main()
