"""Described tasks by a naive reading of their sentences: what they mean, what training has seen of it, and their English."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict
from functools import cache
from itertools import combinations

import pytest

from metadiff.concepts import KINDS, VALUES, DescribedTask, described_tasks, kind_splits
from metadiff.errors import ParamsError
from metadiff.rows import SPLITS
from metadiff.wording import ATTRIBUTES

SHARES = (0.65, 0.1, 0.25)
UNAMBIGUOUS = {"one": 18, "two": 104, "three": 192, "not": 208, "or": 153}
GOLDEN = "5c925e7c63c3d986c8ac7321b3d972e7ff305a6ffd6912c836b11778ebfd4fb4"


@cache
def tasks(seed: int = 0) -> tuple[DescribedTask, ...]:
    return described_tasks(SHARES, seed)


def of(kind: str, seed: int = 0) -> list[DescribedTask]:
    return [task for task in tasks(seed) if task.kind == kind]


def named(sentence: str) -> list[str]:
    """The values that a sentence names, in its order."""
    words = re.findall("[a-z]+", sentence)
    single = [word.removesuffix("es") if word == "crosses" else word.removesuffix("s") for word in words]
    return [word if word in VALUES else one for word, one in zip(words, single, strict=True) if {word, one} & set(VALUES)]


def conditions(sentence: str) -> list[tuple[str, bool]]:
    values = named(sentence)
    return [(value, not (" not " in sentence and place == 1)) for place, value in enumerate(values)]


def meant(sentence: str) -> tuple[int, ...]:
    enough = any if " or " in sentence else all
    asked = conditions(sentence)
    return tuple(n for n, kind in enumerate(KINDS) if enough((value in kind.split()) == wanted for value, wanted in asked))


def pair_splits(seed: int) -> dict[frozenset[str], int]:
    """Read off the disjunctions, in which kinds hold nothing back."""
    return {frozenset(named(task.texts[0])): SPLITS.index(task.split) for task in of("or", seed)}


def test_the_kinds_are_numbered_by_their_names() -> None:
    assert len(KINDS) == len(set(KINDS)) == 192
    assert list(KINDS) == sorted(KINDS)
    assert "red striped triangle" in KINDS


@pytest.mark.parametrize("seed", range(3))
def test_there_are_as_many_tasks_of_each_kind_as_pairs_and_triples_of_values(seed: int) -> None:
    count = Counter(task.kind for task in tasks(seed))
    assert {kind: count[kind] for kind in UNAMBIGUOUS} == UNAMBIGUOUS
    assert sum(UNAMBIGUOUS.values()) == 675
    assert len({task.texts for task in of("some", seed)}) == 36
    assert count["either"] == 2 * 153
    assert len({task.texts for task in of("either", seed)}) == 153
    assert len({task.name for task in tasks(seed)}) == len(tasks(seed))


def test_a_sentence_means_what_is_right() -> None:
    read = [(task, text) for kind in UNAMBIGUOUS for task in of(kind) for text in task.texts]
    assert len(read) == 4 * 675
    assert [(task.name, text) for task, text in read if meant(text) != task.yes] == []


def test_an_unnamed_value_has_every_answer_that_the_split_has_images_of() -> None:
    answers = defaultdict(set)
    for task in of("some"):
        answers[task.texts].add((task.yes, task.split))
    split_of_kind = [SPLITS.index(split) for split in kind_splits(SHARES, 0)]
    for texts, found in answers.items():
        (value,) = named(texts[0])
        (attribute,) = [name for name in ATTRIBUTES if texts[0].endswith(name)]
        (split,) = {split for _, split in found}
        possible = [meant(f"{value} {other}") for other in ATTRIBUTES[attribute]]
        wanted = [yes for yes in possible if min(split_of_kind[n] for n in yes) <= SPLITS.index(split)]
        assert {yes for yes, _ in found} == set(wanted)
        assert all(named(text) == [value] for text in texts)
        assert split != "test" or len(found) == len(ATTRIBUTES[attribute])
        assert len(found) > 1


def test_of_two_values_either_alone_is_right_and_the_other_is_the_near_miss() -> None:
    for first, second in zip(of("either")[::2], of("either")[1::2], strict=True):
        a, b = named(first.texts[0])
        assert (first.yes, second.yes) == (meant(a), meant(b))
        assert (first.near, second.near) == (meant(f"{b} not {a}"), meant(f"{a} not {b}"))
        assert (first.texts, first.split) == (second.texts, second.split)
        assert all(named(text) == [a, b] for text in first.texts)


def test_a_near_miss_misses_one_condition_of_several() -> None:
    for task in (task for kind in ("two", "three", "not", "some") for task in of(kind)):
        asked = conditions(task.concept if task.kind == "some" else task.texts[0])
        misses = [sum((value in kind.split()) != wanted for value, wanted in asked) for kind in KINDS]
        assert task.near == tuple(n for n, count in enumerate(misses) if count == 1), task.name
        assert task.no == tuple(n for n, count in enumerate(misses) if count > 1), task.name
    assert {task.near for kind in ("one", "or") for task in of(kind)} == {()}


def test_every_kind_is_right_near_or_wrong() -> None:
    for task in tasks():
        assert sorted((*task.yes, *task.near, *task.no)) == list(range(192)), task.name
        assert task.yes, task.name


def test_a_concept_names_what_is_right() -> None:
    by_name, by_kinds = defaultdict(set), defaultdict(set)
    for task in tasks():
        by_name[task.concept].add(task.yes)
        by_kinds[task.yes].add(task.concept)
    assert len(by_name) == len(by_kinds) == 675
    assert {len(found) for found in (*by_name.values(), *by_kinds.values())} == {1}


@pytest.mark.parametrize("seed", range(5))
def test_a_pair_is_of_one_split_however_a_sentence_joins_it(seed: int) -> None:
    pairs, kinds = pair_splits(seed), [SPLITS.index(split) for split in kind_splits(SHARES, seed)]
    assert len(pairs) == 153
    assert kinds == [max(pairs[frozenset(pair)] for pair in combinations(kind.split(), 2)) for kind in KINDS]
    for task in tasks(seed):
        split = SPLITS.index(task.split)
        told = [frozenset(pair) for text in task.texts for pair in combinations(named(text), 2)]
        assert split >= max((pairs[pair] for pair in told), default=0), task.name
        assert split >= min(kinds[number] for number in task.yes), task.name
        if task.kind != "some":  # an open attribute has a split of its own
            late = max([min(kinds[number] for number in task.yes), *(pairs[pair] for pair in told)])
            assert split == late, task.name
        if split == 0:
            assert any(kinds[number] == 0 for number in task.yes), task.name
            assert all(pairs[pair] == 0 for pair in told), task.name
    assert {task.split for task in of("one", seed)} == {"train"}


@pytest.mark.parametrize("seed", range(5))
def test_no_sentence_is_in_two_splits_and_all_words_are_known_from_training(seed: int) -> None:
    where = defaultdict(set)
    for task in tasks(seed):
        for text in task.texts:
            where[text].add(task.split)
    assert {len(splits) for splits in where.values()} == {1}
    for template in range(4):
        words = {s: {w for t in tasks(seed) if t.split == s for w in re.findall("[a-z]+", t.texts[template])} for s in SPLITS}
        assert words["val"] | words["test"] <= words["train"]
    seen = {
        value for kind, split in zip(KINDS, kind_splits(SHARES, seed), strict=True) if split == "train" for value in kind.split()
    }
    assert seen == set(VALUES)


def test_the_sentences_are_the_same_however_tasks_are_split() -> None:
    """They are embedded once and for all."""
    first = {text for task in tasks() for text in task.texts}
    assert len(first) == 4 * (675 + 36 + 153)
    for shares in ((0.5, 0.1, 0.4), (0.9, 0.05, 0.05)):
        for seed in range(3):
            assert {text for task in described_tasks(shares, seed) for text in task.texts} == first


def test_the_shares_are_those_of_the_pairs() -> None:
    count = Counter(pair_splits(0).values())
    assert [count[number] for number in range(3)] == [100, 14, 39]
    assert Counter(kind_splits(SHARES, 0)) == {"train": 54, "val": 26, "test": 112}


def test_pairs_are_drawn_again_until_all_values_can_be_learnt() -> None:
    for seed in range(30):
        splits = kind_splits((0.5, 0.1, 0.4), seed)
        assert set(splits) == set(SPLITS)
        seen = {value for kind, split in zip(KINDS, splits, strict=True) if split == "train" for value in kind.split()}
        assert seen == set(VALUES)


@pytest.mark.parametrize("shares", [(0.98, 0.01, 0.01), (0.05, 0.05, 0.9)])
def test_shares_that_leave_nothing_to_learn_or_to_judge_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ParamsError, match=r"^prepare\.split \[0\..*\] leaves a split without kinds or training without some"):
        kind_splits(shares, 0)


def test_the_tasks_of_a_seed_are_always_the_same() -> None:
    told = json.dumps([asdict(task) for task in tasks()])
    assert hashlib.sha256(told.encode()).hexdigest() == GOLDEN
    assert tasks(1) != tasks(0)


SENTENCES = {
    "orange": ("an orange thing", "is it an orange thing?", "pictures with orange things"),
    "cross": ("a cross", "is it a cross?", "pictures with crosses"),
    "white outlined": ("a white outlined thing", "is it a white outlined thing?", "pictures with white outlined things"),
    "red striped triangle": ("a red striped triangle", "is it a red striped triangle?", "pictures with red striped triangles"),
    "striped not white": (
        "a striped thing that is not white",
        "is it a striped thing that is not white?",
        "pictures with striped things that are not white",
    ),
    "red not cross": ("a red thing that is not a cross", "is it a red thing that is not a cross?", None),
    "heart not outlined": ("a heart that is not outlined", None, "pictures with hearts that are not outlined"),
    "red or striped": (
        "something that is red or striped",
        "is it red or striped?",
        "pictures with things that are red or striped",
    ),
    "dotted or cross": (
        "something that is dotted or a cross",
        "is it dotted or a cross?",
        "pictures with things that are dotted or crosses",
    ),
    "star or heart": ("something that is a star or a heart", None, "pictures with things that are stars or hearts"),
    "striped of some colour: red": (
        "striped things of one particular colour",
        "is it a striped thing of the particular colour that I mean?",
        "pictures with striped things, all of one particular colour",
    ),
    "either red or striped: red": (
        "either the red ones or the striped ones, but I do not say which",
        "is it red, or is it striped, whichever of the two I mean?",
        "pictures with red things, or pictures with striped things, but only one of the two",
    ),
    "either solid or star: star": (
        "either the solid ones or the stars, but I do not say which",
        "is it solid, or is it a star, whichever of the two I mean?",
        "pictures with solid things, or pictures with stars, but only one of the two",
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_the_sentences_of_a_task(name: str) -> None:
    (task,) = [task for seed in range(9) for task in tasks(seed) if task.name == name][:1]
    for place, wanted in zip((0, 2, 3), SENTENCES[name], strict=True):
        assert wanted in (None, task.texts[place])
    assert task.texts[1].startswith("find every image ")


def test_articles_and_plurals_are_right_everywhere() -> None:
    for text in {text for task in tasks() for text in task.texts}:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        assert not re.search(r"\b(a|an|is) [a-z ]*(things|circles|squares|triangles|stars|crosses|hearts)\b", text), text
        assert not re.search(r"are (not )?an?\b|ss\b(?<!cross)|crosss", text), text
