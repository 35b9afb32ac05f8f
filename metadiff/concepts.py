"""Tasks that a sentence describes: which kinds of thing it means, which it only nearly means, and in which split it belongs.

A kind is a colour, a fill and a shape. Each pair of values is of one split, however a sentence joins them, and so is a value with
an attribute of which a sentence leaves open what it is. A task is of the latest split among its pairs: training has all the words
of a test sentence, but such a pair in no sentence, and the backbone in no image. Nor is a task of an earlier split than all the
kinds that are right: what three values mean together is new where one of their pairs is.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations, product

from metadiff.errors import ParamsError
from metadiff.rng import numpy_stream
from metadiff.rows import SPLITS
from metadiff.wording import ATTRIBUTES, ambiguous_pair, conjunction, disjunction, exclusion, unnamed

VALUES = tuple(chain(*ATTRIBUTES.values()))
KINDS = tuple(sorted(" ".join(values) for values in product(*ATTRIBUTES.values())))  # a kind's number is its place
PARTS = tuple(frozenset(kind.split()) for kind in KINDS)
ATTRIBUTE = {value: attribute for attribute, values in ATTRIBUTES.items() for value in values}
ACROSS = tuple((a, b) for a, b in combinations(VALUES, 2) if ATTRIBUTE[a] != ATTRIBUTE[b])
CONJUNCTIONS = {1: "one", 2: "two", 3: "three"}
ATTEMPTS = 100  # draws of the splits of pairs, until all values can be learnt

Pair = frozenset[str]


@dataclass(frozen=True)
class DescribedTask:
    """A yes-or-no question about an image; sentences are the same for tasks that only examples can tell apart.

    ``near`` misses exactly one of several conditions. What a single value or "A or B" asks is one condition, which no kind misses
    more nearly than another. Of "either A or B" it is what would be right if the other one were meant.
    """

    name: str
    concept: str  # of the kinds that are right: the same for tasks that ask for the same by other sentences
    kind: str  # one, two, three, not, or; of several right answers to a sentence some, either
    split: str
    texts: tuple[str, ...]  # a sentence a template, of which the last is never used in training
    yes: tuple[int, ...]
    near: tuple[int, ...]
    no: tuple[int, ...]


@dataclass(frozen=True)
class _Draft:
    """A task that has no split yet, and the pairs that decide on it."""

    name: str
    concept: str
    kind: str
    texts: tuple[str, ...]
    pairs: frozenset[Pair]
    yes: tuple[int, ...]
    near: tuple[int, ...] = ()


def described_tasks(shares: tuple[float, float, float], seed: int) -> tuple[DescribedTask, ...]:
    """All tasks but those of an ambiguous sentence that no image of the sentence's split would be right for."""
    of_pair = _pair_splits(shares, seed)
    of_kind = _kind_numbers(of_pair)
    found = []
    for draft in _drafts():
        by_pairs = max((of_pair[pair] for pair in draft.pairs), default=0)
        by_kinds = min(of_kind[kind] for kind in draft.yes)
        if draft.kind == "some" and by_kinds > by_pairs:
            continue  # the sentence has other answers, and is of one split
        found.append(_finished(draft, SPLITS[max(by_pairs, by_kinds)]))
    return tuple(found)


def kind_splits(shares: tuple[float, float, float], seed: int) -> tuple[str, ...]:
    """Of each kind the latest split among its three pairs of values."""
    return tuple(SPLITS[number] for number in _kind_numbers(_pair_splits(shares, seed)))


def _pair_splits(shares: tuple[float, float, float], seed: int) -> dict[Pair, int]:
    """Each sort of pair in a seeded order, cut by the shares; again while a value cannot be learnt, or a split is empty."""
    for attempt in range(ATTEMPTS):
        found: dict[Pair, int] = {}
        for sort, pairs in _pairs_by_sort().items():
            order = numpy_stream(seed, "concepts", "pairs", sort, attempt).permutation(len(pairs)).tolist()
            ends = [round(len(pairs) * sum(shares[: number + 1]) / sum(shares)) for number in range(len(SPLITS))]
            found |= {pairs[place]: bisect(ends, at) for at, place in enumerate(order)}
        of_kind = _kind_numbers(found)
        train = [parts for parts, number in zip(PARTS, of_kind, strict=True) if number == 0]
        if len(set(of_kind)) == len(SPLITS) and frozenset().union(*train) == set(VALUES):
            return found
    raise ParamsError(f"prepare.split {list(shares)} leaves a split without kinds or training without some colour, fill or shape")


def _pairs_by_sort() -> dict[str, list[Pair]]:
    """Pairs of values by the attributes that they are of, and values with an attribute that is left open."""
    sorts: dict[str, list[Pair]] = {}
    for a, b in combinations(VALUES, 2):
        sorts.setdefault(f"{ATTRIBUTE[a]} {ATTRIBUTE[b]}", []).append(frozenset((a, b)))
    sorts["open"] = [frozenset((value, attribute)) for value, attribute in _open()]
    return sorts


def _kind_numbers(of_pair: dict[Pair, int]) -> list[int]:
    return [max(of_pair[frozenset(pair)] for pair in combinations(parts, 2)) for parts in PARTS]


def _finished(draft: _Draft, split: str) -> DescribedTask:
    taken = {*draft.yes, *draft.near}
    no = tuple(number for number in range(len(KINDS)) if number not in taken)
    return DescribedTask(draft.name, draft.concept, draft.kind, split, draft.texts, draft.yes, draft.near, no)


@cache
def _drafts() -> tuple[_Draft, ...]:
    return (*_conjunctions(), *_exclusions(), *_disjunctions(), *_unnamed(), *_ambiguous_pairs())


def _conjunctions() -> Iterator[_Draft]:
    triples = product(*ATTRIBUTES.values())
    for values in chain(((value,) for value in VALUES), ACROSS, triples):
        name, pairs = " ".join(values), frozenset(frozenset(pair) for pair in combinations(values, 2))
        yield _Draft(name, name, CONJUNCTIONS[len(values)], conjunction(values), pairs, *_all_of(values))


def _exclusions() -> Iterator[_Draft]:
    for a, b in chain(*(((a, b), (b, a)) for a, b in ACROSS)):
        name = f"{a} not {b}"
        yield _Draft(name, name, "not", exclusion(a, b), frozenset({frozenset((a, b))}), *_all_of((a,), but=(b,)))


def _disjunctions() -> Iterator[_Draft]:
    for a, b in combinations(VALUES, 2):
        name, yes = f"{a} or {b}", tuple(number for number, parts in enumerate(PARTS) if a in parts or b in parts)
        yield _Draft(name, name, "or", disjunction(a, b), frozenset({frozenset((a, b))}), yes)


def _unnamed() -> Iterator[_Draft]:
    for value, attribute in _open():
        for meant in ATTRIBUTES[attribute]:
            name, concept = f"{value} of some {attribute}: {meant}", " ".join(sorted((value, meant), key=VALUES.index))
            pairs = frozenset({frozenset((value, attribute))})
            yield _Draft(name, concept, "some", unnamed(value, attribute), pairs, *_all_of((value, meant)))


def _ambiguous_pairs() -> Iterator[_Draft]:
    for a, b in combinations(VALUES, 2):
        for meant, other in ((a, b), (b, a)):
            near = _all_of((other,), but=(meant,))[0]
            name, pairs = f"either {a} or {b}: {meant}", frozenset({frozenset((a, b))})
            yield _Draft(name, meant, "either", ambiguous_pair(a, b), pairs, _all_of((meant,))[0], near)


def _open() -> Iterator[tuple[str, str]]:
    return ((value, attribute) for value in VALUES for attribute in ATTRIBUTES if attribute != ATTRIBUTE[value])


def _all_of(values: Iterable[str], *, but: Iterable[str] = ()) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The kinds that have all the values but not those others, and those that miss one of several such conditions."""
    asked = [*((value, True) for value in values), *((value, False) for value in but)]
    misses = [sum((value in parts) != wanted for value, wanted in asked) for parts in PARTS]
    yes, near = (tuple(number for number, missed in enumerate(misses) if missed == count) for count in (0, 1))
    return yes, near if len(asked) > 1 else ()
