"""Images drawn for sentences, and how sentences are scaled: against a plain reading of each task."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metadiff.concepts import DescribedTask
from metadiff.described import DescribedImages, answers, concepts_of, questions_of, sentence_scale, sentences_of, trained_texts
from metadiff.errors import DataError
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.vectors import Vectors

CLASSES = 7  # of which the last has no image of val
SIZES = np.array([5, 1, 9, 3, 2, 40, 4])
TASKS = [
    DescribedTask("a", "a", "one", "train", ("a", "is it a?", "show a"), (0, 1, 2), (), (3, 4, 5)),
    DescribedTask("b", "b", "two", "train", ("b", "is it b?", "show b"), (5,), (1, 3), (0, 2, 4)),
    DescribedTask("some c: 1", "c", "some", "train", ("some c", "is it some c?", "show some c"), (3,), (2,), (0, 1)),
    DescribedTask("some c: 2", "a", "some", "train", ("some c", "is it some c?", "show some c"), (4,), (2,), (0, 1)),
    DescribedTask("later", "later", "not", "val", ("later", "is it later?", "show later"), (0,), (2,), (3,)),
    DescribedTask("some d: 1", "d", "some", "val", ("some d", "is it some d?", "show some d"), (1,), (), (0, 3)),
]


def data(seed: int = 0) -> Rows:
    """Of each class so many images of training and of test, in a mixed order; of val twice as many, and none of the last."""
    found = [(label, split) for label, size in enumerate(SIZES) for split in (0, 1, 1, 2) for _ in range(size)]
    found = [(label, split) for label, split in found if (label, split) != (CLASSES - 1, 1)]
    label, split = np.array(found, np.int32)[np.random.default_rng(seed).permutation(len(found))].T
    names = np.array([f"kind {number}".encode() for number in range(CLASSES)])
    return Rows(label, split.astype(np.uint8), np.arange(len(found), dtype=np.int32), np.full(len(found), b"x"), names, "some")


def vectors() -> Vectors:
    names = tuple(sorted({text for task in TASKS for text in task.texts}))
    vectors_ND = (3 + 2 * np.random.default_rng(1).normal(size=(len(names), 6))).astype(np.float32)
    vectors_ND[:, 5] = 7  # a number that says nothing
    return Vectors(names, vectors_ND, {"encoder": "made up"})


def stream(seed: int = 0) -> torch.Generator:
    return torch_stream(seed, "test")


@pytest.mark.parametrize("splits", [("train",), ("train", "val"), ("test",)])
def test_images_are_what_their_task_says_and_of_the_given_splits_alone(splits: tuple[str, ...]) -> None:
    rows = data()
    which_B = torch.arange(len(TASKS)).repeat(50)
    rows_BWS = DescribedImages.of(TASKS, rows, splits=splits).draw(which_B, 8, stream()).numpy()
    assert rows_BWS.shape == (len(which_B), 2, 8)
    for which, (wrong_S, right_S) in zip(which_B.tolist(), rows_BWS, strict=True):
        task = TASKS[which]
        assert {*rows.label[right_S]} <= {*task.yes}
        assert {*rows.label[wrong_S]} <= {*task.near, *task.no}
    assert {("train", "val", "test")[split] for split in rows.split[rows_BWS].flat} == {*splits}


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_half_of_the_wrong_images_are_nearly_right_where_such_are(count: int) -> None:
    rows, which_B = data(), torch.arange(len(TASKS)).repeat(100)
    wrong_BS = rows.label[DescribedImages.of(TASKS, rows, splits=("val",)).draw(which_B, count, stream())[:, 0].numpy()]
    for which, task in enumerate(TASKS):
        near_BS = np.isin(wrong_BS[which_B == which], task.near)
        if not task.near:
            assert not near_BS.any()
            continue
        assert near_BS[:, : count // 2].all()
        assert 0 < near_BS[:, count // 2 :].mean() < 1  # the others are of any wrong kind


def test_a_near_kind_without_an_image_leaves_the_other_wrong_ones() -> None:
    task = replace(TASKS[1], near=(CLASSES - 1,))
    rows = data()
    drawn = DescribedImages.of([task], rows, splits=("val",)).draw(torch.zeros(40, dtype=torch.long), 6, stream())
    assert {*rows.label[drawn[:, 0].numpy()].flat} == {*task.no}


def test_kinds_come_equally_often_however_many_images_they_have_and_so_do_images_of_a_kind() -> None:
    rows, draws = data(), 6000
    drawn = DescribedImages.of(TASKS, rows, splits=("test",)).draw(torch.zeros(draws, dtype=torch.long), 2, stream()).numpy()
    for way, kinds in ((1, TASKS[0].yes), (0, TASKS[0].no)):
        counts = np.bincount(rows.label[drawn[:, way]].flat, minlength=CLASSES)
        assert counts.sum() == 2 * draws
        assert (abs(counts[[*kinds]] - 4000) < 210).all()  # four deviations
        images = np.bincount(drawn[:, way].flat, minlength=len(rows.label))
        for kind in kinds:
            there = images[(rows.label == kind) & (rows.split == 2)]
            expected = 4000 / SIZES[kind]
            assert (abs(there - expected) < 5 * np.sqrt(expected)).all()
            assert (there > 0).all()


def test_images_are_a_function_of_the_generator() -> None:
    images, which_B = DescribedImages.of(TASKS, data(), splits=("train",)), torch.arange(len(TASKS))
    before = torch.get_rng_state()
    first, again, other = (images.draw(which_B, 9, stream(seed)) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize(
    ("yes", "near", "no", "why"),
    [
        ((CLASSES - 1,), (0,), (1,), "right"),
        ((0,), (), (CLASSES - 1,), "wrong"),
        ((0,), (CLASSES - 1,), (), "wrong"),
        ((0, 1), (), (), "wrong"),
    ],
)
def test_a_task_without_images_is_one_clear_line(
    yes: tuple[int, ...], near: tuple[int, ...], no: tuple[int, ...], why: str
) -> None:
    task = replace(TASKS[0], name="red or blue", yes=yes, near=near, no=no)
    with pytest.raises(DataError) as caught:
        DescribedImages.of([TASKS[1], task], data(), splits=("val",))
    assert str(caught.value) == f"task 'red or blue': no image of val is {why} for it"


def test_sentences_are_scaled_by_those_of_training_without_their_last_template() -> None:
    """Each sentence counts once, however many tasks have it."""
    some = vectors()
    told = ["a", "b", "is it a?", "is it b?", "is it some c?", "some c"]
    told_ND = some.vectors_ND[[some.names.index(text) for text in told]].astype(np.float64)
    mean_D, deviation_D = told_ND.mean(0), np.maximum(told_ND.std(0), 1e-3)
    scale = sentence_scale(TASKS, some)
    np.testing.assert_allclose(scale.mean_D, mean_D, rtol=1e-6)
    np.testing.assert_allclose(scale.deviation_D, deviation_D, rtol=1e-5)
    sentence_TCD = sentences_of(TASKS, some, scale)
    assert sentence_TCD.shape == (len(TASKS), 3, 6)
    for task, sentence_CD in zip(TASKS, sentence_TCD, strict=True):
        raw_CD = some.vectors_ND[[some.names.index(text) for text in task.texts]]
        np.testing.assert_allclose(sentence_CD, (raw_CD - mean_D) / deviation_D, rtol=1e-4, atol=1e-5)
    assert (sentence_TCD[:, :, 5] == 0).all()  # what says nothing is not blown up


def test_other_sentences_change_no_scale() -> None:
    """Neither those of other splits nor the last template of training."""
    some = vectors()
    changed = {text for task in TASKS for text in (task.texts if task.split != "train" else task.texts[-1:])}
    vectors_ND = some.vectors_ND.copy()
    vectors_ND[[some.row_of[text] for text in changed]] += 100
    before, after = (sentence_scale(TASKS, found) for found in (some, replace(some, vectors_ND=vectors_ND)))
    assert (before.mean_D == after.mean_D).all()
    assert (before.deviation_D == after.deviation_D).all()


def test_one_template_is_trained_with_and_none_is_refused() -> None:
    assert trained_texts(replace(TASKS[0], texts=("alone",))) == ("alone",)
    assert trained_texts(TASKS[0]) == ("a", "is it a?")
    with pytest.raises(DataError, match=r"^tasks\.json: no task of the split train has a sentence$"):
        sentence_scale(TASKS[4:], vectors())


@pytest.mark.parametrize("ambiguous", [True, False])
def test_a_batch_has_the_sentence_the_concept_and_the_images_of_its_tasks(ambiguous: bool) -> None:
    rows, some, trained = data(), vectors(), TASKS[:4]
    inputs_NE = torch.arange(2.0 * len(rows.label)).view(-1, 2)  # an image's number can be told from what is seen of it
    sentence_TCD = sentences_of(trained, some, sentence_scale(TASKS, some))
    questions = questions_of(trained, sentence_TCD, rows, inputs_NE, splits=("train", "val"))
    batch = questions.draw(stream(), tasks=300, images=3, ambiguous=ambiguous)
    assert {*batch.task_B.tolist()} == ({0, 1, 2, 3} if ambiguous else {0, 1})
    assert concepts_of(trained) == ["a", "b", "c"]
    assert batch.concept_B.tolist() == [[0, 1, 2, 0][task] for task in batch.task_B.tolist()]
    assert batch.target_N.tolist() == answers(3).tolist() == [0, 0, 0, 1, 1, 1]
    templates = set()
    for sentence_D, task, inputs_NE in zip(batch.sentence_BD, batch.task_B.tolist(), batch.inputs_BNE, strict=True):
        templates |= {(task, place) for place in range(3) if bool((sentence_TCD[task, place] == sentence_D).all())}
        label_N = rows.label[(inputs_NE[:, 0] / 2).long().numpy()]
        assert np.isin(label_N, trained[task].yes).tolist() == [False] * 3 + [True] * 3
    assert templates == {(task, place) for task in {*batch.task_B.tolist()} for place in (0, 1)}  # never the last


def test_noise_is_on_sentences_alone_and_of_the_given_deviation() -> None:
    rows, some = data(), vectors()
    told = sentences_of(TASKS[:4], some, sentence_scale(TASKS, some))
    questions = questions_of(TASKS[:4], told, rows, torch.zeros(len(rows.label), 2), splits=("train",))
    batch = questions.draw(stream(), tasks=2000, images=0, ambiguous=True)
    assert batch.inputs_BNE.shape == (2000, 0, 2)
    apart_BD = batch.with_noise(0.5, stream(1)).sentence_BD - batch.sentence_BD
    assert float(apart_BD.std()) == pytest.approx(0.5, rel=0.03)
    assert (batch.with_noise(0.5, stream(1)).sentence_BD == batch.sentence_BD + apart_BD).all()
    assert (batch.with_noise(0, stream(1)).sentence_BD == batch.sentence_BD).all()
