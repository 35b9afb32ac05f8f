"""Tables of images: the same classes from any spreadsheet, and one line for whatever is wrong with a row."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest

from metadiff.errors import DataError
from metadiff.images import Source, open_source
from metadiff.images.folder import says_split
from tests.science.test_folder import save

PLAIN = "path,label\na.png,oak\nb.png,ash\n"
ALL_SPLITS = "path,label,split\na.png,oak,train\nb.png,ash,val\nc.png,elm,test\n"


def folder(tmp_path: Path, table: str | bytes, files: Iterable[str] = ("a.png", "b.png", "c.png"), name: str = "t.csv") -> Path:
    root = tmp_path / "data"
    for file in files:
        save(root / file)
    (root / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return root


def opened(path: Path, *, given_split: bool = False) -> Source:
    return open_source("folder", path=path, image_size=16, color="rgb", given_split=given_split, min_images=1)


def labels(source: Source) -> dict[str, str]:
    return {entry.source: entry.label for entry in source.entries}


def refusal(path: Path, *, given_split: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        opened(path, given_split=given_split)
    return str(caught.value).removeprefix(f"{path}/")


def test_a_table_says_the_class_of_each_image(tmp_path: Path) -> None:
    source = opened(folder(tmp_path, "path,label\n./2024//a.png,oak\nb.png,ash\n", ["2024/a.png", "b.png", "other.png"]))
    assert [(e.label, e.source, e.group, e.split) for e in source.entries] == [
        ("ash", "b.png", "b.png", None),
        ("oak", "2024/a.png", "2024/a.png", None),
    ]
    assert source.descriptions == {"ash": "A picture of ash.", "oak": "A picture of oak."}
    assert source.draw(1).shape == (16, 16, 3)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_any_spreadsheet_can_have_written_it(tmp_path: Path, separator: str, start: bytes, line_end: str) -> None:
    lines = [
        ["path", "label", "description"],
        ["a.png", '"Übung ""1""; neu,	x"', '"two\nlines"'],
        [" b.png ", "ash", ""],
        ["", "", ""],
    ]
    text = line_end.join(separator.join(line) for line in lines) + line_end
    source = opened(folder(tmp_path, start + text.encode()))
    assert labels(source) == {"a.png": 'Übung "1"; neu,\tx', "b.png": "ash"}
    assert source.descriptions['Übung "1"; neu,\tx'] == "two lines"


@pytest.mark.parametrize("path", ["path", "file", "FileName", " image "])
@pytest.mark.parametrize("label", ["label", "Class"])
def test_columns_have_other_names_and_any_order(tmp_path: Path, path: str, label: str) -> None:
    assert labels(opened(folder(tmp_path, f"id,{label},{path}\n7,oak,a.png\n8,ash,b.png\n"))) == {"a.png": "oak", "b.png": "ash"}


@pytest.mark.parametrize("name", ["t.csv", "T.CSV", "t.tsv"])
def test_what_counts_as_a_table_by_its_name(tmp_path: Path, name: str) -> None:
    assert labels(opened(folder(tmp_path, PLAIN, name=name))) == {"a.png": "oak", "b.png": "ash"}


@pytest.mark.parametrize("name", [".t.csv", "notes.csv"])
def test_other_tables_beside_class_folders_are_notes(tmp_path: Path, name: str) -> None:
    content = PLAIN if name.startswith(".") else "label,seen\noak,\xff3\n"
    assert labels(opened(folder(tmp_path, content, ["oak/a.png"], name))) == {"oak/a.png": "oak"}


def test_names_match_however_they_are_spelled(tmp_path: Path) -> None:
    files = [unicodedata.normalize("NFD", "é/ü.png")]
    source = opened(folder(tmp_path, "path,label\né/ü.png,\u0065\u0301\n", files))
    assert labels(source) == {"é/ü.png": "é"}
    assert source.draw(0).shape == (16, 16, 3)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, PLAIN, [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")])
    assert refusal(root) == f"{root}: two files have the name é.png when written in one way; rename one"


def test_the_column_split_counts_when_it_is_asked_for(tmp_path: Path) -> None:
    root = folder(tmp_path, ALL_SPLITS.replace("train", "Train"))
    assert says_split(root)
    assert {e.label: e.split for e in opened(root, given_split=True).entries} == {"oak": "train", "ash": "val", "elm": "test"}
    assert {e.split for e in opened(root).entries} == {None}
    (root / "t.csv").write_text(PLAIN)
    assert not says_split(root)


def test_folders_say_their_split_too(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        save(tmp_path / "given" / split / f"of-{split}" / "a.png")
    save(tmp_path / "plain/oak/a.png")
    assert says_split(tmp_path / "given")
    assert not says_split(tmp_path / "plain")


def test_a_sentence_of_a_class_may_stand_in_any_of_its_rows(tmp_path: Path) -> None:
    table = "path,label,description\na.png,oak,\nb.png,oak,A tree\nc.png,oak,A tree\n"
    assert opened(folder(tmp_path, table)).descriptions == {"oak": "A tree"}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("path,label\na.png,oak\n/etc/x.png,oak\n", "t.csv:3: /etc/x.png leaves the folder"),
        ("path,label\n../data/a.png,oak\n", "t.csv:2: ../data/a.png leaves the folder"),
        ("path,label\noak/../a.png,oak\n", "t.csv:2: oak/../a.png leaves the folder"),
        ("path,label\na.png,oak\ngone.png,oak\n", "t.csv:3: gone.png: no such file in the folder; mend"),
        ("path,label\nx\\a.png,oak\n", "t.csv:2: x\\a.png: no such file in the folder; write / between"),
        ('path,label,description\na.png,oak,"x\ny"\ngone.png,oak,\n', "t.csv:4: gone.png: no such file"),
        ("path,label\na.png,oak\nb.png,oak\n./a.png,ash\n", "t.csv:4: a.png is listed in line 2 too; keep one"),
        ("path,label\n,oak\n", "t.csv:2: no path; fill the cell"),
        ("path,label\na.png, \n", "t.csv:2: no label; fill the cell"),
        ("path,label\na.png\n", "t.csv:2: no label; fill the cell"),
        ("path,label\na.png,oak,tall\n", "t.csv:2: 3 cells, the header has 2; put a cell with separators in quotes"),
        ('path,label\na.png,"oak"s\n', "t.csv:2: not CSV: "),
        ('path,label\na.png,"oak\n', "t.csv:2: not CSV: "),
        ("path,label\n", "t.csv:1: the table lists no image"),
        ("path,image,label\na.png,b.png,oak\n", "t.csv:1: the columns path and image both mean path; rename"),
        ("path,label,label\na.png,oak,oak\n", "t.csv:1: the columns label and label both mean label; rename"),
        (b"path,label\na.png,\xe9t\xe9\n", "t.csv:2: not UTF-8: byte 0xe9; save it as CSV in UTF-8"),
        (PLAIN.encode("utf-16"), "t.csv: UTF-16; save it as CSV in UTF-8"),
        (
            "path,label,description\na.png,oak,A tree\nb.png,ash,\nc.png,oak,A bush\n",
            "t.csv:4: class oak has another description than in line 2; a class has one",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, table: str | bytes, expected: str) -> None:
    said = refusal(folder(tmp_path, table))
    assert said.startswith(expected)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (PLAIN, "t.csv:1: prepare.split: given needs a column split; add it, or write three shares instead"),
        (ALL_SPLITS.replace("val", "dev"), "t.csv:3: split must be one of train, val, test, got dev"),
        (ALL_SPLITS.replace("val", ""), "t.csv:3: split must be one of train, val, test, got nothing"),
        (ALL_SPLITS.replace("elm", "oak"), "t.csv:4: class oak has another split than in line 2; a class has one"),
        (ALL_SPLITS.replace("test", "val"), "t.csv:1: the column split has no test"),
    ],
)
def test_splits_that_cannot_be_used_are_named(tmp_path: Path, table: str, expected: str) -> None:
    assert refusal(folder(tmp_path, table), given_split=True).startswith(expected)


def test_two_tables_are_refused_by_name(tmp_path: Path) -> None:
    root = folder(tmp_path, PLAIN)
    (root / "u.tsv").write_text("file\tclass\na.png\toak\n")
    assert refusal(root) == f"{root}: more than one table of images: t.csv, u.tsv; keep one"


def test_links_out_of_the_folder_are_refused_and_others_followed(tmp_path: Path) -> None:
    root = folder(tmp_path, PLAIN, ["b.png"])
    (root / "a.png").symlink_to("b.png")
    assert labels(opened(root)) == {"a.png": "oak", "b.png": "ash"}
    (root / "a.png").unlink()
    (root / "a.png").symlink_to(save(tmp_path / "outside.png"))
    assert refusal(root) == "t.csv:2: a.png: a symbolic link that leaves the folder; put the file itself there"
    (root / "a.png").unlink()
    save(tmp_path / "elsewhere/a.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    assert refusal(root).startswith("linked: a symbolic link to a folder")
