"""`metadiff chains`: the states of chains, the plane through three weights, and the command on generators in files."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch.nn.functional import cross_entropy

from metadiff.chainfigure import DRAWS, Plane, Task, Walk, chain_walks, landscape, mean_loss, optimiser_walks, task_of, window
from metadiff.chains import states
from metadiff.checkpoint import save_checkpoint
from metadiff.cli import main
from metadiff.diffusion import gaussian_noise
from metadiff.errors import NumericError
from metadiff.inputs import Inputs
from metadiff.learner import Perceptron
from metadiff.methods.mcdi import build_weights
from metadiff.network import Network
from metadiff.paths import WeightScale
from metadiff.pictures import Pictures
from metadiff.rng import torch_stream
from metadiff.store import write_features
from metadiff.weightgenerator import WeightGenerator, dump_weights
from stages.imports import ROOT
from tests.science.test_inspection import PARAMS, made
from tests.science.test_mcdi import FACTS
from tests.science.test_metatraining import data as rows_and_features

WAY, TIMES = 5, FACTS["times"]
FEATURES, ROWS = rows_and_features()
PICTURES = Pictures(FEATURES)
VALIDATION = replace(ROWS, split=np.ones_like(ROWS.split))
LEARNER = Perceptron("mlp", WAY, FEATURES.shape[1], hidden=4)
SHIFT = torch.linspace(-1, 1, LEARNER.size)


def generator(model: str = "local") -> WeightGenerator:
    facts = FACTS | {"model": model, "learner": asdict(LEARNER)}
    scale = WeightScale(SHIFT, torch.full((LEARNER.size,), 0.5))
    return WeightGenerator(build_weights(facts, scale), Inputs(), scale, 1.0)


def task(model: str = "local") -> Task:
    return task_of(generator(model), VALIDATION, PICTURES, episode=2, shot=2, query=6, seed=0)


def noise() -> torch.Generator:
    return torch_stream(7, "chains")


def test_a_task_is_the_episode_of_that_number() -> None:
    first = task_of(generator(), VALIDATION, PICTURES, episode=0, shot=2, query=6, seed=0)
    assert (first.support_WS.features.shape[:2], first.query_WQ.features.shape[:2]) == ((WAY, 2), (WAY, 6))
    assert not torch.equal(first.support_WS.features, task().support_WS.features)
    assert torch.equal(task().support_WS.features, task().support_WS.features)


@torch.no_grad()
def test_states_begin_with_noise_and_end_with_what_is_generated() -> None:
    support_EWS = task().support_WS.expand(3)
    found_TEP = states(generator(), support_EWS, gaussian_noise(noise()))
    assert found_TEP.shape == (TIMES + 1, 3, LEARNER.size)
    start_EP = 0.5 * torch.randn(3, LEARNER.size, generator=noise()) + SHIFT
    torch.testing.assert_close(found_TEP[0], start_EP)
    torch.testing.assert_close(found_TEP[-1], generator().weights(support_EWS, gaussian_noise(noise())))


@pytest.mark.parametrize(("model", "ends"), [("local", (4, 8, 12)), ("vanilla", (12,)), ("naive", (12,))])
def test_a_segment_ends_where_the_generator_was_led_to_its_target(model: str, ends: tuple[int, ...]) -> None:
    walks = chain_walks(task(model), gaussian_noise(noise()))
    assert [walk.ends for walk in walks] == [ends] * DRAWS
    about = PARAMS | {"steps": 30}
    assert {walk.ends for walk in optimiser_walks(task(model), walks, about)} == {tuple(30 * end // 12 for end in ends)}


def test_the_optimiser_begins_with_the_noise_of_the_chain_and_lowers_the_loss_on_the_support() -> None:
    told = task()
    chains = chain_walks(told, gaussian_noise(noise()))
    walks = optimiser_walks(told, chains, PARAMS)
    for chain, walk in zip(chains, walks, strict=True):
        torch.testing.assert_close(walk.theta_TP[0], chain.theta_TP[0], atol=1e-5, rtol=1e-5)
        assert len(walk.theta_TP) == PARAMS["steps"] + 1  # type: ignore[operator]
    support = Task(told.generator, told.support_WS, told.support_WS)
    assert mean_loss(support, walks, -1) < 0.7 * mean_loss(support, walks, 0)


def test_networks_are_shown_pixels() -> None:
    learner, pixels_NQ = Network("conv", WAY, 28, 1, 2), torch.rand(len(FEATURES), 28 * 28, generator=noise())
    scale = WeightScale(torch.zeros(learner.size), torch.full((learner.size,), 0.3))
    inputs = Inputs(mean_Q=torch.full((28 * 28,), 0.5), deviation_Q=torch.full((28 * 28,), 0.3))
    facts = FACTS | {"model": "local", "learner": asdict(learner)}
    made = WeightGenerator(build_weights(facts, scale), inputs, scale, 1.0)
    told = task_of(made, VALIDATION, Pictures(FEATURES, pixels_NQ), episode=2, shot=2, query=6, seed=0)
    chains = chain_walks(told, gaussian_noise(noise()))
    walks = optimiser_walks(told, chains, PARAMS | {"lr": 0.01})
    support = Task(made, told.support_WS, told.support_WS)
    assert mean_loss(support, walks, -1) < 0.95 * mean_loss(support, walks, 0)
    hand = learner.logits(scale.restore(walks[0].theta_TP[-1:]), inputs.seen(told.query_WQ).flatten(0, 1)[None])
    target_N = torch.arange(WAY).repeat_interleave(6)
    assert mean_loss(told, walks[:1], -1) == pytest.approx(float(cross_entropy(hand[0], target_N)), rel=1e-5)


def test_three_weights_lie_in_their_plane_and_others_above_it() -> None:
    three_3P = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    plane = Plane.through(*three_3P)
    places_32 = plane.places(three_3P)
    torch.testing.assert_close(plane.weights(places_32), three_3P)
    torch.testing.assert_close(torch.pdist(places_32), torch.pdist(three_3P))
    assert places_32[0].tolist() == [0, 0]
    assert places_32[1, 1] == pytest.approx(0, abs=1e-5)
    assert places_32[1, 0] > 0
    assert places_32[2, 1] > 0
    assert not torch.allclose(plane.weights(plane.places(three_3P + 1)), three_3P + 1)


def test_the_landscape_is_the_loss_of_the_weights_in_the_plane() -> None:
    told = task()
    plane = Plane.through(*torch.randn(3, LEARNER.size, generator=torch.Generator().manual_seed(0)))
    loss_YX = landscape(told, plane, torch.tensor([-1.0, 2.0, 5.0]), torch.tensor([3.0, 4.0]))
    assert loss_YX.shape == (2, 3)
    theta_1P = told.generator.scale.restore(plane.weights(torch.tensor([[5.0, 3.0]])))
    logits = LEARNER.logits(theta_1P, told.query_WQ.features.flatten(0, 1)[None])[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(WAY).repeat_interleave(6))
    assert float(loss_YX[0, 2]) == pytest.approx(float(loss), rel=1e-4)


def test_the_window_is_a_square_about_all_places() -> None:
    x_X, y_Y = window(torch.tensor([[0.0, 1.0], [10.0, 2.0], [4.0, 3.0]]))
    assert float(x_X[-1] - x_X[0]) == pytest.approx(float(y_Y[-1] - y_Y[0]))
    assert (float(x_X[0]), float(x_X[-1])) == pytest.approx((-2, 12))
    assert float(y_Y[0] + y_Y[-1]) / 2 == pytest.approx(2)


def test_a_chain_that_diverges_is_said() -> None:
    broken = task()
    with torch.no_grad():
        next(broken.generator.method.net.parameters()).fill_(float("nan"))
    with pytest.raises(NumericError, match=r"weights that are not finite; train its generator with a lower mcdi\.lr"):
        chain_walks(broken, gaussian_noise(noise()))
    assert isinstance(chain_walks(task(), gaussian_noise(noise()))[0], Walk)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Generators that were not trained, features, and a store that says how paths were made."""
    monkeypatch.chdir(tmp_path)
    params = YAML().load(ROOT / "params.yaml")
    params["evaluate"]["query"] = 6
    YAML().dump(params, tmp_path / "params.yaml")
    for folder in ("backbone", "generator", "trajectories"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    write_features(tmp_path / "data/backbone/features.h5", FEATURES.numpy(), rows=VALIDATION)
    made(tmp_path / "data/trajectories/trajectories.zarr")
    for model in ("vanilla", "weights-regression"):
        found = generator(model)
        facts = FACTS | {"model": model, "start_std": 1.0, "learner": asdict(LEARNER)}
        tensors = dump_weights({"average": found.method.net.state_dict()}, found)
        save_checkpoint(tmp_path / f"data/generator/{model}.safetensors", tensors, facts)
    return tmp_path


def test_the_command_says_what_it_draws(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chains", "--episode", "2", "--shot", "3"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "vanilla on validation episode 2 of d: 5-way, 3-shot"
    assert second.startswith("cross-entropy of the queries, mean of 3 draws: noise ")
    assert third == "Picture:  plots/chains.png"
    with Image.open(checkout / "plots/chains.png") as picture:
        assert picture.width > 2 * picture.height
        assert len(np.unique(np.asarray(picture.convert("RGB").resize((110, 41))).reshape(-1, 3), axis=0)) > 100  # not blank


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ("", ["--model", "weights-regression"], "no chain of weights-regression; there are: vanilla; name it in mcdi.models"),
        ("data/generator/vanilla.safetensors", [], "data/generator: no chain of local; there are: none; name it in mcdi.models"),
        ("data/backbone/features.h5", [], "data/backbone/features.h5: missing; make it: dvc repro pretrain, or dvc pull"),
        ("data/trajectories/trajectories.zarr/zarr.json", [], "no trajectory store; make it: dvc repro collect"),
    ],
)
def test_what_is_not_there_is_one_line(
    checkout: Path, capsys: pytest.CaptureFixture[str], change: str, arguments: list[str], message: str
) -> None:
    if change:
        (checkout / change).unlink()
    assert main(["chains", *arguments]) == 65
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
