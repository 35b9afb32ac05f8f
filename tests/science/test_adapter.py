"""The adapter of CLIP features and batches of Meta-VQA: against plain NumPy, one task at a time, whatever is padded."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.adapter import NONE, Adapter
from metadiff.errors import DataError
from metadiff.hypernet import FreeDecoder, HNet
from metadiff.layout import parts_of
from metadiff.metavqa import MetaVQA, VQATask
from metadiff.rng import torch_stream
from metadiff.standard import Standard
from metadiff.textbuild import build_text
from metadiff.vqatasks import Features, VQABatch, VQASplits, VQATasks
from tests.science.test_hyperldm import facts

ADAPTER = Adapter("adapter", dim=5, hidden=3)
IMAGES, TEXTS = 40, 30
Array = NDArray[np.float64]


def drawn(*shape: int, purpose: str = "") -> Tensor:
    return torch.randn(*shape, generator=torch_stream(0, "test", purpose))


def task(number: int, answers: int, support: int, query: int) -> VQATask:
    rng = np.random.default_rng(number)
    images = rng.permutation(IMAGES)[: support + query]
    pairs_E2 = np.stack([images, rng.integers(answers, size=len(images))], 1)
    rows_A = rng.permutation(TEXTS)[:answers]
    return VQATask(f"question {number}", tuple("abcdefg"[:answers]), number, rows_A, pairs_E2[:support], pairs_E2[support:])


TASKS = [task(0, 2, 6, 3), task(1, 5, 3, 7), task(2, 3, 9, 1)]
FEATURES = Features(drawn(IMAGES, 5, purpose="images"), drawn(TEXTS, 5, purpose="texts"))
PLAIN = Standard(torch.zeros(5), torch.ones(5))


def tasks() -> VQATasks:
    return VQATasks.of(TASKS, FEATURES, PLAIN)


def one_scores(theta_P: Array, images_ND: Array, answers_AD: Array) -> Array:
    """Of one task; the weights in the order of the published code: W1, W2, b1, b2."""
    w1_HD, w2_DH, b1_H, b2_D = theta_P[:15].reshape(3, 5), theta_P[15:30].reshape(5, 3), theta_P[30:33], theta_P[33:]
    turned_ND = images_ND + np.maximum(images_ND @ w1_HD.T + b1_H, 0) @ w2_DH.T + b2_D
    lengths_NA = np.linalg.norm(turned_ND, axis=1)[:, None] * np.linalg.norm(answers_AD, axis=1)
    found: Array = 100 * turned_ND @ answers_AD.T / lengths_NA
    return found


def one_loss(some: VQATask, pairs_N2: NDArray[np.int64], theta_P: Array) -> tuple[float, int]:
    """And how many are right."""
    images_ND = FEATURES.images_ID.double().numpy()[pairs_N2[:, 0]]
    scores_NA = one_scores(theta_P, images_ND, FEATURES.texts_TD.double().numpy()[some.answer_row_A])
    own_N = scores_NA[np.arange(len(pairs_N2)), pairs_N2[:, 1]]
    top_N = scores_NA.max(1)
    losses_N = top_N + np.log(np.exp(scores_NA - top_N[:, None]).sum(1)) - own_N
    return float(losses_N.mean()), int((scores_NA.argmax(1) == pairs_N2[:, 1]).sum())


def test_the_weights_are_those_of_the_published_network() -> None:
    assert Adapter("adapter", dim=768, hidden=256).size == 394_240
    assert [part.shape for part in ADAPTER.layout()] == [(3, 5), (5, 3), (3,), (5,)]


def test_scores_are_those_by_numpy_and_of_no_answer_that_is_not_there() -> None:
    theta_TP, images_TND, answers_TAD = drawn(4, ADAPTER.size), drawn(4, 6, 5, purpose="n"), drawn(4, 7, 5, purpose="a")
    count_T = torch.tensor([2, 7, 3, 5])
    there_TA = torch.arange(7) < count_T[:, None]
    found_TNA = ADAPTER.scores(theta_TP, images_TND, answers_TAD, there_TA)
    for place, count in enumerate(count_T.tolist()):
        own = (part[place].double().numpy() for part in (theta_TP, images_TND, answers_TAD[:, :count]))
        np.testing.assert_allclose(found_TNA[place, :, :count], one_scores(*own), rtol=1e-4, atol=1e-4)
        assert (found_TNA[place, :, count:] == -float("inf")).all()
        alone = (part[place : place + 1] for part in (theta_TP, images_TND, answers_TAD, there_TA))
        torch.testing.assert_close(ADAPTER.scores(*alone)[0], found_TNA[place], rtol=1e-5, atol=1e-5)


def test_weights_of_zero_are_clip_as_it_is() -> None:
    images_TND, answers_TAD = drawn(2, 6, 5), drawn(2, 4, 5, purpose="a")
    found_TNA = ADAPTER.scores(torch.zeros(2, ADAPTER.size), images_TND, answers_TAD, torch.ones(2, 4, dtype=torch.bool))
    cosine_TNA = torch.cosine_similarity(images_TND[:, :, None], answers_TAD[:, None], dim=-1)
    torch.testing.assert_close(found_TNA, 100 * cosine_TNA, rtol=1e-4, atol=1e-4)


def some_batches() -> dict[str, tuple[VQABatch, list[NDArray[np.int64]]]]:
    made, every = tasks(), torch.arange(3)
    return {
        "support": (made.shown(every), [some.support_S2 for some in TASKS]),
        "query": (made.asked(every), [some.query_Q2 for some in TASKS]),
    }


@pytest.mark.parametrize("part", ["support", "query"])
def test_the_loss_and_the_hits_of_a_batch_are_those_of_each_task_alone(part: str) -> None:
    (asked, pairs), theta_BP = some_batches()[part], 0.3 * drawn(3, ADAPTER.size)
    alone = [one_loss(*of) for of in zip(TASKS, pairs, theta_BP.double().numpy(), strict=True)]
    np.testing.assert_allclose(asked.losses(ADAPTER, theta_BP), [loss for loss, _ in alone], rtol=1e-4)
    assert asked.loss(ADAPTER, theta_BP).item() == pytest.approx(np.mean([loss for loss, _ in alone]), rel=1e-4)
    assert asked.right(ADAPTER, theta_BP).tolist() == [hits for _, hits in alone]


def test_padding_has_no_slope() -> None:
    """Nor does minus infinity spoil that of the others."""
    asked, theta_BP = tasks().asked(torch.arange(3)), (0.3 * drawn(3, ADAPTER.size)).requires_grad_()
    asked.loss(ADAPTER, theta_BP).backward()
    slope_BP = theta_BP.grad.clone()
    assert slope_BP.isfinite().all()
    assert slope_BP.any(1).all()
    theta_BP.grad = None
    moved = replace(asked, image_BN=asked.image_BN.where(asked.target_BN != NONE, 7))
    moved.loss(ADAPTER, theta_BP).backward()
    assert not torch.equal(asked.image_BN, moved.image_BN)
    torch.testing.assert_close(theta_BP.grad, slope_BP)


def pairs_of(asked: VQABatch, place: int) -> list[tuple[int, int]]:
    there = asked.target_BN[place] != NONE
    return [*zip(asked.image_BN[place][there].tolist(), asked.target_BN[place][there].tolist(), strict=True)]


@pytest.mark.parametrize("part", ["support", "query"])
def test_a_batch_has_the_examples_of_its_tasks(part: str) -> None:
    asked, pairs = some_batches()[part]
    for place, (some, pairs_N2) in enumerate(zip(TASKS, pairs, strict=True)):
        assert pairs_of(asked, place) == [tuple(pair) for pair in pairs_N2.tolist()]
        assert asked.answer_BA[place].tolist() == some.answer_row_A.tolist() + [NONE] * (5 - len(some.answers))
        assert torch.equal(asked.sentence_BD[place], FEATURES.texts_TD[some.question_row])


def test_training_draws_of_all_examples_of_a_task_and_of_no_other() -> None:
    batch, seen = tasks().draw(torch_stream(0), tasks=300, images=8), {}
    assert batch.image_BN.shape == (300, 8)
    assert batch.plain_B.all()
    for place, number in enumerate(batch.concept_B.tolist()):
        assert torch.equal(batch.sentence_BD[place], FEATURES.texts_TD[number])
        seen.setdefault(number, set()).update(pairs_of(batch, place))
    pooled = [np.concatenate([some.support_S2, some.query_Q2]) for some in TASKS]
    assert seen == {number: {*map(tuple, pairs_E2.tolist())} for number, pairs_E2 in enumerate(pooled)}
    again, other = (tasks().draw(torch_stream(seed), tasks=300, images=8) for seed in (0, 1))
    assert torch.equal(batch.image_BN, again.image_BN)
    assert not torch.equal(batch.image_BN, other.image_BN)
    assert tasks().draw(torch_stream(0), tasks=4, images=0).image_BN.shape == (4, 0)


def data(train: int = 33, test: int = 5) -> MetaVQA:
    made = [task(number % 30, 2, 3, 2) for number in range(train + test)]
    named = [replace(some, question=f"question {number}") for number, some in enumerate(made)]
    return MetaVQA(tuple(named[:train]), tuple(named[train:]), FEATURES.images_ID.numpy(), FEATURES.texts_TD.numpy())


def test_validation_is_a_tenth_of_the_training_tasks_by_the_seed_and_no_test_task() -> None:
    splits = VQASplits.of(data(), seed=0, device="cpu")
    train, val, test = (splits.questions[split] for split in ("train", "val", "test"))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (len(train), len(val), len(test)) == (30, 3, 5)
    assert sorted([*train, *val]) == sorted(some.question for some in data().train)
    assert test == [some.question for some in data().test]
    assert splits.questions == VQASplits.of(data(), seed=0, device="cpu").questions
    assert splits.questions != VQASplits.of(data(), seed=1, device="cpu").questions
    torch.testing.assert_close(splits.train.sentence_TD.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(splits.train.sentence_TD.std(0, correction=0), torch.ones(5))  # of them alone
    assert float(splits.val.sentence_TD.mean(0).abs().max()) > 1e-3


@pytest.mark.parametrize("few", [{"train": 1}, {"test": 1}])
def test_too_few_tasks_are_refused(few: dict[str, int]) -> None:
    with pytest.raises(DataError, match="it takes two of each"):
        VQASplits.of(data(**few), seed=0, device="cpu")


def hnet(**changes: Any) -> HNet:  # noqa: ANN401
    wide = {"kind": "adapter", "dim": 400, "hidden": 100}
    found = build_text(facts("hnet", **changes) | {"learner": wide})
    assert isinstance(found, HNet)
    return found


def test_what_a_decoder_begins_with_adds_nothing() -> None:
    """Its first layer is in units of its fan in, so that what is learnt first is what to add."""
    decoder = hnet(decoder="free").net.decoder
    assert isinstance(decoder, FreeDecoder)
    start_P, wide = (decoder.start_P * decoder.unit_P).detach(), Adapter("adapter", dim=400, hidden=100)
    parts = {part.name: start_P[part.offset :][: part.size] for part in wide.layout()}
    assert float(parts["enter.weight"].std()) == pytest.approx(1 / 20, rel=0.05)
    assert float(parts["enter.bias"].std()) == pytest.approx(1, rel=0.3)
    assert not parts["leave.weight"].any()
    assert not parts["leave.bias"].any()
    units = {part.name: set(decoder.unit_P[part.offset :][: part.size].tolist()) for part in wide.layout()}
    assert [max(unit) for unit in units.values()] == pytest.approx([1 / 20, 1 / 10, 1, 1])
    assert all(len(unit) == 1 for unit in units.values())
    shared = hnet(decoder="modulated").net.decoder.start_P
    torch.testing.assert_close(shared, start_P)  # the same start


def test_a_latent_scales_and_shifts_the_hidden_units_of_the_published_network() -> None:
    """One after the other, in a loop, by the names of its weights."""
    some = build_text(facts("hnet", decoder="modulated") | {"learner": {"kind": "adapter", "dim": 5, "hidden": 3}})
    assert isinstance(some, HNet)
    decoder = some.net.decoder
    with torch.no_grad():
        decoder.start_P.copy_(drawn(ADAPTER.size))
        latent_BZ = drawn(2, 4, purpose="latents")
        shared, found = (parts_of(theta, ADAPTER.layout()) for theta in (decoder.start_P[None], decoder(latent_BZ)))
        told_BN = decoder.give(latent_BZ)
    for task in range(2):
        gain_H, shift_H, weigh_H, last_D = told_BN[task].split([3, 3, 3, 5])
        for unit in range(3):
            gain, weigh = 1 + gain_H[unit], 1 + weigh_H[unit]
            torch.testing.assert_close(found["enter.weight"][task, unit], gain * shared["enter.weight"][0, unit])
            torch.testing.assert_close(found["enter.bias"][task, unit], gain * shared["enter.bias"][0, unit] + shift_H[unit])
            torch.testing.assert_close(found["leave.weight"][task, :, unit], weigh * shared["leave.weight"][0, :, unit])
        torch.testing.assert_close(found["leave.bias"][task], shared["leave.bias"][0] + last_D)


@pytest.mark.parametrize("model", ["joint", "maml", "hvae"])
def test_what_makes_no_adapter_is_refused(model: str) -> None:
    with pytest.raises(AssertionError):
        build_text(facts(model) | {"learner": {"kind": "adapter", "dim": 5, "hidden": 3}})
