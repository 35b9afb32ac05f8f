"""From somebody's own images to a prepared data set, with the commands that people type."""

import shutil
import sys
from pathlib import Path

import h5py
import pytest
from PIL import ExifTags, Image

from stages.imports import ROOT
from tests.repository import Repository
from tests.science.test_importing import alike, make

OWNER = "Somebody-at-home-7316"


def personal() -> Image.Exif:
    exif = Image.Exif()
    for tag in (ExifTags.Base.Make, ExifTags.Base.Artist, ExifTags.Base.ImageDescription):
        exif[tag] = OWNER
    position = {1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 36.0), 27: OWNER.encode()}
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(position)
    return exif


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which 15 classes, with metadata in every image, were imported by a table and prepared."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", root)
    own, lines = make(root / "own", alike(15, 6)), ["file;class;split;description"]
    for index, file in enumerate(sorted(own.rglob("*.png"))):
        photo = file.with_suffix(".jpg")
        Image.open(file).save(photo, exif=personal(), comment=OWNER)
        file.unlink()
        assert OWNER.encode() in photo.read_bytes()
        lines.append(f"{photo.relative_to(own)};{photo.parent.name};{('train', 'val', 'test')[index // 30]};")
    lines[1] += "The first of all."
    (own / "labels.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    commands, path = Repository(root), {"PYTHONPATH": str(ROOT)}
    commands.run(sys.executable, "-m", "metadiff.cli", "import", "own", "--write", env=path)
    commands.run(sys.executable, "-m", "stages.prepare", env=path)
    return root / "data/prepared"


def test_the_split_and_the_sentences_of_the_table_arrive(prepared: Path) -> None:
    lines = (prepared / "classes.csv").read_text().splitlines()
    assert lines[1] == "0,class00,train,6,The first of all."
    assert lines[15] == "14,class14,test,6,A picture of class14."
    assert [sum(f",{split}," in line for line in lines) for split in ("train", "val", "test")] == [5, 5, 5]


def test_no_metadata_travels(prepared: Path) -> None:
    """Neither in the bytes of the files nor in what the store packs."""
    content = {file.name: file.read_bytes() for file in prepared.iterdir()}
    assert {"images.h5", "classes.csv", "checks.json", "manifest.json"} <= set(content)
    with h5py.File(prepared / "images.h5") as store:
        packed: list[bytes] = []
        store.visititems(lambda _, item: packed.append(item[()].tobytes()) if isinstance(item, h5py.Dataset) else None)
        content["attributes"] = repr([dict(item.attrs) for item in (store, *store.values())]).encode()
    assert sum(map(len, packed)) >= 90 * 16 * 16 * 3
    for name, raw in {**content, "packed": b"".join(packed)}.items():
        for trace in (OWNER.encode(), OWNER[:8].encode(), b"Exif", b"GPS"):
            assert trace not in raw, f"{name} has {trace!r}"
