"""The trajectory store, trajectories.zarr: the only module that knows zarr.

    weights     (task, step, parameter)  one file a block of tasks, in it one part a kept step, each of which can be read alone
    loss        (task, step)             accuracy likewise, on all that the task sees
    task        (task,)                  the number of the drawn task: refused ones are left out
    classes     (task, way)              as in the features' table of classes; of described tasks, in both ways, the task's number
    support     (task, way, shot)        rows of the features
    step        (step,)                  the kept steps of the optimiser

Every part ends in the CRC-32C of its content, which the codec checks at every read. The attributes list all files with their size
and checksums, so that one that is missing, which zarr would read as NaN, or that is another's is refused too; and they say what a
vector of weights means. Floats are stored as they are: they do not compress (bench/store.py).

`tasks_of` says what paths are of: `episodes` of classes, or `sentences`. Then `descriptions` has an entry for each training task,
in the order of their `number` among all tasks of tasks.json: its `name`, `kind` and `texts`, the sentences. The images of way 0
are those that a sentence is wrong of, those of way 1 the right ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.errors import BaseZarrError

from metadiff.artifact import sync
from metadiff.errors import CorruptArtifactError, DataError
from metadiff.trajectory import Floats, Ints, Trajectories

FORMAT = 3
KIND = "metadiff trajectories"
EPISODES = "episodes"
CHECKSUM, PLACE = 4, 16  # bytes of a CRC-32C, and of where a part begins and how long it is
AXES = {
    "weights": ("task", "step", "parameter"),
    "loss": ("task", "step"),
    "accuracy": ("task", "step"),
    "task": ("task",),
    "classes": ("task", "way"),
    "support": ("task", "way", "shot"),
}
Chunk = tuple[int, ...]


def write_trajectories(
    path: Path, blocks: Iterable[Trajectories], *, count: int, block: int, steps: tuple[int, ...], about: Mapping[str, Any]
) -> None:
    """Write ``count`` tasks that come in parts of any size, ``block`` tasks a file: never more than three blocks in memory."""
    group = zarr.create_group(path)
    small: dict[str, list[NDArray[Any]]] = {name: [] for name in AXES if name != "weights"}
    start, syncs = 0, []
    with ThreadPoolExecutor(1) as disk:  # brings a block to the disk while the next one is encoded
        for number, part in enumerate(regrouped(blocks, block)):
            columns = {name.partition("_")[0]: values for name, values in vars(part).items()}
            weights = columns.pop("weights")
            if not start:
                shape = (count, *weights.shape[1:])
                _create(group, "weights", shape, weights.dtype, chunks=(block, 1, shape[2]), shards=(block, *shape[1:]))
            file = weights_file(path, number)
            _write_block(file, weights, rows=block)
            syncs.append(disk.submit(sync, file))
            start += len(weights)
            for name, values in columns.items():
                small[name].append(values)
    for done in syncs:
        done.result()
    if start != count:
        raise ValueError(f"{path}: {start} trajectories of {count}")
    _write_small(group, {name: np.concatenate(parts) for name, parts in small.items()} | {"step": np.asarray(steps, np.int32)})
    facts: dict[str, Any] = {"kind": KIND, "format": FORMAT, "zarr": zarr.__version__, "tasks": count, "block": block, **about}
    facts["files"] = {
        file.relative_to(path).as_posix(): _facts(file, parts=len(steps) if file.is_relative_to(path / "weights") else 0)
        for file in sorted(path.glob("*/**/*"))
        if file.is_file()
    }
    group.attrs.put(facts | {"sha256": _sha256(facts)})


def regrouped(blocks: Iterable[Trajectories], size: int) -> Iterator[Trajectories]:
    """The same tasks in the same order, ``size`` at a time."""
    held: Trajectories | None = None
    for block in blocks:
        held = _joined(held, block) if held and len(held.task_T) else block  # without a copy where nothing was refused
        while len(held.task_T) >= size:
            yield held.take(slice(size))
            held = held.take(slice(size, None))
    if held and len(held.task_T):
        yield held


class TrajectoryStore:
    """An open store. What was read of it has been checked, file by file; what was not read has not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "zarr.json").is_file():
            raise CorruptArtifactError(f"{path}: no trajectory store; make it: dvc repro collect")
        try:
            self._group = zarr.open_group(path, mode="r")
            self.attributes: dict[str, Any] = dict(self._group.attrs)
        except (ValueError, KeyError, TypeError, BaseZarrError) as error:
            raise self._broken("zarr.json", f"cannot be read ({error})") from None
        self._check_attributes()

    def __len__(self) -> int:
        return int(self.attributes["tasks"])

    @property
    def tasks_of(self) -> str:
        return str(self.attributes.get("tasks_of", EPISODES))

    @property
    def blocks(self) -> int:
        return self.blocks_of(None)

    def blocks_of(self, most: int | None) -> int:
        """That hold as many tasks, or all."""
        count = len(self) if most is None else min(most, len(self))
        return -(-count // int(self.attributes["block"]))

    @property
    def size(self) -> int:
        """Numbers of a vector of weights."""
        return sum(math.prod(part["shape"]) for part in self.attributes["layout"])

    def rows(self, block: int) -> slice:
        """Which tasks a block holds."""
        size = int(self.attributes["block"])
        return slice(block * size, min((block + 1) * size, len(self)))

    def weights(self, block: int) -> Floats:
        """A block's weights at all kept steps (T, K, P), from its own file alone."""
        return self._weights(block, slice(None))

    def paths(self, block: int, segments: int) -> Floats:
        """A block's weights (T, segments + 1, P) at equal distances, the start first; the other kept steps are not read."""
        return self._weights(block, self.ends_of(segments))

    def ends_of(self, segments: int) -> slice:
        """Which of the kept steps they are."""
        between = len(self.steps) - 1
        if segments < 1 or between % segments:
            raise DataError(
                f"{self.path}: {len(self.steps)} kept steps cannot be cut into {segments} equal segments; collect.keep must be 1 "
                f"more than a multiple of {segments}, such as {segments + 1} or {2 * segments + 1}; set it and run: dvc repro"
            )
        return slice(None, None, between // segments)

    def weights_file(self, block: int) -> Path:
        return weights_file(self.path, block)

    def part_starts(self, block: int) -> list[int]:
        """Where in a block's file the weights of each kept step begin, as its index says."""
        size = PLACE * len(self.steps)
        with self.weights_file(block).open("rb") as content:
            content.seek(-size - CHECKSUM, os.SEEK_END)  # after the index there is its checksum
            return [int(start) for start in np.frombuffer(content.read(size), "<u8")[::2]]

    def block(self, block: int) -> Trajectories:
        """All that is known of a block's tasks."""
        rows = self.rows(block)
        ids = (self.task[rows], self._classes[rows], self.support[rows])
        return Trajectories(*ids, self.weights(block), self.loss[rows], self.accuracy[rows])

    def end_points(self, most: int | None = None) -> Floats:
        """Where every path ends (N, P), or the first of very many; the steps on the way there are not read."""
        blocks = range(self.blocks_of(most))
        return np.concatenate([self._weights(block, slice(-1, None))[:, 0] for block in blocks])[:most]

    @cached_property
    def steps(self) -> Ints:
        """The kept steps of the optimiser (K)."""
        return self._read("step", (0,))

    @cached_property
    def loss(self) -> Floats:
        """At each kept step (N, K), on all that the task saw; each class of a task weighs the same."""
        return self._read("loss", (0, 0))

    @cached_property
    def accuracy(self) -> Floats:
        """From 0 to 1, as the loss (N, K)."""
        return self._read("accuracy", (0, 0))

    @cached_property
    def task(self) -> Ints:
        """The number of each drawn task (N)."""
        return self._read("task", (0,))

    @cached_property
    def classes(self) -> Ints:
        """By their number in the features' table of classes (N, W); of described tasks, which are none, DataError."""
        if self.tasks_of != EPISODES:
            raise DataError(f"{self.path}: its paths are of {self.tasks_of}, not of classes; write collect.tasks_of {EPISODES}")
        return self._classes

    @cached_property
    def described(self) -> Ints:
        """The number of each path's task among all that are described (N)."""
        if self.tasks_of == EPISODES:
            raise DataError(f"{self.path}: its paths are of {EPISODES}, not of sentences; write collect.tasks_of sentences")
        return self._classes[:, 0]

    @cached_property
    def support(self) -> Ints:
        """By their row in the features (N, W, S)."""
        return self._read("support", (0, 0, 0))

    @cached_property
    def _classes(self) -> Ints:
        return self._read("classes", (0, 0))

    def _weights(self, block: int, steps: slice) -> Floats:
        found: Floats = self._read("weights", (block, 0, 0), (self.rows(block), steps))
        if not np.isfinite(found).all():
            raise self._broken(f"block {block} of weights", "holds values that are no finite numbers")
        return found

    def _read(self, name: str, chunk: Chunk, part: tuple[slice, ...] = ()) -> NDArray[Any]:
        for file in (f"{name}/zarr.json", "/".join([name, "c", *map(str, chunk)])):
            self._check_file(file)
        try:
            return np.asarray(self._group[name][part])  # type: ignore[index]
        except (ValueError, KeyError, TypeError, BaseZarrError) as error:
            raise self._broken(file, f"cannot be read ({error})") from None

    def _check_file(self, name: str) -> None:
        want, file = self.attributes["files"].get(name), self.path / name
        if want is None:
            raise self._broken(name, "not in the store's list of files")
        if not file.is_file():
            raise self._broken(name, "missing, though the store lists it")
        found = _facts(file, parts=want.get("parts", 0))
        if found != want:
            raise self._broken(name, f"is not the file that the store lists ({found}, listed {want})")

    def _check_attributes(self) -> None:
        facts = {name: value for name, value in self.attributes.items() if name != "sha256"}
        if facts.get("kind") != KIND or facts.get("format") != FORMAT:
            kind, number = facts.get("kind"), facts.get("format")
            raise self._broken("zarr.json", f"{kind}, format {number}; this version reads {KIND}, format {FORMAT}")
        if _sha256(facts) != self.attributes.get("sha256"):
            raise self._broken("zarr.json", "its attributes were changed since it was made")

    def _broken(self, what: str, why: str) -> CorruptArtifactError:
        return CorruptArtifactError(f"{self.path}: {what}: {why}; make it again: dvc repro collect")


def open_trajectories(path: Path) -> TrajectoryStore:
    return TrajectoryStore(path)


def weights_file(store: Path, block: int) -> Path:
    return store / "weights" / "c" / str(block) / "0" / "0"


def _write_block(file: Path, weights_TKP: Floats, *, rows: int) -> None:
    """As zarr's sharding codec would, byte for byte: a part a kept step, then the places of all, each with its checksum.

    On its way through zarr a block is copied about four times, which takes as long again as to write it (bench/store.py).
    """
    tasks, steps, size = weights_TKP.shape
    part_TP = np.full((rows, size), np.nan, weights_TKP.dtype.newbyteorder("<"))  # where there are no more tasks it stays so
    places: list[int] = []
    file.parent.mkdir(parents=True)
    with file.open("wb") as out:
        for step in range(steps):
            part_TP[:tasks] = weights_TKP[:, step]
            places += [out.tell(), part_TP.nbytes + CHECKSUM]
            _write_checked(out, part_TP)
        _write_checked(out, np.array(places, "<u8"))


def _write_checked(out: BinaryIO, values: NDArray[Any]) -> None:
    out.write(values.data)
    out.write(google_crc32c.value(values.reshape(-1).view(np.uint8)).to_bytes(CHECKSUM, "little"))


def _write_small(group: zarr.Group, arrays: Mapping[str, NDArray[Any]]) -> None:
    """All tasks in one file each."""
    for name, values in arrays.items():
        _create(group, name, values.shape, values.dtype, chunks=values.shape)[:] = values


def _create(
    group: zarr.Group, name: str, shape: Chunk, dtype: np.dtype[Any], *, chunks: Chunk, shards: Chunk | None = None
) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=[Crc32cCodec()],
        fill_value=np.nan if dtype.kind == "f" else -1,
        config={"write_empty_chunks": True},  # no pass over the data to find that it is not empty
        dimension_names=AXES.get(name, ("step",)),
    )


def _joined(first: Trajectories, second: Trajectories) -> Trajectories:
    return Trajectories(**{name: np.concatenate([values, getattr(second, name)]) for name, values in vars(first).items()})


def _facts(file: Path, *, parts: int = 0) -> dict[str, int | str]:
    """A file's size and checksums: of metadata the sha256, of data the CRC-32C that it ends in, which costs no reading.

    A file of parts has a checksum at the end of each, then their index, with a checksum of its own.
    """
    size = file.stat().st_size
    if file.name == "zarr.json":
        return {"bytes": size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    ends = [number * ((size - CHECKSUM) // parts - PLACE) for number in range(1, parts + 1)] if parts else [size]
    with file.open("rb") as content:
        sums = [os.pread(content.fileno(), CHECKSUM, max(0, end - CHECKSUM)).hex() for end in ends]
    return {"bytes": size, "parts": parts, "crc32c": "".join(sums)}


def _sha256(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
