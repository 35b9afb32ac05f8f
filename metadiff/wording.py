"""English sentences about kinds of thing: four a concept, of which the last is worded unlike the others."""

from __future__ import annotations

from collections.abc import Sequence

ATTRIBUTES = {
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white"),
    "fill": ("solid", "striped", "dotted", "outlined"),
    "shape": ("circle", "square", "triangle", "star", "cross", "heart"),
}

Sentences = tuple[str, str, str, str]


def conjunction(values: Sequence[str]) -> Sentences:
    """Of up to one value of each attribute, in the order of the attributes."""
    return _templates(with_article(_noun(values)), _plural(_noun(values)))


def exclusion(value: str, excluded: str) -> Sentences:
    one, many = f"that is not {_predicate(excluded)}", f"that are not {_plural(excluded)}"
    return _templates(f"{with_article(_noun((value,)))} {one}", f"{_plural(_noun((value,)))} {many}")


def disjunction(a: str, b: str) -> Sentences:
    asked = f"{_predicate(a)} or {_predicate(b)}"
    one, many = f"something that is {asked}", f"things that are {_plural(a)} or {_plural(b)}"
    return one, f"find every image that shows {one}", f"is it {asked}?", f"pictures with {many}"


def unnamed(value: str, attribute: str) -> Sentences:
    """What matters of the attribute is not said."""
    one, many = with_article(_noun((value,))), _plural(_noun((value,)))
    return (
        f"{many} of one particular {attribute}",
        f"find every image that shows {one} of one particular {attribute}",
        f"is it {one} of the particular {attribute} that I mean?",
        f"pictures with {many}, all of one particular {attribute}",
    )


def ambiguous_pair(a: str, b: str) -> Sentences:
    """One of the two values alone matters, and which is not said."""
    ones = [f"the {_plural(value)}" if _is_shape(value) else f"the {value} ones" for value in (a, b)]
    things = [_plural(_noun((value,))) for value in (a, b)]
    return (
        f"either {ones[0]} or {ones[1]}, but I do not say which",
        f"find every image of one sort, {ones[0]} or else {ones[1]}",
        f"is it {_predicate(a)}, or is it {_predicate(b)}, whichever of the two I mean?",
        f"pictures with {things[0]}, or pictures with {things[1]}, but only one of the two",
    )


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _templates(one: str, many: str) -> Sentences:
    return one, f"find every image that shows {one}", f"is it {one}?", f"pictures with {many}"


def _noun(values: Sequence[str]) -> str:
    return " ".join(values if _is_shape(values[-1]) else (*values, "thing"))


def _predicate(value: str) -> str:
    """As it stands after "it is"."""
    return with_article(value) if _is_shape(value) else value


def _plural(noun: str) -> str:
    """Adjectives have none."""
    if noun in (*ATTRIBUTES["colour"], *ATTRIBUTES["fill"]):
        return noun
    return noun + ("es" if noun.endswith("s") else "s")


def _is_shape(value: str) -> bool:
    return value in ATTRIBUTES["shape"]
