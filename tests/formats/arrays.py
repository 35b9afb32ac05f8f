"""Data sets published as pickles and npz files of arrays."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.formats.python2 import python2_pickle
from tests.formats.sample import Sample, encoded, global_labels, rows, stacked, write

Dump = Callable[[object], bytes]

# By name, what may have written a pickle.
DUMPS: dict[str, Dump] = {
    **{f"python 2, protocol {protocol}": partial(python2_pickle, protocol=protocol) for protocol in range(3)},
    **{f"python 3, protocol {protocol}": partial(pickle.dumps, protocol=protocol) for protocol in range(6)},
}


def gidaris(folder: Path, sample: Sample, *, dump: Dump = python2_pickle, holdout: Sample | None = None) -> None:
    """miniImageNet of Gidaris and Komodakis, which MetaDiff reads too. ``holdout``: phase -> more images of training classes."""
    numbers = global_labels(sample)
    phases = {"train_phase_train": sample["train"], "val": sample["val"], "test": sample["test"]}
    for phase, classes in {**phases, **(holdout or {})}.items():
        content: dict[str, object] = {
            "data": stacked(classes),
            "labels": [numbers[name] for name, _ in rows(classes)],
            "catname2label": {name: numbers[name] for name in classes},
        }
        if phase in ("val", "test"):
            content["label2catname"] = {numbers[name]: name for name in classes}
        write(folder / f"miniImageNet_category_split_{phase}.pickle", dump(content))


def cache(
    folder: Path,
    sample: Sample,
    *,
    dump: Dump = python2_pickle,
    validation: bool = False,
    swapped: bool = False,
    byte_keys: bool = False,
) -> None:
    """mini-imagenet-cache; ``validation``: learn2learn's name for val; ``swapped``: val and test each in the other's file."""
    files = {"train": "train", "val": "validation" if validation else "val", "test": "test"}
    if swapped:
        files["val"], files["test"] = files["test"], files["val"]
    for split, classes in sample.items():
        names = [name for name, _ in rows(classes)]
        places = {name: [row for row, other in enumerate(names) if other == name] for name in classes}
        content = {
            _key("image_data", byte_keys): stacked(classes),
            _key("class_dict", byte_keys): {_key(name, byte_keys): place for name, place in places.items()},
        }
        write(folder / f"mini-imagenet-cache-{files[split]}.pkl", dump(content))


def ren(
    folder: Path, sample: Sample, *, dump: Dump = python2_pickle, general: Mapping[str, str] | None = None, flat: bool = False
) -> None:
    """tieredImageNet of Ren et al.: PNG files in arrays of (L, 1) and (L,), or ``flat``; labels from 0 in each split."""
    for split, classes in sample.items():
        specific = list(classes)
        above = {name: (general or {}).get(name, "entity") for name in specific}
        wide = list(dict.fromkeys(above.values()))
        files = [np.frombuffer(encoded(image), np.uint8).copy() for _, image in rows(classes)]
        buffers = [file if flat or number % 2 else file[:, None] for number, file in enumerate(files)]
        labels = {
            "label_specific": np.array([specific.index(name) for name, _ in rows(classes)], dtype=np.int32),
            "label_general": np.array([wide.index(above[name]) for name, _ in rows(classes)], dtype=np.int32),
            "label_specific_str": specific,
            "label_general_str": wide,
        }
        write(folder / f"{split}_images_png.pkl", dump(buffers))
        write(folder / f"{split}_labels.pkl", dump(labels))


def metaoptnet_npz(folder: Path, sample: Sample, *, dump: Dump = python2_pickle, compressed: bool = False) -> None:
    """tieredImageNet of MetaOptNet: images in BGR; labels count on over the splits."""
    numbers = global_labels(sample)
    for split, classes in sample.items():
        stream = io.BytesIO()
        (np.savez_compressed if compressed else np.savez)(stream, images=np.ascontiguousarray(stacked(classes)[..., ::-1]))
        write(folder / f"{split}_images.npz", stream.getvalue())
        write(folder / f"{split}_labels.pkl", dump({"labels": [numbers[name] for name, _ in rows(classes)]}))


def cifar_pickles(folder: Path, sample: Sample, *, prefix: str = "CIFAR_FS", dump: Dump = python2_pickle) -> None:
    """CIFAR-FS and FC100 of MetaOptNet (``prefix`` FC100); others write cifar_fs_train.pickle or mini_imagenet_train.pickle."""
    numbers = global_labels(sample)
    for split, classes in sample.items():
        content = {"data": stacked(classes), "labels": [numbers[name] for name, _ in rows(classes)]}
        write(folder / f"{prefix}_{split}.pickle", dump(content))


def cifar100_python(folder: Path, sample: Sample, coarse_of: Mapping[str, str], *, dump: Dump = python2_pickle) -> None:
    """CIFAR-100 of its authors: all splits pooled, of each class five sixths in ``train``; who reads it must split by class."""
    pooled = {name: images for classes in sample.values() for name, images in classes.items()}
    fine, coarse = sorted(pooled), sorted({coarse_of[name] for name in pooled})
    parts: dict[str, dict[str, NDArray[np.uint8]]] = {"train": {}, "test": {}}
    for name, images in pooled.items():
        cut = len(images) * 5 // 6
        parts["train"][name], parts["test"][name] = images[:cut], images[cut:]
    for part, classes in parts.items():
        names = [name for name, _ in rows(classes)]
        content = {
            b"filenames": [f"{name}_s_{number:06d}.png".encode() for number, name in enumerate(names)],
            b"batch_label": f"{part}ing batch 1 of 1".encode(),
            b"fine_labels": [fine.index(name) for name in names],
            b"coarse_labels": [coarse.index(coarse_of[name]) for name in names],
            b"data": np.ascontiguousarray(stacked(classes).transpose(0, 3, 1, 2)).reshape(len(names), -1),
        }
        write(folder / "cifar-100-python" / part, dump(content))
    meta = {b"fine_label_names": [name.encode() for name in fine], b"coarse_label_names": [name.encode() for name in coarse]}
    write(folder / "cifar-100-python/meta", dump(meta))


def _key(name: str, as_bytes: bool) -> str | bytes:
    return name.encode() if as_bytes else name
