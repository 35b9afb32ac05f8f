"""What validation chooses, and the numbers that come of it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from metadiff.candidates import OfRows
from metadiff.episodes import draw_episodes
from metadiff.evaluation import RowsOf, class_rows, cosines, targets
from metadiff.judging import choose, judge, summary
from metadiff.pictures import Pictures
from metadiff.view import View
from tests.science.test_evaluation import DATA, features

X = features(0.8)
DRAWN = {shot: draw_episodes(DATA, "test", way=5, shot=shot, query=6, episodes=60, seed=0) for shot in (1, 3)}


def mean_rows(support: torch.Tensor, _batch: int) -> torch.Tensor:
    return support.mean(2)[None]


def upside_down(support: torch.Tensor, _batch: int) -> torch.Tensor:
    return -support.mean(2)[None]


def test_the_better_candidate_and_view_are_chosen() -> None:
    far = X + 50  # seen from the origin all directions are one
    views = {"origin": View(), "there": View(torch.full((16,), 50.0))}
    choice, seen = choose({"bad": OfRows(upside_down, views), "good": OfRows(mean_rows, views)}, Pictures(far), DRAWN)
    assert (choice.candidate, choice.view) == ("good", "there")
    assert set(choice.temperature) == {1, 3}
    for shot, drawn in DRAWN.items():
        expected = cosines(class_rows(mean_rows, far, drawn), far, drawn, view=views["there"])
        assert torch.equal(seen[shot], expected)


def test_of_equals_the_first_is_chosen() -> None:
    twins = {"one": OfRows(mean_rows, {"origin": View()}), "two": OfRows(mean_rows, {"origin": View()})}
    assert choose(twins, Pictures(X), DRAWN)[0].candidate == "one"


CLASSIFIERS = {"ncm": mean_rows, "regression": lambda s, b: mean_rows(s, b) + 0.1, "metadiff": upside_down}


def judged(classifiers: Mapping[str, RowsOf] = CLASSIFIERS) -> tuple[pd.DataFrame, pd.DataFrame]:
    tables = []
    for name, rows_of in classifiers.items():
        for shot, drawn in DRAWN.items():
            parts = judge(cosines(class_rows(rows_of, X, drawn), X, drawn), targets(drawn), temperature=5.0)
            tables.append([part.assign(split="test", shot=shot, classifier=name) for part in parts])
    rows, bins = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return rows, bins


def test_the_summary_is_that_of_the_rows() -> None:
    rows, bins = judged()
    found = summary(rows, bins)["test"]
    assert list(found) == ["shot1", "shot3"]
    for shot in (1, 3):
        part = {name: cell.sort_values("episode") for name, cell in rows[rows["shot"] == shot].groupby("classifier")}
        per_cent = {name: (100 * cell["correct"] / cell["queries"]).to_numpy() for name, cell in part.items()}
        cell = found[f"shot{shot}"]["metadiff"]
        assert cell["accuracy"] == pytest.approx(per_cent["metadiff"].mean(), abs=1e-3)
        assert cell["ci95"] == pytest.approx(1.96 * stats.sem(per_cent["metadiff"]), abs=1e-3)
        assert cell["nll"] == pytest.approx(part["metadiff"]["nll"].mean(), abs=1e-4)
        for rival in ("ncm", "regression"):
            paired = stats.ttest_rel(per_cent["metadiff"], per_cent[rival])
            assert cell[f"vs_{rival}"]["diff"] == pytest.approx((per_cent["metadiff"] - per_cent[rival]).mean(), abs=1e-3)
            half = 1.96 / stats.norm.ppf(0.975) * (paired.confidence_interval().high - paired.confidence_interval().low) / 2
            assert cell[f"vs_{rival}"]["ci95"] == pytest.approx(half, rel=0.05)


def test_rivals_are_compared_with_those_before_them_only() -> None:
    cell = summary(*judged())["test"]["shot1"]
    assert "vs_ncm" not in cell["ncm"]
    assert "vs_regression" not in cell["ncm"]
    assert "vs_ncm" in cell["regression"]
    assert "vs_gaussian" not in cell["metadiff"]  # it was not measured


def test_whole_weights_are_compared_with_their_own_rivals_too() -> None:
    more = dict.fromkeys(("weights-regression", "local-mean", "reptile", "finetune-random", "finetune-random-mean"), mean_rows)
    found = summary(*judged(CLASSIFIERS | more))["test"]["shot1"]
    versus = {name: [key for key in cell if key.startswith("vs_")] for name, cell in found.items()}
    rows, own = ["vs_ncm", "vs_regression"], ["vs_weights-regression", "vs_finetune-random", "vs_finetune-random-mean"]
    assert versus == {
        "ncm": [],
        "regression": rows[:1],
        "metadiff": rows,
        "weights-regression": rows,
        "local-mean": rows + own,
        "reptile": rows + own,
        "finetune-random": rows + own[:1],
        "finetune-random-mean": rows + own[:2],
    }
    assert found["local-mean"]["vs_finetune-random"] == {"diff": 0.0, "ci95": 0.0}


def test_differences_are_paired_whatever_the_order_of_the_rows() -> None:
    rows, bins = judged()
    shuffled = rows.sample(frac=1, random_state=0).sort_values(["split", "shot"], kind="stable")
    one, two = summary(rows, bins)["test"]["shot1"]["metadiff"], summary(shuffled, bins)["test"]["shot1"]["metadiff"]
    assert one == two


def test_the_calibration_error_comes_from_the_bins() -> None:
    rows, bins = judged()
    part = bins[(bins["shot"] == 1) & (bins["classifier"] == "ncm")]
    apart = np.abs(part["confidence"] - part["correct"]).sum() / part["count"].sum()
    assert summary(rows, bins)["test"]["shot1"]["ncm"]["ece"] == pytest.approx(100 * apart, abs=1e-3)
    assert part["count"].sum() == 60 * 30
