"""Published data sets: every layout gives the same images under the same classes and splits, or one clear line."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metadiff.errors import DataError
from metadiff.images import PUBLISHED, BadImageError
from metadiff.images.archives import archives_at, unpack
from metadiff.images.published import FACTS, Benchmark, Published, open_published
from metadiff.rows import SPLITS
from tests import formats
from tests.formats import Sample

Write = Callable[[Path, Sample], None]
Found = dict[tuple[str, str], list[bytes]]  # by split and class, the pixels of its images in order

IMAGES = 6
SIZES = {"train": 4, "val": 2, "test": 3}  # all different, as those of most of the data sets


def smaller(name: str, sizes: Mapping[str, int] = SIZES, **more: object) -> Published:
    """The first classes of each split, and few images of each."""
    facts = FACTS[name]
    splits = {split: tuple(facts.splits[split])[: sizes[split]] for split in SPLITS}
    totals = tuple(IMAGES * sizes[split] for split in SPLITS)
    return replace(facts, splits=splits, images=(IMAGES, IMAGES), totals=totals, **more)


def sample_of(facts: Published, *, side: int | None = None, binary: bool = False) -> Sample:
    return formats.make_sample(facts.splits, images=IMAGES, side=side or facts.side, binary=binary)


def opened(folder: Path, facts: Published, *, side: int = 0, color: str = "rgb", **more: bool) -> Benchmark:
    """As the stage opens it: what is an archive is unpacked first."""
    scratch = folder.with_name(f"{folder.name}-scratch")
    scratch.mkdir(exist_ok=True)
    unpacked = []
    for number, archive in enumerate(archives_at(folder)):
        unpacked.append(scratch / f"{number}" / archive.name)
        unpack(archive, unpacked[-1])
    chosen = {"image_size": side or facts.side, "color": color, "given_split": True, "min_images": 1, "quarter_turns": False}
    return open_published(facts, folder, unpacked, **(chosen | more), scratch=scratch)


def drawn(source: Benchmark) -> Found:
    found: Found = {}
    for index, entry in enumerate(source.entries):
        found.setdefault((str(entry.split), entry.label), []).append(source.draw(index).tobytes())
    return found


def expected(sample: Sample) -> Found:
    return {(split, name): [image.tobytes() for image in images] for split, by in sample.items() for name, images in by.items()}


def nameless(found: Found) -> list[tuple[str, list[bytes]]]:
    """As classes without names: the images of each, in any order."""
    return sorted((split, sorted(images)) for (split, _), images in found.items())


def sorted_images(found: Found) -> dict[tuple[str, str], list[bytes]]:
    return {key: sorted(images) for key, images in found.items()}


def dumped(write: Callable[..., None], **more: object) -> dict[str, Write]:
    """With a pickle of every kind."""
    return {
        name: lambda folder, sample, dump=dump: write(folder, sample, dump=dump, **more) for name, dump in formats.DUMPS.items()
    }


MINI: dict[str, Write] = {
    **{f"gidaris, {name}": write for name, write in dumped(formats.gidaris).items()},
    "cache": formats.cache,
    "cache, byte keys": lambda folder, sample: formats.cache(folder, sample, byte_keys=True),
    "cache of learn2learn": lambda folder, sample: formats.cache(folder, sample, validation=True),
    "cache, val and test swapped": lambda folder, sample: formats.cache(folder, sample, swapped=True),
    "csv": formats.csv_images,
    "csv of easyfsl": lambda folder, sample: formats.csv_images(folder, sample, header="class_name,image_name"),
    "class folders": formats.class_folders,
}


@pytest.mark.parametrize("layout", MINI)
def test_miniimagenet_is_the_same_in_every_layout(tmp_path: Path, layout: str) -> None:
    facts = smaller("miniimagenet")
    sample = sample_of(facts)
    MINI[layout](tmp_path / "brought", sample)
    assert sorted_images(drawn(opened(tmp_path / "brought", facts))) == sorted_images(expected(sample))


@pytest.mark.parametrize("prefix", ["mini_imagenet", "MiniImagenet"])
def test_pickles_without_names_are_told_by_their_numbers_of_classes(tmp_path: Path, prefix: str) -> None:
    facts = smaller("miniimagenet")
    sample = sample_of(facts)
    formats.cifar_pickles(tmp_path / "brought", sample, prefix=prefix)
    assert nameless(drawn(opened(tmp_path / "brought", facts))) == nameless(expected(sample))


def test_swapped_files_are_taken_by_what_they_hold_and_it_is_said(tmp_path: Path) -> None:
    facts = smaller("miniimagenet")
    formats.cache(tmp_path / "brought", sample_of(facts), swapped=True)
    notes = [line for line in opened(tmp_path / "brought", facts).findings if "whatever its name says" in line]
    assert notes == [
        "mini-imagenet-cache-test.pkl holds the classes for val and is taken as such, whatever its name says",
        "mini-imagenet-cache-val.pkl holds the classes for test and is taken as such, whatever its name says",
    ]


def test_more_images_of_base_classes_are_left_alone(tmp_path: Path) -> None:
    facts = smaller("miniimagenet")
    sample = sample_of(facts)
    more = formats.make_sample({"more": facts.splits["train"]}, images=3, side=84)["more"]
    formats.gidaris(tmp_path / "brought", sample, holdout={"train_phase_val": more, "train_phase_test": more})
    source = opened(tmp_path / "brought", facts)
    assert sorted_images(drawn(source)) == sorted_images(expected(sample))
    assert sum("more images of base classes, not used" in line for line in source.findings) == 2


TIERED: dict[str, Write] = {
    **{f"ren, {name}": write for name, write in dumped(formats.ren).items()},
    "ren, flat": lambda folder, sample: formats.ren(folder, sample, flat=True),
    "class folders": formats.class_folders,
}
NAMELESS: dict[str, Write] = {
    "npz": formats.metaoptnet_npz,
    "npz, compressed": lambda folder, sample: formats.metaoptnet_npz(folder, sample, compressed=True),
}


@pytest.mark.parametrize("layout", [*TIERED, *NAMELESS])
def test_tieredimagenet_is_the_same_in_every_layout(tmp_path: Path, layout: str) -> None:
    """The arrays of MetaOptNet are in BGR and know no names."""
    facts = smaller("tieredimagenet")
    sample = sample_of(facts)
    (TIERED | NAMELESS)[layout](tmp_path / "brought", sample)
    found = drawn(opened(tmp_path / "brought", facts))
    if layout in TIERED:
        assert sorted_images(found) == sorted_images(expected(sample))
    else:
        assert nameless(found) == nameless(expected(sample))


COARSE = dict.fromkeys([label for split in FACTS["cifar-fs"].splits.values() for label in split], "things")
CIFAR: dict[str, Write] = {
    "bertinetto": formats.bertinetto,
    "cifar-100-python": lambda folder, sample: formats.cifar100_python(folder, sample, COARSE),
}


@pytest.mark.parametrize("name", ["cifar-fs", "fc100"])
@pytest.mark.parametrize("layout", CIFAR)
def test_cifar_is_the_same_in_every_layout_with_names(tmp_path: Path, name: str, layout: str) -> None:
    facts = smaller(name)
    sample = sample_of(facts)
    CIFAR[layout](tmp_path / "brought", sample)
    assert sorted_images(drawn(opened(tmp_path / "brought", facts))) == sorted_images(expected(sample))


@pytest.mark.parametrize(("name", "prefix"), [("cifar-fs", "CIFAR_FS"), ("cifar-fs", "cifar_fs"), ("fc100", "FC100")])
def test_cifar_pickles_are_split_by_their_names_where_sizes_are_equal(tmp_path: Path, name: str, prefix: str) -> None:
    facts = smaller(name, {"train": 4, "val": 2, "test": 2})
    sample = sample_of(facts)
    formats.cifar_pickles(tmp_path / "brought", sample, prefix=prefix)
    assert nameless(drawn(opened(tmp_path / "brought", facts))) == nameless(expected(sample))


@pytest.mark.parametrize("write", [formats.omniglot_folders, formats.omniglot_zips])
def test_omniglot_is_the_same_in_folders_and_zips(tmp_path: Path, write: Callable[..., None]) -> None:
    facts = smaller("omniglot")
    sample = sample_of(facts, binary=True)
    evaluation = {label.split("/")[0] for label in facts.splits["test"]}
    write(tmp_path / "brought", sample, evaluation=evaluation)
    source = opened(tmp_path / "brought", facts)
    assert sorted_images(drawn(source)) == sorted_images(expected(sample))
    assert all(entry.source.startswith(("images_background/", "images_evaluation/")) for entry in source.entries)


def test_quarter_turns_make_classes_for_training_alone(tmp_path: Path) -> None:
    facts = smaller("omniglot")
    sample = sample_of(facts, binary=True)
    formats.omniglot_folders(tmp_path / "brought", sample)
    found = drawn(opened(tmp_path / "brought", facts, quarter_turns=True))
    whole = expected(sample)
    for (split, label), images in list(whole.items()):
        pixels = [np.frombuffer(image, np.uint8).reshape(105, 105, 3) for image in images]
        if split == "train":
            whole |= {(split, f"{label}@{90 * k}"): [np.rot90(image, k).tobytes() for image in pixels] for k in (1, 2, 3)}
    assert sorted_images(found) == sorted_images(whole)


@pytest.mark.parametrize("write", [formats.cub_folders, formats.cub_tgz])
def test_cub_is_the_same_in_folders_and_in_its_archive(tmp_path: Path, write: Callable[..., None]) -> None:
    facts = smaller("cub")
    sample = sample_of(facts, side=40)
    write(tmp_path / "brought", sample, kind="PNG")
    assert sorted_images(drawn(opened(tmp_path / "brought", facts, side=40))) == sorted_images(expected(sample))


def test_files_with_a_published_name_and_another_md5_are_told(tmp_path: Path) -> None:
    facts = smaller("miniimagenet")
    formats.csv_images(tmp_path / "brought", sample_of(facts))
    notes = [line for line in opened(tmp_path / "brought", facts).findings if "not as it was published" in line]
    assert [note.split(" ")[0] for note in notes] == ["test.csv", "train.csv", "val.csv"]
    digest = hashlib.md5((tmp_path / "brought/split/val.csv").read_bytes()).hexdigest()  # noqa: S324
    known = replace(facts, md5={"val.csv": ("0", digest)})
    assert not [line for line in opened(tmp_path / "brought", known).findings if "published (" in line]


def test_without_the_given_split_the_classes_have_none(tmp_path: Path) -> None:
    facts = smaller("miniimagenet")
    formats.class_folders(tmp_path / "brought", sample_of(facts))
    assert {entry.split for entry in opened(tmp_path / "brought", facts, given_split=False).entries} == {None}


def test_a_part_draws_the_same_images(tmp_path: Path) -> None:
    facts = smaller("miniimagenet")
    formats.gidaris(tmp_path / "brought", sample_of(facts))
    source = opened(tmp_path / "brought", facts)
    part = source.part(range(7, 9))
    assert [entry.source for entry in part.entries] == [entry.source for entry in source.entries[7:9]]
    assert np.array_equal(part.draw(1), source.draw(8))


def test_what_is_missing_of_omniglot_is_said_and_of_others_refused(tmp_path: Path) -> None:
    for name in ("omniglot", "miniimagenet"):
        facts = smaller(name)
        sample = {split: dict(list(by.items())[: -1 if split == "train" else None]) for split, by in sample_of(facts).items()}
        (formats.omniglot_folders if name == "omniglot" else formats.class_folders)(tmp_path / name, sample)
    lost = FACTS["omniglot"].splits["train"][SIZES["train"] - 1]
    assert f"1 of 9 classes are missing: {lost}" in opened(tmp_path / "omniglot", smaller("omniglot")).findings
    with pytest.raises(
        DataError, match=r"1 of 9 classes are missing: n\d+\n.*miniImageNet is not as it was published; get it again from https"
    ):
        opened(tmp_path / "miniimagenet", smaller("miniimagenet"))


def test_a_data_set_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """The small sets of Omniglot are parts of the background set."""
    facts = smaller("omniglot")
    formats.omniglot_folders(tmp_path / "brought", sample_of(facts, binary=True))
    shutil.copytree(tmp_path / "brought/images_background", tmp_path / "brought/images_background_small1")
    expected = r"9 classes have more than 6 images: .* has 12, .*\n.*get it again from .*, or is it there twice"
    with pytest.raises(DataError, match=expected):
        opened(tmp_path / "brought", facts)


def test_a_cut_copy_of_a_set_with_classes_of_any_size_is_refused_by_its_totals(tmp_path: Path) -> None:
    facts = replace(smaller("tieredimagenet"), images=(1, 1300))
    sample = {split: dict(by) for split, by in sample_of(facts).items()}
    first = next(iter(sample["val"]))
    sample["val"][first] = sample["val"][first][:2]
    formats.class_folders(tmp_path / "brought", sample)
    with pytest.raises(DataError, match=r"^val has 8 images, not 12\n.*tieredImageNet is not as it was published"):
        opened(tmp_path / "brought", facts)


def test_files_and_folders_that_name_two_classes_are_refused_and_two_splits_are_told(tmp_path: Path) -> None:
    facts = smaller("miniimagenet")
    formats.class_folders(tmp_path / "brought", sample_of(facts))
    (tmp_path / "brought/train").rename(tmp_path / "brought/moved")
    (tmp_path / "brought/val").rename(tmp_path / "brought/train")
    assert "12 images in folders called train are published for another split" in opened(tmp_path / "brought", facts).findings
    one, other = facts.splits["train"][:2]
    next((tmp_path / "brought/moved" / one).iterdir()).rename(tmp_path / "brought/moved" / other / f"{one}_9.png")
    with pytest.raises(DataError, match=f"{one}_9.png: the file is named as of {one} and lies in {other}; put it into"):
        opened(tmp_path / "brought", facts)


def test_two_versions_of_one_file_are_refused_and_a_copy_is_not(tmp_path: Path) -> None:
    facts = smaller("omniglot")
    sample = sample_of(facts, binary=True)
    formats.omniglot_zips(tmp_path / "brought", sample)
    formats.omniglot_folders(tmp_path / "brought", sample)
    assert sorted_images(drawn(opened(tmp_path / "brought", facts))) == sorted_images(expected(sample))
    shutil.rmtree(tmp_path / "brought-scratch")
    file = next((tmp_path / "brought").rglob("*.png"))
    file.write_bytes(formats.encoded(np.zeros((105, 105, 3), np.uint8)))
    with pytest.raises(DataError, match=f"{file.name}: in two archives or folders with different content; remove one"):
        opened(tmp_path / "brought", facts)


def test_what_lies_beside_a_whole_data_set_is_told_and_not_used(tmp_path: Path) -> None:
    """Lists of classes without names of files, papers, pictures elsewhere, somebody's features."""
    facts = smaller("cub")
    sample = sample_of(facts, side=40)
    formats.cub_folders(tmp_path / "brought", sample, kind="PNG")
    label = facts.splits["train"][0]
    formats.write(tmp_path / "brought/segmentations" / label / "1.png", formats.encoded(np.zeros((9, 9, 3), np.uint8)))
    formats.write(tmp_path / "brought/train.csv", b"n01530575,n01524359\nn01531178,n01524359\n")
    formats.write(tmp_path / "brought/paper.pdf", b"%PDF-1.4")
    formats.write(tmp_path / "brought/features.pkl", formats.python2_pickle({"features": [1, 2]}))
    source = opened(tmp_path / "brought", facts, side=40)
    assert sorted_images(drawn(source)) == sorted_images(expected(sample))
    assert [line for line in source.findings if line.startswith("not used: features.pkl: a pickle of an unknown kind")]


def test_archives_are_found_in_folders_below(tmp_path: Path) -> None:
    facts = smaller("tieredimagenet")
    sample = sample_of(facts)
    formats.metaoptnet_npz(tmp_path / "brought/tiered", sample)
    assert nameless(drawn(opened(tmp_path / "brought", facts))) == nameless(expected(sample))


def test_an_empty_folder_says_what_belongs_there(tmp_path: Path) -> None:
    for name in PUBLISHED:
        with pytest.raises(DataError) as caught:
            opened(tmp_path, FACTS[name])
        assert FACTS[name].bring in str(caught.value)
        assert FACTS[name].home in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_two_layouts_in_one_folder_are_refused(tmp_path: Path) -> None:
    facts = smaller("miniimagenet")
    formats.gidaris(tmp_path / "brought", sample_of(facts))
    formats.class_folders(tmp_path / "brought", sample_of(facts))
    with pytest.raises(DataError, match=r"found a folder of images a class.* and pickles .*; leave one of them there"):
        opened(tmp_path / "brought", facts)


def photographs(facts: Published) -> Sample:
    """As in photographs, red is strongest and blue is weakest."""
    noise = sample_of(facts)
    shade = np.array([1.0, 0.9, 0.7])
    return {split: {name: (images * shade).astype(np.uint8) for name, images in by.items()} for split, by in noise.items()}


@pytest.mark.parametrize("write", [formats.gidaris, formats.metaoptnet_npz])
def test_channels_in_the_wrong_order_are_seen_by_their_colours(tmp_path: Path, write: Write) -> None:
    facts = smaller("miniimagenet" if write is formats.gidaris else "tieredimagenet")
    sample = photographs(facts)
    turned = {split: {name: images[..., ::-1] for name, images in by.items()} for split, by in sample.items()}
    write(tmp_path / "right", sample)
    write(tmp_path / "wrong", turned)
    assert not [line for line in opened(tmp_path / "right", facts).findings if "BGR?" in line]
    assert [line for line in opened(tmp_path / "wrong", facts).findings if line.startswith("warning: blue outweighs red")]


FORMATS = {
    "gidaris": "miniimagenet",
    "cache": "miniimagenet",
    "csv": "miniimagenet",
    "folders": "miniimagenet",
    "ren": "tieredimagenet",
    "metaoptnet": "tieredimagenet",
    "cifar": "cifar-fs",
    "cifar100": "cifar-fs",
    "omniglot": "omniglot",
    "omniglot zips": "omniglot",
}


HARMLESS = {  # spoiled, and yet nothing is lost or doubtful
    "ren: two classes of one name",  # words, which are no names: ImageNet has two classes called crane
    "ren: no names",
    "ren: a grey image as PNG",  # so are some photographs
    "csv: without its last byte",  # the end of its last line
    "csv: no split",  # the names of the images say their classes, and those their splits
    "csv: unknown columns",  # of two names that are known elsewhere
    "cifar: hole in the labels",  # numbers are names here, and any will do
    "folders: empty class",
}


@pytest.mark.parametrize("name", sorted(formats.MALFORMED.keys() - HARMLESS))
def test_malformed_data_gets_one_clear_line(tmp_path: Path, name: str) -> None:
    """Refused when it is opened, or else the image is named when it is drawn."""
    layout = name.split(": ")[0]
    facts: Published = smaller(FORMATS[layout])
    sample = sample_of(facts, binary=layout.startswith("omniglot"))
    malformed = formats.MALFORMED[name]
    folder = tmp_path / "brought"
    malformed.write(*([folder, sample, COARSE] if layout == "cifar100" else [folder, sample]))
    spoiled = malformed.spoil(folder)
    message = outcome(folder, facts)
    print(f"{name} ({spoiled.relative_to(folder)}): {message}")
    assert message, "nothing was refused"
    assert max(map(len, message.splitlines())) < 400


def outcome(folder: Path, facts: Published) -> str:
    try:
        source = opened(folder, facts)
    except DataError as error:
        return str(error)
    reasons = []
    for index, entry in enumerate(source.entries):
        try:
            source.draw(index)
        except BadImageError as error:
            reasons.append(f"{entry.source}: {error}")
    return "\n".join(reasons)
