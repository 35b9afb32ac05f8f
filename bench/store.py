"""What the trajectory store costs: writing and reading it, the same through zarr with several codecs, and as plain files.

python -m bench.store

Through zarr means as its own writer does it, in the same layout: a file a block, a part a kept step, with a checksum each.
"""

import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec

from metadiff.trajectory import Trajectories
from metadiff.trajectory_store import open_trajectories, write_trajectories

ROUNDS = 5
BLOCKS, BLOCK, KEEP, SIZE = 48, 256, 5, 1280  # of the default vector
CODECS = {"crc32c": Crc32cCodec(), "zstd 1": ZstdCodec(level=1, checksum=True), "zstd -5": ZstdCodec(level=-5, checksum=True)}
RESULT = Path(__file__).parent / "results" / "store.json"


def generated() -> list[Trajectories]:
    """Paths of small steps from a Gaussian start: neighbours are alike, their bits are not."""
    rng = np.random.default_rng(0)
    ids = (np.arange(BLOCK), np.zeros((BLOCK, 5)), np.zeros((BLOCK, 5, 5)))
    small = [values.astype(np.int32) for values in ids]
    measures = [np.ones((BLOCK, KEEP), np.float32)] * 2
    return [
        Trajectories(*small, np.cumsum(0.1 * rng.standard_normal((BLOCK, KEEP, SIZE), dtype=np.float32), axis=1), *measures)
        for _ in range(BLOCKS)
    ]


def plain(folder: Path, blocks: list[Trajectories]) -> None:
    folder.mkdir()
    for number, block in enumerate(blocks):
        (folder / str(number)).write_bytes(block.weights_TKP.data)


def store(folder: Path, blocks: list[Trajectories]) -> None:
    steps = tuple(range(KEEP))
    write_trajectories(folder, iter(blocks), count=BLOCKS * BLOCK, block=BLOCK, steps=steps, about={})


def through_zarr(folder: Path, blocks: list[Trajectories], codec: BytesBytesCodec) -> None:
    array = zarr.create_array(
        folder,
        shape=(BLOCKS * BLOCK, KEEP, SIZE),
        dtype=np.float32,
        chunks=(BLOCK, 1, SIZE),
        shards=(BLOCK, KEEP, SIZE),
        compressors=[codec],
        config={"write_empty_chunks": True},
    )
    for number, block in enumerate(blocks):
        array[number * BLOCK : (number + 1) * BLOCK] = block.weights_TKP


def sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def read_plain(folder: Path) -> Iterator[np.ndarray]:
    for path in folder.iterdir():
        yield np.frombuffer(path.read_bytes(), np.float32)


def read_store(folder: Path) -> Iterator[np.ndarray]:
    opened = open_trajectories(folder)
    for block in range(opened.blocks):
        yield opened.weights(block)


def read_zarr(folder: Path) -> Iterator[np.ndarray]:
    array = zarr.open_array(folder, mode="r")
    for number in range(BLOCKS):
        yield np.asarray(array[number * BLOCK : (number + 1) * BLOCK])


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    blocks = generated()
    size = sum(block.weights_TKP.nbytes for block in blocks) / 1e6
    ways = {"plain files": (plain, read_plain), "the store": (store, read_store)}
    ways |= {f"zarr, {name}": (partial(through_zarr, codec=codec), read_zarr) for name, codec in CODECS.items()}
    seconds: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    stored = {}
    with tempfile.TemporaryDirectory(dir=".") as place:
        for _ in range(ROUNDS):
            for way, (write, read) in ways.items():
                folder = Path(place) / "store"
                written = timed(lambda write=write, folder=folder: write(folder, blocks))
                synced = written + timed(lambda folder=folder: sync(folder))
                seconds[way].append((written, synced, timed(lambda read=read, folder=folder: [*map(np.ravel, read(folder))])))
                stored[way] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
                shutil.rmtree(folder)
    rates = {way: [size / statistics.median(column) for column in zip(*times, strict=True)] for way, times in seconds.items()}
    names = ("write", "write_and_sync", "read")
    found = {way: dict(zip(names, three, strict=True)) | {"size": stored[way] / size} for way, three in rates.items()}
    for one in found.values():
        one["share_of_plain"] = one["write_and_sync"] / found["plain files"]["write_and_sync"]
    for way, one in found.items():
        print(
            f"{way:14}"
            + "".join(f" {name} {one[name]:6.0f} MB/s " for name in names)
            + f" {one['share_of_plain']:5.2f} of plain, size {one['size']:.3f}"
        )
    facts = {"megabytes_per_second": found, "megabytes": size, "rounds": ROUNDS, "processor": platform.processor()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
