"""The trajectory store: exact round trips, equal bytes, readable without this code, and no changed or missing file unseen."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metadiff.errors import CorruptArtifactError, DataError
from metadiff.trajectory import Trajectories
from metadiff.trajectory_store import TrajectoryStore, open_trajectories, regrouped, write_trajectories

COUNT, BLOCK, STEPS, SIZE = 23, 8, (0, 5, 10), 12
ABOUT = {"layout": [{"name": "weight", "shape": [3, 4], "offset": 0}], "seed": 7}


def content(count: int = COUNT) -> Trajectories:
    rng = np.random.default_rng(0)
    ids = (rng.permutation(1000)[:count], rng.integers(0, 9, (count, 3)), rng.integers(0, 99, (count, 3, 2)))
    floats = (rng.normal(size=(count, 3, SIZE)), rng.random((count, 3)), rng.random((count, 3)))
    return Trajectories(*(values.astype(np.int32) for values in ids), *(values.astype(np.float32) for values in floats))


def cut(whole: Trajectories, *ends: int) -> Iterator[Trajectories]:
    starts = (0, *ends)
    for start, end in zip(starts, (*ends, None), strict=True):
        yield whole.take(slice(start, end))


def write(path: Path, *ends: int) -> Path:
    write_trajectories(path, cut(content(), *ends), count=COUNT, block=BLOCK, steps=STEPS, about=ABOUT)
    return path


def files(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def read_everything(store: TrajectoryStore) -> list[Trajectories]:
    return [store.block(block) for block in range(store.blocks)]


def edit_attributes(path: Path, old: str, new: str) -> None:
    text = (path / "zarr.json").read_text()
    assert old in text
    (path / "zarr.json").write_text(text.replace(old, new, 1))


def test_all_comes_back_exactly_block_by_block(tmp_path: Path) -> None:
    store = open_trajectories(write(tmp_path / "a.zarr", 3, 9))
    assert (len(store), store.blocks) == (COUNT, 3)
    assert [len(block.task_T) for block in read_everything(store)] == [8, 8, 7]
    for block, part in zip(read_everything(store), regrouped([content()], BLOCK), strict=True):
        for name, values in vars(part).items():
            assert vars(block)[name].dtype == values.dtype
            np.testing.assert_array_equal(vars(block)[name], values)
    np.testing.assert_array_equal(store.end_points(), content().weights_TKP[:, -1])
    assert store.steps.tolist() == [0, 5, 10]
    assert store.attributes["seed"] == 7


def test_paths_of_sentences_are_of_no_classes(tmp_path: Path) -> None:
    """Whoever takes the number of a described task for a class is stopped."""
    episodes, sentences = tmp_path / "a.zarr", tmp_path / "b.zarr"
    for path, about in ((episodes, {}), (sentences, {"tasks_of": "sentences"})):
        write_trajectories(path, [content()], count=COUNT, block=BLOCK, steps=STEPS, about=ABOUT | about)
    store = open_trajectories(sentences)
    np.testing.assert_array_equal(store.described, content().classes_TW[:, 0])
    np.testing.assert_array_equal(store.block(1).classes_TW, content().classes_TW[8:16])
    with pytest.raises(
        DataError, match=r"b\.zarr: its paths are of sentences, not of classes; write collect\.tasks_of episodes$"
    ):
        _ = store.classes
    store = open_trajectories(episodes)
    np.testing.assert_array_equal(store.classes, content().classes_TW)
    with pytest.raises(
        DataError, match=r"a\.zarr: its paths are of episodes, not of sentences; write collect\.tasks_of sentences$"
    ):
        _ = store.described


@pytest.mark.parametrize("ends", [(), (8, 16), (1, 2, 3), (0, 8, 8, 23), (22,)])
def test_the_bytes_do_not_depend_on_how_the_tasks_come(tmp_path: Path, ends: tuple[int, ...]) -> None:
    assert files(write(tmp_path / "a.zarr", *ends)) == files(write(tmp_path / "b.zarr", 4, 12))


@pytest.mark.parametrize("kind", ["f4", "f8", "f2"])
def test_the_files_of_weights_are_those_that_zarr_would_write(tmp_path: Path, kind: str) -> None:
    whole = content()
    weights = whole.weights_TKP.astype(kind)
    parts = cut(replace(whole, weights_TKP=weights), 4, 12)
    write_trajectories(tmp_path / "a.zarr", parts, count=COUNT, block=BLOCK, steps=STEPS, about=ABOUT)
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    shutil.rmtree(tmp_path / "b.zarr/weights/c")
    zarr.open_group(tmp_path / "b.zarr", mode="r+")["weights"][:] = weights  # type: ignore[index]
    ours, theirs = files(tmp_path / "a.zarr"), files(tmp_path / "b.zarr")
    assert sum(name.startswith("weights/c/") for name in ours) == 3
    assert ours == theirs


def test_a_count_that_is_not_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="23 trajectories of 24"):
        write_trajectories(tmp_path / "a.zarr", [content()], count=24, block=BLOCK, steps=STEPS, about=ABOUT)


def test_zarr_alone_can_read_a_named_part_of_a_vector(tmp_path: Path) -> None:
    group = zarr.open_group(write(tmp_path / "a.zarr"), mode="r")
    (part,) = group.attrs["layout"]  # type: ignore[misc]
    assert group["weights"].metadata.dimension_names == ("task", "step", "parameter")  # type: ignore[union-attr]
    vector = group["weights"][5, 2]  # type: ignore[index]
    found = vector[part["offset"] :][: np.prod(part["shape"])].reshape(part["shape"])  # type: ignore[index, call-overload]
    np.testing.assert_array_equal(found, content().weights_TKP[5, 2].reshape(3, 4))


def test_reading_a_block_opens_no_other(tmp_path: Path) -> None:
    store = open_trajectories(write(tmp_path / "a.zarr"))
    for block in (0, 2):
        (tmp_path / f"a.zarr/weights/c/{block}/0/0").unlink()
    np.testing.assert_array_equal(store.weights(1), content().weights_TKP[8:16])


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_anywhere_is_an_error(tmp_path: Path, data: st.DataObject) -> None:
    good = tmp_path / "good.zarr"
    if not good.exists():
        write(good)
    path = tmp_path / "a.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(good, path)
    name = data.draw(st.sampled_from([name for name in files(good) if name != "zarr.json"]))
    content = bytearray((path / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (path / name).write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=rf"a\.zarr: {name.split('/')[0]}.*dvc repro"):
        _ = read_everything(open_trajectories(path)), open_trajectories(path).steps


def test_a_missing_file_is_named_though_zarr_would_fill_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    (path / "weights/c/1/0/0").unlink()
    store = open_trajectories(path)
    with pytest.raises(CorruptArtifactError, match=r"weights/c/1/0/0: missing, though the store lists it.*dvc repro collect"):
        store.weights(1)


def test_a_block_in_another_ones_place_is_refused(tmp_path: Path) -> None:
    """Its own checksum is right, and its size too."""
    path = write(tmp_path / "a.zarr")
    shutil.copy(path / "weights/c/0/0/0", path / "weights/c/1/0/0")
    with pytest.raises(CorruptArtifactError, match="weights/c/1/0/0: is not the file that the store lists"):
        open_trajectories(path).weights(1)


def test_a_block_that_holds_no_number_is_refused(tmp_path: Path) -> None:
    whole = content()
    whole.weights_TKP[9, 1, 3] = np.nan
    write_trajectories(tmp_path / "a.zarr", [whole], count=COUNT, block=BLOCK, steps=STEPS, about=ABOUT)
    store = open_trajectories(tmp_path / "a.zarr")
    store.weights(0)
    with pytest.raises(CorruptArtifactError, match="block 1 of weights: holds values that are no finite numbers"):
        store.weights(1)


def test_an_edited_list_of_files_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    listed = json.loads((path / "zarr.json").read_text())["attributes"]["files"]["weights/c/1/0/0"]["crc32c"]
    edit_attributes(path, listed, listed[::-1])
    with pytest.raises(CorruptArtifactError, match="its attributes were changed"):
        open_trajectories(path)


def test_an_edited_attribute_a_missing_entry_and_another_format_are_refused(tmp_path: Path) -> None:
    edit_attributes(write(tmp_path / "a.zarr"), '"seed": 7', '"seed": 8')
    with pytest.raises(CorruptArtifactError, match=r"a\.zarr: zarr\.json: its attributes were changed"):
        open_trajectories(tmp_path / "a.zarr")
    edit_attributes(write(tmp_path / "b.zarr"), '"format": 3', '"format": 4')
    with pytest.raises(CorruptArtifactError, match="format 4; this version reads metadiff trajectories, format 3"):
        open_trajectories(tmp_path / "b.zarr")
    store = open_trajectories(write(tmp_path / "c.zarr"))
    del store.attributes["files"]["loss/c/0/0"]
    with pytest.raises(CorruptArtifactError, match="loss/c/0/0: not in the store's list of files"):
        _ = store.loss


def test_where_paths_end_is_read_without_the_way_there(tmp_path: Path) -> None:
    """So that memory does not grow with the number of kept steps (bench/memory.py)."""
    path = write(tmp_path / "a.zarr")
    file = path / "weights/c/1/0/0"
    damaged = bytearray(file.read_bytes())
    damaged[BLOCK * SIZE * 4 // 2] ^= 1  # in the middle of the first kept step
    file.write_bytes(damaged)
    store = open_trajectories(path)
    np.testing.assert_array_equal(store.end_points(), content().weights_TKP[:, -1])
    with pytest.raises(CorruptArtifactError):
        store.weights(1)


def test_paths_of_equal_segments_are_read_without_the_steps_between(tmp_path: Path) -> None:
    whole, rng = content(), np.random.default_rng(1)
    whole = Trajectories(**vars(whole) | {"weights_TKP": rng.normal(size=(COUNT, 7, SIZE)).astype(np.float32)})
    steps, path = (0, 4, 8, 12, 16, 20, 24), tmp_path / "a.zarr"
    write_trajectories(path, [whole], count=COUNT, block=BLOCK, steps=steps, about=ABOUT)
    store = open_trajectories(path)
    for segments, kept in {1: [0, 6], 2: [0, 3, 6], 3: [0, 2, 4, 6], 6: [*range(7)]}.items():
        np.testing.assert_array_equal(store.paths(2, segments), whole.weights_TKP[16:, kept])
    file = path / "weights/c/1/0/0"
    damaged = bytearray(file.read_bytes())
    for step in (1, 3, 5):
        damaged[step * (BLOCK * SIZE * 4 + 4)] ^= 1
    file.write_bytes(damaged)
    np.testing.assert_array_equal(store.paths(1, 3), whole.weights_TKP[8:16, ::2])
    with pytest.raises(CorruptArtifactError):
        store.paths(1, 2)


@pytest.mark.parametrize("segments", [0, 3, 4])
def test_segments_that_kept_steps_do_not_have_are_refused_with_what_to_keep(tmp_path: Path, segments: int) -> None:
    store = open_trajectories(write(tmp_path / "a.zarr"))
    assert store.paths(0, 2).shape == (8, 3, SIZE)
    with pytest.raises(
        DataError, match=rf"3 kept steps cannot be cut into {segments} equal segments; collect\.keep must be 1 more"
    ):
        store.paths(0, segments)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"zarr_format": 3, "node_type": "group", "attributes": {}}'])
def test_what_is_no_store_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CorruptArtifactError, match="no trajectory store; make it: dvc repro collect"):
        open_trajectories(tmp_path)
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(CorruptArtifactError, match=r"zarr\.json: .*make it again: dvc repro collect"):
        open_trajectories(tmp_path)
