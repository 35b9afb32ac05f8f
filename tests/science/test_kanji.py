"""The built-in sources: which kanji and classes, what is drawn, and that it is the same everywhere."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from metadiff.errors import DataError, ParamsError
from metadiff.images import Source, kanjivg, open_source
from metadiff.images.kanji import components, curves
from metadiff.images.source import Entry, large_classes
from metadiff.images.strokes import boxed, paint, points_along

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "data/builtin/kanjivg.json"
EVERY = 211  # so many entries apart are those whose bytes are held to a recorded value
ELSEWHERE = """
import sys
from pathlib import Path
from tests.science.test_kanji import digest, opened
print(digest(opened("radicals")), digest(opened("components")))
assert "torch" not in sys.modules and "h5py" not in sys.modules
"""
GOLDEN = {
    "radicals": "9903e7f3fadc547cfa272bc53c8e69bae5c4ca755712d1c3ddf4f734ae5155b1",
    "components": "48d2bfbdbe95017de42a1f9c7862fa2bf6625d4b405ea3695dfff34a89d39c4f",
}


def opened(kind: str, *, min_images: int = 20, image_size: int = 32, color: str = "gray", lock: Path = LOCK) -> Source:
    return open_source(f"kanji-{kind}", path=lock, image_size=image_size, color=color, given_split=False, min_images=min_images)


@pytest.fixture(scope="module")
def by_radical() -> Source:
    return opened("radicals")


@pytest.fixture(scope="module")
def by_component() -> Source:
    return opened("components")


def test_radicals_are_the_classes_that_were_promised(by_radical: Source) -> None:
    counts = Counter(entry.label for entry in by_radical.entries)
    assert (len(counts), sum(counts.values()), min(counts.values()), max(counts.values())) == (70, 5483, 20, 357)
    assert by_radical.group_is_one_image
    assert len({entry.group for entry in by_radical.entries}) == 5483
    assert by_radical.nested == {}
    assert set(by_radical.descriptions) == set(counts)
    assert by_radical.descriptions["人"].startswith("A whole kanji under the radical 人, written 亻, 人")


def test_components_are_the_classes_that_were_promised(by_component: Source) -> None:
    raw = [entry for entry, _ in components(kanjivg.read_locked(LOCK))]
    images = Counter(entry.label for entry in raw)
    assert (sum(n >= 20 for n in images.values()), sum(n for n in images.values() if n >= 20)) == (185, 17079)
    # 22 drawings of 毛 come from only 18 kanji, too few for an episode of 5 + 15.
    assert by_component.left_out["毛"] == 18
    assert len(by_component.entries) == 17079 - 22
    assert len(by_component.descriptions) == 184
    assert not by_component.group_is_one_image


@pytest.mark.parametrize("kind", ["radicals", "components"])
def test_entries_are_unique_and_sorted(kind: str, request: pytest.FixtureRequest) -> None:
    entries = request.getfixturevalue("by_radical" if kind == "radicals" else "by_component").entries
    assert len({entry.source for entry in entries}) == len(entries)
    assert list(entries) == sorted(entries, key=lambda entry: (entry.label, entry.group, entry.source))
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for entry in entries:
        groups[entry.label].add(entry.group)
        assert entry.split is None
    assert min(map(len, groups.values())) >= 20


def test_groups_and_not_images_make_a_class_large() -> None:
    entries = [Entry("twins", f"g{i % 2}", f"t{i}") for i in range(9)] + [Entry("fit", f"g{i}", f"f{i}") for i in range(3)]
    kept, left_out = large_classes(entries, 3)
    assert [entry.label for entry in kept] == ["fit"] * 3
    assert left_out == {"twins": 2}


def test_a_component_lies_inside_the_classes_it_is_nested_in(by_component: Source) -> None:
    assert by_component.nested["林", "木"] >= 2 * 20
    assert ("木", "林") not in by_component.nested
    assert all(outer != inner for outer, inner in by_component.nested)
    assert {name for pair in by_component.nested for name in pair} <= set(by_component.descriptions)


def test_parsing_agrees_with_another_parser() -> None:
    svg = "{http://www.w3.org/2000/svg}"
    contents = kanjivg.installed()
    for name in sorted(contents)[::97]:
        tree = ElementTree.fromstring(contents[name])  # noqa: S314 - the oracle reads a package that we trust
        groups = [g for g in tree.iter(f"{svg}g") if "StrokeNumbers" not in g.get("id", "")]
        character = kanjivg.parse(name, contents[name])
        assert character.paths == [path.get("d") for path in tree.iter(f"{svg}path")]
        assert [group.last - group.first for group in character.groups] == [len(list(g.iter(f"{svg}path"))) for g in groups]
        elements = [next((v for k, v in g.attrib.items() if k.endswith("}element")), None) for g in groups]
        assert [group.element for group in character.groups] == elements


@pytest.mark.parametrize("prefix", ["http://kanjivg.tagaini.net", "https://kanjivg.tagaini.net/"])
def test_the_namespace_of_a_file_does_not_matter(prefix: str) -> None:
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:kvg="{prefix}"><g id="kvg:StrokePaths_x"><g kvg:element="木" '
        'kvg:radical="general"><path d="M1,2L3,4"/></g><g kvg:element="林" kvg:part="1"/></g></svg>'
    )
    _, first, second = kanjivg.parse("06728.svg", text.encode()).groups
    assert (first.element, first.radical, first.is_part, first.first, first.last) == ("木", "general", False, 0, 1)
    assert second.is_part


@pytest.mark.parametrize("file", ["06728-Kaisho.svg", "03042.svg", "00041.svg", "03005.svg", "README.md", "0ff01.svg"])
def test_variants_and_other_scripts_are_no_kanji(file: str) -> None:
    assert not kanjivg.is_kanji(file)
    assert kanjivg.is_kanji("06728.svg")


def test_the_committed_lock_is_of_the_installed_package() -> None:
    script = [sys.executable, "-W", "error", "-m", "metadiff.images.kanjivg"]
    made = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout == LOCK.read_text()
    assert json.loads(made.stdout)["files"] == 6446


@pytest.mark.parametrize(("key", "value"), [("version", "20200101"), ("files", 1), ("sha256", "0" * 64)])
def test_another_content_than_the_locked_is_refused(tmp_path: Path, key: str, value: str | int) -> None:
    lock = json.loads(LOCK.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**lock, key: value}))
    with pytest.raises(DataError, match=rf"other.json: {key} is {value}, but the installed .* has {lock[key]}; pip install"):
        opened("radicals", lock=other)


def test_one_changed_byte_of_a_file_changes_the_lock() -> None:
    before = {"a.svg": b"12", "b.svg": b"3"}
    locks = [kanjivg.make_lock(c)["sha256"] for c in (before, {**before, "a.svg": b"13"}, {"a.svg": b"1", "b.svg": b"23"})]
    assert len(set(locks)) == 3
    assert kanjivg.make_lock(dict(reversed(before.items())))["sha256"] == locks[0]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"package": "other", "version": 1, "files": 2, "sha256": 3}', None])
def test_what_is_no_lock_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "lock.json").write_text(text)
    with pytest.raises(DataError, match=r"lock\.json: (no such file|not JSON|not a lock).*write it.*python -m"):
        opened("radicals", lock=tmp_path / "lock.json")


def test_a_missing_package_or_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Gone:
        name = "06728.svg"

        def locate(self) -> Path:
            return tmp_path / self.name

    monkeypatch.setattr(kanjivg.importlib.metadata, "files", lambda _: [Gone()])
    with pytest.raises(DataError, match=r"06728\.svg of the package kanjivg is missing; pip install --force-reinstall"):
        kanjivg.installed()
    monkeypatch.undo()
    monkeypatch.setattr(kanjivg, "PACKAGE", "no-such-package-here")
    with pytest.raises(DataError, match="is not installed"):
        kanjivg.installed()


def test_a_source_that_is_not_known_or_cannot_give_a_split() -> None:
    with pytest.raises(ParamsError, match=r"must be one of kanji-radicals, kanji-components, described-shapes, .*, got 'kana'"):
        open_source("kana", path=LOCK, image_size=32, color="gray", given_split=False, min_images=20)
    with pytest.raises(ParamsError, match=r"given needs prepare\.source folder or a published data set, got kanji-radicals"):
        open_source("kanji-radicals", path=LOCK, image_size=32, color="gray", given_split=True, min_images=20)


def test_images_have_the_size_and_channels_asked_for(by_radical: Source, by_component: Source) -> None:
    gray = by_radical.draw(0)
    assert (gray.shape, gray.dtype) == ((32, 32, 1), np.uint8)
    assert gray.min() == 0
    assert gray.max() == 255
    color = replace(by_component, channels=3, image_size=84).draw(7)  # type: ignore[type-var]
    assert color.shape == (84, 84, 3)
    assert (color == color[:, :, :1]).all()
    # 一: one nearly level stroke, so ink in few rows and none in a corner
    assert by_radical.entries[0].source == "04e00.svg"
    assert np.count_nonzero(gray.max(axis=(1, 2)) > 128) <= 5
    assert np.count_nonzero(gray.max(axis=(0, 2)) > 128) >= 24


def test_a_component_fills_its_square_and_keeps_its_shape(by_component: Source) -> None:
    for index in range(0, len(by_component.entries), 801):
        image_HW = by_component.draw(index)[:, :, 0]
        rows, columns = np.flatnonzero(image_HW.max(axis=1)), np.flatnonzero(image_HW.max(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 27 <= max(height, width) <= 31
        assert abs(rows[0] - (31 - rows[-1])) <= 1
        assert abs(columns[0] - (31 - columns[-1])) <= 1
        inked = points_along([c for path in by_component.strokes[index] for c in curves(path)])  # type: ignore[attr-defined]
        shape = np.ptp(inked, axis=0)
        assert width - height == pytest.approx((shape[0] - shape[1]) / shape.max() * 32 * 0.82, abs=2)


def test_points_lie_on_the_curve() -> None:
    """Against de Casteljau's construction."""
    cubic = ((1.0, 2.0), (5.0, -3.0), (8.0, 4.0), (2.0, 9.0))
    expected = []
    for t in np.arange(129) / 128:
        points = np.array(cubic)
        while len(points) > 1:
            points = (1 - t) * points[:-1] + t * points[1:]
        expected.append(points[0])
    np.testing.assert_allclose(points_along([cubic]), expected, rtol=0, atol=1e-12)
    line_P2 = points_along([((0.0, 0.0), (2.0, 4.0))])
    np.testing.assert_allclose(line_P2[:, 1], 2 * line_P2[:, 0], atol=1e-12)
    assert line_P2[-1].tolist() == [2.0, 4.0]


def test_path_data_becomes_connected_curves() -> None:
    assert list(curves("M1,2c1,0,2,1,3,1L9,9")) == [((1, 2), (2, 2), (3, 3), (4, 3)), ((4, 3), (9, 9))]
    with pytest.raises(DataError, match=r"has a closePath; expected lines and cubic curves"):
        list(curves("M1,2L3,4Z"))


def test_the_brush_is_round_and_as_wide_as_asked() -> None:
    """Against the distance of each pixel's middle from the stroke."""
    points_P2 = points_along([((20.0, 20.0), (80.0, 60.0))])
    image_HW = paint(points_P2, box=(0.0, 0.0, 100.0), image_size=100, margin=0.0, width=0.1)
    middle = np.stack(np.meshgrid(np.arange(100) + 0.5, np.arange(100) + 0.5), axis=-1)
    along = np.clip(((middle - (20, 20)) @ np.array([60, 40])) / 5200, 0, 1)
    distance = np.linalg.norm(middle - ((20, 20) + along[..., None] * (60, 40)), axis=-1)
    assert (image_HW[distance < 4.2] == 255).all()
    assert (image_HW[distance > 5.8] == 0).all()
    assert abs(image_HW.sum() / 255 - (10 * np.hypot(60, 40) + 25 * np.pi)) < 16  # 2 percent


def test_ink_at_the_edge_is_cut_and_not_wrapped() -> None:
    image_HW = paint(points_along([((-9.0, 50.0), (0.0, 60.0))]), box=(0.0, 0.0, 100.0), image_size=50, margin=0.0, width=0.08)
    assert image_HW[:, :2].max() == 255
    assert image_HW[:, 4:].max() == 0


def test_the_box_is_square_and_centred() -> None:
    assert boxed(np.array([[1.0, 10.0], [5.0, 12.0]])) == (1.0, 9.0, 4.0)


def digest(source: Source) -> str:
    found = hashlib.sha256()
    for index in range(0, len(source.entries), EVERY):
        found.update(source.entries[index].source.encode() + source.draw(index).tobytes())
    return found.hexdigest()


def test_drawing_gives_the_recorded_bytes(by_radical: Source, by_component: Source) -> None:
    assert {"radicals": digest(by_radical), "components": digest(by_component)} == GOLDEN


def test_a_process_with_other_hashes_draws_the_same_bytes() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == list(GOLDEN.values())


def test_whole_kanji_are_drawn_once(by_radical: Source) -> None:
    """Only the compatibility codes of a few kanji are drawn twice, and each pair is of one class."""
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for entry, strokes in zip(by_radical.entries, by_radical.strokes, strict=True):  # type: ignore[attr-defined]
        classes[hashlib.sha256("\n".join(strokes).encode()).hexdigest()].append(entry.label)
    twice = [labels for labels in classes.values() if len(labels) > 1]
    assert all(len(set(labels)) == 1 for labels in twice)
