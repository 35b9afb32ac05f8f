"""Questions drawn as episodes: against what a plain reading of each task says of each image."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from metadiff.concepts import KINDS, described_tasks, kind_splits
from metadiff.episodes import Episodes
from metadiff.errors import DataError
from metadiff.questions import draw_questions, tasks_by_number
from metadiff.rows import SPLITS, Rows

SHARES = (0.6, 0.2, 0.2)
TASKS = described_tasks(SHARES, 0)
SIZES = {"shot": 6, "query": 8, "seed": 1}
IMAGES = {"train": 9, "val": 15, "test": 16}


def rows() -> Rows:
    """Of each kind some images of each split, of training only where it is a kind of it; in a mixed order."""
    own = kind_splits(SHARES, 0)
    found = [
        (label, place)
        for label, kind_split in enumerate(own)
        for place, split in enumerate(SPLITS)
        if split != "train" or kind_split == "train"
        for _ in range(IMAGES[split])
    ]
    order = np.random.default_rng(0).permutation(len(found))
    label, split = np.array(found, np.int32)[order].T
    names = np.array([kind.encode() for kind in KINDS])
    return Rows(label, split.astype(np.uint8), order.astype(np.int32), np.full(len(found), b"x"), names, "shapes")


def few(*sizes: list[int], images_a_group: int = 1) -> Rows:
    """Test images of as many kinds as there are sizes."""
    flat = [size for some in sizes for size in some]
    label = np.repeat(np.arange(len(flat)), flat).astype(np.int32)
    count = len(label)
    group = (np.arange(count) // images_a_group).astype(np.int32)
    names = np.array([f"kind {number}".encode() for number in range(len(flat))])
    return Rows(label, np.full(count, 2, np.uint8), group, np.full(count, b"x"), names, "few")


def both(drawn: Episodes) -> np.ndarray:
    """Support and queries (E, W, S + Q)."""
    return np.concatenate([drawn.support_EWS, drawn.query_EWQ], axis=2)


@pytest.mark.parametrize(("split", "splits"), [("train", ("train", "val")), ("val", ("val",)), ("test", ("test",))])
def test_each_image_is_what_its_task_says_and_comes_once(split: str, splits: tuple[str, ...]) -> None:
    data, tasks = rows(), tasks_by_number(TASKS, split)
    drawn = draw_questions(tasks, data, splits=splits, numbers=range(len(tasks)), **SIZES)
    assert drawn.support_EWS.shape == (len(tasks), 2, 6)
    assert drawn.query_EWQ.shape == (len(tasks), 2, 8)
    assert {array.dtype for array in vars(drawn).values()} == {np.dtype(np.int32)}
    assert drawn.classes_EW.tolist() == [[number, number] for number in tasks]
    for number, images_WN in zip(drawn.classes_EW[:, 0], both(drawn), strict=True):
        task = TASKS[number]
        assert task.split == split
        assert {SPLITS[place] for place in data.split[images_WN].flat} <= {*splits}
        assert set(data.label[images_WN[1]]) <= {*task.yes}
        assert set(data.label[images_WN[0]]) <= {*task.near, *task.no}
        assert len(set(images_WN.flat)) == images_WN.size
    if split == "train":
        assert {*data.split[both(drawn)].flat} == {0, 1}


def test_every_other_wrong_image_is_nearly_right_where_such_are() -> None:
    data, tasks = rows(), tasks_by_number(TASKS, "train")
    drawn = draw_questions(tasks, data, splits=("train", "val"), numbers=range(len(tasks)), **SIZES)
    seen: Counter[bool] = Counter()
    for number, support_S, query_Q in zip(tasks, drawn.support_EWS[:, 0], drawn.query_EWQ[:, 0], strict=True):
        for images in (support_S, query_Q):
            near = np.isin(data.label[images], tasks[number].near)
            assert near[1::2].all() if tasks[number].near else not near.any()
            seen.update(near[::2].tolist() if tasks[number].near else [])
    assert seen[True] > 100  # the others are of any wrong kind
    assert seen[False] > 100


def test_kinds_come_equally_often_however_many_images_they_have_and_so_do_images_of_a_kind() -> None:
    data = replace(few([2, 4, 30], [8, 2]), split=np.ones(46, np.uint8))
    task = replace(TASKS[0], yes=(0, 1, 2), near=(3,), no=(4,))
    drawn = draw_questions({5: task}, data, splits=("val",), numbers=range(6000), shot=1, query=0, seed=0)
    kinds = np.bincount(data.label[drawn.support_EWS[:, 1, 0]], minlength=5)
    assert (abs(kinds[:3] - 2000) < 150).all()  # four deviations
    wrong = np.bincount(data.label[drawn.support_EWS[:, 0, 0]], minlength=5)
    assert (abs(wrong[3:] - 3000) < 160).all()
    images = np.bincount(drawn.support_EWS[:, 1, 0], minlength=46)
    assert (abs(images[:2] - 1000) < 130).all()
    assert (abs(images[2:6] - 500) < 90).all()
    assert (images[6:36] > 30).all()


def test_the_next_image_is_of_a_kind_that_has_some_left() -> None:
    data = few([1, 2, 9], [2, 9])
    task = replace(TASKS[0], yes=(0, 1, 2), near=(3,), no=(4,))
    drawn = draw_questions({0: task}, data, splits=("test",), numbers=range(50), shot=3, query=8, seed=0)
    for right_N, wrong_N in zip(both(drawn)[:, 1], both(drawn)[:, 0], strict=True):
        assert len({*right_N}) == len({*wrong_N}) == 11  # all right ones but one, all wrong ones
    firsts = data.label[drawn.query_EWQ[:, 1, :3]]
    assert sum(len({*kinds}) == 3 for kinds in firsts) > 5


def test_supports_are_nested_and_queries_are_the_same_whatever_the_shot() -> None:
    data, tasks = rows(), tasks_by_number(TASKS, "val")
    sizes = {"splits": ("val",), "numbers": range(len(tasks)), "query": 8, "seed": 3}
    none, some, most = (draw_questions(tasks, data, shot=shot, **sizes) for shot in (0, 3, 7))
    assert (some.query_EWQ == none.query_EWQ).all()
    assert (some.query_EWQ == most.query_EWQ).all()
    assert (some.support_EWS == most.support_EWS[:, :, :3]).all()
    fewer = draw_questions(tasks, data, shot=0, **sizes | {"query": 5})
    assert (fewer.query_EWQ == none.query_EWQ[:, :, :5]).all()


def test_a_question_is_a_function_of_its_number_its_task_and_the_seed() -> None:
    data, tasks = rows(), tasks_by_number(TASKS, "val")
    many = draw_questions(tasks, data, splits=("val",), numbers=range(2 * len(tasks)), **SIZES)
    part = draw_questions(tasks, data, splits=("val",), numbers=range(len(tasks), len(tasks) + 4), **SIZES)
    for name, values in vars(part).items():
        assert (values == getattr(many, name)[len(tasks) : len(tasks) + 4]).all()
    assert (many.classes_EW[: len(tasks)] == many.classes_EW[len(tasks) :]).all()
    first_EWS, second_EWS = many.support_EWS[: len(tasks)], many.support_EWS[len(tasks) :]
    assert (first_EWS != second_EWS).any((1, 2)).mean() > 0.99  # other images, where there are enough
    other = draw_questions(tasks, data, splits=("val",), numbers=range(9), **SIZES | {"seed": 2})
    assert (other.support_EWS != many.support_EWS[:9]).any((1, 2)).all()
    first = next(iter(tasks))
    alone = draw_questions({first: tasks[first]}, data, splits=("val",), numbers=[0], **SIZES)
    assert (both(alone) == both(many)[:1]).all()


def test_the_first_question_of_seed_0_is_the_same_everywhere() -> None:
    """Golden numbers: another NumPy, processor or hash seed must not draw others."""
    task = replace(TASKS[0], yes=(0, 1), near=(2,), no=(3, 4))
    drawn = draw_questions({7: task}, few([9, 9], [9], [9, 9]), splits=("test",), numbers=[0], shot=4, query=3, seed=0)
    assert drawn.classes_EW.tolist() == [[7, 7]]
    assert drawn.support_EWS[0].tolist() == [[42, 26, 37, 22], [0, 17, 16, 11]]
    assert drawn.query_EWQ[0].tolist() == [[29, 18, 41], [12, 13, 15]]


def test_images_of_a_group_are_never_support_and_query() -> None:
    data = few([12, 12], [12], images_a_group=3)
    task = replace(TASKS[0], yes=(0, 1), near=(), no=(2,))
    drawn = draw_questions({0: task}, data, splits=("test",), numbers=range(80), shot=2, query=2, seed=0)
    groups_EWN = data.group[both(drawn)]
    assert all(len({*groups_N}) == 4 for groups_N in groups_EWN.reshape(-1, 4))
    assert len({*both(drawn).flat}) == 36  # any image of a group may be the one


TOO_FEW = {
    "none is right": ((5,), (), (0,), "no image of val and test is right for it"),
    "none is wrong": ((0,), (), (5,), "no image of val and test is wrong for it"),
    "too few are right": (
        (4,),
        (),
        (0,),
        "7 images of val and test must be right for it, there are 3: lower the shots or queries",
    ),
    "too few are wrong": (
        *((0,), (4,), (5,)),
        "7 images of val and test must be wrong for it, there are 3: lower the shots or queries",
    ),
}


@pytest.mark.parametrize("name", TOO_FEW)
def test_a_task_without_images_is_named(name: str) -> None:
    yes, near, no, expected = TOO_FEW[name]
    task = replace(TASKS[0], name="red or blue", yes=yes, near=near, no=no)
    with pytest.raises(DataError) as caught:
        draw_questions({0: task}, few([9, 9, 9, 9, 3, 0]), splits=("val", "test"), numbers=[0], shot=4, query=3, seed=0)
    assert str(caught.value) == f"task 'red or blue': {expected}"


@pytest.mark.parametrize(
    ("shot", "query", "shown", "asked"),
    [(0, 50, 0, 24), (5, 50, 5, 19), (128, 50, 12, 12), (5, 10, 5, 10), (20, 10, 14, 10), (40, 0, 24, 0)],
)
def test_repeated_images_are_never_support_and_query(shot: int, query: int, shown: int, asked: int) -> None:
    """Of one right kind of 24 images; nothing changes where there are enough."""
    data, task = few([24], [90, 90], [90]), replace(TASKS[0], yes=(0,), near=(1, 2), no=(3,))
    sizes = {"splits": ("test",), "numbers": range(20), "shot": shot, "query": query, "seed": 0}
    drawn = draw_questions({0: task}, data, repeat=True, **sizes)
    for support_S, query_Q in zip(drawn.support_EWS[:, 1], drawn.query_EWQ[:, 1], strict=True):
        assert not {*support_S} & {*query_Q}
        assert (len({*support_S}), len({*query_Q})) == (shown, asked)
        for images, count in ((support_S, shown), (query_Q, asked)):
            assert not len(images) or max(Counter(images.tolist()).values()) == -(-len(images) // count)
    if shot + query <= 24:
        same = draw_questions({0: task}, data, **sizes)
        assert all((values == getattr(drawn, name)).all() for name, values in vars(same).items())
    else:
        with pytest.raises(DataError, match=f"^task 'red': {shot + query} images of test must be right for it, there are 24"):
            draw_questions({0: task}, data, **sizes)


def test_one_image_is_not_support_and_query_even_where_images_repeat() -> None:
    task = replace(TASKS[0], yes=(0,), near=(), no=(1,))
    sizes = {"splits": ("test",), "numbers": [0], "seed": 0, "repeat": True}
    assert draw_questions({0: task}, few([1, 2]), shot=0, query=3, **sizes).query_EWQ[0, 1].tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=r"^task '.*': 2 images of test must be right for it, there are 1"):
        draw_questions({0: task}, few([1, 2]), shot=1, query=3, **sizes)


def test_tasks_of_a_split_keep_their_number() -> None:
    found = tasks_by_number(TASKS, "val")
    assert all(TASKS[number] is task for number, task in found.items())
    assert len(found) == sum(task.split == "val" for task in TASKS) > 100
    with pytest.raises(DataError, match=r"^data/prepared: no task of the split val has a sentence"):
        tasks_by_number([task for task in TASKS if task.split != "val"], "val")


def test_one_task_is_enough() -> None:
    task = replace(TASKS[0], yes=(0,), near=(), no=(1,))
    drawn = draw_questions({3: task}, few([4, 4]), splits=("test",), numbers=range(3), shot=2, query=1, seed=0)
    assert drawn.classes_EW.tolist() == [[3, 3]] * 3
