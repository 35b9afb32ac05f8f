"""Whether a value that was read is made of plain containers alone, and a tree: whoever walks it comes to its end."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from metadiff.errors import DataError
from metadiff.images.stored import Stored

ONLY = "only plain containers, numbers, texts and numpy arrays are read"
SCALARS = (str, bytes, int, float, bool, type(None))
DEEPEST = 100


@dataclass
class _Level:
    container: object
    items: Iterator[object]
    height: int = 1


def require_plain(value: object) -> None:
    """A DataError with the reason alone. Shared containers are looked at once, cycles and more than 100 levels refused."""
    heights: dict[int, int] = {}  # of each container; 0 while it is open
    path = [_Level(None, iter([value]))]
    while path:
        level = path[-1]
        for item in level.items:
            if (height := _height(item, heights)) is None:
                heights[id(item)] = 0
                path.append(_Level(item, _items(item)))
                break
            level.height = max(level.height, height + 1)
        else:
            heights[id(level.container)] = level.height
            path.pop()
            if path:
                path[-1].height = max(path[-1].height, level.height + 1)
        if len(path) > DEEPEST + 1 or level.height > DEEPEST + 1:
            raise DataError(f"containers more than {DEEPEST} deep")


def _height(item: object, heights: dict[int, int]) -> int | None:
    """How deep an item is, None for a container that was not looked at."""
    if type(item) in (*SCALARS, Stored, set):  # sets hold keys alone
        return 0
    if type(item) not in (list, tuple, dict):
        raise DataError(f"{getattr(item, 'name', type(item).__name__)} as a value: {ONLY}")
    if heights.get(id(item)) == 0:
        raise DataError("a container that contains itself")
    return heights.get(id(item))


def _items(container: object) -> Iterator[object]:
    assert isinstance(container, (list, tuple, dict))
    return iter(container.values() if isinstance(container, dict) else container)


def mapping(flat: list[object]) -> dict[object, object]:
    """Of keys and values by turns."""
    if len(flat) % 2:
        raise DataError("a key without a value")
    return {key(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def key(value: object) -> Hashable:
    """Flat, since the hash of a deep tuple takes a stack or a time without bounds."""
    if isinstance(value, SCALARS) or (isinstance(value, tuple) and all(isinstance(part, SCALARS) for part in value)):
        return value
    raise DataError(f"a {type(value).__name__} as a key or in a set, expected a text, a number or a flat tuple of them")
