"""Which classes go where: sizes, the shuffle, and nested classes kept together."""

from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadiff.errors import DataError
from metadiff.images.splits import crossing, split_classes, split_sizes
from metadiff.rng import numpy_stream

SHARES = (0.66, 0.14, 0.2)
LABELS = [f"c{i:02d}" for i in range(70)]


def overlap(nested: dict[tuple[str, str], int], split: dict[str, str]) -> int:
    return sum(count for _, _, count in crossing(nested, split))


@pytest.mark.parametrize(
    ("num_classes", "shares", "sizes"),
    [
        (70, SHARES, (46, 10, 14)),
        (184, SHARES, (121, 26, 37)),
        (100, (0.64, 0.16, 0.2), (64, 16, 20)),
        (3, (1, 1, 1), (1, 1, 1)),
        (4, (1, 1, 1), (2, 1, 1)),
    ],
)
def test_sizes_are_by_the_largest_remainder(
    num_classes: int, shares: tuple[float, float, float], sizes: tuple[int, int, int]
) -> None:
    assert split_sizes(num_classes, shares) == sizes


@given(st.integers(3, 2000), st.lists(st.integers(1, 98), min_size=2, max_size=2).filter(lambda cut: sum(cut) < 100))
def test_sizes_are_less_than_one_off_the_share(num_classes: int, cut: list[int]) -> None:
    percents = (cut[0], cut[1], 100 - sum(cut))
    exact = [Fraction(percent * num_classes, 100) for percent in percents]
    try:
        sizes = split_sizes(num_classes, tuple(percent / 100 for percent in percents))  # type: ignore[arg-type]
    except DataError:
        assert min(exact) < 1
        return
    assert sum(sizes) == num_classes
    assert all(abs(size - share) < 1 for size, share in zip(sizes, exact, strict=True))


def test_an_empty_split_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        DataError, match=r"\[0.66, 0.14, 0.2\] of 3 classes gives train 2, val 0, test 1; val needs at least 1: add"
    ):
        split_classes(["a", "b", "c"], shares=SHARES, seed=0, nested={})


def test_without_nesting_it_is_the_seeded_shuffle() -> None:
    split = split_classes(LABELS, shares=SHARES, seed=3, nested={})
    order = [LABELS[i] for i in numpy_stream(3, "split_classes").permutation(70)]
    assert [split[label] for label in order] == ["train"] * 46 + ["val"] * 10 + ["test"] * 14
    assert list(split) == LABELS


def test_the_order_of_the_classes_given_does_not_matter_and_the_seed_does() -> None:
    nested = {(LABELS[i], LABELS[(i * 7 + 1) % 70]): i for i in range(1, 60)}
    split = split_classes(LABELS, shares=SHARES, seed=0, nested=nested)
    assert split == split_classes(LABELS[::-1], shares=SHARES, seed=0, nested=dict(reversed(nested.items())))
    assert split != split_classes(LABELS, shares=SHARES, seed=1, nested=nested)


@pytest.mark.parametrize("seed", range(5))
def test_nested_classes_are_kept_together_where_they_fit(seed: int) -> None:
    """23 chains of three and a single class: the sizes 46, 10, 14 leave no room for all of them whole."""
    nested = {(LABELS[3 * k + i], LABELS[3 * k + i + 1]): 5 for k in range(23) for i in range(2)}
    split = split_classes(LABELS, shares=SHARES, seed=seed, nested=nested)
    assert Counter(split.values()) == {"train": 46, "val": 10, "test": 14}
    plain = split_classes(LABELS, shares=SHARES, seed=seed, nested={})
    assert len(crossing(nested, split)) <= 4 < 15 < len(crossing(nested, plain))


@given(
    st.dictionaries(st.tuples(*[st.sampled_from("abcdefg")] * 2).filter(lambda p: p[0] != p[1]), st.integers(1, 9), min_size=1)
)
def test_no_exchange_of_two_classes_would_help(nested: dict[tuple[str, str], int]) -> None:
    split = split_classes("abcdefg", shares=(0.4, 0.3, 0.3), seed=0, nested=nested)
    for one, other in combinations("abcdefg", 2):
        exchanged = {**split, one: split[other], other: split[one]}
        assert overlap(nested, exchanged) >= overlap(nested, split)


def test_crossing_lists_the_pairs_that_remain() -> None:
    nested = {("林", "木"): 50, ("森", "木"): 7, ("森", "林"): 9}
    split = {"木": "train", "林": "train", "森": "test"}
    assert crossing(nested, split) == [("森", "林", 9), ("森", "木", 7)]
    assert crossing(nested, dict.fromkeys(split, "val")) == []
