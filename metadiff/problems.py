"""What keeps a document from being a model of sections, in plain words; what is allowed is read off the model's own types."""

from __future__ import annotations

import difflib
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from metadiff.yamlfile import Document, Odd, Place, Problem, dotted, short

LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length")


def problems(document: Document, model: type[BaseModel]) -> list[Problem]:
    found: dict[Place, str] = {}
    try:
        model.model_validate(document.data)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            place, value = _find(document.data, detail["loc"])
            if detail["type"] == "missing" and isinstance(value, dict):
                place = (*place, detail["loc"][-1])
                found[place] = f"missing; it must be {words(_type_at(model, place))}"
            elif detail["type"] == "extra_forbidden":
                found[place] = f"unknown key{_whereabouts(model, place)}"
            else:
                rule = f", {detail['ctx']['error']}" if detail["type"] == "value_error" else ""
                found[place] = _refusal(_type_at(model, place), value, rule=rule)
    # Of several types each complains, one about the list and one about an item of it: the item says more.
    covered = {place[:-1] for place in found if isinstance(place[-1], int)}
    texts = [(document.line(place), f"{dotted(place)}: {text}") for place, text in found.items() if place not in covered]
    return document.problems + texts


def words(kind: Any) -> str:  # noqa: ANN401 - a type or any of typing's forms
    """What a type allows, such as "a whole number from 1 to 256"."""
    return ", or ".join(_arm_words(arm, limits) for arm, limits in _arms(kind))


def _arm_words(kind: Any, limits: dict[str, Any]) -> str:  # noqa: ANN401
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return str(choices[0]) if len(choices) == 1 else f"one of {', '.join(choices)}"
    if get_origin(kind) is tuple:
        item, *rest = get_args(kind)
        count = f"{limits['min_length']} to {limits['max_length']}" if Ellipsis in rest else 1 + len(rest)
        return f"a list of {count} items, each {words(item)}"
    if issubclass(kind, BaseModel):
        return f"a section with the keys {', '.join(kind.model_fields)}"
    if kind is bool:
        return "true or false"
    if kind is str:
        return f"a text of {limits['min_length']} to {limits['max_length']} characters"
    return ("a whole number" if kind is int else "a number") + _range(limits)


def _range(limits: dict[str, Any]) -> str:
    if "ge" in limits and "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    low = f" of at least {limits['ge']}" if "ge" in limits else f" above {limits['gt']}"
    high = f" and at most {limits['le']}" if "le" in limits else f" and below {limits['lt']}"
    return low + high


def _arms(kind: Any, marks: tuple[Any, ...] = ()) -> list[tuple[Any, dict[str, Any]]]:  # noqa: ANN401
    """The types of a union (one, if it is none), each with its limits."""
    if get_origin(kind) is Annotated:
        base, *more = get_args(kind)
        return _arms(base, (*marks, *more))
    if get_origin(kind) in (Union, UnionType):
        return [arm for choice in get_args(kind) for arm in _arms(choice, marks)]
    known = [limit for mark in marks for limit in getattr(mark, "metadata", ())]
    return [(kind, {name: getattr(limit, name) for limit in known for name in LIMITS if hasattr(limit, name)})]


def _type_at(model: type[BaseModel], place: Place) -> Any:  # noqa: ANN401
    kind: Any = model
    for part in place:
        if isinstance(part, int):
            kind = next(get_args(arm)[0] for arm, _ in _arms(kind) if get_origin(arm) is tuple)
        else:
            kind = get_type_hints(kind, include_extras=True)[part]
    return kind


def _find(value: Any, loc: Place) -> tuple[Place, Any]:  # noqa: ANN401
    """Where pydantic's loc leads in the file: loc also names the types it tried, and the keys and items that are missing."""
    place: Place = ()
    for part in loc:
        known = value if isinstance(value, dict) else range(len(value)) if isinstance(value, tuple) else ()
        if part in known:
            value, place = value[part], (*place, part)
    return place, value


def _refusal(kind: Any, value: object, *, rule: str) -> str:  # noqa: ANN401
    choices = [choice for arm, _ in _arms(kind) if get_origin(arm) is Literal for choice in get_args(arm)]
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"must be {words(kind)}{rule}, got {_got(value)}{hint}"


def _whereabouts(model: type[BaseModel], place: Place) -> str:
    """The section where an unknown key belongs, or else the nearest name beside it."""
    *section, key = map(str, place)
    keys = {name: list(get_type_hints(kind)) for name, kind in get_type_hints(model).items()}
    if homes := [name for name in keys if key in keys[name]]:
        return f"; it belongs to {' or '.join(homes)}"
    names = keys[section[0]] if section else list(keys)
    near = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {'.'.join([*section, *near])}?" if near else f"; the keys here are {', '.join(names)}"


def _got(value: object) -> str:
    if isinstance(value, str):
        return f"the text {short(value)}"
    if isinstance(value, tuple):
        return f"the list {_plain(value)}" if len(value) <= 10 else f"a list of {len(value)} items"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {_plain(value)}"
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, Odd):
        return value.words
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a section"
    text = "nothing (null)" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
