"""The files that bite careless readers (test_hostile.py shows it) are refused by ours, with one line, and touch nothing."""

import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metadiff.errors import DataError
from metadiff.images import BadImageError, picklefile
from metadiff.images.archives import is_archive, unpack
from metadiff.images.decode import decode_file
from metadiff.images.pickles import read_pickle
from metadiff.images.stored import stored_npy
from tests import formats

HARMLESS = {"setuid", "many members"}  # in ours: modes are not taken over, and three thousand files are no bomb
TAME = {
    "memo at a huge index",
    "lists of lists",
}  # a value of no size: what nobody asks for is not kept, what is shared is not copied
MOST = 64 << 20  # bytes of memory for a file of a few megabytes


@contextmanager
def little_used() -> Iterator[None]:
    """Neither memory nor time."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST
        assert time.monotonic() - start < 30
    finally:
        tracemalloc.stop()


def refusal(act: Callable[[], object]) -> str:
    with little_used(), pytest.raises(DataError) as caught:
        act()
    message = str(caught.value)
    assert message.isprintable(), ascii(message)
    return message


@pytest.mark.parametrize("name", sorted(TAME))
def test_pickles_that_are_bombs_for_others_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "data.pkl").write_bytes(formats.hostile_pickles(tmp_path / "canary")[name])
    with little_used():
        read_pickle(tmp_path / "data.pkl", scratch=tmp_path)


@pytest.mark.parametrize("name", sorted(formats.hostile_pickles(Path("canary")).keys() - TAME))
def test_hostile_pickles(tmp_path: Path, name: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / "data.pkl"
    file.write_bytes(formats.hostile_pickles(canary)[name])
    assert refusal(lambda: read_pickle(file, scratch=tmp_path)).startswith(str(file))
    assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", formats.hostile_arrays(Path("canary")))
def test_hostile_arrays(tmp_path: Path, name: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / name
    file.write_bytes(formats.hostile_arrays(canary)[name])

    def read() -> None:
        if not is_archive(file):
            raise DataError("not an archive")
        unpack(file, tmp_path / "unpacked")
        for array in (tmp_path / "unpacked").iterdir():
            stored_npy(array)

    refusal(read)
    assert not canary.exists()


@pytest.mark.parametrize("make", [formats.hostile_zips, formats.hostile_tars])
def test_hostile_archives(tmp_path: Path, make: Callable[[Path, Path], dict[str, Path]]) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    archives = make(tmp_path / "hostile", canary)
    for number, (name, archive) in enumerate(archives.items()):
        into = tmp_path / f"into-{number}"
        if name in HARMLESS:
            unpack(archive, into)
            assert not [path for path in into.rglob("*") if path.is_symlink() or path.stat().st_mode & 0o7022], name
        else:
            assert str(archive) in refusal(lambda archive=archive, into=into: unpack(archive, into)), name
            assert not list(into.iterdir()), name
        assert canary.read_text() == "alive", name
    assert {path.name for path in tmp_path.iterdir()} == {"canary", "hostile", *(f"into-{i}" for i in range(len(archives)))}


@pytest.mark.parametrize("name", formats.bomb_images())
def test_images_that_need_gigabytes(tmp_path: Path, name: str) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(formats.bomb_images()[name])
    with pytest.raises(BadImageError):
        decode_file(file, root=tmp_path, image_size=32, color="rgb")


def test_a_small_pickle_whose_calls_copy_what_they_were_given_again_and_again(tmp_path: Path) -> None:
    """A text is encoded, a list is copied, thousands of times: the memory grows as the square of the file."""
    body = b"X" + struct.pack("<I", 200_000) + b"a" * 200_000 + b"q\x00" + b"0c_codecs\nencode\nq\x01" + b"0]("
    body += b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 2_000 + b"e."
    (tmp_path / "text.pkl").write_bytes(b"\x80\x02" + body)
    copied = b"](" + b"K\x01" * 10_000 + b"eq\x00" + b"0c__builtin__\nlist\nq\x01" + b"0](" + b"h\x01h\x00\x85R" * 2_000 + b"e."
    (tmp_path / "list.pkl").write_bytes(b"\x80\x02" + copied)
    for name in ("text.pkl", "list.pkl"):
        assert "one piece of it is used many times" in refusal(lambda name=name: read_pickle(tmp_path / name, scratch=tmp_path))


def test_a_pickle_of_too_many_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picklefile, "MOST_CONTAINERS", 5_000)
    (tmp_path / "sets.pkl").write_bytes(b"\x80\x04](" + b"\x8f" * 5_001 + b"e.")
    assert "more than 5000 containers" in refusal(lambda: read_pickle(tmp_path / "sets.pkl", scratch=tmp_path))
