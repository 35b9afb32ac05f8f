"""Data sets published as image files, in folders and archives."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image

from tests.formats.sample import Sample, encoded, rows, write


def csv_images(
    folder: Path, sample: Sample, *, header: str = "filename,label", kind: str = "PNG", in_class_folders: bool = False
) -> None:
    """``images/`` and ``split/*.csv``: Ravi's names under `filename,label`, ILSVRC's under easyfsl's `class_name,image_name`."""
    for split, classes in sample.items():
        lines = [header.split(",")]
        for number, (name, image) in enumerate(rows(classes), 1):
            ravi = header == "filename,label"
            file = f"{name}{number:08d}.jpg" if ravi else f"{name}_{number}.JPEG"
            lines.append([file, name] if ravi else [name, file])
            write(folder / "images" / (name if in_class_folders else "") / file, encoded(image, kind))
        write(folder / "split" / f"{split}.csv", csv_text(lines))


def bertinetto(folder: Path, sample: Sample) -> None:
    """CIFAR-FS of Bertinetto et al.: a folder a fine class, and lists of classes."""
    for split, classes in sample.items():
        for name, images in classes.items():
            for number, image in enumerate(images):
                write(folder / "cifar100/data" / name / f"{number}.png", encoded(image))
        write(folder / "cifar100/splits/bertinetto" / f"{split}.txt", "".join(f"{name}\n" for name in classes).encode())


def class_folders(folder: Path, sample: Sample, *, kind: str = "PNG") -> None:
    """``{train,val,test}/<class>/``, as DeepEMD and MTL have it."""
    for split, classes in sample.items():
        for name, images in classes.items():
            for number, image in enumerate(images):
                suffix = ".jpg" if kind == "JPEG" else ".png"
                write(folder / split / name / f"{name}_{number}{suffix}", encoded(image, kind))


def omniglot_folders(folder: Path, sample: Sample, *, evaluation: Collection[str] = ()) -> None:
    """Classes are Alphabet/characterNN; alphabets of ``evaluation`` lie in images_evaluation, others in images_background."""
    for file, content in _omniglot(sample, evaluation).items():
        write(folder / file, content)


def omniglot_zips(folder: Path, sample: Sample, *, evaluation: Collection[str] = ()) -> None:
    """The two archives as they are downloaded, each with an entry for every folder too."""
    files = _omniglot(sample, evaluation)
    for part in ("images_background", "images_evaluation"):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            inside = [file for file in files if file.startswith(part)]
            for place in sorted({str(above) for file in inside for above in Path(file).parents} - {"."}):
                archive.writestr(f"{place}/", b"")
            for file in inside:
                archive.writestr(file, files[file])
        write(folder / f"{part}.zip", stream.getvalue())


def _omniglot(sample: Sample, evaluation: Collection[str]) -> dict[str, bytes]:
    """Path -> 1-bit PNG with ink 0; drawer KK of character IIII."""
    found = {}
    classes = {name: images for split in sample.values() for name, images in split.items()}
    for number, (name, images) in enumerate(classes.items(), 1):
        part = "images_evaluation" if name.split("/")[0] in evaluation else "images_background"
        for drawer, image in enumerate(images, 1):
            stream = io.BytesIO()
            Image.fromarray(image[..., 0] > 127).save(stream, "PNG")
            found[f"{part}/{name}/{number:04d}_{drawer:02d}.png"] = stream.getvalue()
    return found


def cub_folders(folder: Path, sample: Sample, *, kind: str = "JPEG") -> None:
    """Classes are NNN.Name; the published files are JPEG, PNG under the same names keeps every pixel."""
    for file, content in _cub(sample, kind).items():
        write(folder / file, content)


def cub_tgz(folder: Path, sample: Sample, *, kind: str = "JPEG") -> None:
    """CUB_200_2011.tgz as it is downloaded, with its entries for folders."""
    files = _cub(sample, kind)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for place in sorted({str(above) for file in files for above in Path(file).parents} - {"."}):
            entry = tarfile.TarInfo(place)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for file, content in files.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    write(folder / "CUB_200_2011.tgz", stream.getvalue())


def _cub(sample: Sample, kind: str) -> dict[str, bytes]:
    """The images, and the lists that lie beside them."""
    found, images, labels, count = {}, [], [], 0
    pooled = sorted((name, stack) for classes in sample.values() for name, stack in classes.items())
    for label, (name, stack) in enumerate(pooled, 1):
        for number, image in enumerate(stack, 1):
            count += 1
            file = f"{name}/{name.partition('.')[2]}_{number:04d}_{count}.jpg"
            found[f"CUB_200_2011/images/{file}"] = encoded(image, kind)
            images.append(f"{count} {file}\n")
            labels.append(f"{count} {label}\n")
    found["CUB_200_2011/images.txt"] = "".join(images).encode()
    found["CUB_200_2011/image_class_labels.txt"] = "".join(labels).encode()
    found["CUB_200_2011/classes.txt"] = "".join(f"{label} {name}\n" for label, (name, _) in enumerate(pooled, 1)).encode()
    return found


def csv_text(lines: Sequence[Sequence[str]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue().encode()
