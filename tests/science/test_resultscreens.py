"""The table of a run's result, with what sentences ask."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metadiff.resultscreens import METRICS, show_results


def cell(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "ci95": 1.25, "nll": 0.4567}


DESCRIBED = {
    "seen": {"plain": {"mlp": cell(81), "hyperldm-g1": cell(92.5)}, "ambiguous": {"mlp": cell(66)}},
    "unseen": {"plain": {"mlp": cell(79), "hyperldm-g1": cell(90)}, "ambiguous": {"mlp": cell(60)}},
}


def shown(checkout: Path, described: dict[str, Any] | None, *, split: str = "test", **how: bool) -> str:
    episodes = {"shot1": {"ncm": cell(50) | {"ece": 1.0}}}
    metrics = {"dataset": "shapes", "way": 5, "query": 15, "episodes": 9, "val_episodes": 4, "test": episodes, "val": episodes}
    metrics |= {"described": {"test": described}} if described else {}
    (checkout / METRICS.parent).mkdir(parents=True, exist_ok=True)
    (checkout / METRICS).write_text(json.dumps(metrics))
    out = io.StringIO()
    show_results(Console(file=out, width=110), split=split, **how)
    return out.getvalue()


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_sentences_ask_is_shown_the_best_first_and_in_both_wordings(checkout: Path) -> None:
    lines = shown(checkout, DESCRIBED, markdown=True).splitlines()
    start = lines.index("| sentences | classifier | accuracy | in unseen words | nll |")
    assert lines[start + 2 :] == [
        "| plain | hyperldm-g1 | 92.50 ± 1.25 | 90.00 ± 1.25 | 0.457 |",
        "| plain | mlp | 81.00 ± 1.25 | 79.00 ± 1.25 | 0.457 |",
        "| ambiguous | mlp | 66.00 ± 1.25 | 60.00 ± 1.25 | 0.457 |",
    ]
    table = shown(checkout, DESCRIBED)
    places = [table.index(text) for text in ("92.50 ± 1.25", "81.00 ± 1.25", "66.00 ± 1.25")]
    assert places == sorted(places)
    assert "a sentence asks" in table


@pytest.mark.parametrize(("split", "count"), [("test", 9), ("val", 4)])
def test_the_heading_counts_the_episodes_of_the_classes_shown(checkout: Path, split: str, count: int) -> None:
    said = shown(checkout, None, split=split)
    assert said.startswith(f"shapes: 5-way, 15 queries a class, {count} episodes of {split} classes\naccuracy in per cent")


def test_of_one_wording_no_words_are_unseen_and_without_sentences_nothing_is_said(checkout: Path) -> None:
    last = shown(checkout, {"seen": DESCRIBED["seen"]}, markdown=True).splitlines()[-1]
    assert last == "| ambiguous | mlp | 66.00 ± 1.25 |  | 0.457 |"
    assert "sentence" not in shown(checkout, None)
