"""The command `metadiff import`: real images of all kinds, what is said of them, and parameters that fit them."""

import io
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from rich.console import Console
from ruamel.yaml import YAML

from metadiff.cli import main
from metadiff.errors import DataError
from metadiff.images.decode import decode_file
from metadiff.images.looking import look
from metadiff.images.splits import split_sizes
from metadiff.importing import Survey, class_table, look_at_all, open_images, report, survey
from metadiff.params import leaves, load
from metadiff.proposal import applied, as_yaml, image_size, propose, shares, shots_and_query, write
from stages.imports import ROOT

PARAMS = ROOT / "params.yaml"


def pixels(seed: int, *, width: int = 20, height: int = 20, gray: bool = False) -> Image.Image:
    shape = (height, width) if gray else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def exif_of(*, position: bool = False, orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if position:
        exif[ExifTags.Base.Make] = "Somebody's camera"
        exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 36.0)})
        exif[ExifTags.IFD.GPSInfo] = 0  # without a place for it Pillow leaves it out of TIFF
    return exif


def make(folder: Path, classes: Mapping[str, int], **options: int) -> Path:
    """As many different images a class."""
    for place, (label, count) in enumerate(classes.items()):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels(1000 * place + index, **options).save(folder / label / f"{index:04d}.png")
    return folder


def alike(num_classes: int, count: int) -> dict[str, int]:
    return {f"class{index:02d}": count for index in range(num_classes)}


def seen(folder: Path) -> Survey:
    """In this process, which is quicker for a few."""
    source = open_images(folder)
    return survey(source, [look(file, root=source.root) for file in source.files])


def lines_of(folder: Path) -> list[str]:
    return [" ".join(line.split()) for line in report(seen(folder))][1:]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(PARAMS, root)
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_what_a_file_tells_is_told_of_every_format(tmp_path: Path, kind: str) -> None:
    pixels(0, width=30, height=20).save(tmp_path / "a", kind)
    found = look(tmp_path / "a", root=tmp_path)
    assert (found.kind, found.width, found.height, found.colored, found.reason) == (kind, 30, 20, True, "")
    assert not found.has_exif


@pytest.mark.parametrize(("mode", "colored"), [("L", False), ("RGB", True), ("1", False), ("I;16", False), ("CMYK", True)])
def test_color_is_in_the_pixels(tmp_path: Path, mode: str, colored: bool) -> None:
    image = pixels(0, gray=mode == "I;16")
    image.convert(mode).save(tmp_path / "a.tif")
    assert look(tmp_path / "a.tif", root=tmp_path).colored == colored


@pytest.mark.parametrize("side", [8, 20, 100])
def test_one_colored_pixel_makes_an_image_colored(tmp_path: Path, side: int) -> None:
    image = pixels(0, width=side, height=side, gray=True).convert("RGB")
    image.save(tmp_path / "a.png")
    assert not look(tmp_path / "a.png", root=tmp_path).colored
    image.putpixel((side - 1, side - 1), (10, 10, 11))
    image.save(tmp_path / "a.png")
    assert look(tmp_path / "a.png", root=tmp_path).colored


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_metadata_is_seen(tmp_path: Path, kind: str) -> None:
    for name, exif in {"plain": exif_of(), "made": exif_of(), "placed": exif_of(position=True)}.items():
        if name == "made":
            exif[ExifTags.Base.Artist] = "Somebody"
        pixels(0).save(tmp_path / name, kind, exif=exif)
    found = {name: look(tmp_path / name, root=tmp_path) for name in ("plain", "made", "placed")}
    assert {name: (seen.has_exif, seen.has_position) for name, seen in found.items()} == {
        "plain": (False, False),
        "made": (True, False),
        "placed": (True, True),
    }


def test_sizes_are_upright(tmp_path: Path) -> None:
    pixels(0, width=30, height=20).save(tmp_path / "a.jpg", exif=exif_of(orientation=6))
    found = look(tmp_path / "a.jpg", root=tmp_path)
    assert (found.width, found.height) == (20, 30)


def test_the_report_of_a_folder_with_everything(tmp_path: Path) -> None:
    root = make(tmp_path / "own", {"ash": 3, "elm": 2, "oak": 1})
    shutil.copy(root / "ash/0000.png", root / "ash/copy.png")
    shutil.copy(root / "ash/0001.png", root / "oak/wrong.png")
    Image.open(root / "elm/0000.png").save(root / "oak/wrong.bmp")
    pixels(7, gray=True, width=64, height=48).save(root / "elm/gray.jpg", exif=exif_of(position=True))
    (root / "elm/cut.png").write_bytes((root / "elm/0001.png").read_bytes()[:300])
    (root / "elm/notes.txt").write_text("not an image")
    assert lines_of(root) == [
        "images a class smallest 3 (elm), median 3, largest 4 (ash)",
        "pixels smallest 20x20, median 20x20, largest 64x48",
        "color 9 in color, 1 gray",
        "formats PNG 8, BMP 1, JPEG 1",
        "metadata 1 with GPS positions, 0 with other EXIF; it is not copied, pixels alone are",
        "duplicates 2 across classes, 1 of them byte for byte",
        "ash/0001.png = oak/wrong.png",
        "elm/0000.png = oak/wrong.bmp",
        "duplicates 1 within a class, 1 of them byte for byte",
        "ash/0000.png = ash/copy.png",
        "bad 2 cannot be used",
        "elm/cut.png: truncated",
        "elm/notes.txt: not an image of a known format",
    ]


def test_the_report_of_a_folder_with_nothing_special(tmp_path: Path) -> None:
    assert lines_of(make(tmp_path / "own", {"ash": 3, "oak": 3})) == [
        "images a class smallest 3 (ash), median 3, largest 3 (oak)",
        "pixels all 20x20",
        "color 6 in color, 0 gray",
        "formats PNG 6",
        "metadata no EXIF",
        "duplicates none",
    ]


def test_names_that_are_likely_one_class_are_told(tmp_path: Path) -> None:
    root = make(tmp_path / "own", {"Red oak": 1, "red Oak": 1, "redoak ": 1, "ash": 1})
    assert lines_of(root)[-2:] == [
        "names 1 written in more than one way: they differ in case or spaces alone",
        "Red oak = red Oak = redoak",
    ]


def test_a_long_list_is_cut_and_counted(tmp_path: Path) -> None:
    root = make(tmp_path / "own", {"ash": 2})
    for index in range(8):
        (root / f"ash/bad{index}.jpg").write_bytes(b"x")
        shutil.copy(root / "ash/0000.png", root / f"ash/z{index}.png")
    assert lines_of(root)[-4:] == [*(f"ash/bad{i}.jpg: not an image of a known format" for i in range(3)), "... and 5 more"]


def test_pictures_of_one_area_and_other_sides_are_not_the_same(tmp_path: Path) -> None:
    (tmp_path / "ash").mkdir()
    for name, size in {"a": (10, 40), "b": (40, 10)}.items():
        Image.new("RGB", size, "red").save(tmp_path / f"ash/{name}.png")
    assert "duplicates none" in lines_of(tmp_path)


@pytest.mark.parametrize(("num_classes", "num_rows"), [(1, 1), (8, 8), (9, 7)])
def test_of_many_classes_the_ends_are_shown(tmp_path: Path, num_classes: int, num_rows: int) -> None:
    found = seen(make(tmp_path / "own", {f"c{index}": index + 1 for index in range(num_classes)}))
    table = class_table(found)
    assert table.row_count == num_rows
    stream = io.StringIO()
    Console(file=stream, width=80).print(table)
    assert ("... 3 more" in stream.getvalue()) == (num_classes == 9)
    assert "c0" in stream.getvalue()
    assert f"c{num_classes - 1}" in stream.getvalue()


def test_what_a_table_does_not_list_is_counted(tmp_path: Path) -> None:
    root = make(tmp_path / "own", {"ash": 3})
    (root / "labels.csv").write_text("file,class\nash/0000.png,a tree\n")
    assert lines_of(root)[0] == "table labels.csv; 2 images of the folder are not in it"


def test_a_given_split_is_counted(tmp_path: Path) -> None:
    for split, count in {"train": 3, "val": 2, "test": 1}.items():
        make(tmp_path / "own" / split, {f"{split}{index}": 1 for index in range(count)})
    assert lines_of(tmp_path / "own")[0] == "split train 3, val 2, test 1 classes, as the data says"


def test_all_cores_see_the_same_in_the_same_order(tmp_path: Path) -> None:
    root = make(tmp_path / "own", alike(3, 20))
    (root / "class01/bad.png").write_bytes(b"x")
    source, told = open_images(root), []
    assert look_at_all(source.files, source.root, told.append) == list(seen(root).looks)
    assert sum(told) == 61


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # a pool's thread may find a future cancelled
def test_a_process_that_was_killed_is_said_so(tmp_path: Path) -> None:
    source = open_images(make(tmp_path / "own", alike(4, 40)))

    def kill(_count: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(DataError, match=r"own: a process that looked at images was killed, mostly for want of memory; free some"):
        look_at_all(source.files * 100, source.root, kill)


def test_shares_leave_validation_and_test_enough_classes() -> None:
    for way in (2, 5, 20):
        for num_classes in range(3 * way, 300):
            sizes = split_sizes(num_classes, shares(num_classes, way=way))
            assert min(sizes) >= way, num_classes
            assert sum(sizes) == num_classes
            assert sum(shares(num_classes, way=way)) == pytest.approx(1, abs=1e-9)
    assert {shares(size, way=5) for size in (37, 40, 81, 1000)} == {(0.66, 0.14, 0.2)}


@pytest.mark.parametrize(
    ("fewest", "expected"),
    [(6, ((1, 3), 3)), (9, ((1, 3), 6)), (10, ((1, 5), 5)), (19, ((1, 5), 14)), (20, ((1, 5), 15)), (500, ((1, 5), 15))],
)
def test_small_classes_get_fewer_shots_and_queries(fewest: int, expected: tuple[tuple[int, ...], int]) -> None:
    assert shots_and_query(fewest) == expected


@pytest.mark.parametrize(("side", "expected"), [(8, 16), (28, 32), (50, 48), (70, 64), (84, 80), (300, 80)])
def test_the_side_is_near_that_of_the_data(tmp_path: Path, side: int, expected: int) -> None:
    assert image_size(seen(make(tmp_path / "own", {"ash": 1}, width=side, height=2 * side))) == expected


@pytest.mark.parametrize(
    ("num_classes", "count", "gray", "given", "bad"),
    [(15, 6, False, False, False), (15, 7, True, True, True), (40, 10, False, False, True), (16, 21, True, False, False)],
)
def test_a_proposal_is_right_for_every_kind_of_data(
    project: Path, num_classes: int, count: int, gray: bool, given: bool, bad: bool
) -> None:
    root = make(project / "own", alike(num_classes, count), gray=gray)
    if bad:
        (root / "class03/bad.png").write_bytes(b"x")
    if given:
        for index in range(num_classes):
            split = root / ("train", "val", "test")[index % 3]
            split.mkdir(exist_ok=True)
            (root / f"class{index:02d}").rename(split / f"class{index:02d}")
    settings = propose(seen(root), load(PARAMS))
    Path("new.yaml").write_text(applied(settings, PARAMS))
    changed = leaves(load("new.yaml"))
    proposed = {f"{one.section}.{one.key}": tuple(one.value) if isinstance(one.value, list) else one.value for one in settings}
    assert changed == leaves(load(PARAMS)) | proposed
    shots, query = shots_and_query(count)
    assert proposed["prepare.path"] == "own"
    assert (proposed["prepare.color"], proposed["pretrain.flip"]) == (("gray", False) if gray else ("rgb", True))
    assert (proposed["prepare.split"] == "given") == given
    assert proposed["prepare.on_bad"] == ("skip" if bad else "stop")
    assert proposed["prepare.min_images"] == shots[-1] + query <= count
    assert {proposed["evaluate.shots"], proposed["metatrain.shots"]} == {shots}
    assert {proposed[key] for key in ("evaluate.query", "metatrain.val_query", "pretrain.val_query")} == {query}
    read = YAML(typ="safe").load(as_yaml(settings))
    assert {f"{section}.{key}": value for section, values in read.items() for key, value in values.items()} == {
        f"{one.section}.{one.key}": one.value for one in settings
    }


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (alike(14, 6), "14 classes, at least 15 are needed, 5 each for 5-way episodes in train, val and test; add classes"),
        (alike(15, 6) | {"class03": 5}, "class class03: 5 usable images, at least 6 are needed; add images or remove the class"),
        (alike(30, 1), "... and 10 more classes"),
    ],
)
def test_what_no_splits_can_be_made_of_is_refused(tmp_path: Path, classes: dict[str, int], expected: str) -> None:
    found = seen(make(tmp_path / "own", classes))
    with pytest.raises(DataError) as caught:
        propose(found, load(PARAMS))
    assert [line for line in str(caught.value).splitlines() if expected in line]


def test_bad_images_do_not_count_for_a_class(tmp_path: Path) -> None:
    root = make(tmp_path / "own", alike(15, 6))
    (root / "class03/0000.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"^class class03: 5 usable images, at least 6 are needed"):
        propose(seen(root), load(PARAMS))


def test_a_given_split_needs_classes_in_each_part(tmp_path: Path) -> None:
    for split, count in {"train": 9, "val": 5, "test": 4}.items():
        make(tmp_path / "own" / split, {f"{split}{index}": 6 for index in range(count)})
    with pytest.raises(DataError, match=r"^split test: 4 classes, 5-way episodes need 5; add classes or lower the ways$"):
        propose(seen(tmp_path / "own"), load(PARAMS))


def test_the_ways_of_params_decide_how_many_classes_are_needed(project: Path) -> None:
    found = seen(make(project / "own", alike(15, 6)))
    Path("params.yaml").write_text(PARAMS.read_text().replace("way: 5 ", "way: 6 "))
    with pytest.raises(DataError, match=r"15 classes, at least 18 are needed, 6 each for 6-way episodes"):
        propose(found, load("params.yaml"))


def test_the_command_reports_and_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(project / "own", alike(15, 6))
    assert main(["import", "own"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("own: 90 files of 15 classes\n")
    assert "  split: [0.34, 0.33, 0.33] # train 5, val 5, test 5 classes\n" in said
    assert said.endswith("\nNext:\n  metadiff import own --write\n  dvc repro\n")
    assert Path("params.yaml").read_bytes() == PARAMS.read_bytes()
    assert sorted(item.name for item in project.iterdir()) == ["own", "params.yaml"]


def test_the_command_writes_params_and_keeps_their_comments(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(project / "data/external/my trees", alike(15, 6))
    assert main(["import", "data/external/my trees", "--write"]) == 0
    assert capsys.readouterr().out.endswith("\nNext:\n  dvc repro\n")
    params = load("params.yaml")
    assert (params.prepare.path, params.evaluate.shots) == ("data/external/my trees", (1, 3))
    before, after = PARAMS.read_text().splitlines(), Path("params.yaml").read_text().splitlines()
    assert [line.partition("#")[2] for line in after] == [line.partition("#")[2] for line in before]
    changed = {line.split(":")[0].strip() for line, old in zip(after, before, strict=True) if line != old}
    assert {"source", "path", "shots", "query", "split"} <= changed
    assert "seed" not in changed
    written = Path("params.yaml").read_bytes()
    assert main(["import", "data/external/my trees", "--write"]) == 0
    assert Path("params.yaml").read_bytes() == written


def test_a_folder_elsewhere_is_offered_a_home(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "my trees", alike(15, 6))
    assert main(["import", "../my trees"]) == 0
    said = capsys.readouterr().out
    assert f"  path: {tmp_path}/my trees\n" in said
    assert f"  mkdir -p data/external && cp -r '{tmp_path}/my trees' 'data/external/my trees'\n" in said
    assert "  metadiff import 'data/external/my trees' --write\n" in said
    (project / "data/external/my trees").mkdir(parents=True)
    assert main(["import", "../my trees"]) == 0
    assert "'data/external/my trees-new'\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("nowhere", "nowhere: no such folder; name the one with images"),
        ("params.yaml", "params.yaml: not a folder; name the one with images"),
        ("bare", "prepare.path bare: the folder has no class folders; expected one a class, or a CSV"),
        ("texts", "texts: none of 1 files is an image that can be used; the first is ash/a.txt: not an image of a known format"),
        ("few", "few: 3 classes, at least 15 are needed"),
    ],
)
def test_refusals_are_one_line_and_change_nothing(
    project: Path, capsys: pytest.CaptureFixture[str], folder: str, expected: str
) -> None:
    (project / "bare").mkdir()
    (project / "texts/ash").mkdir(parents=True)
    (project / "texts/ash/a.txt").write_text("no image")
    make(project / "few", alike(3, 6))
    assert main(["import", folder, "--write"]) == 65
    said = capsys.readouterr().err
    assert said.startswith(f"metadiff: {expected}")
    assert said.count("\n") == 1
    assert Path("params.yaml").read_bytes() == PARAMS.read_bytes()


def test_wrong_params_are_said_and_left_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(project / "own", alike(15, 6))
    wrong = PARAMS.read_text().replace("\n  shot: 5 ", "\n  shot: 7 ")
    Path("params.yaml").write_text(wrong)
    assert main(["import", "own", "--write"]) == 64  # collect.shot is nobody's to change but the user's
    assert "collect.shot: must be at most prepare.min_images 6, got 7" in capsys.readouterr().err
    assert Path("params.yaml").read_text() == wrong


def test_params_are_replaced_whole_or_not_at_all(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = propose(seen(make(project / "own", alike(15, 6))), load(PARAMS))

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write(settings, Path("params.yaml"))
    assert Path("params.yaml").read_bytes() == PARAMS.read_bytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_no_pixel_depends_on_metadata(tmp_path: Path, kind: str) -> None:
    for name, exif in {"plain": None, "placed": exif_of(position=True)}.items():
        pixels(0).save(tmp_path / name, kind, **({"exif": exif} if exif else {}))
    plain, placed = (decode_file(tmp_path / name, root=tmp_path, image_size=16, color="rgb") for name in ("plain", "placed"))
    assert (tmp_path / "plain").read_bytes() != (tmp_path / "placed").read_bytes()
    np.testing.assert_array_equal(plain, placed)


@pytest.mark.slow
def test_thousands_of_images_take_seconds(project: Path) -> None:
    root = make(project / "own", alike(40, 125), width=32, height=32)
    start = time.monotonic()
    assert main(["import", str(root)]) == 0
    assert time.monotonic() - start < 60
