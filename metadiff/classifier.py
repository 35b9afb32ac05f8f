"""A tracked run as a scikit-learn classifier of new classes, from a few images of each: the only module that knows scikit-learn.

Shapes: G draws, N images, W classes, D features, P weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from metadiff.askmodels import DRAWS, GAMMA, MODEL
from metadiff.baselines.ncm import mean_rows
from metadiff.candidates import OfRows
from metadiff.checkpoint import save_checkpoint
from metadiff.errors import DataError
from metadiff.evaluation import TYPICAL, log_probabilities
from metadiff.newclasses import queries, rows_by_count
from metadiff.pictures import Pictures
from metadiff.tracked import Tracked, section_of
from metadiff.trackedruns import BEST, load_saved, open_tracked, pack, unpack
from metadiff.trackedtext import asked, open_models
from metadiff.view import FROM_ORIGIN

PLAIN = OfRows(mean_rows, {"origin": FROM_ORIGIN})  # without a run
ANSWERS = ("no", "yes")  # to a sentence


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """The classifier that `evaluate` judged, for new classes; from images its features are those of the run but for rounding.

    X is a table of features (N, D) or uint8 images (N, H, W) or (N, H, W, C), which go through the run's backbone.

    run: the folder of a checkout, a file that `save` wrote, or the name of an experiment of the checkout in the current folder;
        None: no backbone, and the nearest class mean by cosine.
    method: a name in metrics.json's `chosen`, such as ncm, gaussian, metadiff, local; best: the one that validation prefers of
        those that take any number of classes. Whole weights are for as many classes as `collect.way` says.

    `from_run` reads a run and learns from images; `from_text` needs none, as a sentence says which images are meant.

    Fitted, it has `classes_`, `support_` (their features, none of a sentence), `weights_` (a row a class, (G, 1, W, D), or whole
    weights, (G, 1, P)), `temperature_`, and `lineage_`: the data set, the commit, what was chosen, and every stage behind it.
    """

    def __init__(self, run: str | None = None, method: str = BEST) -> None:
        self.run = run
        self.method = method

    @classmethod
    def from_run(cls, run: str | Path = ".", method: str = BEST) -> Self:
        """Read and verified at once, and not yet fitted."""
        classifier = cls(run=str(run), method=method)
        return classifier._use(classifier._open())

    @classmethod
    def from_text(
        cls,
        sentence: str,
        run: str | Path = ".",
        *,
        gamma: float = GAMMA,
        draws: int = DRAWS,
        encoder: str | None = None,
    ) -> Self:
        """Of the classes "no" and "yes", by the run's hyperldm, and ready to predict.

        gamma: strength of the guidance, 1 for none; draws: of weights, whose probabilities are averaged.
        encoder: where the one lies that made the run's vectors of sentences, if that is a folder or a file.
        """
        told, classifier = " ".join(sentence.split()), cls(run=str(run), method=MODEL)
        found = open_models(run)
        tracked = asked(found, told, gamma=gamma, draws=draws)
        assert tracked.asks is not None
        seed = section_of(tracked.lineage).seed
        weights_G1P = tracked.asks.weights(told, gamma=gamma, draws=draws, seed=seed, encoder=encoder)
        classifier._read = ((classifier.run, classifier.method), tracked)
        classifier.weights_, classifier.temperature_ = weights_G1P, TYPICAL
        classifier.classes_ = np.array(ANSWERS)
        classifier.n_features_in_ = tracked.backbone.feature_size
        classifier.support_ = np.empty((0, classifier.n_features_in_), np.float32)
        classifier.support_labels_ = classifier.classes_[:0]
        return classifier._use(tracked)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of the images that it takes."""
        tracked = self._open()
        return tracked.image_shape if tracked else None

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Make a classifier of the classes in y."""
        tracked = self._open()
        features_ND, y_N = self._validated(tracked, X, y, reset=True)
        return self._make(tracked, features_ND, y_N)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Add new classes, or images to known ones. ``classes`` is all that y may ever hold, if that is known.

        `classes_` has those that were seen, as nothing is known of the others, and so grows.
        """
        tracked, more = self._open(), hasattr(self, "support_")
        if more and tracked is not self._tracked:
            raise DataError("run or method were set to others since it was fitted; call fit")
        features_ND, y_N = self._validated(tracked, X, y, reset=not more)
        if classes is not None and not np.isin(y_N, np.asarray(classes)).all():
            strange = np.setdiff1d(y_N, np.asarray(classes))
            raise DataError(f"y has the class {strange[0]}, which is not among the given classes")
        if more:
            if (self.support_labels_.dtype.kind in "UO") != (y_N.dtype.kind in "UO"):
                raise DataError(
                    f"y holds {y_N.dtype}, the classes so far are {self.support_labels_.dtype}; names or numbers, not both"
                )
            features_ND = np.concatenate([self.support_, features_ND.astype(self.support_.dtype)])
            y_N = np.concatenate([self.support_labels_, y_N])
        return self._make(tracked, features_ND, y_N)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest class of each image."""
        log_NW = self._log_probabilities(X)
        return np.asarray(self.classes_[log_NW.argmax(-1).numpy()])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """(N, W): with the temperature that validation chose."""
        return np.asarray(self._log_probabilities(X).exp().numpy())

    def save(self, path: str | Path) -> None:
        """Everything in one file, for a machine without the run; without images of classes if it was not fitted."""
        tensors, facts = pack(self._tracked if hasattr(self, "weights_") else self._open())
        if hasattr(self, "weights_"):
            labels = self.classes_.tolist()
            if not all(isinstance(label, (str, int, float)) for label in labels):
                raise DataError(f"classes of {self.classes_.dtype}; a file holds names and numbers alone")
            numbers_N = torch.from_numpy(np.searchsorted(self.classes_, self.support_labels_))
            tensors |= {"support": torch.from_numpy(self.support_), "labels": numbers_N, "weights": self.weights_}
            facts["classifier"] = {"classes": labels, "dtype": str(self.classes_.dtype), "temperature": self.temperature_}
            facts["classifier"]["features"] = list(getattr(self, "feature_names_in_", ()))
        save_checkpoint(Path(path), tensors, facts)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """As it was saved; the run is not needed."""
        tensors, facts = load_saved(Path(path))
        tracked = unpack(tensors, facts)
        classifier = cls(run=str(path), method=tracked.method) if tracked else cls()
        classifier._read = ((classifier.run, classifier.method), tracked)
        classifier._use(tracked)
        if facts["classifier"]:
            about = facts["classifier"]
            classifier.classes_ = np.array(about["classes"], dtype=about["dtype"])
            classifier.support_, classifier.weights_ = tensors["support"].numpy(), tensors["weights"]
            classifier.support_labels_ = classifier.classes_[tensors["labels"].numpy()]
            classifier.temperature_ = about["temperature"]
            classifier.n_features_in_ = classifier.support_.shape[1]
            if about["features"]:
                classifier.feature_names_in_ = np.array(about["features"], dtype=object)
        return classifier

    def _open(self) -> Tracked | None:
        """The run that is asked for, read once."""
        asked = (self.run, self.method)
        if getattr(self, "_read", (None, None))[0] != asked:
            if self.run is None and self.method not in (BEST, "ncm"):
                raise DataError(f"method {self.method}: needs a run; without one there is ncm alone")
            self._read = (asked, open_tracked(self.run, self.method) if self.run is not None else None)
        return self._read[1]

    def _use(self, tracked: Tracked | None) -> Self:
        self._tracked = tracked
        self.lineage_: dict[str, Any] = dict(tracked.lineage) if tracked else {}
        return self

    def _make(self, tracked: Tracked | None, features_ND: NDArray[np.floating], y_N: NDArray[Any]) -> Self:
        """Where it is refused, nothing has changed."""
        classes, class_N = np.unique(y_N, return_inverse=True)
        support_ND = torch.from_numpy(features_ND)
        if tracked is None:
            self.weights_, self.temperature_ = rows_by_count(mean_rows, support_ND, class_N), TYPICAL
        else:
            self.weights_ = tracked.adapt(support_ND, class_N)
            self.temperature_ = tracked.temperature(len(y_N) / len(classes))
        self.support_, self.support_labels_, self.classes_ = features_ND, y_N, classes
        return self._use(tracked)

    def _validated(
        self, tracked: Tracked | None, X: ArrayLike, y: ArrayLike, *, reset: bool
    ) -> tuple[NDArray[np.floating], NDArray[Any]]:
        features_ND, y_N = validate_data(self, self._features(tracked, X), y, reset=reset, **self._kind(tracked))
        check_classification_targets(y_N)
        if tracked and features_ND.shape[1] != tracked.backbone.feature_size:
            want = tracked.backbone.feature_size
            raise DataError(f"X has {features_ND.shape[1]} features; the backbone of {tracked.lineage['dataset']} gives {want}")
        return features_ND.copy(), y_N

    def _features(self, tracked: Tracked | None, X: ArrayLike) -> Any:  # noqa: ANN401 - whatever scikit-learn takes as a table
        axes = np.ndim(X) if isinstance(X, list) else getattr(X, "ndim", 2)
        if axes < 3:
            return X
        if tracked is None:
            raise DataError(f"X has {axes} axes: images need the backbone of a run, and a table of features has two")
        return tracked.embed(np.asarray(X))

    def _kind(self, tracked: Tracked | None) -> dict[str, Any]:
        """Features have the precision of the run's, or else that of X."""
        return {"dtype": np.float32 if tracked else [np.float64, np.float32], "order": "C"}

    def _log_probabilities(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self, "weights_")
        tracked = self._tracked
        features_ND = validate_data(self, self._features(tracked, X), reset=False, **self._kind(tracked))
        query_ND = torch.tensor(features_ND, dtype=self.weights_.dtype)
        candidate = tracked.candidate if tracked else PLAIN
        (scores_G1NW,) = candidate.scores_by(self.weights_, Pictures(query_ND), queries(len(query_ND))).values()
        return log_probabilities(scores_G1NW, self.temperature_)[0]
