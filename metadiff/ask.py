"""Pictures in the order in which a sentence is true of them, by a tracked run: what `metadiff ask` does."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metadiff.classification import blocks, of_run, told
from metadiff.classifier import Classifier
from metadiff.errors import DataError
from metadiff.images.folder import picture_files
from metadiff.images.source import shown

COLUMNS = ("image", "answer", "score")
EVEN = 0.5  # a score above it is a yes
WORDINGS = {"seen": "in wordings of training", "unseen": "in others"}


@dataclass(frozen=True)
class Score:
    """The probability that the sentence is true of a picture."""

    name: str
    file: Path
    value: float

    @property
    def answer(self) -> str:
        return "yes" if self.value > EVEN else "no"


@dataclass(frozen=True)
class Sheet:
    """The likeliest first; which pictures could not be used and why; and by which run."""

    scores: list[Score]
    skipped: Mapping[str, str]
    lineage: Mapping[str, Any]

    @property
    def sentence(self) -> str:
        return str(self.lineage["sentence"])

    def of(self, answer: str) -> list[Score]:
        return [score for score in self.scores if score.answer == answer]


def ask(images: Path, classifier: Classifier, advance: Callable[[int], None] = lambda _count: None) -> Sheet:
    """Of the pictures at any depth. ``advance`` counts those that were scored."""
    scores: list[Score] = []
    skipped: dict[str, str] = {}
    yes = classifier.classes_.tolist().index("yes")
    for names, files, images_NHWC in blocks(picture_files(images), images, classifier, skipped):
        values = classifier.predict_proba(images_NHWC)[:, yes].tolist()
        scores += [Score(*one) for one in zip(names, files, values, strict=True)]
        advance(len(names))
    if not scores:
        raise DataError("\n".join([*told(skipped), f"{shown(str(images))}: no picture that can be read"]))
    return Sheet(sorted(scores, key=lambda score: (-score.value, score.name)), skipped, classifier.lineage_)


def about(lineage: Mapping[str, Any]) -> str:
    """The run in a line: what was sampled how, how good the run was on validation sentences, and the commit."""
    validation = lineage["validation"]
    found = [f"{value:.1f} % {WORDINGS[text]}" if len(validation) > 1 else f"{value:.1f} %" for text, value in validation.items()]
    good = f"; on validation sentences {', '.join(found)}" if found else ""
    return f"{of_run(lineage)}; {lineage['chosen']['candidate']}{good}"


def table(sheet: Sheet) -> str:
    """As CSV, one row a picture, the likeliest first."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows((score.name, score.answer, f"{score.value:.6f}") for score in sheet.scores)
    return text.getvalue()
