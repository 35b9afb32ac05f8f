"""Paths on the disk: rows of them are the rows of the whole, and nothing damaged gets into a scale."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from metadiff.errors import CorruptArtifactError, DataError
from metadiff.layout import parts_in_order
from metadiff.learner import Learner
from metadiff.paths import WeightScale
from metadiff.stored_paths import StoredPaths
from metadiff.trajectory import Trajectories
from metadiff.trajectory_store import TrajectoryStore, open_trajectories, write_trajectories

COUNT, BLOCK, KEEP = 23, 8, 7
HEAD = Learner("linear", way=3, dim=4, scale=1.0)


def written(path: Path, *, count: int = COUNT, block: int = BLOCK, size: int = HEAD.size) -> TrajectoryStore:
    rng = np.random.default_rng(0)
    layout = HEAD.layout() if size == HEAD.size else parts_in_order({"weight": (size,)})
    about = {"layout": [{"name": part.name, "shape": list(part.shape), "offset": part.offset} for part in layout]}
    blocks = (of_random_paths(min(block, count - start), size, rng) for start in range(0, count, block))
    write_trajectories(path, blocks, count=count, block=block, steps=tuple(range(KEEP)), about=about)
    return open_trajectories(path)


def of_random_paths(count: int, size: int, rng: np.random.Generator) -> Trajectories:
    ids = (np.arange(count, dtype=np.int32), np.zeros((count, 3), np.int32), np.zeros((count, 3, 2), np.int32))
    floats = (rng.normal(size=(count, KEEP, size)), rng.random((count, KEEP)), rng.random((count, KEEP)))
    return Trajectories(*ids, *(values.astype(np.float32) for values in floats))


@pytest.mark.parametrize("segments", [1, 2, 3, 6])
def test_rows_are_those_of_all_paths_together(tmp_path: Path, segments: int) -> None:
    store = written(tmp_path / "a.zarr")
    whole_NKP = torch.from_numpy(np.concatenate([store.paths(block, segments)[:, 1:] for block in range(store.blocks)]))
    paths, chosen_B = StoredPaths(store, segments), torch.tensor([22, 0, 7, 8, 8, 15, 16, 1])
    assert len(paths) == len(whole_NKP) == COUNT
    assert torch.equal(paths[chosen_B], whole_NKP[chosen_B])
    assert torch.equal(torch.cat([*paths.ends()]), whole_NKP[:, -1])


def test_the_scale_of_blocks_is_that_of_all_paths(tmp_path: Path) -> None:
    paths = StoredPaths(written(tmp_path / "a.zarr"), 3)
    found, expected = WeightScale.over(HEAD, paths.ends()), WeightScale.of(HEAD, torch.cat([*paths.ends()]))
    torch.testing.assert_close(found.deviation_P, expected.deviation_P, rtol=1e-6, atol=0)
    assert len(found.deviation_P.unique()) == 2  # one a part
    assert not found.shift_P.any()


def test_a_batch_needs_memory_for_itself_however_many_paths_there_are(tmp_path: Path) -> None:
    size, batch = 20_000, torch.arange(0, 64, 8)
    store = written(tmp_path / "a.zarr", count=64, block=4, size=size)
    paths, one_batch, all_of_them = StoredPaths(store, 3), 8 * 3 * size * 4, 64 * KEEP * size * 4
    tracemalloc.start()
    for _ in paths.ends():
        pass
    for _ in range(3):
        assert paths[batch].shape == (8, 3, size)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one_batch < most < all_of_them / 4


def test_segments_that_do_not_divide_the_kept_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="7 kept steps cannot be cut into 4 equal segments"):
        StoredPaths(written(tmp_path / "a.zarr"), 4)


def test_a_changed_number_is_found_before_any_path_is_learnt_from(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr")
    file, (start, *_) = store.weights_file(1), store.part_starts(1)
    spoilt = bytearray(file.read_bytes())
    assert np.frombuffer(spoilt, "<f4", count=1, offset=start)[0] == store.weights(1)[0, 0, 0]
    where = store.part_starts(1)[2] + 5  # of a step in the middle, which the ends do not hold
    spoilt[where] ^= 1
    file.write_bytes(spoilt)
    with pytest.raises(CorruptArtifactError, match="weights/c/1/0/0"):
        list(StoredPaths(store, 3).ends())
