"""The writers of published formats, against what real interpreters wrote and against readers that others wrote."""

import base64
import csv
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from easyfsl.datasets import MiniImageNet
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR100, ImageFolder

from tests import formats
from tests.formats import DUMPS, Dump, Long, Sample, Unicode, python2_pickle

RECORDED = Path(formats.__file__).parent / "recorded"
WNIDS = {"train": ["n01532829", "n01558993", "n01704323"], "val": ["n01855672"], "test": ["n01930112", "n01981276"]}
SAMPLE = formats.make_sample(WNIDS, images=3, side=12)
N01855672 = "n01855672"
# What recorded/record.py writes, its dicts in the order that Python 2 had them in.
RECORDED_SAMPLE = {
    "fortran": np.asfortranarray(np.array([[1, 2], [3, 4]], dtype=np.uint8)),
    "scalar": np.int64(7),
    "label_specific": np.array([0, 1], dtype=np.int32),
    "label2catname": {64: N01855672},
    "numbers": (None, True, False, 0, 255, 65535, 2**31 - 1, -1, 2**40, 0.5, ()),
    "catname2label": {N01855672: 64},
    "labels": [64, 65],
    "data": (np.arange(2 * 4 * 4 * 3) * 5 % 251).astype(np.uint8).reshape(2, 4, 4, 3),
    "buffers": [np.array([137, 80, 78, 71], dtype=np.uint8), np.array([[137], [80]], dtype=np.uint8)],
    "label_specific_str": [Unicode("crane"), Unicode("maître")],
}


def recorded(name: str) -> dict[str, bytes]:
    texts = json.loads((RECORDED / name).read_text())
    return {key: base64.b64decode(text) for key, text in texts.items()}


def decoded(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def unpickled(path: Path) -> dict:
    return pickle.loads(path.read_bytes(), encoding="latin1")  # noqa: S301 - we wrote it


def by_class(names: list[str], images: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    return {
        name: np.stack([image for image, other in zip(images, names, strict=True) if other == name])
        for name in sorted(set(names))
    }


def assert_same(found: dict[str, NDArray[np.uint8]], expected: dict[str, NDArray[np.uint8]]) -> None:
    assert sorted(found) == sorted(expected)
    for name, images in expected.items():
        np.testing.assert_array_equal(found[name], images)


def same(a: object, b: object) -> bool:
    """Equal in type, value and dtype; bytes are the text that they spell."""
    if isinstance(a, bytes):
        return same(a.decode("latin-1"), b)
    if isinstance(b, bytes):
        return same(a, b.decode("latin-1"))
    if isinstance(b, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and same(a.tolist(), b.tolist())
    if isinstance(b, dict):
        return isinstance(a, dict) and all(same(*pair) for pair in zip(a.items(), b.items(), strict=True))
    if isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return a == b and isinstance(b, type(a))


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_python2_wrote_the_same_bytes(protocol: int) -> None:
    assert python2_pickle(RECORDED_SAMPLE, protocol) == recorded("python2.json")[f"python 2.7 pickle {protocol}"]


@pytest.mark.parametrize("file", ["python2.json", "python3.json"])
@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_what_is_recorded_is_the_sample(file: str) -> None:
    found = recorded(file)
    assert len(found) == 6
    for content in found.values():
        again = pickle.loads(content, encoding="latin1")  # noqa: S301 - recorded by us
        assert same({key: again[key] for key in RECORDED_SAMPLE}, RECORDED_SAMPLE)


@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize("encoding", ["latin1", "bytes"])
@pytest.mark.parametrize(
    "obj",
    [
        RECORDED_SAMPLE,
        [bytes(range(256)), "x" * 300, "quote ' and \" and \\ and \n", Unicode("木\\\n"), ""],
        {number: [number] for number in range(2500)},
        [[], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        [-1.5, 1e300, 0.1, 2**63 - 1, -(2**63), 2**31, 2**16, 2**8],
        [Long(value) for value in (0, 1, 127, 128, -1, -128, -129, 2**64, -(2**64), 2**2100, -(2**2039))],
        [np.array([[1.5]], dtype=np.float32), np.array(["ab", "c"], dtype="S2"), np.zeros((0, 84, 84, 3), dtype=np.uint8)],
        [np.array([1, "two", None], dtype=object), np.dtype(">i2"), np.uint8(3), np.float64(0.5)],
    ],
)
def test_the_standard_library_reads_what_python2_would_write(obj: object, encoding: str, protocol: int) -> None:
    assert same(pickle.loads(python2_pickle(obj, protocol), encoding=encoding), obj)  # noqa: S301 - we wrote it


@pytest.mark.parametrize("value", [2**31, -(2**39), -(2**63), -(2**63) - 1, 2**63, 2**2100, -(2**2047)])
def test_a_long_has_the_bytes_that_python3_gives_it(value: int) -> None:
    assert python2_pickle(Long(value), 2) == pickle.dumps(value, 2)


def test_str_of_python2_is_bytes_and_unicode_is_text() -> None:
    for protocol in range(3):
        content = python2_pickle({"image_data": Unicode("image_data")}, protocol)
        assert pickle.loads(content, encoding="bytes") == {b"image_data": "image_data"}  # noqa: S301 - we wrote it


def test_an_object_that_occurs_twice_is_one_object() -> None:
    inner: list[object] = []
    first, second = pickle.loads(python2_pickle([inner, inner]))  # noqa: S301 - we wrote it
    assert first is second


@pytest.mark.parametrize(("obj", "protocol"), [(object(), 2), ({1, 2}, 2), (2**64, 2), (1, 3)])
def test_what_python2_could_not_write_is_refused(obj: object, protocol: int) -> None:
    with pytest.raises((TypeError, ValueError), match=r"not among the types|a long in Python 2|has the protocols 0, 1 and 2"):
        python2_pickle(obj, protocol)


def test_no_two_images_and_channels_of_a_sample_are_the_same() -> None:
    images = np.concatenate([stack for classes in SAMPLE.values() for stack in classes.values()])
    assert len({channel.tobytes() for image in images for channel in image.transpose(2, 0, 1)}) == 3 * len(images)


@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
def test_gidaris(tmp_path: Path, dump: Dump) -> None:
    holdout = {"train_phase_val": formats.make_sample({"train": WNIDS["train"]}, side=12)["train"]}
    formats.gidaris(tmp_path, SAMPLE, dump=dump, holdout=holdout)
    first = {"train_phase_train": 0, "train_phase_val": 0, "val": 3, "test": 4}
    for phase, classes in {"train_phase_train": SAMPLE["train"], **SAMPLE, **holdout}.items():
        if phase == "train":
            continue
        content = unpickled(tmp_path / f"miniImageNet_category_split_{phase}.pickle")
        assert type(content["labels"]) is list
        assert min(content["labels"]) == first[phase]
        names = {number: name for name, number in content["catname2label"].items()}
        assert ("label2catname" in content) == (phase in ("val", "test"))
        assert content.get("label2catname", names) == names
        assert content["data"].dtype == np.uint8
        assert_same(by_class([names[number] for number in content["labels"]], content["data"]), classes)


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("byte_keys", [False, True])
def test_cache(tmp_path: Path, validation: bool, swapped: bool, byte_keys: bool) -> None:
    formats.cache(
        tmp_path, SAMPLE, dump=DUMPS["python 3, protocol 4"], validation=validation, swapped=swapped, byte_keys=byte_keys
    )
    val = "validation" if validation else "val"
    files = {"train": "train", "val": "test" if swapped else val, "test": val if swapped else "test"}
    for split, classes in SAMPLE.items():
        content = unpickled(tmp_path / f"mini-imagenet-cache-{files[split]}.pkl")
        data, places = (content[key.encode() if byte_keys else key] for key in ("image_data", "class_dict"))
        assert all(isinstance(name, bytes) == byte_keys for name in places)
        assert_same({name.decode() if byte_keys else name: data[place] for name, place in places.items()}, classes)


def test_the_rows_of_a_class_do_not_lie_together(tmp_path: Path) -> None:
    formats.cache(tmp_path, SAMPLE)
    assert unpickled(tmp_path / "mini-imagenet-cache-test.pkl")["class_dict"] == {"n01930112": [0, 2, 4], "n01981276": [1, 3, 5]}


@pytest.mark.parametrize("flat", [False, True])
def test_ren(tmp_path: Path, flat: bool) -> None:
    formats.ren(tmp_path, SAMPLE, general={"n01532829": "bird"}, flat=flat)
    for split, classes in SAMPLE.items():
        buffers, labels = unpickled(tmp_path / f"{split}_images_png.pkl"), unpickled(tmp_path / f"{split}_labels.pkl")
        assert {buffer.ndim for buffer in buffers} == ({1} if flat else {1, 2})
        assert all(buffer.dtype == np.uint8 and buffer.size == len(buffer) for buffer in buffers)
        assert labels["label_specific"].dtype == labels["label_general"].dtype == np.int32
        names = [labels["label_specific_str"][label] for label in labels["label_specific"]]
        assert_same(by_class(names, np.stack([decoded(np.squeeze(buffer).tobytes()) for buffer in buffers])), classes)
        above = {labels["label_general_str"][label] for label in labels["label_general"]}
        assert above == ({"bird", "entity"} if split == "train" else {"entity"})


@pytest.mark.parametrize("compressed", [False, True])
def test_metaoptnet_npz(tmp_path: Path, compressed: bool) -> None:
    formats.metaoptnet_npz(tmp_path, SAMPLE, compressed=compressed)
    for split, classes in SAMPLE.items():
        with np.load(tmp_path / f"{split}_images.npz") as content:
            images_BGR = content["images"]
        labels = unpickled(tmp_path / f"{split}_labels.pkl")["labels"]
        names = [list(classes)[label - min(labels)] for label in labels]
        assert_same(by_class(names, images_BGR[..., ::-1]), classes)
    with zipfile.ZipFile(tmp_path / "val_images.npz") as archive:
        assert (archive.infolist()[0].compress_type == zipfile.ZIP_DEFLATED) == compressed


@pytest.mark.parametrize("prefix", ["CIFAR_FS", "FC100", "mini_imagenet"])
def test_cifar_pickles(tmp_path: Path, prefix: str) -> None:
    formats.cifar_pickles(tmp_path, SAMPLE, prefix=prefix)
    for split, classes in SAMPLE.items():
        content = unpickled(tmp_path / f"{prefix}_{split}.pickle")
        names = [list(classes)[label - min(content["labels"])] for label in content["labels"]]
        assert_same(by_class(names, content["data"]), classes)


class Cifar100(CIFAR100):
    """torchvision's reader, but for the check that the files are the published ones."""

    train_list = (("train", None),)
    test_list = (("test", None),)
    meta: ClassVar = {**CIFAR100.meta, "md5": None}


def cifar100_sample() -> Sample:
    return formats.make_sample({"train": ["apple", "rose"], "val": ["bed"], "test": ["whale"]}, images=6, side=32)


COARSE = {"apple": "fruit", "rose": "flowers", "bed": "furniture", "whale": "mammals"}


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_torchvision_reads_cifar100(tmp_path: Path, protocol: int) -> None:
    sample = cifar100_sample()
    formats.cifar100_python(tmp_path, sample, COARSE, dump=DUMPS[f"python 2, protocol {protocol}"])
    parts = [Cifar100(str(tmp_path), train=train) for train in (True, False)]
    assert [len(part) for part in parts] == [20, 4]
    found = by_class([part.classes[t] for part in parts for t in part.targets], np.concatenate([part.data for part in parts]))
    assert_same(found, {name: images for classes in sample.values() for name, images in classes.items()})


def test_cifar100_has_byte_keys_and_coarse_labels(tmp_path: Path) -> None:
    formats.cifar100_python(tmp_path, cifar100_sample(), COARSE, dump=DUMPS["python 3, protocol 4"])
    content, meta = (unpickled(tmp_path / "cifar-100-python" / part) for part in ("train", "meta"))
    assert set(content) == {b"filenames", b"batch_label", b"fine_labels", b"coarse_labels", b"data"}
    for fine, coarse in zip(content[b"fine_labels"], content[b"coarse_labels"], strict=True):
        assert COARSE[meta[b"fine_label_names"][fine].decode()] == meta[b"coarse_label_names"][coarse].decode()


def test_easyfsl_reads_its_own_names(tmp_path: Path) -> None:
    formats.csv_images(tmp_path, SAMPLE, header="class_name,image_name", in_class_folders=True)
    for split, classes in SAMPLE.items():
        read = MiniImageNet(tmp_path / "images", specs_file=tmp_path / "split" / f"{split}.csv", transform=np.asarray)
        images = np.stack([read[index][0] for index in range(len(read))])
        assert_same(by_class([read.class_names[label] for label in read.labels], images), classes)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_ravi_csv(tmp_path: Path, kind: str) -> None:
    formats.csv_images(tmp_path, SAMPLE, kind=kind)
    for split, classes in SAMPLE.items():
        with (tmp_path / "split" / f"{split}.csv").open() as stream:
            lines = list(csv.DictReader(stream))
        contents = [(tmp_path / "images" / line["filename"]).read_bytes() for line in lines]
        assert all(len(line["filename"]) == len("n0153282900000005.jpg") for line in lines)
        assert {Image.open(io.BytesIO(content)).format for content in contents} == {kind}
        found = by_class([line["label"] for line in lines], np.stack([decoded(content) for content in contents]))
        assert_same(found, classes) if kind == "PNG" else assert_near(found, classes)


def assert_near(found: dict[str, NDArray[np.uint8]], expected: dict[str, NDArray[np.uint8]]) -> None:
    """JPEG keeps no pixel of noise, but how bright an image is."""
    assert {name: len(images) for name, images in found.items()} == {name: len(images) for name, images in expected.items()}
    for name, images in expected.items():
        assert np.abs(found[name].mean((1, 2, 3)) - images.mean((1, 2, 3))).max() < 3


def test_bertinetto(tmp_path: Path) -> None:
    formats.bertinetto(tmp_path, SAMPLE)
    for split, classes in SAMPLE.items():
        names = (tmp_path / "cifar100/splits/bertinetto" / f"{split}.txt").read_text().splitlines()
        files = {name: sorted((tmp_path / "cifar100/data" / name).iterdir()) for name in names}
        assert_same({name: np.stack([decoded(file.read_bytes()) for file in files[name]]) for name in names}, classes)


def test_torchvision_reads_class_folders(tmp_path: Path) -> None:
    formats.class_folders(tmp_path, SAMPLE)
    for split, classes in SAMPLE.items():
        read = ImageFolder(str(tmp_path / split))
        found = by_class([read.classes[label] for _, label in read.samples], np.stack([np.asarray(image) for image, _ in read]))
        assert_same(found, classes)


def omniglot_sample() -> Sample:
    names = {
        "train": ["Angelic/character01", "Grantha/character02"],
        "val": ["Angelic/character02"],
        "test": ["Tibetan/character01"],
    }
    return formats.make_sample(names, images=3, side=105, binary=True)


def test_omniglot_folders_and_zips_have_the_same_files(tmp_path: Path) -> None:
    sample = omniglot_sample()
    formats.omniglot_folders(tmp_path / "folders", sample, evaluation=["Tibetan"])
    formats.omniglot_zips(tmp_path / "zips", sample, evaluation=["Tibetan"])
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(tmp_path / "zips" / f"{part}.zip") as archive:
            archive.extractall(tmp_path / "unpacked")  # noqa: S202 - we wrote it
    assert tree(tmp_path / "unpacked") == tree(tmp_path / "folders")
    file = tmp_path / "folders/images_evaluation/Tibetan/character01/0004_02.png"
    image = Image.open(file)
    assert (image.mode, image.size) == ("1", (105, 105))
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), sample["test"]["Tibetan/character01"][1])
    assert len(tree(tmp_path / "folders")) == 12


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_cub_folders_and_tgz_have_the_same_files(tmp_path: Path, kind: str) -> None:
    names = {"train": ["001.Black_footed_Albatross"], "val": ["003.Sooty_Albatross"], "test": ["002.Laysan_Albatross"]}
    sample = formats.make_sample(names, side=20)
    formats.cub_folders(tmp_path / "folders", sample, kind=kind)
    formats.cub_tgz(tmp_path / "tgz", sample, kind=kind)
    with tarfile.open(tmp_path / "tgz/CUB_200_2011.tgz") as archive:
        archive.extraction_filter = lambda member, _: member  # we wrote it
        archive.extractall(tmp_path / "unpacked")  # noqa: S202
    assert tree(tmp_path / "unpacked") == tree(tmp_path / "folders")
    read = ImageFolder(str(tmp_path / "folders/CUB_200_2011/images"))
    found = by_class([read.classes[label] for _, label in read.samples], np.stack([np.asarray(image) for image, _ in read]))
    expected = {name: images for classes in sample.values() for name, images in classes.items()}
    assert_same(found, expected) if kind == "PNG" else assert_near(found, expected)
    listed = (tmp_path / "folders/CUB_200_2011/images.txt").read_text().split()[1::2]
    assert sorted(listed) == sorted(
        str(Path(file).relative_to(tmp_path / "folders/CUB_200_2011/images")) for file, _ in read.samples
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
