"""A finished run on new classes: it is what evaluate judged, wherever it is read from, and says where it is from."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from metadiff import Classifier, cli
from metadiff.errors import DataError
from metadiff.store import image_blocks, read_arrays, read_features
from tests.repository import Repository

pytestmark = pytest.mark.timeout(300)
METHODS = ("ncm", "gaussian", "regression", "metadiff", "metadiff-raw", "metadiff-mean", "gradient", "gradient-untrained")


class Judged:
    """Episodes of the finished run, as a user would hand them over: classes in their order, images or features."""

    def __init__(self, root: Path) -> None:
        self.features = read_features(root / "data/backbone/features.h5")
        self.images = np.concatenate([*image_blocks(root / "data/prepared/images.h5")])
        self.rows = read_arrays(root / "data/results/episodes.h5")
        self.table = pd.read_csv(root / "data/results/episodes.csv").set_index(["classifier", "split", "shot", "episode"])

    def support(self, split: str, shot: int, episode: int) -> tuple[np.ndarray, np.ndarray]:
        rows_WS = self.rows[f"{split}/shot{shot}/support_EWS"][episode]
        return rows_WS.ravel(), np.repeat(np.arange(len(rows_WS)), shot)

    def query(self, split: str, shot: int, episode: int) -> tuple[np.ndarray, np.ndarray]:
        rows_WQ = self.rows[f"{split}/shot{shot}/query_EWQ"][episode]
        return rows_WQ.ravel(), np.repeat(np.arange(len(rows_WQ)), rows_WQ.shape[1])

    def correct(self, method: str, split: str, shot: int, episode: int) -> int:
        return int(self.table.loc[(method, split, shot, episode), "correct"])


@pytest.fixture(scope="module")
def judged(finished: Repository) -> Judged:
    return Judged(finished.root)


@pytest.mark.parametrize("method", METHODS)
def test_accuracy_and_likelihood_are_those_of_evaluate(finished: Repository, judged: Judged, method: str) -> None:
    """Of what draws noise the first episode of a batch is compared: the noise of the others depends on their place in it."""
    classifier = Classifier.from_run(finished.root, method)
    episodes = range(15) if method in METHODS[:3] else (0,)
    for cell in ((split, shot, episode) for split in ("val", "test") for shot in (1, 2) for episode in episodes):
        rows, labels = judged.support(*cell)
        queries, truth = judged.query(*cell)
        classifier.fit(judged.features[rows], labels)
        assert (classifier.predict(judged.features[queries]) == truth).sum() == judged.correct(method, *cell), cell
        nll = -np.log(classifier.predict_proba(judged.features[queries])[np.arange(len(truth)), truth]).mean()
        assert nll == pytest.approx(judged.table.loc[(method, *cell), "nll"], abs=2e-5), cell


def test_images_go_through_the_backbone_of_the_run(finished: Repository, judged: Judged) -> None:
    """The batch norms are folded and the batches are others, so features are the same but for rounding."""
    rows, labels = judged.support("test", 2, 0)
    queries, _ = judged.query("test", 2, 0)
    by_images = Classifier(run=str(finished.root), method="ncm").fit(judged.images[rows], labels)
    by_features = Classifier(run=str(finished.root), method="ncm").fit(judged.features[rows], labels)
    np.testing.assert_allclose(by_images.support_, by_features.support_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        by_images.predict_proba(judged.images[queries]), by_features.predict_proba(judged.features[queries]), atol=1e-4
    )
    assert by_images.image_shape == (16, 16, 1) == judged.images.shape[1:]
    flat = judged.images[queries, :, :, 0]  # one channel may be left out
    np.testing.assert_array_equal(by_images.predict_proba(flat), by_images.predict_proba(judged.images[queries]))


def test_best_is_what_validation_prefers(finished: Repository) -> None:
    metrics = json.loads((finished.root / "data/results/metrics.json").read_text())
    mean = {name: sum(cell[name]["accuracy"] for cell in metrics["val"].values()) for name in metrics["chosen"]}
    lineage = Classifier.from_run(finished.root).lineage_
    assert mean[lineage["method"]] == max(mean.values())
    assert lineage["chosen"] == metrics["chosen"][lineage["method"]]


def test_the_lineage_leads_to_the_images_and_the_commit(finished: Repository) -> None:
    lineage = Classifier.from_run(finished.root, "ncm").lineage_
    assert lineage["dataset"] == "pictures"
    assert lineage["commit"] == finished.run("git", "rev-parse", "HEAD").stdout.strip()
    assert lineage["changed"] == []
    assert lineage["stages"] == json.loads((finished.root / "data/results/lineage.json").read_text())["stages"]
    assert list(lineage["stages"]["prepare"]["raw"]) == ["pictures"]


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_classifier_needs_no_run(
    copy: Repository, judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    rows, labels = judged.support("test", 2, 0)
    names = np.array(["oak", "ash"])[labels]
    classifier = Classifier.from_run(copy.root, method).fit(judged.images[rows], names)
    expected = classifier.predict_proba(judged.images[:50])
    for name in ("a.safetensors", "b.safetensors"):
        classifier.save(tmp_path / name)
    shutil.rmtree(copy.root)
    monkeypatch.chdir(tmp_path)
    again = Classifier.load("a.safetensors")
    assert again.lineage_ == classifier.lineage_
    np.testing.assert_array_equal(again.predict_proba(judged.images[:50]), expected)
    assert set(again.predict(judged.images[:50])) <= {"oak", "ash"}
    again.save("c.safetensors")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes() == Path("c.safetensors").read_bytes()
    assert str(copy.root).encode() not in Path("a.safetensors").read_bytes()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).predict_proba(judged.images[:50]), expected)  # noqa: S301
    fresh = Classifier.from_run("a.safetensors").fit(judged.images[rows], names)
    np.testing.assert_allclose(fresh.predict_proba(judged.images[:50]), expected, atol=1e-6)
    again.partial_fit(judged.images[-2:], ["fir", "fir"])
    assert again.classes_.tolist() == ["ash", "fir", "oak"]


def test_a_run_is_saved_before_it_has_classes(finished: Repository, tmp_path: Path) -> None:
    Classifier.from_run(finished.root, "gaussian").save(tmp_path / "run.safetensors")
    assert Classifier.load(tmp_path / "run.safetensors").image_shape == (16, 16, 1)
    with pytest.raises(DataError, match=r"run\.safetensors: holds gaussian alone, not ncm; save that from its run"):
        Classifier.from_run(tmp_path / "run.safetensors", "ncm")


def test_an_experiment_is_read_from_the_cache(
    copy: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, judged: Judged
) -> None:
    """Its outputs are never checked out."""
    head = copy.run("git", "rev-parse", "HEAD").stdout.strip()
    copy.run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/tried", head)
    rows, labels = judged.support("test", 1, 0)
    expected = Classifier.from_run(copy.root, "metadiff").fit(judged.features[rows], labels).predict_proba(judged.features)
    for name in ("backbone", "generator", "results"):
        shutil.rmtree(copy.root / "data" / name)
    monkeypatch.chdir(copy.root)
    classifier = Classifier.from_run("tried", "metadiff")
    assert (classifier.lineage_["title"], classifier.lineage_["commit"]) == ("tried", head)
    np.testing.assert_array_equal(classifier.fit(judged.features[rows], labels).predict_proba(judged.features), expected)
    shutil.rmtree(copy.root / ".dvc/cache")
    with pytest.raises(DataError, match="not in DVC's cache here; `dvc exp pull` or `dvc pull` brings it"):
        Classifier.from_run("tried", "ncm")


def test_what_is_no_run_is_refused(finished: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.root)
    with pytest.raises(
        DataError, match=r"^nothing: no checkout, no saved file and no experiment of the current folder, which has: "
    ):
        Classifier.from_run("nothing")
    with pytest.raises(DataError, match=r"data/backbone/manifest\.json: missing"):
        Classifier.from_run(tmp_path)
    with pytest.raises(
        DataError, match=r"method mystery: .*metrics\.json has no such classifier; expected best or ncm, gaussian, "
    ):
        Classifier.from_run(".", "mystery")
    with pytest.raises(
        DataError, match=r"task\.safetensors: a checkpoint of a stage; expected a file that Classifier\.save wrote"
    ):
        Classifier.from_run("data/generator/task.safetensors")


def change(path: Path, edit: bytes) -> None:
    content = path.read_bytes()
    path.unlink()  # a hard link may share it
    path.write_bytes(content + edit)


@pytest.mark.parametrize("name", ["backbone/backbone.safetensors", "generator/task.safetensors", "results/metrics.json"])
def test_a_changed_artifact_is_refused(copy: Repository, name: str) -> None:
    change(copy.root / "data" / name, b" ")
    with pytest.raises(DataError, match=rf"data/{name}: changed since it was made"):
        Classifier.from_run(copy.root)


def test_a_generator_that_was_not_judged_is_refused(copy: Repository) -> None:
    change(copy.root / "data/generator/manifest.json", b" ")
    with pytest.raises(DataError, match=r"data/generator: another one than .*data/results judged; run: dvc repro"):
        Classifier.from_run(copy.root)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 1), np.uint8), "images of 32x32x1; the backbone of pictures takes 16x16 with 1 channel"),
        (np.zeros((2, 16, 16, 3), np.uint8), "images of 16x16x3; the backbone of pictures takes 16x16 with 1 channel"),
        (np.zeros((2, 16, 16, 1), np.float32), "images of float32; expected uint8, 0 to 255, 16x16 with 1 channel"),
        (np.zeros((2, 7), np.float32), "X has 7 features; the backbone of pictures gives 64"),
    ],
)
def test_images_that_the_backbone_does_not_take(finished: Repository, images: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        Classifier(run=str(finished.root), method="ncm").fit(images, ["a", "b"])


def test_classes_with_different_numbers_of_images(finished: Repository, judged: Judged) -> None:
    """Rows are made class by class, so those of classes with equally many images are what they are without the others."""
    labels = np.array(["a", "b", "b", "c"])
    for method in ("gaussian", "regression"):
        classifier = Classifier(run=str(finished.root), method=method).fit(judged.features[:4], labels)
        alone = Classifier(run=str(finished.root), method=method).fit(judged.features[[0, 3]], labels[[0, 3]])
        np.testing.assert_allclose(classifier.weights_[0, 0, [0, 2]], alone.weights_[0, 0], atol=1e-6)
        pair = Classifier(run=str(finished.root), method=method).fit(judged.features[1:3], labels[1:3])
        np.testing.assert_allclose(classifier.weights_[0, 0, [1]], pair.weights_[0, 0], atol=1e-6)


# metadiff classify


@pytest.fixture
def pictures(finished: Repository, tmp_path: Path) -> Path:
    """Two classes: three pictures of each to learn from, the other six to classify."""
    for label in ("class-00", "class-09"):
        for number in range(9):
            target = tmp_path / ("support" if number < 3 else "query") / label / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(finished.root / "pictures" / label / f"{number}.png", target)
    return tmp_path


def found(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def classify(pictures: Path, *more: str) -> int:
    return cli.main(["classify", "--support", str(pictures / "support"), "--query", str(pictures / "query"), *more])


def test_classify_prints_and_writes_what_it_found(
    finished: Repository, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    (pictures / "query/class-00/8.png").write_bytes(b"no picture")
    assert classify(pictures, "--run", str(finished.root), "--method", "ncm", "--csv", "out/found.csv") == 0
    said = capsys.readouterr().out
    assert said.startswith("ncm of pictures, this checkout, commit ")
    assert "8.png: not an image of a known format" in said
    rows = found(pictures / "out/found.csv")
    assert [row["image"] for row in rows] == [f"class-00/{i}.png" for i in range(3, 8)] + [
        f"class-09/{i}.png" for i in range(3, 9)
    ]
    right = sum(row["class"] == row["prediction"] for row in rows)
    assert f"Accuracy: {100 * right / 11:.2f} %, {right} of 11 pictures in class folders" in said
    page = (pictures / "plots/classify.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 11
    assert page.count('<figure class="wrong">') == 11 - right
    assert "8.png: not an image of a known format" in page
    assert "http" not in page


def test_the_page_sorts_by_confidence_and_marks_what_is_wrong(
    finished: Repository, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture is put into the folder of the other class, so that it must be marked; names are escaped."""
    monkeypatch.chdir(pictures)
    (pictures / "query/class-00/3.png").rename(pictures / "query/class-09/<i>.png")
    assert classify(pictures, "--run", str(finished.root), "--method", "ncm", "--csv", "found.csv") == 0
    (row,) = [row for row in found(pictures / "found.csv") if "<i>" in row["image"]]
    assert (row["class"], row["prediction"]) == ("class-09", "class-00")
    page = (pictures / "plots/classify.html").read_text()
    assert "<b>is class-09</b>" in page
    assert "class-09/&lt;i&gt;.png" in page
    for section in page.split("<h2>")[1:]:
        certain = [float(part.split('"')[0]) for part in section.split('<meter value="')[1:]]
        assert certain == sorted(certain, reverse=True)


def test_many_pictures_are_summed_up_by_class_and_loose_ones_are_not_judged(
    finished: Repository, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    loose = pictures / "loose/deep"
    loose.mkdir(parents=True)
    for number in range(25):
        Image.fromarray(np.full((20, 20), 10 * number, np.uint8)).save(loose / f"{number:02d}.png")
    arguments = ["classify", "--support", str(pictures / "support"), "--query", str(pictures / "loose")]
    assert cli.main([*arguments, "--run", str(finished.root), "--method", "ncm"]) == 0
    said = capsys.readouterr().out
    assert "deep/19.png" in said
    assert "deep/20.png" not in said
    assert "and 5 more; by class:" in said
    assert "Accuracy" not in said


def test_classify_refuses_what_it_cannot_use(
    finished: Repository, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.root)

    def refusal() -> str:
        assert classify(pictures, "--method", "ncm", "--page", str(pictures / "page.html")) == os.EX_DATAERR
        assert not (pictures / "page.html").exists()
        return capsys.readouterr().err

    for file in (pictures / "query").rglob("*.png"):
        file.write_bytes(b"")
    said = refusal()
    assert "query/class-00/3.png: empty file" in said
    assert said.endswith("query: no picture that can be read\n")
    for file in (pictures / "support/class-09").iterdir():
        file.write_bytes(b"")
    assert refusal().endswith("support/class-09: the class has no picture that can be read\n")
    shutil.rmtree(pictures / "support/class-09")
    (pictures / "support/class-09").mkdir()
    assert refusal().endswith("support/class-09: the class has no picture that can be read\n")
    shutil.rmtree(pictures / "query")
    assert refusal().endswith("query: no such folder\n")
    (pictures / "support/class-00/0.png").rename(pictures / "support/0.png")
    (pictures / "query").mkdir()
    assert "support/0.png: an image beside the class folders; move it into one" in refusal()
