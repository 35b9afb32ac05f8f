"""Archives from anyone: sound ones come out byte for byte, hostile ones write nothing, in the folder or outside of it."""

import bz2
import errno
import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from metadiff.errors import DataError
from metadiff.images import archives, members
from metadiff.images.archives import is_archive, unpack
from metadiff.images.stored import stored_npy

CONTENT = {"a/one.txt": b"one", "a/b/two.bin": bytes(1_100_000) + bytes(range(256)), "empty": b"", "a/c/": b"", "木/é.png": b"x"}
KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")
PACKED = {"tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


def tar_bytes(content: dict[str, bytes], change: Callable[[tarfile.TarInfo], object] = lambda _: None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size, info.mode, info.uid, info.mtime = len(data), 0o4777, 12345, 1
            change(info)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zip_bytes(content: dict[str, bytes], change: Callable[[zipfile.ZipInfo], object] = lambda _: None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, data)
    return stream.getvalue()


def archive(tmp_path: Path, kind: str, content: dict[str, bytes]) -> Path:
    path = tmp_path / "archive"
    path.write_bytes(zip_bytes(content) if kind == "zip" else PACKED.get(kind, bytes)(tar_bytes(content)))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(tmp_path: Path, content: bytes) -> str:
    """Why; and nothing was written in the folder, and the canary beside it is as it was."""
    path, into, canary = tmp_path / "archive", tmp_path / "deep/into", tmp_path / "deep/canary"
    path.write_bytes(content)
    into.mkdir(parents=True, exist_ok=True)
    canary.write_text("alive")
    with pytest.raises(DataError) as caught:
        unpack(path, into)
    assert [*into.iterdir()] == []
    assert canary.read_text() == "alive"
    assert sorted(place.name for place in tmp_path.rglob("*")) == ["archive", "canary", "deep", "into"]
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_out_as_they_went_in(tmp_path: Path, kind: str) -> None:
    path, told = archive(tmp_path, kind, CONTENT), []
    assert is_archive(path)
    unpack(path, tmp_path / "new/into", advance=told.append)
    assert files(tmp_path / "new/into") == {name: data for name, data in CONTENT.items() if not name.endswith("/")}
    assert (tmp_path / "new/into/a/c").is_dir()
    assert sum(told) == sum(map(len, CONTENT.values()))
    assert max(told) <= archives.PIECE


@pytest.mark.parametrize("kind", KINDS)
def test_modes_owner_and_time_are_ours(tmp_path: Path, kind: str) -> None:
    before = os.umask(0o077)
    try:
        unpack(archive(tmp_path, kind, CONTENT), tmp_path / "into")
    finally:
        os.umask(before)
    for path in (tmp_path / "into").rglob("*"):
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == (0o755 if path.is_dir() else 0o644)
        assert status.st_uid == os.getuid()
        assert status.st_mtime > 1e9


def test_an_npz_becomes_arrays_that_lie_in_files(tmp_path: Path) -> None:
    arrays = {"x": np.arange(24.0).reshape(2, 3, 4), "y": np.asfortranarray(np.eye(3, dtype=">i4"))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    assert is_archive(tmp_path / "a.npz")
    unpack(tmp_path / "a.npz", tmp_path / "into")
    for name, array in arrays.items():
        stored = stored_npy(tmp_path / "into" / f"{name}.npy")
        assert (stored.dtype, stored.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(stored.read(), array)
        np.testing.assert_array_equal(stored.view(), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        bytes(2000),
        b"\x80\x04]\x94.",
        gzip.compress(b"no tar", mtime=0),
        bz2.compress(b""),
        lzma.compress(b"no tar"),
        b"\x1f\x8b",
    ],
)
def test_what_is_no_archive_is_seen_by_its_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    assert not is_archive(tmp_path / "a.zip")


NAMES = {
    "../canary": "a path with ..",
    "a/../../canary": "a path with ..",
    "/canary": "an absolute path",
    "C:/canary": "a path with a drive letter",
    "c:canary": "a path with a drive letter",
    "a\\..\\canary": "a backslash in the name",
    "a\nb": "a control character in the name",
    "a\x7fb": "a control character in the name",
    "a\x1b[31m": "a control character in the name",
    "x" * 300: "a name that is too long",
    "y/" * 600 + "z": "a name that is too long",
    ".": "a file without a name",
}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    content = {"good": b"good", name: b"evil"}
    reason = refused(tmp_path, zip_bytes(content) if kind == "zip" else tar_bytes(content))
    assert reason.endswith(f"{NAMES[name]}; such an archive is not unpacked")


def test_a_nul_in_a_name_is_refused(tmp_path: Path) -> None:
    content = zip_bytes({"aQb": b"evil"}).replace(b"aQb", b"a\0b")
    assert "a control character in the name" in refused(tmp_path, content)


def test_the_standard_library_would_have_written_over_the_canary(tmp_path: Path) -> None:
    """What the tests above forbid is real: the same bytes, taken out without a look, reach a file outside of the folder."""
    canary, into = tmp_path / "canary", tmp_path / "into"
    canary.write_text("alive")
    into.mkdir()
    with tarfile.open(fileobj=io.BytesIO(tar_bytes({"../canary": b"dead"}))) as naive:
        naive.extraction_filter = lambda member, _: member  # as it was before there were filters
        naive.extractall(into)  # noqa: S202
    assert canary.read_text() == "dead"


def test_the_standard_library_would_have_written_through_a_link(tmp_path: Path) -> None:
    canary, into = tmp_path / "deep/canary", tmp_path / "naive"
    content = through_a_link()
    assert "out: a link; such an archive is not unpacked" in refused(tmp_path, content)
    with tarfile.open(fileobj=io.BytesIO(content)) as naive:
        naive.extraction_filter = lambda member, _: member  # as it was before there were filters
        naive.extractall(into)  # noqa: S202
    assert canary.read_bytes() == b"dead"


def through_a_link() -> bytes:
    def link(info: tarfile.TarInfo) -> None:
        if info.name == "out":
            info.type, info.linkname = tarfile.SYMTYPE, "../deep"

    return tar_bytes({"out": b"", "out/canary": b"dead"}, link)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "neither a file nor a folder"),
        (tarfile.BLKTYPE, "neither a file nor a folder"),
        (tarfile.FIFOTYPE, "neither a file nor a folder"),
        (tarfile.CONTTYPE, "neither a file nor a folder"),
        (b"Z", "neither a file nor a folder"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: bytes, reason: str) -> None:
    def special(info: tarfile.TarInfo) -> None:
        info.linkname = "good"
        info.type = kind if info.name == "odd" else tarfile.REGTYPE

    assert refused(tmp_path, tar_bytes({"good": b"x", "odd": b""}, special)) == f"odd: {reason}; such an archive is not unpacked"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_a_link_or_device_in_a_zip_is_refused(tmp_path: Path, kind: int) -> None:
    def special(info: zipfile.ZipInfo) -> None:
        info.external_attr = (kind | 0o777) << 16

    assert "odd: a link or a device" in refused(tmp_path, zip_bytes({"odd": b"/etc/passwd"}, special))


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "pair",
    [
        ("a/x", "a/X"),
        ("Strasse", "Straße"),
        ("a/x", "A/y"),
        (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")),
        ("a", "a/b"),
        ("a/b", "a"),
    ],
    ids=ascii,
)
def test_two_members_of_one_name_are_refused(tmp_path: Path, kind: str, pair: tuple[str, str]) -> None:
    content = dict.fromkeys(pair, b"x")
    assert "two members have this name" in refused(tmp_path, zip_bytes(content) if kind == "zip" else tar_bytes(content))


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    assert "b: two members have this name" in refused(tmp_path, tar_bytes({"a": b"1", "b": b"2"}, twice))


def twice(info: tarfile.TarInfo) -> None:
    info.name = "b"


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"a": b"x"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert refused(tmp_path, bytes(content)) == "a: encrypted; such an archive is not unpacked"


def test_unusual_packing_is_refused(tmp_path: Path) -> None:
    def packed(info: zipfile.ZipInfo) -> None:
        info.compress_type = zipfile.ZIP_LZMA

    assert "a: packed in the unusual way 14" in refused(tmp_path, zip_bytes({"a": b"x"}, packed))


def test_a_member_of_another_length_than_declared_is_refused(tmp_path: Path) -> None:
    whole = zip_bytes({"a": bytes(4000)})
    longer = whole.replace(struct.pack("<I", 4000), struct.pack("<I", 5000))
    assert refused(tmp_path, longer) == "a: cut: 4000 bytes of 5000; bring the archive again"
    checksums = [struct.pack("<I", zlib.crc32(bytes(count))) for count in (4000, 10)]
    shorter = whole.replace(struct.pack("<I", 4000), struct.pack("<I", 10)).replace(*checksums)
    assert zipfile.ZipFile(io.BytesIO(shorter)).read("a") == bytes(10)  # the standard library sees nothing
    assert "a: broken or cut (Bad CRC-32" in refused(tmp_path, shorter)


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as made:
        made.writestr("a", b"0123456789")
    assert "Bad CRC-32" in refused(tmp_path, stored.getvalue().replace(b"0123456789", b"0123456780"))
    packed = bytearray(gzip.compress(tar_bytes(CONTENT)))
    packed[-6] ^= 1
    assert "CRC check failed" in refused(tmp_path, bytes(packed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_archive_is_refused_wherever_it_was_cut(tmp_path: Path, kind: str) -> None:
    whole = archive(tmp_path, kind, {"a": os.urandom(3000), "b": os.urandom(900), "c": b""}).read_bytes()
    end = whole.index(bytes(1024)) if kind == "tar" else len(whole)  # what follows is padding
    places = {*range(1, end, 211), *range(512, end, 512), end - 1}
    for place in sorted(places):
        assert refused(tmp_path, whole[:place])
    assert len(places) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_end_in_files_or_one_line(tmp_path: Path, kind: str) -> None:
    whole = archive(tmp_path, kind, {"a/b": b"123" * 50, "c/": b"", "d": os.urandom(700)}).read_bytes()
    rng, path, into = np.random.default_rng(0), tmp_path / "archive", tmp_path / "into"
    for _ in range(80):
        broken = bytearray(whole)
        for place in rng.integers(0, len(broken), 3):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        is_archive(path)
        with suppress(DataError):
            unpack(path, into)
        shutil.rmtree(into)
        assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(members, "BOMB_BYTES", 1 << 20)
    monkeypatch.setattr(members, "BOMB_RATIO", 100)
    assert "it is a bomb" in refused(tmp_path, archive(tmp_path, kind, {"a": bytes(3 << 20)}).read_bytes())
    monkeypatch.setattr(members, "BOMB_RATIO", 2000)
    unpack(tmp_path / "archive", tmp_path / "into")
    assert (tmp_path / "into/a").stat().st_size == 3 << 20


def test_what_the_disk_cannot_hold_is_refused_unwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 500))  # type: ignore[attr-defined]
    for number, content in enumerate((zip_bytes({"a": bytes(300), "b": bytes(300)}), tar_bytes({"a": bytes(600)}))):
        (tmp_path / f"{number}").write_bytes(content)
        with pytest.raises(OSError, match="unpacked it takes 600 bytes, and 500 are free") as caught:
            unpack(tmp_path / f"{number}", tmp_path / "into")
        assert caught.value.errno == errno.ENOSPC
        assert not list((tmp_path / "into").iterdir())


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MOST_MEMBERS", 2)
    assert "more than 2 members" in refused(tmp_path, tar_bytes({"a": b"", "b": b"", "c": b""}))


def test_a_long_header_is_not_held(tmp_path: Path) -> None:
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.XHDTYPE, 50 << 20
    assert "a header of 52428800 bytes" in refused(tmp_path, long.tobuf() + bytes(2048))
    short = tarfile.TarInfo("x")
    short.type, short.size = tarfile.GNUTYPE_LONGNAME, 2
    assert "broken or cut" in refused(tmp_path, (short.tobuf() + b"a\0" + bytes(510)) * 2000)


def test_an_xz_that_asks_for_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST_DICTIONARY", 1 << 16)
    assert "Memory usage limit exceeded" in refused(tmp_path, lzma.compress(tar_bytes(CONTENT)))


def test_content_after_the_end_is_refused(tmp_path: Path) -> None:
    assert "content after its end" in refused(tmp_path, gzip.compress(tar_bytes({"a": b""}) + bytes(2 << 20)))


def test_only_an_empty_folder_is_filled(tmp_path: Path) -> None:
    path = archive(tmp_path, "zip", {"a": b"new"})
    (tmp_path / "into").mkdir()
    (tmp_path / "into/a").write_text("old")
    with pytest.raises(DataError, match="into: not empty"):
        unpack(path, tmp_path / "into")
    assert (tmp_path / "into/a").read_text() == "old"


def test_an_end_by_hand_leaves_nothing_either(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    path = archive(tmp_path, "tar", CONTENT)
    with pytest.raises(KeyboardInterrupt):
        unpack(path, tmp_path / "into", advance=stop)
    assert [*(tmp_path / "into").iterdir()] == []


def test_an_error_of_the_disk_is_no_broken_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = archive(tmp_path, "zip", CONTENT)
    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(OSError, match="No space left"):
        unpack(path, tmp_path / "into")
    assert [*(tmp_path / "into").iterdir()] == []
