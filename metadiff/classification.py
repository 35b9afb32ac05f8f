"""Pictures of new classes told apart by a tracked run, from a few pictures of each: what `metadiff classify` does.

Shapes: N pictures, W classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metadiff.classifier import Classifier
from metadiff.errors import DataError
from metadiff.images import BadImageError
from metadiff.images.decode import decode_file
from metadiff.images.folder import class_files, picture_files
from metadiff.images.source import shown

BLOCK = 256  # pictures in memory at a time
COLUMNS = ("image", "class", "prediction", "confidence")
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """Of one picture."""

    name: str
    file: Path
    prediction: str
    confidence: float
    truth: str | None  # where its folder is named as one of the classes

    @property
    def wrong(self) -> bool:
        return self.truth is not None and self.truth != self.prediction


@dataclass(frozen=True)
class Report:
    """What was found, from how many pictures of each class, which pictures could not be used and why, and by which run."""

    support: Mapping[str, int]
    answers: list[Answer]
    skipped: Mapping[str, str]
    lineage: Mapping[str, Any]

    @property
    def accuracy(self) -> tuple[int, int] | None:
        """How many are right, of how many whose class is known."""
        known = [answer for answer in self.answers if answer.truth is not None]
        return (sum(not answer.wrong for answer in known), len(known)) if known else None


def classify(support: Path, query: Path, classifier: Classifier, advance: Advance = lambda _count: None) -> Report:
    """``support`` has a folder a class; ``query`` any pictures. ``advance`` counts the pictures that were classified."""
    counts, skipped = learn(support, classifier)
    answers: list[Answer] = []
    for names, files, images_NHWC in blocks(picture_files(query), query, classifier, skipped):
        probabilities_NW = classifier.predict_proba(images_NHWC)
        best_N = probabilities_NW.argmax(1)
        for name, file, best, row_W in zip(names, files, best_N, probabilities_NW, strict=True):
            folder = name.partition("/")[0]
            truth = folder if "/" in name and folder in counts else None
            answers.append(Answer(name, file, str(classifier.classes_[best]), float(row_W[best]), truth))
        advance(len(names))
    if not answers:
        raise DataError("\n".join([*told(skipped), f"{shown(str(query))}: no picture that can be read"]))
    return Report(counts, answers, skipped, classifier.lineage_)


def learn(support: Path, classifier: Classifier) -> tuple[dict[str, int], dict[str, str]]:
    """Fit it; the number of pictures of each class, and those that cannot be used with the reason."""
    skipped: dict[str, str] = {}
    images: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for label, files in class_files(support).items():
        before = len(labels)
        for names, _, images_NHWC in blocks(files, support, classifier, skipped):
            images.append(images_NHWC)
            labels += [label] * len(names)
        if len(labels) == before:
            name = shown(str(support / label))
            raise DataError("\n".join([*told(skipped), f"{name}: the class has no picture that can be read"]))
    classifier.fit(np.concatenate(images), np.array(labels))
    return {label: labels.count(label) for label in dict.fromkeys(labels)}, skipped


def blocks(
    files: Mapping[str, Path], root: Path, classifier: Classifier, skipped: dict[str, str]
) -> Iterator[tuple[list[str], list[Path], NDArray[np.uint8]]]:
    """Pictures as the run's backbone takes them; the reason of each that cannot be used is put into ``skipped``."""
    shape = classifier.image_shape
    assert shape is not None
    names: list[str] = []
    images: list[NDArray[np.uint8]] = []
    for name, file in files.items():
        try:
            images.append(decode_file(file, root=root, image_size=shape[0], color="rgb" if shape[2] == 3 else "gray"))
            names.append(name)
        except BadImageError as error:
            skipped[str(root / name)] = str(error)
        if len(names) == BLOCK:
            yield names, [files[name] for name in names], np.stack(images)
            names, images = [], []
    if names:
        yield names, [files[name] for name in names], np.stack(images)


def told(skipped: Mapping[str, str]) -> list[str]:
    return [f"{shown(name)}: {reason}" for name, reason in skipped.items()]


def about(lineage: Mapping[str, Any]) -> str:
    """The run in a line: method, data set, how good it was on validation classes, and the commit."""
    validation = ", ".join(f"{value:.1f} % ({shot.removeprefix('shot')}-shot)" for shot, value in lineage["validation"].items())
    return f"{of_run(lineage)}; on validation classes {validation}"


def of_run(lineage: Mapping[str, Any]) -> str:
    """Method, data set, and which run."""
    commit = f"commit {lineage['commit'][:12]}" if lineage.get("commit") else "no commit known"
    changed = f", but for {', '.join(lineage['changed'])}" if lineage.get("changed") else ""
    title = lineage.get("title", "a copy of a run")
    return f"{lineage['method']} of {lineage['dataset']}, {title}, {commit}{changed}"


def by_class(report: Report) -> Iterator[tuple[str, int, int, float | None, str]]:
    """Class, pictures that it was learnt from, predictions of it, their mean confidence, and how many of its own are right."""
    for label, count in report.support.items():
        predicted = [answer for answer in report.answers if answer.prediction == label]
        own = [answer for answer in report.answers if answer.truth == label]
        confidence = float(np.mean([answer.confidence for answer in predicted])) if predicted else None
        yield label, count, len(predicted), confidence, f"{sum(not a.wrong for a in own)} of {len(own)}" if own else ""


def table(report: Report) -> str:
    """As CSV, one row a picture, in the order of names."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows((a.name, a.truth or "", a.prediction, f"{a.confidence:.6f}") for a in report.answers)
    return text.getvalue()
