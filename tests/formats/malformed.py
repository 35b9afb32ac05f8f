"""Data sets that went wrong: what a written folder becomes by a broken download, a bad conversion or a hand that slipped.

``MALFORMED``: name -> the writer, and what spoils its folder and returns the file that a message should name. ``UNSEEN`` has what
no reader can see from the bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.formats.arrays import cache, cifar100_python, cifar_pickles, gidaris, metaoptnet_npz, ren
from tests.formats.files import class_folders, csv_images, omniglot_folders, omniglot_zips
from tests.formats.spoil import (
    copied,
    edited,
    image,
    lines,
    made,
    objects,
    removed,
    replaced,
    resaved,
    small_image,
    with_password,
)

HTML = b"<!DOCTYPE html>\n<html><head><title>Google Drive - Quota exceeded</title></head><body></body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 203255808\n"


class Malformed(NamedTuple):
    write: Callable[..., None]  # of the folder and a sample, and what more the format needs
    spoil: Callable[[Path], Path]


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda held: {name: value for name, value in held.items() if name != key}


def _data(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.update(data=change(held["data"]))


def _labels(change: Callable[[list[int]], list[Any]]) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.update(labels=change(held["labels"]))


def _drop_rows(held: dict[str, Any], unwanted: Callable[[int, int], bool]) -> None:
    """Rows of which ``unwanted``(row, label) is true, from images and labels."""
    kept = [row for row, label in enumerate(held["labels"]) if not unwanted(row, label)]
    held.update(data=held["data"][kept], labels=[held["labels"][row] for row in kept])


def _renamed(held: dict[str, Any], name: str) -> None:
    """The first class is called so."""
    old, number = next(iter(held["catname2label"].items()))
    names = {name if key == old else key: value for key, value in held["catname2label"].items()}
    held.update(catname2label=names, label2catname={value: key for key, value in names.items()})
    assert held["label2catname"][number] == name


def _nameless(held: dict[str, Any]) -> None:
    """The last class has images and no name."""
    name, number = held["catname2label"].popitem()
    assert held["label2catname"].pop(number) == name


TRAIN, VAL, TEST = (f"miniImageNet_category_split_{phase}.pickle" for phase in ("train_phase_train", "val", "test"))
halved: Callable[[bytes], bytes] = lambda content: content[: len(content) // 2]  # noqa: E731 - as short as its neighbours

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": halved,
    "without its last byte": lambda content: content[:-1],
    "empty": lambda _: b"",
    "a page of HTML": lambda _: HTML,
    "a git-lfs pointer": lambda _: LFS,
    "zeros": lambda content: bytes(len(content)),
}
PICKLED: dict[str, Callable[[Any], Any]] = {
    "a list": lambda held: [held["data"], held["labels"]],
    "no data": _without("data"),
    "no labels": _without("labels"),
    "labels shorter than images": _labels(lambda labels: labels[:-1]),
    "labels longer than images": _labels(lambda labels: [*labels, labels[-1]]),
    "labels as text": _labels(lambda labels: [str(label) for label in labels]),
    "labels as fractions of one": _labels(lambda labels: [label + 0.5 for label in labels]),
    "labels one-hot": _labels(lambda labels: [[label == other for other in labels] for label in labels]),
    "negative label": _labels(lambda labels: [-1, *labels[1:]]),
    "hole in the labels": _labels(lambda labels: [label + 7 * (label == max(labels)) for label in labels]),
    "images as float32": _data(lambda data: (data / 255).astype(np.float32)),
    "images as int64": _data(lambda data: data.astype(np.int64)),
    "images as objects": _data(objects),
    "images as bytes": _data(lambda data: data.tobytes()),
    "images as a list": _data(lambda data: data[:2].tolist()),
    "grey images": _data(lambda data: data[..., 0]),
    "images with four channels": _data(lambda data: np.concatenate([data, data[..., :1]], axis=-1)),
    "channels first": _data(lambda data: np.ascontiguousarray(data.transpose(0, 3, 1, 2))),
    "images not square": _data(lambda data: data[:, :-4]),
    "no images": lambda held: _drop_rows(held, lambda row, label: True),
    "an image missing": lambda held: _drop_rows(held, lambda row, label: row == 0),
    "a class missing": lambda held: _drop_rows(held, lambda row, label: label == held["labels"][0]),
}
GIDARIS: dict[str, Callable[[Any], Any]] = {
    "class of training": lambda held: _renamed(held, "n01532829"),
    "two names of one class": lambda held: held["catname2label"].update(n99999999=held["labels"][0]),
    "a class without images": lambda held: held["catname2label"].update(n99999999=99),
    "a label without a name": _nameless,
    "labels that count from zero": _labels(lambda labels: [label - min(labels) for label in labels]),
}


def _first_class(held: dict[str, Any]) -> list[int]:
    rows: list[int] = next(iter(held["class_dict"].values()))
    return rows


CACHE: dict[str, Callable[[Any], Any]] = {
    "no class_dict": _without("class_dict"),
    "no image_data": _without("image_data"),
    "a row past the end": lambda held: _first_class(held).append(10**6),
    "a row below zero": lambda held: _first_class(held).append(-1),
    "a row in two classes": lambda held: _first_class(held).append(list(held["class_dict"].values())[-1][0]),
    "a row twice in a class": lambda held: _first_class(held).append(_first_class(held)[0]),
    "a row of no class": lambda held: _first_class(held).remove(_first_class(held)[-1]),
    "a class without rows": lambda held: held["class_dict"].update(n99999999=[]),
    "class of training": lambda held: held["class_dict"].update(n01532829=held["class_dict"].popitem()[1]),
}
REN_LABELS: dict[str, Callable[[Any], Any]] = {
    "labels of MetaOptNet": lambda held: {"labels": held["label_specific"].tolist()},
    "labels shorter than images": lambda held: held.update(label_specific=held["label_specific"][:-1]),
    "labels as float": lambda held: held.update(label_specific=held["label_specific"].astype(np.float64)),
    "label past the names": lambda held: held.update(label_specific=held["label_specific"] + 1),
    "negative label": lambda held: held.update(label_specific=held["label_specific"] - 1),
    "two classes of one name": lambda held: held.update(label_specific_str=["crane"] * len(held["label_specific_str"])),
    "no names": _without("label_specific_str"),
}
BUFFERS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": halved,
    "text": lambda _: b"this is no image\n" * 20,
    "empty": lambda _: b"",
    "an image of another size": lambda _: small_image(80),
    "a grey image": lambda _: small_image(84, 1),
}


def _buffer(change: Callable[[bytes], bytes]) -> Callable[[list[Any]], None]:
    def spoil(held: list[Any]) -> None:
        held[1] = np.frombuffer(change(held[1].tobytes()), np.uint8).copy()

    return spoil


NPZ: dict[str, Callable[[Any], dict[str, Any]]] = {
    "another key": lambda images: {"arr_0": images},
    "images as float32": lambda images: {"images": images.astype(np.float32)},
    "images as objects": lambda images: {"images": objects(images)},
    "images shorter than labels": lambda images: {"images": images[:-1]},
    "grey images": lambda images: {"images": images[..., 0]},
}
CSV: dict[str, Callable[[list[str]], Iterable[str]]] = {
    "no header": lambda text: text[1:],
    "header alone": lambda text: text[:1],
    "no column of labels": lambda text: [line.split(",")[0] for line in text],
    "unknown columns": lambda text: ["path,class", *text[1:]],
    "columns swapped under their header": lambda text: [text[0], *(",".join(line.split(",")[::-1]) for line in text[1:])],
    "a row without a label": lambda text: [*text[:2], text[2].split(",")[0] + ",", *text[3:]],
    "a row of three": lambda text: [*text[:2], text[2] + ",more", *text[3:]],
    "a row twice": lambda text: [*text, text[-1]],
    "a missing file": lambda text: [*text, "n0185567299999999.jpg,n01855672"],
    "a file outside": lambda text: [*text, "../../secret.jpg,n01855672"],
    "an absolute path": lambda text: [*text, "/etc/passwd,n01855672"],
    "class of training": lambda text: [text[0], *(line.split(",")[0] + ",n01532829" for line in text[1:])],
}
IMAGES = {name: change for name, change in BUFFERS.items() if "image" not in name}
DRAWING = "images_background/*/*/*.png"


def _table() -> dict[str, Malformed]:
    found: dict[str, Malformed] = {}

    def add(format_: str, write: Callable[..., None], spoils: dict[str, Callable[[Path], Path]]) -> None:
        found.update({f"{format_}: {name}": Malformed(write, spoil) for name, spoil in spoils.items()})

    def each(changes: dict[str, Any], how: Callable[..., Callable[[Path], Path]], file: str) -> dict[str, Callable[[Path], Path]]:
        return {name: how(file, change) for name, change in changes.items()}

    later = replaced(VAL, lambda content: b"\x80\x0f" + content[2:])
    instance = edited(VAL, lambda held: {**held, "made": Fraction(1, 2)}, partial(pickle.dumps, protocol=2))
    add("gidaris", gidaris, each(BYTES, replaced, VAL) | each(PICKLED | GIDARIS, edited, VAL))
    add("gidaris", gidaris, {"a protocol of the future": later, "an instance of a class": instance})
    add("gidaris", gidaris, {"no test": removed(TEST), "no val": removed(VAL), "no train": removed(TRAIN)})
    add("cache", cache, each(CACHE, edited, "mini-imagenet-cache-val.pkl") | {"no test": removed("*-test.pkl")})
    add("ren", ren, each(REN_LABELS, edited, "val_labels.pkl") | each(BYTES, replaced, "val_images_png.pkl"))
    add("ren", ren, {f"{name} as PNG": edited("val_images_png.pkl", _buffer(change)) for name, change in BUFFERS.items()})
    add("ren", ren, {"no labels": removed("val_labels.pkl"), "no val": removed("val_images_png.pkl")})
    add("metaoptnet", metaoptnet_npz, each(BYTES, replaced, "val_images.npz") | each(NPZ, resaved, "val_images.npz"))
    add(
        "metaoptnet", metaoptnet_npz, {"labels of Ren": edited("val_labels.pkl", lambda held: {"label_specific": held["labels"]})}
    )
    add("cifar", cifar_pickles, each(PICKLED, edited, "CIFAR_FS_val.pickle") | {"no test": removed("*_test.pickle")})
    add("cifar100", cifar100_python, each(BYTES, replaced, "cifar-100-python/train"))
    add("cifar100", cifar100_python, {"no meta": removed("meta"), "no test": removed("test")})
    add("csv", csv_images, each(CSV, lines, "split/val.csv") | each(BYTES, replaced, "split/val.csv"))
    add("csv", csv_images, {f"{name} as an image": image("images/*.jpg", change) for name, change in IMAGES.items()})
    add("csv", csv_images, {"no split": removed("split"), "no images": removed("images"), "no val": removed("val.csv")})
    add(
        "folders",
        class_folders,
        {"no val": removed("val"), "empty class": made("val/n99999999"), "class of training": copied("train", "val")},
    )
    add("omniglot", omniglot_folders, {f"{name} as a drawing": image(DRAWING, change) for name, change in IMAGES.items()})
    add(
        "omniglot",
        omniglot_folders,
        {"a photograph": image(DRAWING, lambda _: small_image(84)), "no alphabets": removed("images_background")},
    )
    add("omniglot zips", omniglot_zips, each(BYTES, replaced, "images_background.zip"))
    add("omniglot zips", omniglot_zips, {"a password": replaced("images_background.zip", with_password)})
    return found


MALFORMED = _table()
UNSEEN = {
    "BGR in a format of RGB": Malformed(gidaris, edited(VAL, _data(lambda data: np.ascontiguousarray(data[..., ::-1])))),
    "RGB in a format of BGR": Malformed(metaoptnet_npz, resaved("val_images.npz", lambda images: {"images": images[..., ::-1]})),
}
