"""Folders that people bring: how classes and splits are read, and what becomes of every kind of odd file."""

import io
import os
import struct
import unicodedata
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metadiff.errors import DataError
from metadiff.images import BadImageError, Source, open_source
from metadiff.images.source import shown


def gradient(width: int = 40, height: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), np.full_like(x, 90)], axis=-1).astype(np.uint8)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(gradient())).save(path, **options)
    return path


def opened(path: Path, *, image_size: int = 16, color: str = "rgb", given_split: bool = False, min_images: int = 1) -> Source:
    return open_source("folder", path=path, image_size=image_size, color=color, given_split=given_split, min_images=min_images)


def one(tmp_path: Path, name: str, image: Image.Image, color: str = "rgb", **options: object) -> np.ndarray:
    save(tmp_path / "data/oak" / name, image, **options)
    return opened(tmp_path / "data", color=color).draw(0)


def reason(tmp_path: Path, name: str, content: bytes) -> str:
    file = tmp_path / "data/oak" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(BadImageError) as caught:
        opened(tmp_path / "data").draw(0)
    return str(caught.value)


def encoded(kind: str = "PNG", size: tuple[int, int] = (200, 200)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A header that claims a size, with hardly any pixels behind it."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_folder_is_a_class_and_files_lie_at_any_depth(tmp_path: Path) -> None:
    for name in (
        "oak/b.png",
        "oak/deep/er/a.jpg",
        "ash/a.gif",
        "ash/.hidden.png",
        "ash/Thumbs.db",
        ".git/x.png",
        "__MACOSX/y.png",
    ):
        save(tmp_path / name) if name.endswith(("png", "jpg", "gif")) else (tmp_path / name).write_bytes(b"x")
    (tmp_path / "README.txt").write_text("about")
    source = opened(tmp_path)
    assert [(entry.label, entry.source) for entry in source.entries] == [
        ("ash", "ash/a.gif"),
        ("oak", "oak/b.png"),
        ("oak", "oak/deep/er/a.jpg"),
    ]
    assert all(entry.group == entry.source and entry.split is None for entry in source.entries)
    assert source.group_is_one_image
    assert source.nested == {}
    assert source.descriptions == {"ash": "A picture of ash.", "oak": "A picture of oak."}
    assert all(source.draw(index).shape == (16, 16, 3) for index in range(3))


def test_given_splits_come_from_the_top_folders(tmp_path: Path) -> None:
    for split, label in (("train", "oak"), ("val", "ash"), ("test", "fir")):
        save(tmp_path / split / label / "a.png")
    entries = opened(tmp_path, given_split=True).entries
    assert [(e.label, e.split, e.source) for e in entries] == [
        ("ash", "val", "val/ash/a.png"),
        ("fir", "test", "test/fir/a.png"),
        ("oak", "train", "train/oak/a.png"),
    ]


@pytest.mark.parametrize(
    ("files", "given_split", "message"),
    [
        (
            ["train/oak/a.png", "test/ash/a.png"],
            False,
            r"the folders test, train are splits, not classes; set prepare.split: given",
        ),
        (["oak/a.png"], True, r"given needs the folders train, val, test and no others, found oak; write"),
        (["train/oak/a.png", "val/ash/a.png"], True, r"no others, found train, val; write"),
        (["train/a/a.png", "val/a/a.png", "test/b/a.png"], True, r"the class a is in train/ and in val/; a class has one split"),
        (["train/a/a.png", "val/b/a.png", "test/.x"], True, r"test: the folder has no class folders"),
        (["oak/a.png", "loose.JPG"], False, r"loose.JPG: an image beside the class folders; move it into one"),
        (["oak/a.png", "ash/.hidden"], False, r"ash: the class has no file; fill the folder or remove it"),
        ([".hidden"], False, r"the folder has no class folders"),
    ],
)
def test_folders_that_cannot_be_read_as_meant(tmp_path: Path, files: list[str], given_split: bool, message: str) -> None:
    for name in files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        opened(tmp_path, given_split=given_split)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepare.path .*nowhere: no such folder"):
        opened(tmp_path / "nowhere")


def test_small_classes_are_refused_each_with_what_it_has(tmp_path: Path) -> None:
    for name in ("oak/a.png", "oak/b.png", "ash/a.png", "elm/a.png"):
        save(tmp_path / name)
    with pytest.raises(DataError) as caught:
        opened(tmp_path, min_images=2)
    first, second, asked = str(caught.value).splitlines()
    assert (first, second) == ("class ash: has 1 images", "class elm: has 1 images")
    assert asked.endswith(
        "prepare.min_images asks for 2; add images, remove these classes, or lower it with the shots and queries"
    )
    assert len(opened(tmp_path, min_images=1).entries) == 4


def test_names_are_the_same_however_the_file_system_spells_them(tmp_path: Path) -> None:
    save(tmp_path / unicodedata.normalize("NFD", "Übung/é.png"))
    entry = opened(tmp_path).entries[0]
    assert (entry.label, entry.source) == ("Übung", "Übung/é.png")
    assert opened(tmp_path).draw(0).shape == (16, 16, 3)
    save(tmp_path / unicodedata.normalize("NFC", "Übung/é.png"))
    with pytest.raises(DataError, match="two folders have the name Übung"):
        opened(tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        save(tmp_path / "oak" / unicodedata.normalize(form, "é.png"))
    with pytest.raises(DataError, match=r"two files have the name oak/é\.png"):
        opened(tmp_path)


def test_names_with_line_ends_or_odd_bytes_work_and_stay_on_one_line(tmp_path: Path) -> None:
    save(tmp_path / "o\nak/木\n.png")
    raw = save(tmp_path / "plain/a.png").rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/plain/\xff.png")))
    source = opened(tmp_path)
    assert [entry.source for entry in source.entries] == ["o\nak/木\n.png", "plain/\\xff.png"]
    assert [source.draw(i).shape for i in range(2)] == [(16, 16, 3)] * 2
    assert shown("o\nak") == "o\\nak"
    assert "\n" not in shown(str(raw)).encode().decode()
    (tmp_path / "a\nsh").mkdir()
    with pytest.raises(DataError, match=r"a\\nsh: the class has no file"):
        opened(tmp_path)


def test_sorting_is_by_code_point(tmp_path: Path) -> None:
    for label in ("b", "B", "é", "a", "Z", "木"):
        save(tmp_path / label / "x.png")
    assert [entry.label for entry in opened(tmp_path).entries] == ["B", "Z", "a", "b", "é", "木"]


def test_nothing_is_written(tmp_path: Path) -> None:
    save(tmp_path / "oak/a.png")
    before = {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob("*")]}
    opened(tmp_path).draw(0)
    assert {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob("*")]} == before


def test_the_middle_square_is_taken(tmp_path: Path) -> None:
    wide = np.zeros((30, 90, 3), dtype=np.uint8)
    wide[:, 30:60] = (10, 200, 30)
    assert (one(tmp_path, "a.png", Image.fromarray(wide)) == (10, 200, 30)).all()


def test_shrinking_averages(tmp_path: Path) -> None:
    """A fine chessboard becomes even gray; without averaging it would stay black and white."""
    board = ((np.indices((256, 256)).sum(axis=0) % 2) * 255).astype(np.uint8)
    image = one(tmp_path, "a.png", Image.fromarray(board), color="gray")
    assert image.shape == (16, 16, 1)
    assert np.abs(image.astype(int) - 127).max() <= 3


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    turned = one(tmp_path, "a.png", Image.fromarray(gradient()), exif=exif)
    plain = one(tmp_path / "plain", "a.png", Image.fromarray(gradient()))
    assert np.abs(turned.astype(int) - np.rot90(plain, -1)).max() <= 1
    assert np.abs(turned.astype(int) - plain).max() > 100


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "YCbCr", "I"])
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_every_pixel_format_gives_the_same_gray(tmp_path: Path, mode: str, color: str) -> None:
    level = 255 if mode == "1" else 120
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((20, 20), level * 257, dtype=np.uint16 if mode == "I;16" else np.int32))
    elif mode == "P":
        image = Image.new("RGB", (20, 20), (level,) * 3).quantize(4)
    else:
        image = Image.new("L", (20, 20), level).convert("RGB" if mode in ("CMYK", "YCbCr") else "L").convert(mode)
    assert image.mode == mode
    drawn = one(tmp_path, "a.tif" if mode in ("CMYK", "I", "YCbCr") else "a.png", image, color=color)
    assert drawn.shape == (16, 16, 3 if color == "rgb" else 1)
    assert np.abs(drawn.astype(int) - level).max() <= 1


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 65535, 16).astype(np.uint16)[None], 16, axis=0)
    drawn = one(tmp_path, "a.png", Image.fromarray(ramp), color="gray")[0, :, 0]
    np.testing.assert_allclose(drawn, np.linspace(0, 255, 16), atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    if mode in ("RGBA", "LA"):
        image, options = Image.new(mode, (20, 20), (0,) * len(mode)), {}
    else:
        image, options = Image.new(mode, (20, 20), 0), {"transparency": 0}
    assert (one(tmp_path, "a.png", image, **options) == 255).all()


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    drawn = one(tmp_path, "a.png", Image.new("RGBA", (20, 20), (0, 0, 0, 128)))
    assert np.abs(drawn.astype(int) - 127).max() <= 1


def test_the_first_of_several_frames_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    drawn = one(tmp_path, "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert drawn[0, 0].tolist() == [255, 0, 0]


def test_the_ending_of_the_name_does_not_matter(tmp_path: Path) -> None:
    save(tmp_path / "data/oak/a.png").rename(tmp_path / "data/oak/a.jpg")
    assert opened(tmp_path / "data").draw(0).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.png", b"", "empty file"),
        ("text.jpg", b"this is not an image at all\n" * 20, "not an image of a known format"),
        ("page.png", b"<html><body>404</body></html>", "not an image of a known format"),
        ("cut.png", encoded()[:5000], "truncated"),
        ("cut.jpg", encoded("JPEG")[:5000], "truncated"),
        ("head.png", encoded()[:20], "truncated"),
        ("bomb.png", png_of_size(30_000, 30_000), f"more than {Image.MAX_IMAGE_PIXELS} pixels"),
        ("warned.png", png_of_size(10_000, 10_000), f"more than {Image.MAX_IMAGE_PIXELS} pixels"),
        ("dot.png", encoded(size=(1, 1)), "1x1 pixels, expected at least 8x8"),
        ("flat.png", encoded(size=(100, 7)), "100x7 pixels, expected at least 8x8"),
        ("float.tif", b"float", "floating-point pixels, expected 8 or 16 bits"),
        ("wide.tif", b"wide", "32-bit pixels, expected 8 or 16 bits"),
        ("eps.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n", "not an image of a known format"),
    ],
)
def test_a_bad_image_has_a_short_reason(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    special = {b"float": np.ones((20, 20), dtype=np.float32), b"wide": np.full((20, 20), 1 << 20, dtype=np.int32)}
    if content in special:
        stream = io.BytesIO()
        Image.fromarray(special[content]).save(stream, "TIFF")
        content = stream.getvalue()
    assert reason(tmp_path, name, content) == expected


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_flipped_bytes_never_end_in_another_error(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind, size=(24, 24))
    rng = np.random.default_rng(0)
    file = tmp_path / "oak/a.img"
    file.parent.mkdir()
    file.write_bytes(whole)
    source = opened(tmp_path)
    for _ in range(60):
        broken = bytearray(whole)
        for place in rng.integers(0, min(len(broken), 200), 4):
            broken[place] = rng.integers(0, 256)
        file.write_bytes(bytes(broken))
        with suppress(BadImageError):
            assert source.draw(0).shape == (16, 16, 3)


@pytest.mark.parametrize("text", ["a\nb", "x" * 500, "木", ""])
def test_what_a_decoder_says_becomes_one_short_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError(text)

    save(tmp_path / "oak/a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(BadImageError, match=r"^broken \([ -~]{1,80}\)$"):
        opened(tmp_path).draw(0)


def test_an_error_of_the_disk_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    save(tmp_path / "oak/a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        opened(tmp_path).draw(0)


def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside.png")
    save(tmp_path / "data/oak/a.png")
    (tmp_path / "data/oak/in.png").symlink_to("a.png")
    (tmp_path / "data/oak/nothing.png").symlink_to("gone.png")
    (tmp_path / "data/oak/out.png").symlink_to(outside)
    (tmp_path / "data/oak/round.png").symlink_to("round.png")
    source = opened(tmp_path / "data")
    told = {}
    for index, entry in enumerate(source.entries):
        try:
            source.draw(index)
        except BadImageError as error:
            told[entry.source] = str(error)
    assert told == {
        "oak/nothing.png": "a symbolic link to nothing",
        "oak/out.png": "a symbolic link that leaves the folder",
        "oak/round.png": "a symbolic link to nothing",
    }


@pytest.mark.parametrize("place", ["link", "oak/link"])
def test_linked_folders_are_refused(tmp_path: Path, place: str) -> None:
    save(tmp_path / "data/oak/a.png")
    (tmp_path / "data" / place).symlink_to(tmp_path / "data/oak")
    with pytest.raises(DataError, match="link: a symbolic link to a folder; put the folder itself there"):
        opened(tmp_path / "data")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "oak").mkdir()
    os.mkfifo(tmp_path / "oak/pipe.png")
    with pytest.raises(BadImageError, match="not an ordinary file"):
        opened(tmp_path).draw(0)


def test_a_file_that_went_away_is_said_so(tmp_path: Path) -> None:
    file = save(tmp_path / "oak/a.png")
    source = opened(tmp_path)
    file.unlink()
    with pytest.raises(BadImageError, match="no longer there"):
        source.draw(0)
