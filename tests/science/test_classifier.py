"""The classifier without a run: scikit-learn's own contract, and what it adds to it; and how a run's rows are put together."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.utils.estimator_checks import parametrize_with_checks

import metadiff
from metadiff import Classifier
from metadiff.backbone import NAMES, build
from metadiff.errors import DataError
from metadiff.newclasses import one_task, rows_by_count
from metadiff.tracked import Tracked, folded
from metadiff.trackedruns import named
from stages.imports import ROOT

CENTRES = np.eye(4, 6)


def drawn(count: int, seed: int = 0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), count)
    return CENTRES[labels] + 0.3 * rng.normal(size=(len(labels), 6)), np.array(["ash", "elm", "fir", "oak"])[labels]


@parametrize_with_checks([Classifier()])
def test_it_is_an_estimator(estimator: BaseEstimator, check: Callable[[BaseEstimator], None]) -> None:
    """All checks apply; that of other array libraries is skipped by scikit-learn itself unless SCIPY_ARRAY_API is set."""
    check(estimator)


def test_it_is_the_nearest_class_mean_by_cosine() -> None:
    (X, y), (queries, truth) = drawn(5), drawn(40, seed=1)
    classifier = Classifier().fit(X, y)
    means = np.stack([X[y == label].mean(0) for label in np.unique(y)])
    np.testing.assert_array_equal(classifier.predict(queries), np.unique(y)[cosine_similarity(queries, means).argmax(1)])
    assert classifier.score(queries, truth) > 0.8
    assert classifier.lineage_ == {}


def test_classes_are_added_one_after_the_other() -> None:
    X, y = drawn(5)
    grown = Classifier().partial_fit(X[:12], y[:12], classes=np.unique(y))
    assert grown.classes_.tolist() == ["ash", "elm", "fir"]
    grown.partial_fit(X[12:], y[12:])
    np.testing.assert_array_equal(grown.predict_proba(X), Classifier().fit(X, y).predict_proba(X))
    assert clone(grown).get_params() == {"run": None, "method": "best"}
    with pytest.raises(DataError, match="y has the class oak, which is not among the given classes"):
        grown.partial_fit(X, y, classes=["ash", "elm", "fir"])
    with pytest.raises(DataError, match="y holds int64, the classes so far are <U3; names or numbers, not both"):
        grown.partial_fit(X, np.arange(len(X)) % 4)


@pytest.mark.parametrize("labels", [["a", "b"], [3, 7], [1.0, 2.0], [False, True]])
def test_a_file_gives_the_same_predictions_and_the_same_bytes(tmp_path: Path, labels: list[object]) -> None:
    X, _ = drawn(5, classes=2)
    classifier = Classifier().fit(X, np.repeat(labels, 5))
    classifier.save(tmp_path / "a.safetensors")
    again = Classifier.load(tmp_path / "a.safetensors")
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert again.classes_.dtype == classifier.classes_.dtype
    np.testing.assert_array_equal(again.predict(X), classifier.predict(X))
    np.testing.assert_array_equal(again.predict_proba(X), classifier.predict_proba(X))
    with pytest.raises(DataError, match=r"a\.safetensors: saved without a run; load it with Classifier\.load"):
        Classifier.from_run(tmp_path / "a.safetensors")


def test_classes_that_no_file_holds_are_refused(tmp_path: Path) -> None:
    X, _ = drawn(1, classes=2)
    classifier = Classifier().fit(X, np.array(["2026-01-01", "2026-01-02"], dtype="datetime64[D]"))
    with pytest.raises(DataError, match=r"classes of datetime64\[D\]; a file holds names and numbers alone"):
        classifier.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_needs_a_run_says_so() -> None:
    with pytest.raises(DataError, match="method metadiff: needs a run; without one there is ncm alone"):
        Classifier(method="metadiff").fit(*drawn(2))
    with pytest.raises(DataError, match="X has 4 axes: images need the backbone of a run"):
        Classifier().fit(np.zeros((2, 16, 16, 1), np.uint8), ["a", "b"])


def test_each_group_of_equal_counts_has_the_noise_of_a_batch_of_its_own() -> None:
    features_ND, class_N = torch.arange(12.0).view(6, 2), np.array([1, 0, 1, 2, 3, 3])
    seen = []

    def rows_of(support_EWSD: torch.Tensor, batch: int) -> torch.Tensor:
        seen.append((tuple(support_EWSD.shape), batch))
        return support_EWSD.mean(2)[None]

    rows_G1WD = rows_by_count(rows_of, features_ND, class_N)
    assert seen == [((1, 2, 1, 2), 0), ((1, 2, 2, 2), 1)]
    expected = torch.stack([features_ND[class_N == way].mean(0) for way in range(4)])
    torch.testing.assert_close(rows_G1WD[0, 0], expected)


def test_all_classes_are_one_task_where_they_have_equally_many_images() -> None:
    task = one_task(np.array([1, 0, 1, 2, 0, 2]))
    assert (task.classes_EW.tolist(), task.support_EWS.tolist()) == ([[0, 1, 2]], [[[1, 4], [0, 2], [3, 5]]])
    why = "this method makes the classifier of all classes together and needs equally many: leave some out, or choose another"
    with pytest.raises(DataError, match=f"^classes have from 1 to 2 images; {why} method$"):
        one_task(np.array([1, 0, 1, 2, 0]))


LOOKED_UP = "its weights are looked up among those of training tasks, which are not read for new classes"
METRICS = {
    "chosen": dict.fromkeys(("ncm", "metadiff", "local", "nearest-weights", "nearest-weights-mean")),
    "val": {
        "shot1": {
            "ncm": {"accuracy": 50.0},
            "metadiff": {"accuracy": 60.0},
            "local": {"accuracy": 90.0},
            "nearest-weights": {"accuracy": 91.0},
        }
    },
}


def test_the_best_is_one_that_takes_any_number_of_classes() -> None:
    assert named(METRICS, "best", learner="mlp", where=Path("metrics.json")) == "metadiff"
    assert named(METRICS, "ncm", learner="conv", where=Path("metrics.json")) == "ncm"
    assert named(METRICS, "local", learner="mlp", where=Path("metrics.json")) == "local"


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("nearest-weights", LOOKED_UP),
        ("nearest-weights-mean", LOOKED_UP),
        ("vanilla", "metrics.json has no such classifier"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_can(method: str, why: str) -> None:
    with pytest.raises(DataError, match=f"^method {method}: {why}; expected best or ncm, metadiff, local$"):
        named(METRICS, method, learner="mlp", where=Path("metrics.json"))


def test_networks_cannot_be_made_from_features() -> None:
    why = "its weights are those of a network that sees images, and new classes are told by their features"
    with pytest.raises(DataError, match=f"^method local: {why}; expected best or ncm, metadiff$"):
        named(METRICS, "local", learner="conv", where=Path("metrics.json"))


def tracked(method: str, **facts: object) -> Tracked:
    chosen = {"candidate": "", "view": "origin", "temperature": {"1": 8.0, "5": 32.0}}
    return Tracked({"method": method, "chosen": chosen}, build("conv4", channels=1, image_size=16, seed=0), {}, ({}, facts))


@pytest.mark.parametrize(
    ("method", "model", "joint", "expected"),
    [
        ("metadiff", "task", False, False),
        ("metadiff", "task", True, True),
        ("regression", "regression", True, True),
        ("metadiff-guided", "task", False, True),
        ("gradient", "gradient", True, False),
    ],
)
def test_which_methods_make_all_rows_together(method: str, model: str, joint: bool, expected: bool) -> None:
    assert tracked(method, model=model, joint=joint).joint is expected


@pytest.mark.parametrize(("shots", "expected"), [(1, 8.0), (2.9, 8.0), (3, 8.0), (3.1, 32.0), (5, 32.0), (40, 32.0)])
def test_the_temperature_is_that_of_the_nearest_number_of_shots(shots: float, expected: float) -> None:
    assert tracked("ncm").temperature(shots) == expected


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_folding_changes_no_feature_but_by_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metadiff.resnet101.SHOWN", 32)
    backbone = build(name, channels=3, image_size=16, seed=0)
    images_NHWC = torch.randint(256, (8, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    backbone.train()(images_NHWC)  # so that the statistics of its norms are not 0 and 1
    backbone.eval()
    found, expected = folded(backbone)(images_NHWC), backbone(images_NHWC)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded(backbone).modules())


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    code = "import sys, metadiff; assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules); metadiff.Classifier"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="module 'metadiff' has no attribute 'Clasifier'"):
        _ = metadiff.Clasifier
