"""Mc-Di: it learns a task whose optima are many, its copies are those of a loop, and the published rates do not train it."""

from dataclasses import asdict, replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from metadiff.consistency import add_noise, ddim, mean_steps
from metadiff.denoiser import Condition
from metadiff.diffusion import gaussian_noise
from metadiff.learner import BaseLearner, Learner, Perceptron
from metadiff.metatraining import Lesson, MetaTraining, Pace, Subject, backward
from metadiff.methods.mcdi import WEIGHT_MODELS, McDi, build_weights
from metadiff.network import Network
from metadiff.params import WeightModel
from metadiff.paths import PathBatch, WeightScale
from metadiff.reptile import Reptile
from metadiff.rng import torch_stream

WAY, DIM, HIDDEN = 3, 8, 4
LEARNER = Perceptron("mlp", WAY, DIM, HIDDEN)
FACTS: dict[str, Any] = {
    "learner": asdict(LEARNER),
    "hidden": 16,
    "layers": 1,
    "segments": 3,
    "window": "disjoint",
    "schedule": "gentle",
    "times": 12,
    "sampler": "ddim",
    "weighted": True,
    "seed": 0,
}
NETWORK = Network("conv", WAY, 28, 1, 3)
PLAIN = WeightScale(torch.zeros(LEARNER.size), torch.ones(LEARNER.size))


def batch(size: int = 6, seed: int = 1, learner: BaseLearner = LEARNER) -> PathBatch:
    generator = torch.Generator().manual_seed(seed)
    path_BKP = torch.randn(size, 3, learner.size, generator=generator)
    told = Condition(torch.randn(size, WAY, DIM, generator=generator), torch.full((1,), 5.0))
    if isinstance(learner, Network):
        told = replace(told, support_BWSE=torch.randn(size, WAY, 2, learner.side**2, generator=generator))
    return PathBatch(path_BKP, told)


def doubled(told: Condition) -> Condition:
    return Condition(*(part if part is None else part.double() for part in vars(told).values()))


def precise(tasks: PathBatch) -> PathBatch:
    return PathBatch(tasks.path_BKP.double(), doubled(tasks.condition))


def method(model: str = "local", *, double: bool = False, learner: BaseLearner = LEARNER, **changes: object) -> McDi:
    scale = PLAIN if learner is LEARNER else WeightScale(torch.zeros(learner.size), torch.full((learner.size,), 0.3))
    made = build_weights(FACTS | {"model": model, "learner": asdict(learner)} | changes, scale)
    if double:
        made.net.double()
    return made


def slopes(of: McDi) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in of.net.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    ("model", "inner", "literal", "learner"),
    [
        ("local", "sgd", True, LEARNER),
        ("local", "adam", False, LEARNER),
        ("vanilla", "adam", True, LEARNER),
        ("naive", "sgd", False, LEARNER),
        ("local", "adam", False, NETWORK),
    ],
)
def test_copies_in_one_program_are_those_of_a_loop(model: str, inner: str, literal: bool, learner: BaseLearner) -> None:
    """Each copy alone, by torch's optimiser, from the same draws."""
    tasks, steps, rate = precise(batch(learner=learner)), 3, 0.01
    together = method(model, double=True, learner=learner)
    Reptile(inner, rate, steps, literal=literal).slope(together, tasks, torch_stream(0, "noise"))
    generator = torch_stream(0, "noise")
    target_B = together.chain.draw(6, generator)[0]
    draws = [together.samples(tasks, generator, target_B=target_B) for _ in range(steps)]
    ends = []
    for number in range(6):
        copy = method(model, double=True, learner=learner)
        optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[inner](copy.net.parameters(), lr=rate)
        for drawn in draws:
            own = {name: value[number : number + 1] for name, value in vars(drawn).items() if name != "condition"}
            shown = drawn.condition.support_BWSE
            told = Condition(drawn.condition.mean_BWD[number : number + 1], drawn.condition.shots_B)
            told = told if shown is None else replace(told, support_BWSE=shown[number : number + 1])
            optimizer.zero_grad()
            copy.errors(replace(drawn, **own, condition=told)).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        ends.append(dict(copy.net.named_parameters()))
    scale = 1.0 if literal else 1 / (rate * steps)
    for name, begun in method(model, double=True, learner=learner).net.named_parameters():
        want = scale * (begun - torch.stack([end[name] for end in ends]).mean(0))
        torch.testing.assert_close(slopes(together)[name], want.detach())


@pytest.mark.parametrize("learner", [LEARNER, NETWORK], ids=["mlp", "conv"])
@torch.no_grad()
def test_the_control_knows_the_support_and_no_noise(learner: BaseLearner) -> None:
    control, told, other = method("weights-regression", learner=learner), *(batch(3, seed, learner).condition for seed in (1, 2))
    first, again = (control.sample(told, gaussian_noise(torch_stream(seed, "noise"))) for seed in (0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, control.sample(other, gaussian_noise(torch_stream(0, "noise"))), rtol=1e-3)
    assert not torch.allclose(first[0], first[1], rtol=1e-3)


@pytest.mark.parametrize("learner", [LEARNER, NETWORK], ids=["mlp", "conv"])
@torch.no_grad()
def test_the_control_of_differences_begins_with_the_base_and_gives_what_is_to_be_added(learner: BaseLearner) -> None:
    base_P = torch.randn(learner.size, generator=torch.Generator().manual_seed(3))
    scale, told = WeightScale(base_P, torch.full_like(base_P, 0.5)), batch(3, 1, learner).condition
    control = build_weights(FACTS | {"model": "weights-regression", "learner": asdict(learner)}, scale)
    found_BP = control.sample(told, gaussian_noise(torch_stream(0, "noise")))
    want_BP = control.net(scale.base_P.expand_as(found_BP), torch.zeros(1), told) - scale.base_P
    assert torch.equal(found_BP, want_BP)


def test_with_one_inner_step_the_copies_make_the_step_of_their_mean_loss() -> None:
    tasks, short, general = batch(), method(), method()
    loss = Reptile("sgd", 0.5, 1, literal=False).slope(short, tasks, torch_stream(0, "noise"))
    drawn = general.samples(tasks, torch_stream(0, "noise"))
    general.errors(drawn).mean().backward()  # type: ignore[no-untyped-call]
    assert loss == general.errors(drawn).mean()
    for name, slope in slopes(general).items():
        torch.testing.assert_close(slopes(short)[name], slope)


def test_the_loss_is_that_of_the_paper_with_parts_that_count_the_same() -> None:
    """Of vanilla: (1 - abar) |f - eps|^2, the mean over a part, then over parts."""
    one, tasks = method("vanilla"), batch()
    drawn = one.samples(tasks, torch_stream(0, "noise"))
    assert set(drawn.target_B.tolist()) == {2}
    abar_B = one.chain.abar_KT[-1, drawn.t_B].float()
    theta_BP = add_noise(one.chain, tasks.path_BKP[:, 2], drawn.eps_BP, drawn.target_B, drawn.t_B)
    torch.testing.assert_close(theta_BP, drawn.theta_BP)
    f_BP = one.f(theta_BP, drawn.t_B, drawn.condition)
    squares_BP = (1 - abar_B)[:, None] * (f_BP - drawn.eps_BP).square()
    sizes = [HIDDEN * DIM, HIDDEN, HIDDEN * WAY, WAY]
    want_B = torch.stack([part.mean(1) for part in squares_BP.split(sizes, dim=1)]).mean(0)
    torch.testing.assert_close(one.errors(drawn), want_B, rtol=1e-4, atol=1e-6)


def test_without_weights_the_loss_is_that_of_the_estimate() -> None:
    one, tasks = method("local", weighted=False), batch()
    drawn = one.samples(tasks, torch_stream(0, "noise"))
    estimate_BP = one.net(drawn.theta_BP, drawn.t_B / 12, drawn.condition)
    squares_BP = (estimate_BP - tasks.path_BKP[torch.arange(6), drawn.target_B]).square()
    sizes = [HIDDEN * DIM, HIDDEN, HIDDEN * WAY, WAY]
    want_B = torch.stack([part.mean(1) for part in squares_BP.split(sizes, dim=1)]).mean(0)
    torch.testing.assert_close(one.errors(drawn), want_B)


HEADS = [LEARNER, Learner("linear", WAY, DIM, 1.0), Learner("cosine", WAY, DIM, 10.0)]


@pytest.mark.parametrize("sampler", ["ddim", "mean-step"])
@pytest.mark.parametrize("model", ["local", "ocd"])
@pytest.mark.parametrize("learner", HEADS, ids=lambda learner: learner.kind)
def test_a_chain_in_the_frame_of_its_start_is_that_of_whole_weights(learner: BaseLearner, model: str, sampler: str) -> None:
    """Step by step, by a network of any weights, with a base or none."""
    stream = torch.Generator().manual_seed(5)
    base_P, start = (torch.randn(*size, learner.size, generator=stream, dtype=torch.float64) for size in ((), (6,)))
    scale = WeightScale(base_P if model == "ocd" else 0 * base_P, torch.ones_like(base_P))
    one = build_weights(FACTS | {"model": model, "sampler": sampler, "learner": asdict(learner)}, scale)
    one.net.double()
    states: list[Tensor] = []
    condition = Condition(batch().condition.mean_BWD.double(), torch.ones(1, dtype=torch.float64))
    with torch.no_grad():
        for parameter in one.net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
        found = one.sample(condition, lambda like: start.to(like), watch=lambda _t, x: states.append(x))
        if sampler == "ddim":
            want = ddim(lambda x, t: one.estimate(x, torch.tensor([t]), condition), start, one.chain)
        else:
            want = mean_steps(lambda x, t: one.f(x, torch.tensor([t]), condition), start, one.chain)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(states[0], start)
    torch.testing.assert_close(states[-1], found)
    assert len(states) == 13


@pytest.mark.parametrize("shots", [1, 150])
@pytest.mark.parametrize("learner", HEADS, ids=lambda learner: learner.kind)
def test_many_tasks_are_drawn_in_groups_as_each_by_itself(learner: BaseLearner, shots: int) -> None:
    """Groups of 64, 64 and 22, of one number of shots for all or of one each."""
    stream = torch.Generator().manual_seed(6)
    start, mean = (torch.randn(150, *size, generator=stream, dtype=torch.float64) for size in ((learner.size,), (WAY, DIM)))
    one, shots_B = method(learner=learner, double=True), torch.randint(1, 6, (shots,), generator=stream).double()
    with torch.no_grad():
        for parameter in one.net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
        found = one.sample(Condition(mean, shots_B), lambda _: start)
        for task in (0, 63, 64, 128, 149):
            own = Condition(mean[task : task + 1], shots_B[task : task + 1] if shots > 1 else shots_B)
            alone = one.sample(own, lambda _, task=task: start[task : task + 1])  # type: ignore[misc]
            torch.testing.assert_close(found[task], alone[0], rtol=1e-9, atol=1e-9)
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_ocd_sees_its_base_and_gives_what_is_to_be_added() -> None:
    scale = WeightScale(torch.randn(LEARNER.size, generator=torch.Generator().manual_seed(3)), torch.full((LEARNER.size,), 0.5))
    ocd, plain = build_weights(FACTS | {"model": "ocd"}, scale), method("vanilla")
    seen: list[Tensor] = []
    ocd.net.register_forward_pre_hook(lambda _net, given: seen.append(given[0]))
    tasks, theta_BP = batch(), torch.randn(6, LEARNER.size, generator=torch.Generator().manual_seed(4))
    found = ocd.f(theta_BP, torch.tensor([3]), tasks.condition)
    torch.testing.assert_close(seen[0], theta_BP + scale.shift_P / 0.5)
    estimate = plain.net(seen[0], torch.tensor([3 / 12]), tasks.condition) - scale.shift_P / 0.5
    torch.testing.assert_close(found, ocd.chain.f_of(estimate, theta_BP, torch.tensor([3])))
    torch.testing.assert_close(scale.restore(scale.standardise(theta_BP)), theta_BP)


def lesson(tasks: PathBatch, reptile: Reptile) -> Lesson[McDi, PathBatch]:
    return Lesson(lambda _generator: tasks, reptile.slope, lambda _method: 0.0)


def trained(model: str, pace: Pace, reptile: Reptile) -> MetaTraining[McDi, PathBatch]:
    one = MetaTraining(pace, method(model), lesson(batch(16), reptile), seed=0)
    while not one.finished:
        one.run()
    return one


PACE = Pace(steps=200, lr=0.003, weight_decay=0.0, ema=0.0, val_every=100, rate="mcdi.lr")


def test_an_adaptive_outer_step_trains() -> None:
    one = trained("local", PACE, Reptile("sgd", 0.005, 1, literal=False))
    assert one.history[-1]["loss"] < 0.8 * one.history[0]["loss"]
    assert Subject(one, FACTS | {"model": "local"}, dict).remarks() == []


def test_the_published_rates_do_not_train_and_this_is_said() -> None:
    pace = replace(PACE, steps=30, val_every=30, lr=0.001, optimizer="sgd")
    one = trained("local", pace, Reptile("sgd", 0.005, 3, literal=True))
    assert one.moved() < 1e-3
    (line,) = Subject(one, FACTS | {"model": "local"}, dict).remarks()
    assert "local: the network has moved by 0.0" in line
    assert "it is not trained; raise mcdi.lr, which is 0.001" in line


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_training_goes_on_bit_for_bit(optimizer: str) -> None:
    pace, reptile = replace(PACE, steps=8, val_every=2, optimizer=optimizer), Reptile("sgd", 0.01, 2, literal=False)
    whole, first, second = (MetaTraining(pace, method(), lesson(batch(), reptile), seed=0) for _ in range(3))
    for _ in range(4):
        whole.run()
    for _ in range(2):
        first.run()
    second.restore(*first.state())
    for _ in range(2):
        second.run()
    (a, facts_a), (b, facts_b) = whole.state(), second.state()
    assert (facts_a, a.keys()) == (facts_b, b.keys())
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_many_optima_of_one_task_are_learnt_where_a_regression_gives_their_mean() -> None:
    """Heads that differ in the order of their units are equally good; their mean, whose units are all alike, says nothing."""
    generator = torch.Generator().manual_seed(0)
    enter_HE = 2 * torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0][:HIDDEN]
    leave_HW = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0], [0.0, 0.0, 0.0]])
    blank = torch.zeros(HIDDEN), torch.zeros(WAY)
    orders = [torch.randperm(HIDDEN, generator=generator) for _ in range(16)]
    heads_BP = torch.stack([torch.cat([enter_HE[o].flatten(), blank[0], leave_HW[o].flatten(), blank[1]]) for o in orders])
    condition = Condition(enter_HE[:WAY].expand(16, -1, -1), torch.full((1,), 5.0))
    tasks = PathBatch(heads_BP[:, None].expand(-1, 3, -1), condition)
    images_ND = torch.randn(200, DIM, generator=generator)
    want_N = LEARNER.logits(heads_BP[:1], images_ND[None]).argmax(-1)
    right = {}
    for model in ("vanilla", "weights-regression"):
        slope = backward if model == "weights-regression" else Reptile("sgd", 0.01, 1, literal=False).slope
        lessons = Lesson(lambda _generator: tasks, slope, lambda _method: 0.0)
        one: MetaTraining[Any, Any] = MetaTraining(
            replace(PACE, steps=250, val_every=250, lr=0.01), method(model), lessons, seed=0
        )
        one.run()
        with torch.no_grad():
            theta_BP = one.method.sample(condition, gaussian_noise(torch.Generator().manual_seed(5)))
        right[model] = (LEARNER.logits(theta_BP, images_ND.expand(16, -1, -1)).argmax(-1) == want_N).double().mean().item()
    assert right["vanilla"] > right["weights-regression"] + 0.2, right


def test_every_model_has_a_name() -> None:
    assert get_args(WeightModel) == WEIGHT_MODELS
