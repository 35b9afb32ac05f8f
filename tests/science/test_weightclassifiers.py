"""Classifiers that are whole weights: what is compared, and scores of weights whose accuracy is known exactly."""

from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from metadiff.baselines.finetune import Course, finetune
from metadiff.baselines.nearest import PathEnds, TrainingTasks
from metadiff.baselines.start import build_start
from metadiff.candidates import Candidate, OfWeights
from metadiff.checkpoint import save_checkpoint
from metadiff.classifiers import (
    classifiers,
    make_generators,
    make_training_tasks,
    make_weight_generators,
    read_checkpoints,
)
from metadiff.diffusion import Noise, gaussian_noise
from metadiff.episodes import draw_episodes
from metadiff.errors import NumericError, ParamsError
from metadiff.evaluation import BATCH, log_probabilities, targets
from metadiff.inputs import Inputs
from metadiff.judging import choose, judge, verdict
from metadiff.learner import Learner, Perceptron
from metadiff.methods.mcdi import WEIGHT_MODELS, build_weights
from metadiff.network import Network
from metadiff.objectives import OnSupport
from metadiff.paths import WeightScale
from metadiff.pictures import Pictures
from metadiff.rng import torch_stream
from metadiff.weightclassifiers import of_weights, random_starts, weight_classifiers
from metadiff.weightgenerator import WeightGenerator, dump_weights
from tests.science.test_evaluation import DATA
from tests.science.test_mcdi import FACTS as NETWORK
from tests.science.test_metatraining import data as rows_and_features

CLASSES, WAY = 6, 5
POINTS = Pictures(torch.eye(CLASSES)[torch.from_numpy(DATA.label).long()])  # all images of a class are one: its unit vector
DRAWN = draw_episodes(DATA, "test", way=WAY, shot=2, query=4, episodes=BATCH + 50, seed=0)
SECTION = {"way": WAY, "draws": 3, "seed": 0, "finetune_few": 2}
SECTION |= {"finetune_lrs": (0.01, 0.3), "finetune_sgd_lrs": (), "finetune_steps": (1, 40)}
TUNED_FROM_RANDOM = ("finetune-random", "finetune-random-mean")
LINEAR = Learner("linear", way=WAY, dim=CLASSES, scale=1.0)


@dataclass(frozen=True)
class Known:
    """A linear learner whose row of way i is the mean of way i + ``turn``: all queries are right, or none. Noise sharpens it."""

    turn: int = 0
    spread: float = 0.0
    learner: Learner = LINEAR
    inputs: Inputs = field(default_factory=Inputs)
    start_std: float = 0.5
    turn_slope: None = None

    def weights(self, support_EWS: Pictures, noise: Noise) -> Tensor:
        rows_EWD = support_EWS.features.mean(2).roll(-self.turn, 1)
        sharp_E11 = 1 + self.spread * noise(rows_EWD[:, :1, :1])
        return torch.cat([(sharp_E11 * rows_EWD).flatten(1), torch.zeros(len(rows_EWD), WAY)], dim=1)

    def draws(self, support_EWS: Pictures, noises: list[Noise]) -> Tensor:
        return torch.stack([self.weights(support_EWS, noise) for noise in noises])

    def logits(self, theta_EP: Tensor, images_EN: Pictures) -> Tensor:
        return self.learner.logits(theta_EP, images_EN.features)


class Reptile(Known):
    def weights(self, support_EWS: Pictures, noise: Noise) -> Tensor:
        return torch.linspace(-1, 1, self.learner.size).expand(len(support_EWS), -1)


def compared(weights: dict[str, Known], tasks: TrainingTasks | None = None, **changes: object) -> dict[str, dict[str, Candidate]]:
    section = SimpleNamespace(**SECTION | changes, ridges=(), spreads=(), whitened=())
    return dict(classifiers(section, SimpleNamespace(mean_D=torch.zeros(CLASSES)), {}, weights, tasks))


def candidates(**changes: Known) -> dict[str, dict[str, Candidate]]:
    return compared({model: Reptile() if model == "reptile" else Known(spread=0.3) for model in WEIGHT_MODELS} | changes)


def test_trained_generators_are_read_and_judged(tmp_path: Path) -> None:
    """From files, whatever the order in which they are found; none is taken for a generator of rows."""
    features, data = rows_and_features()
    learner = Perceptron("mlp", WAY, features.shape[1], hidden=3)
    plain = WeightScale(torch.zeros(learner.size), torch.ones(learner.size))
    for model in ("reptile", "weights-regression", "local"):
        facts = NETWORK | {"model": model, "family": "mcdi", "start_std": 0.5, "learner": asdict(learner)}
        method = build_start(facts) if model == "reptile" else build_weights(facts, plain)
        made = WeightGenerator(method, Inputs(), plain, 0.5)
        save_checkpoint(tmp_path / f"{model}.safetensors", dump_weights({"average": method.net.state_dict()}, made), facts)
    checkpoints = read_checkpoints(tmp_path)
    assert [*checkpoints] == [*make_weight_generators(checkpoints, "cpu")] == ["local", "weights-regression", "reptile"]
    assert make_generators(checkpoints, "cpu") == {}
    section = SimpleNamespace(**SECTION, ridges=(1.0,), spreads=(1.0,), whitened=())
    drawn = {(split, 2): draw_episodes(data, "train", way=WAY, shot=2, query=4, episodes=9, seed=0) for split in ("val", "test")}
    judge_all = partial(verdict, section=section, drawn=drawn, data=data, pictures=Pictures(features), checkpoints=checkpoints)
    names = ("local", "local-mean", "weights-regression", "reptile", "finetune-reptile", *TUNED_FROM_RANDOM)
    ends = PathEnds(torch.randn(20, learner.size), torch.arange(WAY).expand(20, -1), spread=0.5)
    judge_all = partial(judge_all, ends=ends)
    for name in (*names, "nearest-weights", "average-weights", "noisy-weights"):
        found, again = judge_all(name, device="cpu"), judge_all(name, device="cpu")
        assert found.choice.view == ""
        pd.testing.assert_frame_equal(found.rows, again.rows)
        val, test = (found.rows[found.rows["split"] == split].drop(columns="split") for split in ("val", "test"))
        np.testing.assert_array_equal(val, test)  # the same episodes
        if name.startswith("finetune"):
            assert test["correct"].sum() > 20 * 9 * 0.3  # a fifth of them are right by chance


@pytest.mark.parametrize("together", [1, 14, 500])
def test_draws_are_those_of_their_noises_however_many_are_made_together(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Perceptron("mlp", WAY, CLASSES, hidden=3)
    monkeypatch.setattr("metadiff.weightgenerator.WEIGHTS", together * learner.size)
    plain = WeightScale(torch.zeros(learner.size), torch.full((learner.size,), 0.5))
    method = build_weights(NETWORK | {"model": "local", "learner": asdict(learner)}, plain)
    made, support = WeightGenerator(method, Inputs(), plain, 0.5), POINTS[DRAWN.support_EWS[:7]]

    def noises() -> list[Noise]:
        return [gaussian_noise(torch_stream(number, "draws")) for number in range(3)]

    with torch.no_grad():
        found, want = made.draws(support, noises()), [made.weights(support, noise) for noise in noises()]
    torch.testing.assert_close(found, torch.stack(want))
    assert (found[0] - found[1]).abs().max() > 0.1


def test_generated_weights_stand_after_all_others_and_fine_tuned_ones_last() -> None:
    drawn = [name for model in WEIGHT_MODELS[:4] for name in (model, f"{model}-mean")]
    found = candidates()
    tuned = ["finetune-reptile", "finetune-random", "finetune-random-mean"]
    assert [*found] == ["ncm", "gaussian", *drawn, "weights-regression", "reptile", *tuned]
    assert [*found["local"]] == [*found["local-mean"]] == [""]
    assert [*found["reptile"]] == ["lr 0.01, 2 steps", "lr 0.3, 2 steps"]
    every = [f"lr {lr}, {steps} steps" for lr in (0.01, 0.3) for steps in (1, 40)]
    assert all([*found[name]] == every for name in tuned)
    assert [name for name in found if of_weights(name)] == [*found][2:]


@pytest.mark.parametrize(
    ("models", "expected"), [((), []), (("vanilla",), ["vanilla", "vanilla-mean", "finetune-random", "finetune-random-mean"])]
)
def test_what_was_not_trained_is_not_compared(models: tuple[str, ...], expected: list[str]) -> None:
    assert [*compared({model: Known() for model in models})] == ["ncm", "gaussian", *expected]


def test_one_draw_has_no_mean() -> None:
    assert [*compared({"local": Known()}, draws=1)][2:] == ["local", "finetune-random"]


def test_weights_that_are_looked_up_stand_last_and_are_right_where_training_tasks_had_the_same_classes() -> None:
    """Each training task's weights are those that get all images of its classes right."""
    rows_and_points = DATA.__class__(**vars(DATA) | {"split": np.zeros_like(DATA.split)}), 10 * POINTS.features
    classes = torch.tensor([*permutations(range(CLASSES), WAY)][::7])
    theta = torch.cat([torch.eye(CLASSES)[classes].flatten(1), torch.zeros(len(classes), WAY)], dim=1)
    ends = PathEnds(theta, classes, spread=1.0)
    tasks = make_training_tasks(ends, {"local": Known()}, rows_and_points[1], rows_and_points[0])
    found = compared({"local": Known()}, tasks)
    names = ["nearest-weights", "nearest-weights-mean", "average-weights", "noisy-weights"]
    assert [*found][-5:] == ["finetune-random-mean", *names]
    assert all(of_weights(name) for name in names)
    assert found["nearest-weights-mean"][""].scores(Pictures(rows_and_points[1]), DRAWN)[""].shape[0] == 3
    for name, about in (("nearest-weights", ""), ("average-weights", "8 neighbours"), ("noisy-weights", "noise 0.1")):
        scores = found[name][about].scores(Pictures(rows_and_points[1]), DRAWN)[""]
        assert (scores[0].argmax(-1) == targets(DRAWN)).all()
    assert make_training_tasks(None, {"local": Known()}, *rows_and_points[::-1]) is None
    assert make_training_tasks(ends, {}, *rows_and_points[::-1]) is None


@pytest.mark.parametrize(("turn", "accuracy"), [(0, 1.0), (1, 0.0)])
def test_the_accuracy_of_known_weights_is_known(turn: int, accuracy: float) -> None:
    found = candidates(local=Known(turn=turn))["local"]
    choice, seen = choose(found, POINTS, {2: DRAWN})
    assert (choice.candidate, choice.view) == ("", "")
    rows, _ = judge(seen[2], targets(DRAWN), temperature=choice.temperature[2])
    assert (rows["correct"] == accuracy * WAY * 4).all()
    assert len(rows) == len(DRAWN.query_EWQ)


def test_a_score_is_what_the_temperature_of_ten_makes_the_logits_of() -> None:
    theta = Known().weights(POINTS[DRAWN.support_EWS], gaussian_noise(torch.Generator()))
    logits = Known().logits(theta, POINTS[DRAWN.query_EWQ.reshape(len(theta), -1)])
    scores = candidates(local=Known())["local"][""].scores(POINTS, DRAWN)[""]
    assert scores.shape == (1, *logits.shape)
    torch.testing.assert_close(log_probabilities(scores, 10.0), logits.double().log_softmax(-1), atol=1e-6, rtol=0)


def test_draws_are_averaged_as_probabilities() -> None:
    found = candidates()
    scores = found["local-mean"][""].scores(POINTS, DRAWN)[""]
    assert scores.shape[0] == 3
    assert torch.equal(scores[:1], found["local"][""].scores(POINTS, DRAWN)[""])
    support, query = POINTS[DRAWN.support_EWS], POINTS[DRAWN.query_EWQ.reshape(len(DRAWN.query_EWQ), -1)]
    probabilities = []
    for draw in range(3):
        parts = []
        for batch in range(2):
            here = slice(batch * BATCH, (batch + 1) * BATCH)
            theta = Known(spread=0.3).weights(support[here], gaussian_noise(torch_stream(0, "draw", draw, batch)))
            parts.append(Known().logits(theta, query[here]).double().softmax(-1))
        probabilities.append(torch.cat(parts))
    assert not torch.allclose(probabilities[0], probabilities[1])
    torch.testing.assert_close(log_probabilities(scores, 10.0).exp(), torch.stack(probabilities).mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "steps"), [("reptile", 2), ("finetune-reptile", 40)])
def test_it_is_fine_tuned_from_the_start_of_reptile(name: str, steps: int) -> None:
    found = candidates()[name][f"lr 0.3, {steps} steps"].adapt(POINTS, DRAWN)
    start = torch.linspace(-1, 1, LINEAR.size).expand(len(DRAWN.support_EWS), -1)
    expected = finetune(LINEAR, Inputs(), POINTS[DRAWN.support_EWS], start, Course(lr=0.3, steps=steps))
    torch.testing.assert_close(found, expected[None])


def networks(*, turned: bool) -> WeightGenerator:
    """Of differences to a base that is 0.1 everywhere, with a map that leaves no slope as it is."""
    learner = Network("conv", WAY, 28, 1, 2)
    scale = WeightScale(torch.full((learner.size,), 0.1), torch.ones(learner.size))
    facts = NETWORK | {"model": "local", "learner": asdict(learner), "turned": turned}
    pixels = Inputs(mean_Q=torch.zeros(28 * 28), deviation_Q=torch.ones(28 * 28))
    made = WeightGenerator(build_weights(facts, scale), pixels, scale, 0.5)
    for name, parameter in made.method.net.named_parameters():
        if name.startswith("turns"):
            nn.init.normal_(parameter, generator=torch_stream(0, "map"))
    return made


def test_it_is_fine_tuned_along_the_map_that_local_has_learnt() -> None:
    generator, sgd = networks(turned=True), {"finetune_sgd_lrs": (0.5,), "finetune_steps": (2,), "draws": 1}
    found = dict(weight_classifiers(SimpleNamespace(**SECTION | sgd), {"local": generator}))
    assert [*found] == ["local", "finetune-turned", "finetune-random"]
    assert [*found["finetune-turned"]] == ["sgd, lr 0.5, 2 steps"]  # the map is of no use to Adam
    drawn, shown = draw_episodes(DATA, "test", way=WAY, shot=2, query=4, episodes=3, seed=0), torch.from_numpy(DATA.label).long()
    pictures = Pictures(POINTS.features, torch.randn(CLASSES, 28 * 28, generator=torch_stream(0, "images"))[shown])
    theta = found["finetune-turned"]["sgd, lr 0.5, 2 steps"].adapt(pictures, drawn)[0]
    support = pictures[torch.from_numpy(drawn.support_EWS).long()]
    seen, want = OnSupport(generator.learner, generator.inputs.seen(support)), generator.scale.shift_P.expand(3, -1)
    for _ in range(2):
        want = want - 0.5 * generator.method.net.turned(seen.gradient(want)).detach()
    torch.testing.assert_close(theta, want)
    assert "finetune-turned" not in dict(weight_classifiers(SimpleNamespace(**SECTION | sgd), {"local": networks(turned=False)}))
    assert of_weights("finetune-turned")


def test_random_starts_are_the_tasks_own_and_the_same_in_every_run() -> None:
    one, two = (candidates()["finetune-random"]["lr 0.01, 1 steps"].adapt(POINTS, DRAWN) for _ in range(2))
    assert torch.equal(one, two)
    starts_of, support = random_starts(Known(), SimpleNamespace(**SECTION)), POINTS[DRAWN.support_EWS[:200]]
    starts = torch.cat([starts_of(support, batch)[0] for batch in range(2)])
    assert len(starts.unique(dim=0)) == 400
    assert torch.equal(starts_of(support[:7], 1)[0], starts[200:207])
    assert float(starts.std()) == pytest.approx(Known().start_std, rel=0.05)
    assert 0 < float((one[0, :200] - starts[:200]).abs().max()) < 0.011  # what a step of Adam moves


def test_several_random_starts_are_fine_tuned_each_by_itself_and_the_first_is_that_of_one() -> None:
    one, several = (candidates()[name]["lr 0.3, 40 steps"].adapt(POINTS, DRAWN) for name in TUNED_FROM_RANDOM)
    assert len(several) == 3
    torch.testing.assert_close(several[:1], one)
    assert (several[1] - several[0]).abs().max() > 0.1


def test_enough_steps_learn_the_support_and_validation_prefers_them() -> None:
    choice, seen = choose(candidates()["finetune-random"], POINTS, {2: DRAWN})
    assert choice.candidate == "lr 0.3, 40 steps"
    rows, _ = judge(seen[2], targets(DRAWN), temperature=choice.temperature[2])
    assert (rows["correct"] == WAY * 4).all()


def test_weights_of_another_number_of_classes_are_refused() -> None:
    other = Known(learner=Learner("linear", way=3, dim=CLASSES, scale=1.0))
    with pytest.raises(ParamsError, match=r"^evaluate\.way: must be collect\.way 3, for which ocd generates weights, got 5$"):
        candidates(ocd=other)


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_generated_weights_that_diverged_are_refused(value: float) -> None:
    diverged = OfWeights(lambda support, _batch: torch.full((1, len(support), LINEAR.size), value), Known().logits)
    with pytest.raises(NumericError, match="generated weights are not finite: the sampler diverged"):
        diverged.scores(POINTS, DRAWN)


def test_a_batch_of_queries_meets_its_own_weights() -> None:
    """The episodes after the first batch are scored like the same episodes alone."""
    whole = candidates(local=Known())["local"][""].scores(POINTS, DRAWN)[""]
    rest = type(DRAWN)(*(part[BATCH:] for part in vars(DRAWN).values()))
    np.testing.assert_array_equal(whole[:, BATCH:], candidates(local=Known())["local"][""].scores(POINTS, rest)[""])
