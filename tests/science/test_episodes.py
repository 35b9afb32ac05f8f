"""Episodes: pure functions of (seed, index), disjoint, group-disjoint, nested in the number of shots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadiff.episodes import draw_episodes, query_capacity, shared_groups
from metadiff.errors import DataError
from metadiff.rng import derive
from metadiff.rows import Rows


def rows(sizes: list[int], *, images_a_group: int = 1, split: int = 2) -> Rows:
    label = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    group = (np.arange(len(label)) // images_a_group).astype(np.int32)
    names = np.array([f"class-{i}" for i in range(len(sizes))], dtype=np.bytes_)
    source = np.array([f"image-{i}" for i in range(len(label))], dtype=np.bytes_)
    return Rows(label, np.full(len(label), split, np.uint8), group, source, names, "generated")


SIZES = {"way": 5, "shot": 2, "query": 4, "episodes": 30}


def test_each_way_holds_images_of_its_own_class_and_none_twice() -> None:
    data = rows([9, 8, 20, 11, 7, 6, 15])
    drawn = draw_episodes(data, "test", seed=1, **SIZES)
    assert drawn.support_EWS.shape == (30, 5, 2)
    assert drawn.query_EWQ.shape == (30, 5, 4)
    images = np.concatenate([drawn.support_EWS, drawn.query_EWQ], axis=-1)
    assert (data.label[images] == drawn.classes_EW[..., None]).all()
    for episode in images.reshape(30, -1):
        assert len(set(episode)) == 5 * 6
    assert all(len(set(classes)) == 5 for classes in drawn.classes_EW)


def test_an_episode_does_not_depend_on_how_many_are_drawn_and_shots_are_nested() -> None:
    data = rows([12] * 8)
    many = draw_episodes(data, "test", seed=3, **SIZES)
    few = draw_episodes(data, "test", seed=3, **SIZES | {"episodes": 7})
    one = draw_episodes(data, "test", seed=3, **SIZES | {"shot": 1})
    assert (many.query_EWQ[:7] == few.query_EWQ).all()
    assert (one.support_EWS[..., 0] == many.support_EWS[..., 0]).all()
    assert (one.classes_EW == many.classes_EW).all()
    other = draw_episodes(data, "test", seed=4, **SIZES)
    assert (other.classes_EW != many.classes_EW).any()


def test_the_first_episode_of_seed_0_is_the_same_everywhere() -> None:
    """Golden numbers: another NumPy, processor or hash seed must not draw others."""
    drawn = draw_episodes(rows([12] * 8), "test", seed=0, **SIZES)
    assert drawn.classes_EW[0].tolist() == [6, 0, 1, 5, 3]
    assert drawn.support_EWS[0].tolist() == [[80, 76], [6, 3], [14, 23], [65, 62], [36, 39]]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_support_and_query_of_a_class_never_share_a_group(images_a_group: int, shot: int, seed: int) -> None:
    data = rows([40] * 5, images_a_group=images_a_group)
    drawn = draw_episodes(data, "test", way=5, shot=shot, query=10, episodes=3, seed=seed)
    assert (shared_groups(drawn, data.group) == 0).all()


def test_shared_groups_counts_what_it_should() -> None:
    data = rows([12] * 5)
    drawn = draw_episodes(data, "test", way=5, shot=1, query=3, episodes=2, seed=0)
    drawn.query_EWQ[1, 2, 0] = drawn.support_EWS[1, 2, 0]
    assert shared_groups(drawn, data.group).tolist() == [0, 1]


def test_capacity_is_that_of_the_least_lucky_support() -> None:
    groups = np.array([0, 0, 0, 1, 2, 2, 3], dtype=np.int32)
    assert [query_capacity(groups, shot=shot) for shot in (1, 2, 3, 4, 9)] == [4, 2, 1, 0, 0]


def test_a_class_too_small_is_named_with_what_it_has_and_needs() -> None:
    with pytest.raises(DataError, match=r"class class-2: 5 images leave 3 for queries beside 2 shots, 4 are needed"):
        draw_episodes(rows([9, 9, 5, 9, 9]), "test", seed=0, **SIZES)
    with pytest.raises(DataError, match=r"test: 5-way episodes need 5 classes, there are 4"):
        draw_episodes(rows([9] * 4), "test", seed=0, **SIZES)
    with pytest.raises(DataError, match=r"val: 5-way episodes need 5 classes, there are 0"):
        draw_episodes(rows([9] * 5), "val", seed=0, **SIZES)


def test_classes_and_images_are_drawn_evenly() -> None:
    """Each class is as likely as the others: 3,000 draws of 5 from 10, within five standard deviations of 1,500."""
    drawn = draw_episodes(rows([12] * 10), "test", way=5, shot=1, query=3, episodes=3000, seed=7)
    counts = np.bincount(drawn.classes_EW.ravel(), minlength=10)
    assert abs(counts - 1500).max() < 5 * np.sqrt(3000 * 0.25)
    counts = np.bincount(drawn.support_EWS.ravel(), minlength=120)
    assert abs(counts - 125).max() < 5 * np.sqrt(125)


def test_streams_differ_by_every_word_of_their_purpose() -> None:
    seeds = {
        derive(0, "episode", 1),
        derive(0, "episode", 11),
        derive(0, "episode", "1", "1"),
        derive(1, "episode", 1),
        derive(0, "e"),
    }
    assert len(seeds) == 5
    assert derive(0, "episode", 1) == derive(0, "episode", "1")


def test_a_block_of_episodes_is_that_part_of_all_of_them() -> None:
    data = rows([12] * 8)
    many = draw_episodes(data, "test", seed=3, **SIZES)
    block = draw_episodes(data, "test", seed=3, **SIZES | {"episodes": 7}, first=20)
    for name, values in vars(block).items():
        assert (values == vars(many)[name][20:27]).all()
