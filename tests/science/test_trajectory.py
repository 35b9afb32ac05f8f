"""Trajectories of many tasks at once are those that torch's optimisers take for each task alone."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metadiff.episodes import Episodes, draw_episodes
from metadiff.learner import Learner, Perceptron
from metadiff.objectives import OnSupport
from metadiff.trajectory import (
    NOT_FINITE,
    NOT_IMPROVED,
    Rule,
    Trajectories,
    collect_block,
    follow,
    kept_steps,
    learner_of,
    noises,
    refusals,
    starts,
)
from tests.science.test_episodes import rows
from tests.science.test_learner import CASES, DIM, HIDDEN, SHOT, TASKS, WAY, learner, noise, objective, plain_loss

KEPT = (0, 3, 7, 10)
RULES = {
    "sgd": Rule("sgd", lr=0.3, momentum=0.0, sam=0.0),
    "momentum": Rule("sgd", lr=0.1, momentum=0.9, sam=0.0),
    "adam": Rule("adam", lr=0.05, momentum=0.8, sam=0.0),
    "sam of sgd": Rule("sgd", lr=0.1, momentum=0.9, sam=0.2),
    "sam of adam": Rule("adam", lr=0.05, momentum=0.9, sam=0.2),
    "decay of sgd": Rule("sgd", lr=0.1, momentum=0.9, sam=0.0, weight_decay=0.3),
    "adamw": Rule("adam", lr=0.05, momentum=0.9, sam=0.0, weight_decay=0.3),
    "sam of adamw": Rule("adam", lr=0.05, momentum=0.9, sam=0.2, weight_decay=0.3),
}


def optimizer_of(rule: Rule, weights: list[Tensor]) -> torch.optim.Optimizer:
    """PyTorch's own; it has no SGD whose decay is decoupled."""
    if rule.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rule.lr, momentum=rule.momentum)
    return torch.optim.AdamW(weights, lr=rule.lr, betas=(rule.momentum, 0.999), weight_decay=rule.weight_decay)


def step_alone(optimizer: torch.optim.Optimizer, rule: Rule, loss: Callable[[], Tensor]) -> None:
    """A step of a single task: by autograd, for all tensors of its weights together."""
    weights = optimizer.param_groups[0]["params"]
    slopes = torch.autograd.grad(loss(), weights)
    if rule.sam:
        length = torch.cat([slope.flatten() for slope in slopes]).norm()
        with torch.no_grad():
            kept = [weight.clone() for weight in weights]
            for weight, slope in zip(weights, slopes, strict=True):
                weight += rule.sam * slope / length
        slopes = torch.autograd.grad(loss(), weights)
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
    for weight, slope in zip(weights, slopes, strict=True):
        weight.grad = slope
        if rule.optimizer == "sgd":
            weight.data *= 1 - rule.lr * rule.weight_decay
    optimizer.step()


def one_task(kind: str, sees: str, task: int, start_P: Tensor, rule: Rule) -> Tensor:
    """Weights at the kept steps, by an optimiser of the task's own."""
    theta_P = start_P.clone().requires_grad_()
    optimizer, path = optimizer_of(rule, [theta_P]), [start_P]
    for _ in range(KEPT[-1]):
        step_alone(optimizer, rule, lambda: plain_loss(kind, sees, task, theta_P))
        path.append(theta_P.detach().clone())
    return torch.stack([path[step] for step in KEPT])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("kind", "sees"), CASES)
def test_every_task_takes_the_path_of_its_own_optimiser(kind: str, sees: str, rule: Rule) -> None:
    start_TP = noise(TASKS, learner(kind).size, seed=9)
    weights_TKP, loss_TK, accuracy_TK = follow(objective(kind, sees), start_TP, rule=rule, kept=KEPT)
    for task in range(TASKS):
        torch.testing.assert_close(weights_TKP[task], one_task(kind, sees, task, start_TP[task], rule), rtol=1e-9, atol=1e-11)
    for k in range(len(KEPT)):
        for found, expected in zip((loss_TK, accuracy_TK), objective(kind, sees).measure(weights_TKP[:, k]), strict=True):
            torch.testing.assert_close(found[:, k], expected)
    assert (loss_TK[:, -1] < loss_TK[:, 0]).all()


def module_of(theta_P: Tensor) -> nn.Sequential:
    """As PyTorch has a perceptron: its second layer keeps its weights the other way round."""
    module = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WAY)).double()
    enter, leave = HIDDEN * DIM, HIDDEN * DIM + HIDDEN
    parts = (theta_P[:enter].view(HIDDEN, DIM), theta_P[enter:leave], theta_P[leave:-WAY].view(HIDDEN, WAY).T, theta_P[-WAY:])
    module.load_state_dict(dict(zip(module.state_dict(), parts, strict=True)))
    return module


@pytest.mark.parametrize("disturbed", [False, True])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_perceptron_takes_the_path_of_pytorchs_module(rule: Rule, disturbed: bool) -> None:
    """With noise, it is that of the step in both gradients of SAM, and in no measurement."""
    support_TWSD, start_TP = noise(TASKS, WAY, SHOT, DIM, seed=3), noise(TASKS, learner("mlp").size, seed=9)
    noise_at = noises(range(5, 5 + TASKS), (WAY, SHOT, DIM), std=0.3, seed=4) if disturbed else None
    of = OnSupport(learner("mlp"), support_TWSD, noise_at)
    weights_TKP, loss_TK, _ = follow(of, start_TP, rule=rule, kept=KEPT)
    target_N = torch.arange(WAY).repeat_interleave(SHOT)
    for task in range(TASKS):
        module = module_of(start_TP[task])
        optimizer = optimizer_of(rule, [*module.parameters()])
        for step in range(1, KEPT[-1] + 1):
            seen_WSD = support_TWSD[task] + (noise_at(step)[task] if noise_at else 0)
            step_alone(optimizer, rule, lambda: cross_entropy(module(seen_WSD.flatten(0, 1)), target_N))  # noqa: B023 - called now
        enter_HD, shift_H, leave_WH, shift_W = (weight.detach() for weight in module.parameters())
        end_P = torch.cat([enter_HD.flatten(), shift_H, leave_WH.T.flatten(), shift_W])
        torch.testing.assert_close(weights_TKP[task, -1], end_P, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(loss_TK[task, -1], cross_entropy(module(support_TWSD[task].flatten(0, 1)), target_N).detach())


def test_noise_is_a_function_of_seed_task_and_step_and_has_its_deviation() -> None:
    shape = (3, 20, 50)
    whole, part = (noises(numbers, shape, std=0.3, seed=1) for numbers in (range(8), range(5, 7)))
    assert torch.equal(whole(4)[5:7], part(4))
    assert float(whole(4).std()) == pytest.approx(0.3, rel=0.02)
    other = noises(range(8), shape, std=0.3, seed=2)
    drawn = [whole(4)[0], whole(4)[1], whole(5)[0], other(4)[0]]
    correlation = torch.corrcoef(torch.stack([one.flatten() for one in drawn])) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.1


@pytest.mark.parametrize(
    ("steps", "keep", "kept"), [(100, 5, (0, 25, 50, 75, 100)), (3, 4, (0, 1, 2, 3)), (10, 4, (0, 3, 6, 10)), (7, 2, (0, 7))]
)
def test_kept_steps_are_equidistant_from_start_to_end(steps: int, keep: int, kept: tuple[int, ...]) -> None:
    assert kept_steps(steps, keep) == kept


def test_a_start_is_a_function_of_seed_and_number_and_has_its_spread() -> None:
    wide = Learner("cosine", 5, 100, scale=10.0)
    many = starts(range(40), wide, std=0.3, seed=1)
    assert torch.equal(starts(range(7, 9), wide, std=0.3, seed=1), many[7:9])
    assert not torch.equal(starts(range(40), wide, std=0.3, seed=2), many)
    assert float(many.std()) == pytest.approx(0.3, rel=0.02)
    assert float(many.mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("kind", ["cosine", "mlp"])
def test_a_common_start_is_one_for_all_numbers(kind: str) -> None:
    some, own = learner(kind), starts(range(4), learner(kind), std=1.0, seed=1)
    many = starts(range(4), some, std=1.0, seed=1, common=True)
    assert many.shape == own.shape
    assert len(many.unique(dim=0)) == 1
    assert len(own.unique(dim=0)) == 4
    assert torch.equal(starts(range(8, 9), some, std=1.0, seed=1, common=True)[0], many[0])
    assert not torch.equal(starts(range(4), some, std=1.0, seed=2, common=True), many)
    assert not (own == many).all(1).any()


SECTION = {"learner": "cosine", "scale": 10.0, "way": 3, "shot": 2, "sees": "classes", "optimizer": "sgd", "lr": 1.0}
SECTION |= {"momentum": 0.9, "sam": 0.0, "steps": 20, "keep": 3, "init_std": 0.1}
SECTION |= {"weight_decay": 0.0, "noise": 0.0, "hidden": 16, "start": "own"}
MLP = {"learner": "mlp", "sees": "support", "init_std": 1.0, "noise": 0.2, "weight_decay": 0.01}
MLP |= {"optimizer": "adam", "lr": 0.05}


def block(numbers: range, **changes: object) -> tuple[Trajectories, Episodes]:
    """Tasks over classes that lie apart, of 8 to 12 images."""
    data = rows([8, 12, 9, 10, 11], split=0)
    drawn = draw_episodes(data, "train", way=3, shot=2, query=0, episodes=len(numbers), first=numbers.start, seed=5)
    rng = np.random.default_rng(0)
    features_ND = (rng.normal(size=(5, 16))[data.label] + 0.3 * rng.normal(size=(50, 16))).astype(np.float32)
    section = SimpleNamespace(**SECTION | changes)
    learner = learner_of(section, 16, (28, 28, 1))  # type: ignore[arg-type]
    arrays = {"seen_NE": features_ND, "label_N": data.label}
    return collect_block(section, learner, numbers, drawn, **arrays, seed=5, device="cpu"), drawn  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["own", "common"])
def test_a_block_begins_where_its_section_says(start: str) -> None:
    found, _ = block(range(4, 10), **MLP, start=start)
    expected_TP = starts(range(4, 10), Perceptron("mlp", 3, 16, 16), std=1.0, seed=5, common=start == "common")
    assert (torch.from_numpy(found.weights_TKP[:, 0]) == expected_TP).all()
    assert len(torch.from_numpy(found.weights_TKP[:, -1]).unique(dim=0)) == 6


@pytest.mark.parametrize("sees", ["support", "classes"])
def test_a_block_holds_its_tasks_and_they_learn(sees: str) -> None:
    found, drawn = block(range(4, 10), sees=sees)
    assert found.task_T.tolist() == [4, 5, 6, 7, 8, 9]
    assert (found.classes_TW == drawn.classes_EW).all()
    assert (found.support_TWS == drawn.support_EWS).all()
    assert found.weights_TKP.shape == (6, 3, 48)
    assert {values.dtype for values in (found.weights_TKP, found.loss_TK, found.accuracy_TK)} == {np.dtype(np.float32)}
    assert (found.accuracy_TK[:, -1] > 0.9).all()
    assert (found.loss_TK[:, -1] < found.loss_TK[:, 0] / 3).all()


def test_a_block_of_perceptrons_learns_through_noise() -> None:
    found, _ = block(range(4, 10), **MLP)
    assert found.weights_TKP.shape == (6, 3, Perceptron("mlp", 3, 16, 16).size)
    assert (found.accuracy_TK[:, -1] > 0.9).all()
    assert (found.loss_TK[:, -1] < found.loss_TK[:, 0] / 2).all()


@pytest.mark.parametrize("changes", [{"sees": "support"}, {"sees": "classes"}, MLP], ids=["support", "classes", "mlp"])
def test_a_task_is_the_same_in_whichever_block(changes: dict[str, object]) -> None:
    """But for the rounding of products of other sizes."""
    whole, part = block(range(10), **changes)[0], block(range(4, 10), **changes)[0]
    assert (whole.support_TWS[4:] == part.support_TWS).all()
    np.testing.assert_array_equal(whole.weights_TKP[4:, 0], part.weights_TKP[:, 0])
    np.testing.assert_allclose(whole.weights_TKP[4:], part.weights_TKP, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, MLP], ids=["cosine", "mlp"])
def test_the_same_block_again_is_the_same_bytes_whatever_the_global_generator(changes: dict[str, object]) -> None:
    first = block(range(6), **changes)[0]
    torch.manual_seed(1)
    np.random.seed(1)
    for name, values in vars(block(range(6), **changes)[0]).items():
        assert values.tobytes() == vars(first)[name].tobytes()


def test_a_path_that_leaves_the_numbers_or_does_not_improve_is_refused() -> None:
    good, _ = block(range(6))
    assert {reason: bad_T.any() for reason, bad_T in refusals(good).items()} == {NOT_FINITE: False, NOT_IMPROVED: False}
    good.weights_TKP[1, 1, 7] = np.nan  # finite again later
    good.weights_TKP[2, 2, 0] = np.inf
    good.loss_TK[3, 1] = np.inf
    good.loss_TK[4, 2] = good.loss_TK[4, 0]
    found = {reason: bad_T.tolist() for reason, bad_T in refusals(good).items()}
    assert found == {NOT_FINITE: [False, True, True, True, False, False], NOT_IMPROVED: [False] * 4 + [True, False]}


def test_a_learning_rate_beyond_all_numbers_refuses_every_task() -> None:
    found, _ = block(range(6), learner="linear", lr=1e38, sees="support")
    assert np.any([*refusals(found).values()], axis=0).all()
