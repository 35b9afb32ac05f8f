"""Classifiers of described tasks: which of them look at what, and each against a plain loop or another's code."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from metadiff import asking
from metadiff.asking import Asked, Told, choice_of, described_classifiers
from metadiff.concepts import described_tasks
from metadiff.described import AMBIGUOUS
from metadiff.evaluation import TYPICAL, log_probabilities
from metadiff.methods.hyperldm import HyperLDM
from metadiff.params import load
from metadiff.rng import torch_stream
from metadiff.textmodels import TextGenerators
from stages.imports import ROOT
from tests.science.test_described import TASKS, vectors
from tests.science.test_hyperldm import LEARNER, SENTENCE, generators

SECTION = load(ROOT / "params.yaml").evaluate.model_copy(
    update={
        "gammas": (1.0, 2.0),
        "pulls": (0.01, 1.0),
        "draws": 3,
        "adapt_images": (2, 6),
        "text_adapt_images": (2, 6),
        "adapt_gamma": 2.0,
        "adapt_pulls": (0.5,),
        "adapt_lr": 0.05,
        "adapt_steps": 12,
        "seed": 5,
    }
)
ASKED, SHOWN, QUERIES = 7, 4, 10
DRAWN = {"hyperldm-g1", "hyperldm-g2", "shuffled", "hyperldm-mean", "hyperldm-best"}
OF_SENTENCES = DRAWN | {"hnet", "end-to-end", "joint", "mlp", "hyperclip", "nearest", "ridge", "text-adapt-2", "text-adapt-6"}
OF_IMAGES = {"hyperldm-best", "adapt-2", "adapt-6", "text-adapt-2", "text-adapt-6"}
EVERY = OF_SENTENCES | OF_IMAGES | {"uncond"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TextGenerators:
    """Little trained, and turned into networks whose sentences and latents matter."""
    found = generators(tmp_path_factory.mktemp("models"))
    with torch.no_grad():
        for model, method in found.methods.items():
            for name, parameter in method.net.named_parameters():
                size = 0.5 / max(1, parameter.shape[-1] if parameter.ndim else 1) ** 0.5
                parameter += size * torch.randn(parameter.shape, generator=torch_stream(0, model, name))
    return found


@pytest.fixture(scope="module")
def told(made: TextGenerators) -> Told:
    return Told.of(TASKS, vectors(), made.sentences)


def asked(*, sentence: int = 0, support: int = 0, query: int = 0) -> Asked:
    """Each by a seed."""
    return Asked(
        torch.randn(ASKED, SENTENCE, generator=torch_stream(sentence, "sentence")),
        torch.randn(ASKED, 2, SHOWN, LEARNER.dim, generator=torch_stream(support, "support")),
        torch.randn(ASKED, QUERIES, LEARNER.dim, generator=torch_stream(query, "query")),
    )


def every(made: TextGenerators, told: Told) -> dict[str, dict[str, asking.AnswersOf]]:
    return dict(described_classifiers(made, told, SECTION))


def hyperldm(made: TextGenerators) -> HyperLDM:
    found = made.methods["hyperldm"]
    assert isinstance(found, HyperLDM)
    return found


def as_scores(made: TextGenerators, theta_EP: Tensor, some: Asked) -> Tensor:
    return made.learner.scores(theta_EP, some.query_EQI) / TYPICAL


def test_all_classifiers_are_there_with_their_candidates(made: TextGenerators, told: Told) -> None:
    found = every(made, told)
    assert {*found} == EVERY
    sizes = {name: len(candidates) for name, candidates in found.items() if len(candidates) > 1}
    assert sizes == {"hyperclip": 2, "ridge": 4, "hyperldm-mean": 2, "hyperldm-best": 2}
    assert {name for name in found if asking.sees_images(name)} == OF_IMAGES
    assert {name for name in found if asking.reads_sentence(name)} == OF_SENTENCES
    for name, candidates in found.items():
        for answers_of in candidates.values():
            scores = answers_of(asked())
            assert scores.shape == (3 if name == "hyperldm-mean" else 1, ASKED, QUERIES, 2), name
            assert scores.isfinite().all()


@torch.no_grad()
def test_each_classifier_looks_at_what_it_may(made: TextGenerators, told: Told) -> None:
    """Sentences, labelled images; and other queries change no answer, so they have no part in the weights."""
    for name, candidates in every(made, told).items():
        for answers_of in candidates.values():
            plain = answers_of(asked())
            assert (answers_of(asked()) == plain).all(), name  # two runs are the same
            assert bool((answers_of(asked(sentence=1)) != plain).any()) == (name in OF_SENTENCES), name
            assert bool((answers_of(asked(support=1)) != plain).any()) == (name in OF_IMAGES), name
            mixed_EQI = asked().query_EQI.clone()
            mixed_EQI[:, 4:] = asked(query=1).query_EQI[:, 4:]
            mixed = answers_of(Asked(asked().sentence_ED, asked().support_EWSI, mixed_EQI))
            assert (mixed[:, :, :4] == plain[:, :, :4]).all(), name
            assert (mixed[:, :, 4:] != plain[:, :, 4:]).any(), name


@torch.no_grad()
def test_tasks_are_answered_each_by_itself(made: TextGenerators, told: Told) -> None:
    """But for `shuffled`, a task's neighbours have no part in its answers."""
    for name, candidates in every(made, told).items():
        some, other = asked(), asked(sentence=1, support=1)
        sentence_ED, support_EWSI = other.sentence_ED.clone(), other.support_EWSI.clone()
        sentence_ED[0], support_EWSI[0] = some.sentence_ED[0], some.support_EWSI[0]
        for answers_of in candidates.values():
            first, second = answers_of(some)[:, 0], answers_of(Asked(sentence_ED, support_EWSI, some.query_EQI))[:, 0]
            assert torch.allclose(first, second, rtol=1e-4, atol=1e-5) == (name != "shuffled"), name


def told_by_shuffling(count: int, seed: int) -> list[int]:
    """Whose sentence each of so many tasks is told."""
    some = Asked(torch.arange(float(count))[:, None], torch.zeros(count, 2, 1, 1), torch.zeros(count, 1, 1))
    seen: list[Asked] = []

    def draw_of(asked: Asked) -> Tensor:
        seen.append(asked)
        return asked.sentence_ED

    asking._shuffled(draw_of, seed, some)
    assert seen[0].support_EWSI is some.support_EWSI
    assert seen[0].query_EQI is some.query_EQI
    return [int(number) for number in seen[0].sentence_ED[:, 0]]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_shuffled_tells_every_task_the_sentence_of_another(count: int, seed: int) -> None:
    told = told_by_shuffling(count, seed)
    assert sorted(told) == [*range(count)]
    assert all(other != own for own, other in enumerate(told))
    assert told == told_by_shuffling(count, seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("split", ["val", "test"])
def test_no_real_task_of_one_answer_is_told_its_own_sentence_by_shuffling(split: str, seed: int) -> None:
    tasks = [task for task in described_tasks((0.65, 0.1, 0.25), seed) if task.split == split]
    told = told_by_shuffling(len(tasks), seed)
    plain = [own for own, task in enumerate(tasks) if task.kind not in AMBIGUOUS]
    assert all(tasks[own].texts[0] != tasks[told[own]].texts[0] for own in plain)


@torch.no_grad()
@pytest.mark.parametrize("name", ["adapt", "text-adapt"])
@pytest.mark.parametrize("count", [2, 6])
def test_a_latent_is_adapted_to_half_as_many_images_a_way(made: TextGenerators, told: Told, name: str, count: int) -> None:
    answers_of = every(made, told)[f"{name}-{count}"]["pull 0.5"]
    some, other = asked(), asked(support=1)
    for shown, same in ((count // 2, True), (count // 2 - 1, False)):
        support_EWSI = other.support_EWSI.clone()
        support_EWSI[:, :, :shown] = some.support_EWSI[:, :, :shown]
        changed = Asked(some.sentence_ED, support_EWSI, some.query_EQI)
        assert bool((answers_of(changed) == answers_of(some)).all()) == same


@torch.no_grad()
@pytest.mark.parametrize("pull", [0.0, 2.0])
def test_adapting_lowers_the_loss_of_each_task_and_equals_a_plain_loop(made: TextGenerators, pull: float) -> None:
    some, few = asked(), asked().shown(3)
    start = asking.FirstLatent(lambda asked: asking._mean_latent(made.source, asked), 3)
    found_EZ = asking._adapted(made, start, pull, some, lr=0.05, steps=40)
    start_EZ = asking._mean_latent(made.source, some)
    before_E, after_E = (asking._loss(made, made.source.decode(latent_EZ), few) for latent_EZ in (start_EZ, found_EZ))
    assert (after_E < before_E).all()
    assert float(after_E.mean()) < (0.9 if pull == 0 else 0.99) * float(before_E.mean())
    deviation_Z = made.source.latent_CZ.std(0, correction=0)
    for place in range(2):
        latent_1Z = start_EZ[place : place + 1].clone().requires_grad_()
        optimizer = torch.optim.Adam([latent_1Z], lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            with torch.enable_grad():
                inputs_NI = torch.cat([few.support_EWSI[place, 0], few.support_EWSI[place, 1]])
                scores_NW = made.learner.scores(made.source.decode(latent_1Z), inputs_NI[None])[0]
                loss = torch.nn.functional.cross_entropy(scores_NW, torch.tensor([0, 0, 0, 1, 1, 1]))
                (loss + pull / 2 * ((latent_1Z[0] - start_EZ[place]) / deviation_Z).pow(2).mean()).backward()
            optimizer.step()
        torch.testing.assert_close(found_EZ[place], latent_1Z[0].detach(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_best_of_several_draws_fits_two_labelled_images(made: TextGenerators, told: Told) -> None:
    """By a loop over draws and tasks, over the first image of each way."""
    some, method, chosen = asked(), hyperldm(made), []
    answers_of = every(made, told)["hyperldm-best"]["gamma 2"]
    draws = [
        method.weights(some.sentence_ED, asking.gaussian_noise(torch_stream(5, "sentences", "draw", draw)), gamma=2.0)
        for draw in range(asking.TRIED)
    ]
    for place in range(ASKED):
        losses = []
        for theta_EP in draws:
            scores_2W = made.learner.scores(theta_EP[place][None], some.support_EWSI[place, :, 0][None])[0]
            losses.append(float(-scores_2W.log_softmax(-1).diagonal().mean()))
        chosen.append(int(np.argmin(losses)))
    assert len({*chosen}) > 1
    best_EP = torch.stack([draws[draw][place] for place, draw in enumerate(chosen)])
    torch.testing.assert_close(answers_of(some)[0], as_scores(made, best_EP, some))
    support_EWSI = asked(support=1).support_EWSI.clone()
    support_EWSI[:, :, 0] = some.support_EWSI[:, :, 0]  # only the first image counts
    assert (answers_of(Asked(some.sentence_ED, support_EWSI, some.query_EQI)) == answers_of(some)).all()


@torch.no_grad()
def test_what_is_told_and_shown_is_adapted_from_the_draw_that_its_images_fit_best(made: TextGenerators, told: Told) -> None:
    some, method = asked(), hyperldm(made)
    few = some.shown(3)
    noises = [asking.gaussian_noise(torch_stream(5, "sentences", "draw", draw)) for draw in range(asking.TRIED)]
    latent_GEZ = torch.stack([method.latents(some.sentence_ED, noise, gamma=2.0) for noise in noises])
    loss_GE = torch.stack([asking._loss(made, made.source.decode(latent_EZ), few) for latent_EZ in latent_GEZ])
    assert len({*loss_GE.argmin(0).tolist()}) > 1
    start_EZ = torch.stack([latent_GEZ[draw, task] for task, draw in enumerate(loss_GE.argmin(0).tolist())])
    found_EZ = asking._adapted(made, asking.FirstLatent(lambda _: start_EZ, 3), 0.5, some, lr=0.05, steps=12)
    expected_EQW = as_scores(made, made.source.decode(found_EZ), some)
    torch.testing.assert_close(every(made, told)["text-adapt-6"]["pull 0.5"](some)[0], expected_EQW)


def test_candidates_that_start_alike_find_their_start_once_for_each_of_what_is_asked(made: TextGenerators) -> None:
    seen: list[Asked] = []

    def latents_of(shown: Asked) -> Tensor:
        seen.append(shown)
        return asking._mean_latent(made.source, shown) + shown.support_EWSI.sum()

    start = asking.FirstLatent(latents_of, 3)
    one, other = asked(), asked(support=1)
    first, again, changed, back = (start(some)[1] for some in (one, one, other, one))
    assert [shown.support_EWSI.shape[2] for shown in seen] == [3, 3, 3]  # the last one alone is kept
    assert first is again
    assert torch.equal(first, back)
    assert not torch.equal(first, changed)


@torch.no_grad()
def test_the_mean_of_draws_is_that_of_probabilities(made: TextGenerators, told: Told) -> None:
    some, method = asked(), hyperldm(made)
    scores_GEQW = every(made, told)["hyperldm-mean"]["gamma 2"](some)
    first = every(made, told)["hyperldm-g2"][""](some)
    assert (scores_GEQW[:1] == first).all()  # its first draw is the one of a single draw
    shares = []
    for draw in range(SECTION.draws):
        theta_EP = method.weights(some.sentence_ED, asking.gaussian_noise(torch_stream(5, "sentences", "draw", draw)), gamma=2.0)
        shares.append(made.learner.scores(theta_EP, some.query_EQI).double().softmax(-1))
    mean_EQW = log_probabilities(scores_GEQW, TYPICAL).exp()
    torch.testing.assert_close(mean_EQW, torch.stack(shares).mean(0), rtol=1e-4, atol=1e-6)
    assert (shares[0] != shares[1]).any()


def test_what_was_told_has_one_right_answer_and_no_last_template(made: TextGenerators, told: Told) -> None:
    some = vectors()
    texts = ["a", "is it a?", "b", "is it b?"]
    raw_ND = torch.from_numpy(some.vectors_ND[[some.row_of[text] for text in texts]])
    assert (told.sentence_ND == made.sentences.standardise(raw_ND)).all()
    assert told.concept_N.tolist() == [0, 0, 1, 1]  # of a, b and c
    assert {task.kind for task in TASKS[2:4]} <= {*AMBIGUOUS}


def many_told() -> Told:
    stream = torch_stream(7)
    return Told(torch.randn(30, SENTENCE, generator=stream), torch.randint(3, (30,), generator=stream))


@torch.no_grad()
@pytest.mark.parametrize("ridge", asking.RIDGES)
def test_ridge_is_that_of_scikit_learn(made: TextGenerators, ridge: float) -> None:
    some, told = asked(), many_told()
    latent_NZ = made.source.latent_CZ[told.concept_N].double().numpy()
    mean_Z = latent_NZ.mean(0)
    model = Ridge(alpha=ridge, fit_intercept=False).fit(told.sentence_ND.double().numpy(), latent_NZ - mean_Z)
    expected_EZ = model.predict(some.sentence_ED.double().numpy()) + mean_Z
    np.testing.assert_allclose(asking._ridge(made.source, told, ridge, some), expected_EZ, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_nearest_is_the_sentence_of_the_highest_cosine(made: TextGenerators) -> None:
    some, told = asked(), many_told()
    expected = []
    for sentence_D in some.sentence_ED.double().numpy():
        cosines = [
            float(sentence_D @ other_D / np.linalg.norm(sentence_D) / np.linalg.norm(other_D))
            for other_D in told.sentence_ND.double().numpy()
        ]
        expected.append(int(told.concept_N[int(np.argmax(cosines))]))
    assert len({*expected}) > 1
    assert (asking._nearest(made.source, told, some) == made.source.latent_CZ[expected]).all()


@torch.no_grad()
def test_without_anything_a_task_gets_the_mean_latent(made: TextGenerators, told: Told) -> None:
    some = asked()
    theta_EP = made.source.decode(made.source.latent_CZ.mean(0)[None]).expand(ASKED, -1)
    torch.testing.assert_close(every(made, told)["uncond"][""](some)[0], as_scores(made, theta_EP, some))


def test_draws_are_functions_of_the_seed_and_their_number() -> None:
    like = torch.empty(4, 3)
    first, again, next_one, other = (asking.draw_noise(seed, draw)(like) for seed, draw in ((0, 1), (0, 1), (0, 2), (1, 1)))
    assert (first == again).all()
    assert (first != next_one).any()
    assert (first != other).any()


def test_validation_chooses_on_its_own_tasks_and_the_first_of_equals() -> None:
    target_Q = torch.tensor([0, 1])
    right, wrong = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 2.0], [2.0, 0.0]])

    def of(*tasks: Tensor) -> asking.AnswersOf:
        return lambda _: torch.stack(tasks)[None]

    candidates = {"a": of(wrong, right), "b": of(right, wrong), "c": of(right, wrong)}
    for tasks, best in (([True, False], "b"), ([False, True], "a"), ([True, True], "a")):
        name, scores = choice_of(candidates, asked(), target_Q, torch.tensor(tasks))
        assert name == best
        assert (scores == candidates[best](asked())).all()


@torch.no_grad()
def test_fewer_models_have_fewer_classifiers(made: TextGenerators, told: Told) -> None:
    def names(*models: str) -> set[str]:
        methods = {model: method for model, method in made.methods.items() if model in models}
        some = TextGenerators(methods, made.sentences, made.inputs, made.learner, made.facts)
        return {*dict(described_classifiers(some, told, SECTION))}

    assert names("joint") == {"joint"}
    assert names("end-to-end", "joint") == {"end-to-end", "joint"}
    assert names("hnet") == {"hnet", "uncond", "nearest", "ridge", "adapt-2", "adapt-6"}
    assert names("hnet", "hyperldm") == EVERY - {"end-to-end", "joint", "mlp", "hyperclip"}


def test_shown_images_are_the_first_of_each_way() -> None:
    some = asked()
    assert (some.shown(2).support_EWSI == some.support_EWSI[:, :, :2]).all()
    assert some.shown(99).support_EWSI.shape[2] == SHOWN
    assert (some.shown(1).query_EQI == some.query_EQI).all()
