"""Published data sets as arrays and pickles with labels, told by their keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from metadiff.errors import DataError
from metadiff.images.pickles import read_pickle
from metadiff.images.place import Place
from metadiff.images.shelf import Item, Reading, Shelf
from metadiff.images.source import shown
from metadiff.images.stored import Stored, stored_npy
from metadiff.rows import SPLITS

PICKLED = (".pkl", ".pickle")
PICKLE_START = b"\x80"  # from protocol 2 on; cifar-100-python has files without a suffix
SPLIT_WORD = re.compile(r"train|val(?:idation)?|test")
OTHER_PHASES = re.compile(r"train_phase_(?:val|test)")  # more images of base classes, in no published split
KEYS = {  # what a pickle must hold to be of this kind, the most telling first
    "cache": ("image_data", "class_dict"),
    "cifar": ("data", "fine_labels"),
    "labelled": ("data", "labels"),
    "meta": ("fine_label_names",),
    "fine": ("label_specific",),
    "labels": ("labels",),
    "images": (),  # a list
}


@dataclass(frozen=True)
class Part:
    """One file of labelled images: a class number an image, what the numbers are called, where the images lie."""

    file: str
    label_N: NDArray[np.int64]
    names: Mapping[int, str]
    place: Callable[[int], Place]


def arrays(shelf: Shelf) -> Reading | None:
    """Pickles and .npz of the well-known repositories, told by their keys."""
    contents = {name: _unpickled(name, path, shelf) for name, path in shelf.files.items() if _is_pickle(path)}
    stored = {name: stored_npy(path) for name, path in shelf.files.items() if path.suffix == ".npy"}
    if not contents and not stored:
        return None
    kinds: dict[str, dict[str, object]] = {kind: {} for kind in KEYS}
    for name, content in contents.items():
        kinds[_kind(name, content)][name] = content
    notes = [f"{name}: more images of base classes, not used" for name in kinds["labelled"] if OTHER_PHASES.search(name)]
    labelled = {name: content for name, content in kinds["labelled"].items() if not OTHER_PHASES.search(name)}
    found = {
        "pickles with data and labels, RGB": [_labelled(name, content, shelf) for name, content in labelled.items()],
        "pickles with image_data and class_dict, RGB": [
            _cached(name, content, shelf) for name, content in kinds["cache"].items()
        ],
        "pickles of PNG images with labels": list(_encoded(kinds, shelf)),
        "arrays in .npz with labels, stored as BGR": list(_npz(stored, kinds["labels"], shelf)),
        "cifar-100-python": list(_cifar(kinds, shelf)),
    }
    used = {layout: parts for layout, parts in found.items() if parts}
    if len(used) != 1:
        names = ", ".join(map(shown, [*contents, *stored]))
        raise DataError(f"{names}: expected images of one layout with their labels, found {' and '.join(used) or 'none'}")
    ((layout, parts),) = used.items()
    return _assembled(layout, parts, notes, shelf)


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in PICKLED:
        return True
    if path.suffix:
        return False
    with path.open("rb") as file:
        return file.read(1) == PICKLE_START


def _unpickled(name: str, path: Path, shelf: Shelf) -> object:
    """With text for the bytes that Python 2 had as keys."""
    try:
        content = read_pickle(path, scratch=shelf.scratch)
    except DataError as error:
        raise DataError(str(error).replace(str(path), name)) from None
    return {_text(key): value for key, value in content.items()} if isinstance(content, dict) else content


def _text(value: object) -> object:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _kind(name: str, content: object) -> str:
    if isinstance(content, list):
        return "images"
    if isinstance(content, dict):
        for kind, keys in KEYS.items():
            if keys and all(key in content for key in keys):
                return kind
        got = f"the keys {', '.join(shown(str(key)) for key in list(content)[:6]) or 'none'}"
    else:
        got = f"a {type(content).__name__}"
    known = "; ".join(" and ".join(keys) for keys in KEYS.values() if keys)
    raise DataError(f"{shown(name)}: a pickle of an unknown kind with {got}; known are those with {known}, and lists of images")


def _labelled(name: str, content: object, shelf: Shelf) -> Part:
    assert isinstance(content, dict)
    label_N = _numbers(name, "labels", content["labels"])
    given = content.get("catname2label", {})
    names = {int(number): str(_text(label)) for label, number in given.items()} if isinstance(given, dict) else {}
    return Part(name, label_N, names, _raw(name, "data", content["data"], len(label_N), shelf))


def _cached(name: str, content: object, shelf: Shelf) -> Part:
    """Rows by class; a row under two classes or none is a fault of the file."""
    assert isinstance(content, dict)
    rows_of = content["class_dict"]
    if not isinstance(rows_of, dict) or not rows_of:
        raise DataError(f"{shown(name)}: class_dict must hold a list of rows a class")
    members = [_numbers(name, f"class_dict of {shown(str(_text(label)))}", rows) for label, rows in rows_of.items()]
    rows_N = np.concatenate(members)
    if not np.array_equal(np.sort(rows_N), np.arange(len(rows_N))):
        raise DataError(f"{shown(name)}: class_dict must name every row of image_data once")
    label_N = np.empty(len(rows_N), np.int64)
    for number, rows in enumerate(members):
        label_N[rows] = number
    names = {number: str(_text(label)) for number, label in enumerate(rows_of)}
    return Part(name, label_N, names, _raw(name, "image_data", content["image_data"], len(label_N), shelf))


def _encoded(kinds: Mapping[str, Mapping[str, object]], shelf: Shelf) -> Iterator[Part]:
    """Lists of PNG images, each with the labels whose file has the same split in its name."""
    for name, content in kinds["images"].items():
        assert isinstance(content, list)
        other, labels = _of_same_split(name, kinds["fine"], "label_specific")
        assert isinstance(labels, dict)
        label_N = _numbers(other, "label_specific", labels["label_specific"])
        if len(content) != len(label_N):
            raise DataError(f"{shown(other)}: {len(label_N)} labels for the {len(content)} images of {shown(name)}")
        buffers = []
        for number, buffer in enumerate(content):
            if (
                not isinstance(buffer, Stored)
                or buffer.dtype != np.uint8
                or max(buffer.shape, default=0) != (length := prod(buffer.shape))
            ):
                raise DataError(f"{shown(name)}: image {number} must be an array of the bytes of a PNG file")
            buffers.append(Place(buffer.path, buffer.offset, length, side=shelf.facts.side))
        yield Part(name, label_N, _fine_names(other, labels, label_N), buffers.__getitem__)


def _fine_names(name: str, labels: Mapping[str, object], label_N: NDArray[np.int64]) -> dict[int, str]:
    words = labels.get("label_specific_str", [])
    if not isinstance(words, list) or (words and len(words) <= int(label_N.max())):
        found = len(words) if isinstance(words, list) else "no list"
        raise DataError(f"{shown(name)}: label_specific_str must name all classes, found {found}")
    return {number: str(_text(word)) for number, word in enumerate(words)}


def _npz(stored: Mapping[str, Stored], labels: Mapping[str, object], shelf: Shelf) -> Iterator[Part]:
    for name, images in stored.items():
        if PurePosixPath(name).name != "images.npy":
            raise DataError(
                f"{shown(str(PurePosixPath(name).parent))}: expected the key images, found {shown(PurePosixPath(name).stem)}"
            )
        file = str(PurePosixPath(name).parent)
        other, content = _of_same_split(file, labels, "labels")
        assert isinstance(content, dict)
        label_N = _numbers(other, "labels", content["labels"])
        yield Part(file, label_N, {}, _raw(file, "images", images, len(label_N), shelf, order="bgr"))


def _cifar(kinds: Mapping[str, Mapping[str, object]], shelf: Shelf) -> Iterator[Part]:
    """Both files of CIFAR-100: the few-shot splits are by class, over all of its images."""
    if not kinds["cifar"]:
        return
    if len(kinds["meta"]) != 1:
        raise DataError(f"{', '.join(map(shown, kinds['cifar']))}: the file meta with fine_label_names is missing beside them")
    ((meta, content),) = kinds["meta"].items()
    assert isinstance(content, dict)
    words = content["fine_label_names"]
    names = {number: str(_text(word)) for number, word in enumerate(words)} if isinstance(words, list) else {}
    for name, part in kinds["cifar"].items():
        assert isinstance(part, dict)
        label_N = _numbers(name, "fine_labels", part["fine_labels"])
        if not set(label_N.tolist()) <= names.keys():
            raise DataError(f"{shown(meta)}: fine_label_names must name every class of {shown(name)}")
        yield Part(name, label_N, names, _raw(name, "data", part["data"], len(label_N), shelf, order="planes"))


def _of_same_split(name: str, others: Mapping[str, object], key: str) -> tuple[str, object]:
    """The only labels whose name speaks of that split."""
    found = [other for other in others if _hint(other) == _hint(name)]
    if len(found) != 1:
        got = " and ".join(map(shown, found)) or "none"
        raise DataError(f"{shown(name)}: expected one pickle with {key} of the same split, found {got}")
    return found[0], others[found[0]]


def _numbers(name: str, key: str, values: object) -> NDArray[np.int64]:
    """Class numbers or rows, from a list or an array of whole numbers."""
    if isinstance(values, Stored):
        values = values.read().tolist() if values.dtype.kind in "iu" and len(values.shape) == 1 else None
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        raise DataError(f"{shown(name)}: {key} must be a list of whole numbers, one an image")
    number_N = np.array(values)
    if number_N.dtype != np.int64 or number_N.min() < 0:
        raise DataError(f"{shown(name)}: {key} must be numbers from 0 on, found {number_N.min()}")
    return number_N


def _raw(name: str, key: str, images: object, count: int, shelf: Shelf, *, order: str = "rgb") -> Callable[[int], Place]:
    """Where each image of a large array lies."""
    side = shelf.facts.side
    shape = (3, side, side) if order == "planes" else (side, side, 3)
    if not isinstance(images, Stored):
        raise DataError(f"{shown(name)}: {key} must be an array of images")
    if images.dtype != np.uint8:
        raise DataError(f"{shown(name)}: {key} holds {images.dtype}, expected uint8 (0 to 255)")
    expected = (3 * side * side,) if order == "planes" else shape
    if images.shape[1:] != expected:
        raise DataError(f"{shown(name)}: {key} has the shape {images.shape}, expected (images, {', '.join(map(str, expected))})")
    if images.fortran:
        raise DataError(f"{shown(name)}: {key} is stored column by column; write it again with numpy.ascontiguousarray")
    if images.shape[0] != count:
        raise DataError(f"{shown(name)}: {images.shape[0]} images in {key}, but {count} labels")
    size = 3 * side * side
    return lambda row: Place(images.path, images.offset + row * size, size, shape, order)


def _assembled(layout: str, parts: Sequence[Part], notes: Sequence[str], shelf: Shelf) -> Reading:
    """The split of a class is the published one where its name is known; else its file's, by the number of classes in it."""
    items: list[Item] = []
    notes, named = list(notes), True
    owner: dict[str, str] = {}
    for part in parts:
        used = sorted(set(part.label_N.tolist()))
        names = _published_names(part, used, shelf)
        if names:
            split_of = {number: shelf.facts.split_of[label] for number, label in names.items()}
        else:
            split, named = _split_by_count(part, used, shelf), False
            if owner.setdefault(split, part.file) != part.file:
                raise DataError(f"{shown(owner[split])} and {shown(part.file)} both hold the classes for {split}; remove one")
            names = {number: f"{split} {rank:03d}" for rank, number in enumerate(used)}
            split_of = dict.fromkeys(used, split)
        splits, hint = sorted(set(split_of.values())), _hint(part.file)
        if len(splits) == 1 and hint not in (None, *splits):
            notes.append(f"{shown(part.file)} holds the classes for {splits[0]} and is taken as such, whatever its name says")
        file = PurePosixPath(part.file).name
        items += [
            Item(names[number], split_of[number], f"{file}#{row:06d}", part.place(row))
            for row, number in enumerate(part.label_N.tolist())
        ]
    if absent := [split for split in SPLITS if split not in {item.split for item in items}]:
        raise DataError(f"{', '.join(shown(part.file) for part in parts)}: no file holds the classes for {' and '.join(absent)}")
    return Reading(layout, items, notes, named)


def _published_names(part: Part, used: Sequence[int], shelf: Shelf) -> dict[int, str]:
    """What the classes are called; nothing where the file has words of its own for them."""
    if not shelf.facts.split_of.keys() & part.names.values():
        return {}
    for label in part.names.values():
        shelf.split_of(label, part.file)
    if nameless := sorted(set(used) - part.names.keys()):
        raise DataError(f"{shown(part.file)}: class {nameless[0]} has no name")
    known = {number: part.names[number] for number in used}
    if len(set(known.values())) < len(known):
        raise DataError(f"{shown(part.file)}: two class numbers have one name")
    return known


def _split_by_count(part: Part, used: Sequence[int], shelf: Shelf) -> str:
    """Where two splits have as many classes, the file's name tells which it is."""
    sizes = {split: len(labels) for split, labels in shelf.facts.splits.items()}
    fitting, hint = [split for split, size in sizes.items() if size == len(used)], _hint(part.file)
    if not fitting or (len(fitting) > 1 and hint not in fitting):
        expected = ", ".join(f"{split} {size}" for split, size in sizes.items())
        raise DataError(f"{shown(part.file)}: {len(used)} classes, {shelf.facts.title} has {expected}")
    return hint if hint in fitting else fitting[0]


def _hint(name: str) -> str | None:
    """The split that a file's name speaks of."""
    words = SPLIT_WORD.findall(PurePosixPath(name).name.lower())
    return words[-1].replace("idation", "") if words else None
