"""The built-in sources: kanji under their general radical, and the components that kanji are made of, drawn alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from fontTools.pens.recordingPen import RecordingPen
from fontTools.svgLib.path.parser import parse_path
from numpy.typing import NDArray

from metadiff.errors import DataError
from metadiff.images.kanjivg import Character, Group, read_locked
from metadiff.images.source import ClassesApart, Entry, large_classes, require_classes
from metadiff.images.strokes import Curve, boxed, paint, points_along

BOX = (0.0, 0.0, 109.0)  # the square that every kanji of the package is written in
STROKES = range(3, 13)  # a component of fewer is hardly a drawing, of more a whole kanji
WIDTH = {"radicals": 5.0 / 109.0, "components": 6.0 / 109.0}  # of a stroke, as a share of the side: a brush pen at 32 pixels
MARGIN = {"radicals": 0.0, "components": 0.09}  # a kanji already keeps clear of its box


@dataclass(frozen=True)
class Kanji(ClassesApart):
    """A source of kanji; one image is the strokes of one entry."""

    entries: Sequence[Entry]
    strokes: Sequence[tuple[str, ...]]  # the path data, an item an entry
    descriptions: Mapping[str, str]
    nested: Mapping[tuple[str, str], int]
    left_out: Mapping[str, int]
    kind: str
    image_size: int
    channels: int

    drops_twins: bool = True
    twins_are_published: bool = False
    findings: Sequence[str] = ()

    @property
    def name(self) -> str:
        return f"kanji-{self.kind}"

    @property
    def group_is_one_image(self) -> bool:
        return self.kind == "radicals"

    def draw(self, index: int) -> NDArray[np.uint8]:
        points_P2 = points_along([curve for path in self.strokes[index] for curve in curves(path)])
        box = BOX if self.kind == "radicals" else boxed(points_P2)
        image_HW = paint(points_P2, box=box, image_size=self.image_size, margin=MARGIN[self.kind], width=WIDTH[self.kind])
        return np.repeat(image_HW[:, :, None], self.channels, axis=2)

    def part(self, part: range) -> Kanji:
        return replace(
            self, entries=self.entries[part.start : part.stop], strokes=self.strokes[part.start : part.stop], nested={}
        )


def open_kanji(kind: str, *, lock: Path, image_size: int, color: str, min_images: int) -> Kanji:
    characters = read_locked(lock)
    drawn = dict(radicals(characters) if kind == "radicals" else components(characters))
    entries, left_out = large_classes(drawn, min_images)
    require_classes(entries, left_out, min_images=min_images, where=str(lock))
    labels = {entry.label for entry in entries}
    return Kanji(
        entries=entries,
        strokes=[drawn[entry] for entry in entries],
        descriptions=_about_radicals(characters, labels) if kind == "radicals" else _about_components(characters, labels),
        nested={} if kind == "radicals" else nesting(characters, labels),
        left_out=left_out,
        kind=kind,
        image_size=image_size,
        channels=3 if color == "rgb" else 1,
    )


def radicals(characters: Sequence[Character]) -> Iterator[tuple[Entry, tuple[str, ...]]]:
    """Every kanji whole, under its radical."""
    for character in characters:
        group = _radical(character)
        if group is not None:
            yield Entry(_label(group), character.file, character.file), tuple(character.paths)


def components(characters: Sequence[Character]) -> Iterator[tuple[Entry, tuple[str, ...]]]:
    """Every whole component of a fit number of strokes; where a class repeats a drawing stroke by stroke, the first of them."""
    seen = set()
    for character in characters:
        for group in character.groups:
            strokes = tuple(character.paths[group.first : group.last])
            if _is_component(group) and (group.element, strokes) not in seen:
                seen.add((group.element, strokes))
                yield Entry(_element(group), character.file, f"{character.file}#{group.number}"), strokes


def nesting(characters: Sequence[Character], labels: set[str]) -> dict[tuple[str, str], int]:
    """How often a component of the second class lies inside one of the first, or is the very same strokes."""
    found: Counter[tuple[str, str]] = Counter()
    for character in characters:
        groups = [group for group in character.groups if _is_component(group) and group.element in labels]
        for position, outer in enumerate(groups):
            inside = [group for group in groups[position + 1 :] if outer.first <= group.first and group.last <= outer.last]
            found.update((_element(outer), _element(group)) for group in inside if group.element != outer.element)
    return dict(sorted(found.items()))


def curves(path: str) -> Iterator[Curve]:
    """The cubics and lines of path data."""
    pen = RecordingPen()
    parse_path(path, pen)
    at: tuple[float, float] = (0.0, 0.0)
    for name, points in pen.value:
        if name in ("curveTo", "lineTo"):
            yield (at, *points)
        elif name not in ("moveTo", "endPath"):
            raise DataError(f"the stroke {path!r} has a {name}; expected lines and cubic curves")
        at = points[-1] if points else at


def _radical(character: Character) -> Group | None:
    for wanted in ("general", "tradit"):
        for group in character.groups:
            if group.radical == wanted and (group.original or group.element):
                return group
    return None


def _label(group: Group) -> str:
    return group.original or _element(group)


def _element(group: Group) -> str:
    if group.element is None:
        raise AssertionError(group)
    return group.element


def _is_component(group: Group) -> bool:
    return group.element is not None and not group.is_part and group.last - group.first in STROKES


def _about_radicals(characters: Sequence[Character], labels: set[str]) -> dict[str, str]:
    forms: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for character in characters:
        group = _radical(character)
        if group is not None and _label(group) in labels:
            forms[_label(group)][group.element or _label(group)] += 1
    return {label: f"A whole kanji under the radical {label}, written {_most_first(forms[label])}." for label in sorted(labels)}


def _about_components(characters: Sequence[Character], labels: set[str]) -> dict[str, str]:
    """Names the strokes by their types, as most instances of the class are written."""
    types: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for character in characters:
        for group in character.groups:
            if _is_component(group) and group.element in labels:
                written = [kind[:1] for kind in character.types[group.first : group.last]]
                types[group.element][" ".join(written)] += 1
    usual = {label: _most_first(types[label]).split(", ")[0] for label in labels}
    return {
        label: f"The component {label} of a kanji, usually of {len(usual[label].split())} strokes: {usual[label]}."
        for label in sorted(labels)
    }


def _most_first(counts: Counter[str]) -> str:
    return ", ".join(sorted(counts, key=lambda word: (-counts[word], word)))
