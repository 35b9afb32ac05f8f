"""Trajectories of many tasks at once are those that torch's optimisers take for each task alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from metadiff.episodes import Episodes, draw_episodes
from metadiff.trajectory import NOT_FINITE, NOT_IMPROVED, Rule, Trajectories, collect_block, follow, kept_steps, refusals, starts
from tests.science.test_episodes import rows
from tests.science.test_learner import KINDS, TASKS, learner, noise, objective, plain_loss

KEPT = (0, 3, 7, 10)
RULES = {
    "sgd": Rule("sgd", lr=0.3, momentum=0.0, sam=0.0),
    "momentum": Rule("sgd", lr=0.1, momentum=0.9, sam=0.0),
    "adam": Rule("adam", lr=0.05, momentum=0.8, sam=0.0),
    "sam of sgd": Rule("sgd", lr=0.1, momentum=0.9, sam=0.2),
    "sam of adam": Rule("adam", lr=0.05, momentum=0.9, sam=0.2),
}


def one_task(kind: str, sees: str, task: int, start_P: Tensor, rule: Rule) -> Tensor:
    """Weights at the kept steps, by autograd and an optimiser of the task's own."""
    theta_P = start_P.clone().requires_grad_()
    if rule.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD([theta_P], lr=rule.lr, momentum=rule.momentum)
    else:
        optimizer = torch.optim.Adam([theta_P], lr=rule.lr, betas=(rule.momentum, 0.999))
    path = [start_P]
    for _ in range(KEPT[-1]):
        optimizer.zero_grad()
        plain_loss(kind, sees, task, theta_P).backward()
        if rule.sam:
            up_P = rule.sam * theta_P.grad / theta_P.grad.norm()  # type: ignore[operator, union-attr]
            with torch.no_grad():
                theta_P += up_P
            optimizer.zero_grad()
            plain_loss(kind, sees, task, theta_P).backward()
            with torch.no_grad():
                theta_P -= up_P
        optimizer.step()
        path.append(theta_P.detach().clone())
    return torch.stack([path[step] for step in KEPT])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("sees", ["support", "classes"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_task_takes_the_path_of_its_own_optimiser(kind: str, sees: str, rule: Rule) -> None:
    start_TP = noise(TASKS, learner(kind).size, seed=9)
    weights_TKP, loss_TK, accuracy_TK = follow(objective(kind, sees), start_TP, rule=rule, kept=KEPT)
    for task in range(TASKS):
        torch.testing.assert_close(weights_TKP[task], one_task(kind, sees, task, start_TP[task], rule), rtol=1e-9, atol=1e-11)
    for k in range(len(KEPT)):
        for found, expected in zip((loss_TK, accuracy_TK), objective(kind, sees).measure(weights_TKP[:, k]), strict=True):
            torch.testing.assert_close(found[:, k], expected)
    assert (loss_TK[:, -1] < loss_TK[:, 0]).all()


@pytest.mark.parametrize(
    ("steps", "keep", "kept"), [(100, 5, (0, 25, 50, 75, 100)), (3, 4, (0, 1, 2, 3)), (10, 4, (0, 3, 6, 10)), (7, 2, (0, 7))]
)
def test_kept_steps_are_equidistant_from_start_to_end(steps: int, keep: int, kept: tuple[int, ...]) -> None:
    assert kept_steps(steps, keep) == kept


def test_a_start_is_a_function_of_seed_and_number_and_has_its_spread() -> None:
    many = starts(range(40), size=500, std=0.3, seed=1)
    assert torch.equal(starts(range(7, 9), size=500, std=0.3, seed=1), many[7:9])
    assert not torch.equal(starts(range(40), size=500, std=0.3, seed=2), many)
    assert float(many.std()) == pytest.approx(0.3, rel=0.02)
    assert float(many.mean()) == pytest.approx(0, abs=0.01)


SECTION = {"learner": "cosine", "scale": 10.0, "way": 3, "shot": 2, "sees": "classes", "optimizer": "sgd", "lr": 1.0}
SECTION |= {"momentum": 0.9, "sam": 0.0, "steps": 20, "keep": 3, "init_std": 0.1}


def block(numbers: range, **changes: object) -> tuple[Trajectories, Episodes]:
    """Tasks over classes that lie apart, of 8 to 12 images."""
    data = rows([8, 12, 9, 10, 11], split=0)
    drawn = draw_episodes(data, "train", way=3, shot=2, query=0, episodes=len(numbers), first=numbers.start, seed=5)
    rng = np.random.default_rng(0)
    features_ND = (rng.normal(size=(5, 16))[data.label] + 0.3 * rng.normal(size=(50, 16))).astype(np.float32)
    section = SimpleNamespace(**SECTION | changes)
    return collect_block(section, numbers, drawn, features_ND=features_ND, label_N=data.label, seed=5, device="cpu"), drawn  # type: ignore[arg-type]


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


@pytest.mark.parametrize("sees", ["support", "classes"])
def test_a_task_is_the_same_in_whichever_block(sees: str) -> None:
    """But for the rounding of products of other sizes."""
    whole, part = block(range(10), sees=sees)[0], block(range(4, 10), sees=sees)[0]
    assert (whole.support_TWS[4:] == part.support_TWS).all()
    np.testing.assert_array_equal(whole.weights_TKP[4:, 0], part.weights_TKP[:, 0])
    np.testing.assert_allclose(whole.weights_TKP[4:], part.weights_TKP, rtol=1e-3, atol=1e-5)


def test_the_same_block_again_is_the_same_bytes_whatever_the_global_generator() -> None:
    first = block(range(6))[0]
    torch.manual_seed(1)
    np.random.seed(1)
    for name, values in vars(block(range(6))[0]).items():
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
