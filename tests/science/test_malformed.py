"""Each way to spoil a data set changes what it says, only that, and each in a way of its own."""

import pickle
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from tests.formats import MALFORMED, UNSEEN, Malformed, cifar100_python, make_sample, omniglot_folders, omniglot_zips

pytestmark = pytest.mark.slow  # of what the other tests are fed with

WNIDS = {"train": ["n01532829", "n01558993"], "val": ["n01855672", "n02091244"], "test": ["n01930112", "n01981276"]}
DRAWINGS = {"train": ["Angelic/character01"], "val": ["Angelic/character02"], "test": ["Tibetan/character01"]}
PHOTOS, INK = make_sample(WNIDS, images=3), make_sample(DRAWINGS, images=2, side=105, binary=True)
EVERY = MALFORMED | UNSEEN
VAL = "miniImageNet_category_split_val.pickle"


def written(folder: Path, malformed: Malformed) -> Path:
    folder.mkdir()
    if malformed.write in (omniglot_folders, omniglot_zips):
        malformed.write(folder, INK)
    elif malformed.write is cifar100_python:
        malformed.write(folder, PHOTOS, {name: "animals" for names in WNIDS.values() for name in names})
    else:
        malformed.write(folder, PHOTOS)
    return folder


def tree(folder: Path) -> dict[Path, str]:
    return {path: sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in folder.rglob("*")}


def test_there_are_so_many() -> None:
    assert len(MALFORMED) == 150


@pytest.mark.parametrize("malformed", EVERY.values(), ids=EVERY)
def test_the_path_that_is_named_and_nothing_else_is_altered(tmp_path: Path, malformed: Malformed) -> None:
    folder = written(tmp_path / "data", malformed)
    before = tree(folder)
    named = malformed.spoil(folder)
    after = tree(folder)
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert named in changed
    assert all(path.is_relative_to(named) for path in changed)


def test_no_two_are_the_same(tmp_path: Path) -> None:
    found: dict[object, str] = {}
    for number, (name, malformed) in enumerate(EVERY.items()):
        folder = written(tmp_path / str(number), malformed)
        malformed.spoil(folder)
        state = frozenset((path.relative_to(folder), digest) for path, digest in tree(folder).items())
        assert found.setdefault(state, name) == name


@pytest.mark.parametrize("name", ["truncated", "without its last byte", "empty", "a page of HTML", "a git-lfs pointer", "zeros"])
def test_broken_downloads_are_no_pickle(tmp_path: Path, name: str) -> None:
    path = MALFORMED[f"gidaris: {name}"].spoil(written(tmp_path / "data", MALFORMED[f"gidaris: {name}"]))
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        pickle.loads(path.read_bytes(), encoding="latin1")  # noqa: S301 - we wrote it


def test_a_password_is_asked_for(tmp_path: Path) -> None:
    malformed = MALFORMED["omniglot zips: a password"]
    with zipfile.ZipFile(malformed.spoil(written(tmp_path / "data", malformed))) as archive:
        assert {info.flag_bits & 1 for info in archive.infolist()} == {1}
        with pytest.raises(RuntimeError, match="encrypted, password required"):
            archive.read("images_background/Angelic/character01/0001_01.png")


def test_the_colours_alone_are_turned(tmp_path: Path) -> None:
    malformed = UNSEEN["BGR in a format of RGB"]
    folder = written(tmp_path / "data", malformed)
    before = pickle.loads((folder / VAL).read_bytes(), encoding="latin1")  # noqa: S301 - we wrote it
    malformed.spoil(folder)
    after = pickle.loads((folder / VAL).read_bytes(), encoding="latin1")  # noqa: S301 - we wrote it
    np.testing.assert_array_equal(after["data"], before["data"][..., ::-1])
    assert after["labels"] == before["labels"]
