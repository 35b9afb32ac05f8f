"""Meta-training: it learns, resumes bit for bit, moves its average, leaves global generators alone, and stops in time."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.conditioning import BaseTasks
from metadiff.diffusion import gaussian_noise
from metadiff.errors import CorruptArtifactError, NumericError
from metadiff.generator import Generator, dump, undump
from metadiff.metatraining import MetaTraining, pace_of, rows_lesson
from metadiff.methods import SAMPLERS, Sampling
from metadiff.methods.metadiff import MODELS, MetaDiff, build
from metadiff.params import load
from metadiff.rowmodels import row_subject
from metadiff.rows import Rows
from stages.imports import ROOT

D, CLASSES, IMAGES = 8, 20, 15
FACTS = {
    "feature_size": D,
    "seed": 0,
    "hidden": 32,
    "dropout": 0.1,
    "joint": False,
    "sum_over_shots": False,
    "schedule": "linear",
    "times": 100,
}
PLAIN = {
    "way": 5,
    "shots": (1, 3),
    "batch": 16,
    "steps": 60,
    "val_every": 20,
    "lr": 0.003,
    "weight_decay": 0.01,
    "ema": 0.9,
    "bf16": False,
    "compile": False,
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="checks of meta-training on a GPU skipped: no CUDA device")


def data() -> tuple[torch.Tensor, Rows]:
    """Class means vary in the first half of the features, images about them in the second: a correction pays."""
    generator = torch.Generator().manual_seed(0)
    wide, narrow = torch.full((D // 2,), 1.0), torch.full((D // 2,), 0.1)
    means = torch.randn(CLASSES, D, generator=generator) * torch.cat([wide, narrow])
    label = np.repeat(np.arange(CLASSES), IMAGES).astype(np.int32)
    noise = torch.randn(len(label), D, generator=generator) * torch.cat([narrow, 2 * wide])
    names = np.array([f"{i}".encode() for i in range(CLASSES)])
    rows = Rows(
        label=label,
        split=np.zeros(len(label), np.uint8),
        group=np.arange(len(label), dtype=np.int32),
        source=np.zeros(len(label), "S1"),
        classes=names,
        dataset="d",
    )
    return means[torch.from_numpy(label).long()] + noise, rows


TASKS = BaseTasks(*data())
BATCH = TASKS.draw(torch.Generator().manual_seed(9), tasks=64, way=5, shots=(1,))


def error(method: MetaDiff) -> float:
    """Of the generated rows, on tasks that are always the same."""
    noise = gaussian_noise(torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = method.sample(BATCH.condition, Sampling("ddim", 10), noise)
    return float((found - BATCH.target_BWD).square().mean())


def training(model: str = "task", *, seed: int = 0, **changes: object) -> MetaTraining:
    facts = FACTS | {"model": model} | {key: changes.pop(key) for key in list(changes) if key in FACTS}
    settings: Any = SimpleNamespace(**PLAIN | changes)
    lesson = rows_lesson(settings, TASKS, lambda method: -error(method))
    return MetaTraining(pace_of(settings), build(facts), lesson, seed=seed)


def run(one: MetaTraining) -> MetaTraining:
    while not one.finished:
        one.run()
    return one


def same(one: MetaTraining, two: MetaTraining) -> bool:
    (a, facts_a), (b, facts_b) = one.state(), two.state()
    return facts_a == facts_b and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("model", ["task", "regression"])
def test_it_learns_more_than_the_support_mean_knows(model: str) -> None:
    before = float((BATCH.condition.mean_BWD - BATCH.target_BWD).square().mean())
    trained = run(training(model, steps=400, val_every=100))
    assert -trained.best_score < 0.3 * before


def test_the_gradient_denoiser_learns_to_predict_noise() -> None:
    trained = run(training("gradient", steps=400, val_every=100))
    losses = [row["loss"] for row in trained.history]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(model: str, tmp_path: Path) -> None:
    whole, first, second = run(training(model)), training(model), training(model)
    first.run()
    save_checkpoint(tmp_path / "state", *first.state())
    torch.randn(7)
    second.restore(*load_checkpoint(tmp_path / "state"))
    assert second.step == 20
    assert same(run(second), whole)
    json.dumps(whole.state()[1], allow_nan=False)


def test_global_generators_are_left_alone() -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = run(training())
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()
    assert same(one, run(training()))
    assert not same(one, run(training(seed=1)))


def test_the_average_moves_and_lags_behind() -> None:
    """The reference never updates its average, and evaluates it."""
    one = training(ema=0.5, steps=1000, val_every=1)
    start = {name: value.clone() for name, value in one.average.items()}
    expected = {name: value.double() for name, value in start.items()}
    for step in range(1, 6):
        one.run()
        decay = min(0.5, step / (step + 10))
        for name, value in one.method.net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in one.average.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(one.average[name], start[name]) for name in start)


def test_the_best_judgement_is_kept_with_both_kinds_of_weights() -> None:
    one, scores = training(steps=80), iter([1.0, 5.0, 2.0, 9.0, 3.0, 7.0, 0.0, 6.0])  # raw, then average, at each judgement
    one.lesson = replace(one.lesson, score=lambda _method: next(scores))
    one.run()
    one.run()
    raw = {name: value.clone() for name, value in one.method.net.state_dict().items()}
    average = {name: value.clone() for name, value in one.average.items()}
    run(one)
    assert (one.best_step, one.best_score) == (40, 9.0)
    assert all(torch.equal(one.best["raw"][name], raw[name]) for name in raw)
    assert all(torch.equal(one.best["average"][name], average[name]) for name in average)


@pytest.mark.parametrize(("slack", "step"), [(0.5, 40), (1.0, 60), (2.0, 60), (3.0, 80)])
def test_the_last_weights_are_kept_that_are_hardly_worse_than_the_best(slack: float, step: int) -> None:
    one, scores = training(steps=80), iter([1.0, 5.0, 2.0, 9.0, 3.0, 8.0, 0.0, 6.0])  # raw, then average, at each judgement
    one.lesson, one.pace = replace(one.lesson, score=lambda _method: next(scores)), replace(one.pace, slack=slack)
    kept = {}
    while not one.finished:
        one.run()
        kept[one.step] = {name: value.clone() for name, value in one.average.items()}
    assert (one.best_step, one.best_score) == (step, {40: 9.0, 60: 8.0, 80: 6.0}[step])
    assert all(torch.equal(one.best["average"][name], value) for name, value in kept[step].items())


def test_judging_leaves_the_weights_as_they_were() -> None:
    judged, never = training(), training()
    judged.run()
    for step in range(1, 21):
        never._step(step)
    weights = never.method.net.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in judged.method.net.state_dict().items())


def test_a_loss_that_is_no_number_stops_before_the_weights_change() -> None:
    one = training()
    one.run()
    before = {name: value.clone() for name, value in one.method.net.state_dict().items()}
    one.method.loss = lambda batch, generator: MetaDiff.loss(one.method, batch, generator) * math.inf  # type: ignore[method-assign]
    with pytest.raises(NumericError, match=r"step 21, lr .*loss inf.*gradient of.*lower metatrain\.lr"):
        one.run()
    assert all(torch.equal(value, before[name]) for name, value in one.method.net.state_dict().items())


def test_the_learning_rate_rises_and_falls() -> None:
    one = training(steps=1000)
    rates = [one._lr(step) for step in range(1, 1001)]
    assert rates[0] == pytest.approx(0.003 / 100)
    assert max(rates) == rates[99]
    assert rates[-1] < 1e-6
    assert rates[499] == pytest.approx(0.0015, rel=0.01)


def test_a_state_of_another_network_is_refused() -> None:
    one = training(hidden=16)
    one.run()
    with pytest.raises(CorruptArtifactError, match="of another training"):
        training().restore(*one.state())


@pytest.mark.parametrize("model", MODELS)
def test_a_generator_comes_back_from_its_checkpoint(model: str, tmp_path: Path) -> None:
    one = run(training(model))
    facts = FACTS | {"model": model}
    save_checkpoint(tmp_path / "g", dump(one.best, TASKS.scales), facts)
    tensors, found = load_checkpoint(tmp_path / "g")
    assert found == facts
    support, sampling = data()[0][:30].view(2, 5, 3, D), Sampling("ddim", 5)
    one.method.net.load_state_dict(one.best["average"])
    noise = [gaussian_noise(torch.Generator().manual_seed(0)) for _ in range(4)]
    with torch.no_grad():
        expected = Generator(one.method, TASKS.scales).rows(support, sampling, noise[0])
        assert torch.equal(undump(tensors, found, kind="average").rows(support, sampling, noise[1]), expected)
        assert not torch.equal(undump(tensors, found, kind="raw").rows(support, sampling, noise[2]), expected)
        untrained = undump(tensors, found, kind="untrained").rows(support, sampling, noise[3])
    if model != "gradient":
        torch.testing.assert_close(untrained, support.mean(2), rtol=1e-4, atol=1e-4)
    with pytest.raises(CorruptArtifactError, match="run metatrain again"):
        undump(tensors, found | {"feature_size": D + 1}, kind="raw")


def test_a_posterior_comes_back_too_and_is_what_an_untrained_generator_gives(tmp_path: Path) -> None:
    features, rows = data()
    gaussian = GaussianPosterior(features, rows)
    one = run(training("task"))
    save_checkpoint(tmp_path / "g", dump(one.best, TASKS.scales, gaussian.settled(ridge=0.5)), FACTS | {"model": "task"})
    support = features[:30].view(2, 5, 3, D)
    with torch.no_grad():
        noise = gaussian_noise(torch.Generator().manual_seed(0))
        found = undump(*load_checkpoint(tmp_path / "g"), kind="untrained").rows(support, Sampling("ddim", 5), noise)
    torch.testing.assert_close(found, gaussian.rows(support, ridge=0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 20.0])
def test_a_generator_in_a_view_is_one_of_the_features_that_are_seen(guidance: float, tmp_path: Path) -> None:
    """Its rows have with features as they are, both seen so, the angles that the other's rows have with what is seen."""
    features, rows = data()
    view = GaussianPosterior(features, rows).whitened(ridge=0.3)
    seen = view.of(features)
    tasks = BaseTasks(seen, rows)
    posterior = GaussianPosterior(seen, rows).settled(ridge=0.5)
    one = run(training("task"))
    save_checkpoint(tmp_path / "g", dump(one.best, tasks.scales, posterior, view), FACTS | {"model": "task"})
    found = undump(*load_checkpoint(tmp_path / "g"), kind="average")
    one.method.net.load_state_dict(one.best["average"])
    noises = [gaussian_noise(torch.Generator().manual_seed(0)) for _ in range(2)]
    with torch.no_grad():
        sampling = Sampling("ddim", 5)
        mapped = found.rows(features[:30].view(2, 5, 3, D), sampling, noises[0], guidance=guidance)
        expected = Generator(one.method, tasks.scales, posterior).rows(
            seen[:30].view(2, 5, 3, D), sampling, noises[1], guidance=guidance
        )
    torch.testing.assert_close(view.of(mapped), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("correct", ["means", "posterior"])
def test_task_and_regression_learn_in_whitened_units_and_the_network_of_the_reference_does_not(correct: str) -> None:
    features, rows = data()
    rows = replace(rows, split=np.repeat(np.arange(CLASSES) % 2, IMAGES).astype(np.uint8))
    sizes = {"hidden": 16, "steps": 2, "batch": 4, "val_query": 4, "val_episodes": 5}
    section = load(ROOT / "params.yaml").metatrain.model_copy(update=sizes | {"whitened": 0.3, "correct": correct})
    view = GaussianPosterior(features, rows).whitened(ridge=0.3)
    for model, whitened in (("task", True), ("regression", True), ("gradient", False)):
        found = row_subject(section, model=model, features_ND=features, data=rows, ends=None, seed=0)
        found.training.run()
        tensors = found.tensors()
        assert ("view/basis_DE" in tensors) is whitened
        base = BaseTasks(view.of(features) if whitened else features, rows, spread=section.spread)
        torch.testing.assert_close(tensors["scale/weights/deviation"], base.scales.weights.deviation)
        if whitened:
            torch.testing.assert_close(tensors["view/basis_DE"], view.basis_DE)
        if whitened and correct == "posterior":
            expected = GaussianPosterior(base.features_ND, rows).settled(ridge=section.ridge)
            torch.testing.assert_close(tensors["posterior/within_DD"], expected.within_DD)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_ends_near_the_target(sampler: str) -> None:
    trained = run(training(steps=400, val_every=400)).method
    noise = gaussian_noise(torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = trained.sample(BATCH.condition, Sampling(sampler, 20), noise)
    before = float((BATCH.condition.mean_BWD - BATCH.target_BWD).square().mean())
    assert float((found - BATCH.target_BWD).square().mean()) < 0.5 * before


def test_draws_differ_by_their_noise_and_the_control_does_not_draw() -> None:
    for model, differ in (("task", True), ("regression", False)):
        method = run(training(model)).method
        with torch.no_grad():
            one, two = (
                method.sample(BATCH.condition, Sampling("ddim", 5), gaussian_noise(torch.Generator().manual_seed(seed)))
                for seed in (0, 1)
            )
        assert bool((one != two).any()) is differ


def test_guidance_lowers_the_loss_of_the_support() -> None:
    generator = Generator(run(training()).method, TASKS.scales)
    support = data()[0][:150].view(2, 5, 15, D)[:, :, :3]

    def loss(guidance: float) -> float:
        with torch.no_grad():
            noise = gaussian_noise(torch.Generator().manual_seed(0))
            rows = generator.rows(support, Sampling("ddim", 5), noise, guidance=guidance)
        unit = torch.nn.functional.normalize
        logits = 10 * unit(support.flatten(1, 2), dim=-1) @ unit(rows, dim=-1).transpose(1, 2)
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(5).repeat_interleave(3).repeat(2)))

    assert loss(3.0) < loss(1.0) < loss(0.0)


@pytest.mark.gpu
@needs_cuda
def test_cpu_and_gpu_agree() -> None:
    features, rows = data()
    facts = FACTS | {"model": "task"}
    ends = []
    for device in ("cpu", "cuda"):
        settings: Any = SimpleNamespace(**PLAIN)
        tasks = BaseTasks(features.to(device), rows)
        one = MetaTraining(pace_of(settings), build(facts, device=device), rows_lesson(settings, tasks, lambda _m: 0.0), seed=0)
        ends.append({name: value.cpu() for name, value in run(one).method.net.state_dict().items()})
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4)
