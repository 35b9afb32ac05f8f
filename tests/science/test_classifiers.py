"""What evaluate compares: every classifier with its candidates, each of which really differs from the others."""

from collections.abc import Mapping
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.classifiers import Checkpoints, classifiers, make_generators, row_classifiers
from metadiff.evaluation import RowsOf
from metadiff.generator import dump
from metadiff.metatraining import MetaTraining, pace_of, rows_lesson
from metadiff.methods.metadiff import build
from tests.science.test_metatraining import FACTS, PLAIN, TASKS, data

FEATURES, ROWS = data()
SUPPORT = FEATURES[:60].view(4, 5, 3, -1)
SECTION = SimpleNamespace(
    ridges=(0.1, 1.0),
    spreads=(0.5, 1.0),
    whitened=(0.3, 1.0),
    sampler="ddim",
    sampling_steps=(1, 4),
    gradient_steps=5,
    draws=3,
    guidance=(20.0, 50.0),
    seed=0,
)


@pytest.fixture(scope="module")
def checkpoints() -> Checkpoints:
    checkpoints = {}
    for model in ("task", "regression", "gradient"):
        facts = FACTS | {"model": model}
        settings = SimpleNamespace(**PLAIN)
        training = MetaTraining(pace_of(settings), build(facts), rows_lesson(settings, TASKS, lambda _method: 0.0), seed=0)
        training.run()
        checkpoints[model] = (dump(training.best, TASKS.scales), facts)
    return checkpoints


@pytest.fixture(scope="module")
def candidates(checkpoints: Checkpoints) -> dict[str, Mapping[str, RowsOf]]:
    made = row_classifiers(SECTION, GaussianPosterior(FEATURES, ROWS), make_generators(checkpoints, "cpu"))
    return {found.name: found.makers for found in made}


def test_every_choice_is_a_candidate(candidates: dict[str, Mapping[str, RowsOf]]) -> None:
    steps = ["1 steps", "4 steps"]
    guided = ["guidance 20", "guidance 50"]
    gaussian = [f"ridge {ridge}, spread {spread}" for ridge in ("0.1", "1") for spread in ("0.5", "1")]
    assert {name: [*found] for name, found in candidates.items()} == {
        "ncm": [""],
        "gaussian": gaussian,
        "ncm-whitened": [""],
        "gaussian-whitened": gaussian,
        "metadiff": steps,
        "metadiff-raw": steps,
        "metadiff-mean": steps,
        "metadiff-guided": [f"{strength}, {about}" for strength in guided for about in steps],
        "regression": [""],
        "regression-guided": guided,
        "gradient": [""],
        "gradient-untrained": [""],
    }


def test_what_is_in_closed_form_is_judged_in_whitened_units_too() -> None:
    made = dict(classifiers(SECTION, GaussianPosterior(FEATURES, ROWS), {}, {}))
    plain, units = ["origin", "base mean"], ["whitened, ridge 0.3", "whitened, ridge 1"]
    seen = {name: [*next(iter(found.values())).views] for name, found in made.items()}
    assert seen == {"ncm": plain, "gaussian": plain, "ncm-whitened": units, "gaussian-whitened": units}
    without = SimpleNamespace(**vars(SECTION) | {"whitened": ()})
    assert [*dict(classifiers(without, GaussianPosterior(FEATURES, ROWS), {}, {}))] == ["ncm", "gaussian"]


def test_generators_are_judged_in_the_units_they_learned_in(checkpoints: Checkpoints) -> None:
    posterior = GaussianPosterior(FEATURES, ROWS)
    tensors, facts = checkpoints["task"]
    there = {f"view/{name}": value for name, value in posterior.whitened(ridge=0.3).tensors().items()}
    generators = make_generators(checkpoints | {"task": (tensors | there, facts)}, "cpu")
    seen = {name: {*next(iter(found.values())).views} for name, found in classifiers(SECTION, posterior, generators, {}) if found}
    of_task = [name for name in seen if name.startswith("metadiff")]
    assert of_task == ["metadiff", "metadiff-raw", "metadiff-mean", "metadiff-guided"]
    for name in of_task:
        assert seen[name] == {"own"}
    for name in ("regression", "gradient"):
        assert seen[name] == {"origin", "base mean"}


@torch.no_grad()
def test_no_two_give_the_same_rows(candidates: dict[str, Mapping[str, RowsOf]]) -> None:
    """But those in whitened units, which are the same seen otherwise."""
    different = {name: found for name, found in candidates.items() if not name.endswith("whitened")}
    rows = {(name, about): rows_of(SUPPORT, 0) for name, found in different.items() for about, rows_of in found.items()}
    for key, found in rows.items():
        assert found.shape == (3 if key[0] == "metadiff-mean" else 1, 4, 5, FEATURES.shape[1])
    for one, other in combinations(rows, 2):
        if "metadiff-mean" not in (one[0], other[0]):  # its first draw is that of metadiff
            assert not np.allclose(rows[one], rows[other], atol=1e-6), (one, other)
