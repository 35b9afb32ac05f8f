"""The hostile files really bite who reads them without care; nothing here is read by the project."""

import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.formats import naive, python2_pickle
from tests.formats.hostile_archives import MANY, bomb_images, hostile_tars, hostile_zips
from tests.formats.hostile_pickles import (
    bomb_arrays,
    bomb_pickles,
    code_arrays,
    code_pickles,
    refused_pickles,
    spiked,
)

pytestmark = pytest.mark.slow  # of what the other tests are fed with

ENOUGH = 1 << 23  # bytes; a naive reader that gets so far from one small archive is bitten
RAN_OUT = ("MemoryError", "RecursionError", "signal 9", "signal 11", "signal 24")


def read_naively(folder: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """Name -> what became of a process that reads this file with the standard library or numpy."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    env = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    command = [sys.executable, naive.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout)


@pytest.mark.parametrize("make", [code_pickles, code_arrays])
def test_code_in_a_pickle_runs(tmp_path: Path, make: Callable[[Path], dict[str, bytes]]) -> None:
    canaries = {name: tmp_path / f"canary {number}" for number, name in enumerate(make(tmp_path))}
    read_naively(tmp_path / "files", {name: make(canary)[name] for name, canary in canaries.items()})
    assert [name for name, canary in canaries.items() if not canary.exists()] == []
    assert len(canaries) == {code_pickles: 36, code_arrays: 3}[make]


def test_code_in_an_entry_beside_good_ones_runs(tmp_path: Path) -> None:
    good = {"data": [1, 2], "labels": [0, 1]}
    spikes = {}
    for protocol in range(3):
        bad = code_pickles(tmp_path / f"canary {protocol}")["os.system"]
        spikes[f"{protocol}"] = spiked(python2_pickle(good, protocol), bad)
    assert set(read_naively(tmp_path / "files", spikes).values()) == {"read"}
    assert len(list(tmp_path.glob("canary *"))) == 3


def test_bombs_take_all_that_there_is(tmp_path: Path) -> None:
    files = bomb_pickles() | bomb_arrays()
    told = read_naively(tmp_path / "files", files)
    assert {name: end for name, end in told.items() if end not in RAN_OUT} == {}
    assert len(told) == len(files) == 17
    assert max(map(len, files.values())) < 5 << 20


def test_what_the_standard_library_refuses(tmp_path: Path) -> None:
    told = read_naively(tmp_path / "files", refused_pickles())
    assert {name: end for name, end in told.items() if not end.endswith(("Error", "EOFError"))} == {}
    assert not set(told.values()) & set(RAN_OUT)


def test_images_that_need_gigabytes(tmp_path: Path) -> None:
    told = read_naively(tmp_path / "files", {f"{name}.png": content for name, content in bomb_images().items()})
    assert told == {
        "claims many pixels.png": "MemoryError",
        "has many pixels.png": "MemoryError",
        "text that inflates.png": "ValueError",
    }


def harm(unpacked: Path, canary: Path) -> set[str]:
    """What is where it should not be, in a word each."""
    found = {"canary"} if canary.read_text() != "alive" else set()
    paths = list(unpacked.rglob("*"))
    for path in paths:
        mode = path.lstat().st_mode
        found |= {"link"} if stat.S_ISLNK(mode) else set()
        found |= {"device"} if stat.S_ISCHR(mode) else set()
        found |= {"fifo"} if stat.S_ISFIFO(mode) else set()
        found |= {"setuid"} if mode & stat.S_ISUID and stat.S_ISREG(mode) else set()
        found |= {"name"} if set(path.name) & set("\\:\n\x1b") else set()
        found |= {"huge"} if path.lstat().st_size >= ENOUGH else set()
        found |= {"replaced"} if stat.S_ISREG(mode) and path.lstat().st_size == 6 and path.read_bytes() == b"second" else set()
    return found | ({"many"} if len(paths) > MANY else set())


def unzip(archive: Path, folder: Path) -> None:
    """As a program does that believes names and modes."""
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            target, mode = Path(os.path.join(folder, info.filename)), info.external_attr >> 16
            target.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(mode):
                target.symlink_to(opened.read(info).decode())
            elif stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
                os.mknod(target, mode, os.makedev(1, 3))
            else:
                pour(opened, info, target)
                target.chmod(stat.S_IMODE(mode) or 0o644)
                if target.stat().st_size >= ENOUGH:
                    return


def pour(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    with opened.open(info) as source, target.open("wb") as sink:
        while sink.tell() < ENOUGH and (piece := source.read(1 << 20)):
            sink.write(piece)


def untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        opened.extraction_filter = lambda member, _: member  # as it was before there were filters
        for info in opened:
            long = info.size > ENOUGH and not info.issparse()
            info.size = ENOUGH if long else info.size
            opened.extract(info, folder)
            if long:
                return


HARM = {
    "NUL in a name": "error",  # of tar
    "absolute path": "canary",
    "parent folders": "canary",
    "parent folders in the middle": "canary",
    "file through a link to a folder": "canary",
    "file through a link to a file": "canary",
    "hard link out": "canary",
    "link to itself": "link",
    "link in a circle": "link",
    "device": "device",
    "fifo": "fifo",
    "setuid": "setuid",
    "two of one name": "replaced",
    "a file and a folder of one name": "error",
    "backslash in a name": "name",
    "drive letter": "name",
    "newline in a name": "name",
    "escape code in a name": "name",
    "long name": "error",
    "deep folders": "error",
    "bomb in one member": "huge",
    "bomb of overlapping members": "huge",
    "sparse file": "huge",
    "many members": "many",
}


@pytest.mark.parametrize(("make", "unpack"), [(hostile_zips, unzip), (hostile_tars, untar)])
def test_archives_bite(
    tmp_path: Path, make: Callable[[Path, Path], dict[str, Path]], unpack: Callable[[Path, Path], None]
) -> None:
    canary = tmp_path / "canary"
    archives = make(tmp_path / "archives", canary)
    found = {name: bite(archive, tmp_path / "unpacked" / archive.name, canary, unpack) for name, archive in archives.items()}
    tame = {name: harms for name, harms in found.items() if HARM.get(name) not in harms}
    assert set(tame) == ({"NUL in a name", "declares less than it has"} if make is hostile_zips else set())  # zipfile hides these
    assert len(found) == {hostile_zips: 23, hostile_tars: 23}[make]


def bite(archive: Path, folder: Path, canary: Path, unpack: Callable[[Path, Path], None]) -> set[str]:
    canary.write_text("alive")
    folder.mkdir(parents=True)
    try:
        unpack(archive, folder)
    except PermissionError:
        return {"device"}  # only root may make one
    except (OSError, ValueError, RecursionError):
        return {"error"} | harm(folder, canary)
    return harm(folder, canary)


def test_zip_names_end_at_a_nul_and_contents_at_the_declared_size(tmp_path: Path) -> None:
    """Whoever reads the archive in another way than zipfile sees another name, and gigabytes."""
    archives = hostile_zips(tmp_path, tmp_path / "canary")
    with zipfile.ZipFile(archives["NUL in a name"]) as opened:
        assert [(Path(info.filename).name, Path(info.orig_filename).name) for info in opened.infolist()] == [
            ("a.png", "a.png\0.txt")
        ]
    with zipfile.ZipFile(archives["declares less than it has"]) as opened:
        info = opened.infolist()[0]
        assert opened.read(info) == bytes(8)
        assert info.compress_size > 3_000_000


def test_members_that_overlap_declare_ten_gigabytes(tmp_path: Path) -> None:
    archive = hostile_zips(tmp_path, tmp_path / "canary")["bomb of overlapping members"]
    assert archive.stat().st_size < 100_000
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        assert sum(info.file_size for info in infos) > 10 << 30
        assert len({info.filename for info in infos}) == 640
