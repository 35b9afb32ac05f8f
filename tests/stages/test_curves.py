"""The curves of evaluate, of generators that were not trained: what is in which column, and that it is what is judged."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from metadiff.baselines.finetune import Course, finetune
from metadiff.baselines.start import build_start
from metadiff.candidates import OfWeights
from metadiff.diffusion import gaussian_noise
from metadiff.evaluation import TYPICAL, correct_counts, log_probabilities, targets
from metadiff.inputs import Inputs
from metadiff.learner import Perceptron
from metadiff.methods.mcdi import build_weights
from metadiff.paths import WeightScale
from metadiff.pictures import Pictures
from metadiff.rng import numpy_stream, torch_stream
from metadiff.weightgenerator import WeightGenerator
from stages.curves import chain_curve, draws_curve, fresh_episodes
from tests.science.test_mcdi import FACTS
from tests.science.test_metatraining import data as rows_and_features

SHOTS, EPISODES, DRAWS, TIMES = (1, 2), 12, (1, 2, 5), FACTS["times"]
WAY = 3
CHOSEN = {"finetune-random": {"candidate": "lr 0.1, 20 steps"}}
FEATURES, ROWS = rows_and_features()
PICTURES = Pictures(FEATURES)
VALIDATION = replace(ROWS, split=np.ones_like(ROWS.split))
LEARNER = Perceptron("mlp", WAY, FEATURES.shape[1], hidden=3)


def section(**changes: object) -> SimpleNamespace:
    sizes = {"way": WAY, "shots": SHOTS, "query": 4, "curve_episodes": EPISODES, "seed": 3, "draw_curve": DRAWS}
    return SimpleNamespace(**sizes | {"finetune_lrs": (0.01, 0.1), "finetune_sgd_lrs": (), "finetune_steps": (1, 20)} | changes)


class Stage:
    """A run, as far as curves know it."""

    def __init__(self, **changes: object) -> None:
        self.params, self.told = section(**changes), 0

    @contextmanager
    def progress(self, what: str, *, total: int, unit: str) -> Iterator[Any]:
        before = self.told
        yield lambda count: setattr(self, "told", self.told + count)
        assert self.told - before == total, what

    def stop_if_asked(self, when: str, then: str) -> None:
        pass


def generator(model: str) -> WeightGenerator:
    facts = FACTS | {"model": model, "start_std": 0.5, "learner": asdict(LEARNER)}
    scale = WeightScale(torch.zeros(LEARNER.size), torch.full((LEARNER.size,), 0.7))
    return WeightGenerator(build_start(facts) if model == "reptile" else build_weights(facts, scale), Inputs(), scale, 0.5)


WEIGHTS = {model: generator(model) for model in ("local", "vanilla", "weights-regression", "reptile")}


def draws_table(**changes: object) -> pd.DataFrame:
    return draws_curve(Stage(**changes), WEIGHTS, CHOSEN, PICTURES, VALIDATION)  # type: ignore[arg-type]


def chain_table(weights: dict[str, WeightGenerator] = WEIGHTS) -> pd.DataFrame:
    return chain_curve(Stage(), weights, PICTURES, VALIDATION)  # type: ignore[arg-type]


def test_draws_are_compared_with_as_many_starts_and_with_the_level_of_the_control() -> None:
    table = draws_table()
    names = ("local", "vanilla", "weights-regression", "finetune-random")
    assert [*table] == ["draws", *(f"{name} {shot}-shot{what}" for name, shot, what in product(names, SHOTS, ("", " nll")))]
    assert table["draws"].tolist() == [*DRAWS]
    assert table.filter(like="weights-regression").nunique().eq(1).all()
    moved = table.filter(regex="^(local|vanilla|finetune-random) .* nll$")
    assert moved.nunique().eq(len(DRAWS)).all()
    tuned = moved.filter(like="finetune-random")
    assert (tuned.iloc[-1] < tuned.iloc[0]).all()


def test_the_fine_tuned_starts_are_those_that_validation_chose_each_from_a_start_of_its_own() -> None:
    episodes, table = fresh_episodes(section(), VALIDATION)[1], draws_table()  # type: ignore[arg-type]
    rival = WEIGHTS["local"]

    def tuned(support_EWS: Pictures, batch: int) -> torch.Tensor:
        streams = [numpy_stream(3, "finetune", batch, number) for number in range(EPISODES)]
        starts = [torch.stack([LEARNER.start(stream, 0.5) for stream in streams]) for _ in range(DRAWS[-1])]
        return torch.stack([finetune(LEARNER, Inputs(), support_EWS, start, Course(lr=0.1, steps=20)) for start in starts])

    scores = OfWeights(tuned, rival.logits).scores(PICTURES, episodes)[""]
    right = correct_counts(log_probabilities(scores, TYPICAL), targets(episodes)).mean()
    assert table["finetune-random 1-shot"].iloc[-1] == pytest.approx(100 * right / len(targets(episodes)), abs=1e-3)
    assert table["finetune-random 1-shot"].iloc[-1] > 50  # chance is 33


def test_fewer_draws_are_the_first_of_more() -> None:
    pd.testing.assert_frame_equal(draws_table(draw_curve=DRAWS[:2]), draws_table().iloc[:2])
    assert [*draws_table(draw_curve=())] == ["draws"]


def test_a_chain_goes_from_noise_to_the_draw_that_is_judged_alone() -> None:
    chain, draws = chain_table(), draws_table()
    assert chain["time"].tolist() == [*range(TIMES + 1)]
    columns = product(("local", "vanilla"), SHOTS, (" support", "", " nll"))
    assert [*chain] == ["time", *(f"{name} {shot}-shot{what}" for name, shot, what in columns)]
    for name in set(chain) & set(draws):
        assert chain[name].iloc[-1] == pytest.approx(draws[name].iloc[0], rel=1e-4)
    assert chain["local 1-shot nll"].nunique() > TIMES / 2


def test_the_loss_on_the_support_is_that_of_the_state_on_the_images_it_was_told_of() -> None:
    episodes = fresh_episodes(section(), VALIDATION)[2]  # type: ignore[arg-type]
    support_EWSD = FEATURES[torch.from_numpy(episodes.support_EWS).long()]
    start_EP = 0.7 * gaussian_noise(torch_stream(3, "draw", 0, 0))(torch.empty(EPISODES, LEARNER.size))
    logits = LEARNER.logits(start_EP, support_EWSD.flatten(1, 2))
    loss = torch.nn.functional.cross_entropy(logits.mT, torch.arange(WAY).repeat_interleave(2).expand(EPISODES, -1))
    assert chain_table()["vanilla 2-shot support"].iloc[0] == pytest.approx(float(loss), abs=1e-4)


def test_without_generators_there_are_no_columns() -> None:
    assert [*chain_table({})] == ["time"]
    assert len(chain_table({})) == 0
    table = draws_curve(Stage(), {}, {}, PICTURES, VALIDATION)  # type: ignore[arg-type]
    assert [*table] == ["draws"]
