"""Pictures of one thing: the same bytes for the same name, all of it inside, its colour, fill and shape as named."""

import hashlib
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from metadiff.concepts import KINDS, described_tasks, kind_splits
from metadiff.conflicts import SHAPES_OF_A_KIND
from metadiff.images import Source, open_source
from metadiff.images.shapes import COLOURS, DEPTHS, GREYS, IMAGES, NOISE, draw_shape
from metadiff.rng import numpy_stream
from metadiff.wording import ATTRIBUTES

SHARES, FILE = (0.65, 0.1, 0.25), Path(__file__)  # which is not read
GOLDEN = {
    "blue striped heart/train/0007": "ca273976e6b7be48d101a9ed19d0378429c130fca678f5c8ea182f86b06cb9a1",
    "cyan dotted heart/test/0000": "1829fbc3fe0c2ab0fda7c2b027e832149ec19dbf0bf2a0f93fe848f832d3a7fd",
}


WEB = {"red": "ff0000", "orange": "ffa500", "yellow": "ffff00", "green": "008000"}  # the colours that the web has by these names
WEB |= {"cyan": "00ffff", "blue": "0000ff", "purple": "800080", "white": "ffffff"}


def shapes(seed: int = 0, *, color: str = "rgb", size: int = 32) -> Source:
    return open_source(
        "described-shapes",
        path=FILE,
        image_size=size,
        color=color,
        given_split=False,
        min_images=20,
        shares=SHARES,
        split_seed=seed,
    )


def drawn(colour: str, fill: str, shape: str, number: int = 0, *, size: int = 32) -> np.ndarray:
    """Of one number all things lie alike."""
    return draw_shape(colour, fill, shape, numpy_stream(1, "test", number), image_size=size, channels=3).astype(float)


def inside(colour: str, fill: str, shape: str, number: int = 0) -> np.ndarray:
    """Where a picture is not its background, whose grey the corners tell; noise is at most 2 NOISE."""
    image = drawn(colour, fill, shape, number)
    return np.abs(image - np.median(image[0])).max(axis=2) > 4 * NOISE


def test_the_names_of_the_attributes_are_those_of_the_sentences() -> None:
    assert set(COLOURS) == set(ATTRIBUTES["colour"])
    assert set(DEPTHS) == set(ATTRIBUTES["shape"])
    assert min(IMAGES.values()) == SHAPES_OF_A_KIND


def test_an_image_is_a_function_of_its_name() -> None:
    first, second = shapes(0), shapes(1)
    places = {entry.source: index for index, entry in enumerate(second.entries)}
    both = [index for index, entry in enumerate(first.entries) if entry.source in places][::97]
    assert len(both) > 50
    for index in both:
        assert np.array_equal(first.draw(index), second.draw(places[first.entries[index].source]))
    images = {first.draw(index).tobytes() for index in range(0, len(first.entries), 17)}
    assert len(images) == len(range(0, len(first.entries), 17))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_of_an_image(name: str) -> None:
    source = shapes()
    (index,) = [index for index, entry in enumerate(source.entries) if entry.source == name]
    image = source.draw(index)
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert hashlib.sha256(image.tobytes()).hexdigest() == GOLDEN[name]


def test_every_kind_has_val_and_test_images_and_those_of_training_pairs_train_images() -> None:
    entries = shapes().entries
    assert list(entries) == sorted(entries)
    assert len({entry.source for entry in entries}) == len({entry.group for entry in entries}) == len(entries)
    found = Counter((entry.label, entry.split) for entry in entries)
    for kind, own in zip(KINDS, kind_splits(SHARES, 0), strict=True):
        wanted = (80 if own == "train" else 0, 48, 96)
        assert tuple(found[kind, split] for split in ("train", "val", "test")) == wanted
    assert all(entry.source.startswith(f"{entry.label}/{entry.split}/") for entry in entries)


def test_what_the_source_says_of_itself() -> None:
    source = shapes(3)
    assert source.tasks == described_tasks(SHARES, 3)
    assert source.descriptions["red striped triangle"] == "A red striped triangle."
    assert source.descriptions["orange solid cross"] == "An orange solid cross."
    assert set(source.descriptions) == {entry.label for entry in source.entries} == set(KINDS)
    assert source.splits_share_classes
    assert source.group_is_one_image
    assert not source.drops_twins
    assert not source.twins_are_published
    assert (source.nested, source.left_out) == ({}, {})


def test_a_part_draws_the_same_images() -> None:
    source = shapes()
    part = source.part(range(1000, 1003))
    assert list(part.entries) == list(source.entries[1000:1003])
    assert not part.tasks
    assert all(np.array_equal(part.draw(index), source.draw(1000 + index)) for index in range(3))


def test_other_sizes_and_grey_pictures() -> None:
    assert shapes(size=84).draw(0).shape == (84, 84, 3)
    assert shapes(color="gray").draw(0).shape == (32, 32, 1)


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_a_thing_is_never_cut_by_the_edge_and_never_small(shape: str) -> None:
    for number in range(300):
        image = drawn("white", "solid", shape, number)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert np.ptp(border) <= 4 * NOISE, number
        assert inside("white", "solid", shape, number).sum() > 160, number


def test_the_background_is_a_grey_of_the_range() -> None:
    greys = [np.median(drawn("red", "outlined", "star", number)[0]) for number in range(200)]
    assert GREYS[0] <= min(greys) < 20 < 60 < max(greys) <= GREYS[1]


@pytest.mark.parametrize("colour", ATTRIBUTES["colour"])
def test_a_colour_is_nearest_to_its_name_however_bright(colour: str) -> None:
    names = list(WEB)
    wanted = np.array([tuple(bytes.fromhex(WEB[name])) for name in names], dtype=float)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    for fill, number in product(ATTRIBUTES["fill"], range(25)):
        image = drawn(colour, fill, "heart", number)
        pixels = image[inside(colour, fill, "heart", number)]
        brightest = pixels[pixels.sum(axis=1) >= np.quantile(pixels.sum(axis=1), 0.7)].mean(axis=0)
        distance = np.linalg.norm(wanted - brightest / np.linalg.norm(brightest), axis=1)
        first, second = np.sort(distance)[:2]
        assert names[int(distance.argmin())] == colour, (fill, number)
        assert 1.1 * first < second, (fill, number)


def edges(image: np.ndarray) -> int:
    """Neighbours that differ by more than noise does."""
    return sum(int((np.abs(np.diff(image, axis=axis)).min(axis=2) > 4 * NOISE).sum()) for axis in (0, 1))


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_fills_differ_in_edges_and_paint(shape: str) -> None:
    edge: Counter[str] = Counter()
    for number in range(25):
        images = {fill: drawn("white", fill, shape, number, size=64) for fill in ATTRIBUTES["fill"]}
        edge.update({fill: edges(image) for fill, image in images.items()})
        paint = {fill: float((image - np.median(image[0])).sum()) for fill, image in images.items()}
        assert paint["outlined"] < 0.75 * paint["solid"]
        assert paint["striped"] < 0.95 * paint["dotted"] < 0.9 * paint["solid"]
    assert min(edge["striped"], edge["dotted"], edge["outlined"]) > 1.2 * edge["solid"]


def test_an_outline_has_the_background_inside() -> None:
    for number in range(25):
        ring, disc = (inside("white", fill, "circle", number) for fill in ("outlined", "solid"))
        y, x = (int(axis.mean()) for axis in np.nonzero(disc))
        assert not ring[y - 2 : y + 3, x - 2 : x + 3].any()
        assert disc[y - 2 : y + 3, x - 2 : x + 3].all()


def test_shapes_cover_different_pixels() -> None:
    """Each the same size and place and, for the tilt, the same way up."""
    for number in range(25):
        masks = {shape: inside("white", "solid", shape, number) for shape in ATTRIBUTES["shape"]}
        middles = {shape: np.argwhere(mask).mean(axis=0) for shape, mask in masks.items()}
        for a, b in combinations(masks, 2):
            moved = np.roll(masks[b], np.rint(middles[a] - middles[b]).astype(int), axis=(0, 1))
            assert (masks[a] & moved).sum() < 0.87 * (masks[a] | moved).sum(), (a, b, number)
