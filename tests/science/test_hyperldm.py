"""Weights from a sentence: losses against plain NumPy, samplers with a perfect denoiser, guidance, the recipe that explodes."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff import diffusion
from metadiff.baselines.fromtext import EndToEnd, Joint, LatentRegression
from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.courses import PathEnds
from metadiff.described import QuestionBatch
from metadiff.diffusion import gaussian_noise
from metadiff.errors import CorruptArtifactError, NumericError, ParamsError
from metadiff.hypernet import SHORT, HNet, drop
from metadiff.inputs import Inputs
from metadiff.learner import Perceptron
from metadiff.methods.hyperldm import EXPLODED, SCALE, HyperCLIP, HyperLDM, refuse_exploded
from metadiff.params import load
from metadiff.rng import torch_stream
from metadiff.textbuild import OF_LATENTS, SOURCES, TEXT_MODELS, TextMethod, build_text, text_facts, text_pace
from metadiff.textmodels import TextGenerators, TextModels, undump_text
from stages.imports import ROOT
from tests.science.test_described import TASKS, data, vectors

SECTION = load(ROOT / "params.yaml").hyperldm
SMALL = {"latent": 4, "hidden": 8, "text_hidden": 12, "batch": 6, "images": 3, "latent_batch": 8, "val_images": 4, "steps": 3}
SMALL |= {"encoder_steps": 3, "val_every": 2, "times": 50, "sampling_steps": 5, "guide_steps": 3}
PLAIN = {"text_noise": 0.0, "latent_noise": 0.0, "encoder_noise": 0.0, "dropout": 0.0}
LEARNER = Perceptron("mlp", way=2, dim=5, hidden=3)
TOLD = [model for model in TEXT_MODELS if model not in ("maml", "hvae")]  # those two are in test_latents.py
CONCEPTS, SENTENCE = 40, 6  # concepts, numbers of a sentence's vector
Array = NDArray[np.float64]


def facts(model: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    section = SECTION.model_copy(update=SMALL | changes)
    concepts = [f"concept {number:02}" for number in range(CONCEPTS)]
    return text_facts(section, model, learner=LEARNER, sentence=SENTENCE, concepts=concepts, seed=1)


def hnet(**changes: Any) -> HNet:  # noqa: ANN401
    made = build_text(facts("hnet", **changes))
    assert isinstance(made, HNet)
    return made


def made(model: str, **changes: Any) -> Any:  # noqa: ANN401 - one of several methods
    """With weights that no layer's start leaves at zero."""
    found = build_text(facts(model, **changes), source=hnet(**changes))
    with torch.no_grad():
        for name, parameter in found.net.named_parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch_stream(0, name)))
    return found


def sentences(count: int = CONCEPTS) -> Tensor:
    return torch.randn(count, SENTENCE, generator=torch_stream(0, "sentences"))


def batch(count: int = 9, images: int = 3, *, seed: int = 0, plain: bool = False) -> QuestionBatch:
    """Each concept has a sentence of its own, of which it is said whether it has one right answer."""
    stream = torch_stream(seed, "batch")
    concept_B = torch.randint(CONCEPTS, (count,), generator=stream)
    inputs_BNE = torch.randn(count, 2 * images, LEARNER.dim, generator=stream)
    return QuestionBatch(sentences()[concept_B], concept_B, concept_B, torch.full((count,), plain), inputs_BNE)


def noise(seed: int = 0) -> diffusion.Noise:
    return gaussian_noise(torch_stream(seed, "noise"))


def trained(method: TextMethod, steps: int, *, lr: float = 5e-3, count: int = 64) -> float:
    """The mean loss of the last steps."""
    optimizer, losses = torch.optim.Adam(method.net.parameters(), lr=lr), []
    for step in range(steps):
        loss = method.loss(batch(count, seed=step + 1), torch_stream(0, "train", step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[-10:]))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def layers(net: torch.nn.Module, x: Array, start: str = "") -> Array:
    """Three layers, by plain NumPy."""
    w = {name: value.double().numpy() for name, value in net.state_dict().items()}
    for name in ("enter", "middle", "give"):
        x = x @ w[f"{start}{name}.weight"].T + w[f"{start}{name}.bias"]
        x = x if name == "give" else silu(x)
    return x


def decoded(net: torch.nn.Module, latent_BZ: Array) -> Array:
    """By either decoder, of a free one: weights of the first layer in units of 1 / sqrt(5), of the second 1 / sqrt(3)."""
    w = {name: value.double().numpy() for name, value in net.state_dict().items() if name.startswith("decoder.")}
    start_P = w["decoder.start_P"]
    if "decoder.enter.weight" in w:
        unit_P = np.array([5**-0.5] * 15 + [1.0] * 3 + [3**-0.5] * 6 + [1.0] * 2)
        return unit_P * (start_P + layers(net, latent_BZ, "decoder."))
    found = []
    for latent_Z in latent_BZ:
        gain_H, shift_H, weigh_H, last_O = np.split(w["decoder.give.weight"] @ latent_Z + w["decoder.give.bias"], [3, 6, 9])
        unit_by_unit = [(1 + gain) * start_P[5 * unit :][:5] for unit, gain in enumerate(gain_H)]
        shifts = (1 + gain_H) * start_P[15:18] + shift_H
        leave = [(1 + weigh) * start_P[18 + 2 * unit :][:2] for unit, weigh in enumerate(weigh_H)]
        found.append(np.concatenate([*unit_by_unit, shifts, *leave, start_P[24:] + last_O]))
    return np.array(found)


def answer_loss(theta_BP: Array, inputs_BNE: Tensor) -> float:
    """Mean cross-entropy, where the first half of the images is wrong."""
    losses = []
    for theta_P, inputs_NE in zip(theta_BP, inputs_BNE.double().numpy(), strict=True):
        enter, shift, leave, last = theta_P[:15].reshape(3, 5), theta_P[15:18], theta_P[18:24].reshape(3, 2), theta_P[24:]
        scores_NW = np.maximum(inputs_NE @ enter.T + shift, 0) @ leave + last
        half = len(inputs_NE) // 2
        for place, scores_W in enumerate(scores_NW):
            losses.append(np.log(np.exp(scores_W).sum()) - scores_W[int(place >= half)])
    return float(np.mean(losses))


@pytest.mark.parametrize("decoder", ["modulated", "free"])
def test_a_decoder_gives_the_weights_that_numpy_does_and_begins_with_usual_ones(decoder: str) -> None:
    some = hnet(decoder=decoder)
    assert LEARNER.size == 26
    latent_BZ = torch.randn(7, 4, generator=torch_stream(0))
    np.testing.assert_allclose(
        some.decode(latent_BZ).detach(), decoded(some.net, latent_BZ.double().numpy()), rtol=1e-4, atol=1e-6
    )
    wide = replace(LEARNER, dim=400, hidden=100)
    big = build_text(facts("hnet", decoder=decoder) | {"learner": vars(wide)}).net.decoder
    start_P = (big.start_P if decoder == "modulated" else big.start_P * big.unit_P).detach()
    parts = {part.name: start_P[part.offset :][: part.size] for part in wide.layout()}
    assert float(parts["enter.weight"].std()) == pytest.approx(1 / 20, rel=0.05)
    assert float(parts["leave.weight"].std()) == pytest.approx(1 / 10, rel=0.2)
    assert float(parts["enter.bias"].std()) == pytest.approx(1, rel=0.3)


def test_a_checkpoint_that_says_nothing_of_its_decoder_has_a_free_one() -> None:
    """Of a time that knew no other."""
    older = {name: value for name, value in facts("hnet").items() if name != "decoder"}
    kept, free, modulated = (
        {*some.net.state_dict()} for some in (build_text(older), hnet(decoder="free"), hnet(decoder="modulated"))
    )
    assert kept == free != modulated


@pytest.mark.parametrize("decoder", ["modulated", "free"])
@pytest.mark.parametrize("match", [0.0, 0.7])
def test_the_loss_of_hnet_is_that_of_both_its_latents(match: float, decoder: str) -> None:
    some, asked = hnet(match=match, decoder=decoder, **PLAIN), batch()
    told_BZ = layers(some.net, asked.sentence_BD.double().numpy(), "reader.")
    free_BZ = 5 * some.net.latents.table_CZ.detach().double().numpy()[asked.concept_B.numpy()]
    expected = sum(answer_loss(decoded(some.net, latent_BZ), asked.inputs_BNE) for latent_BZ in (free_BZ, told_BZ))
    expected += match * np.square(free_BZ - told_BZ).sum(1).mean() + SHORT * np.square(told_BZ).sum(1).mean()
    assert some.loss(asked, torch_stream(0)).item() == pytest.approx(expected, rel=1e-5)


def test_free_latents_are_drawn_to_what_is_told_and_not_the_other_way() -> None:
    """So a sentence says what answers, not what is easily told."""
    slopes = []
    for match in (0.0, 5.0):
        some = hnet(match=match, **PLAIN)
        some.loss(batch(), torch_stream(0)).backward()
        slopes.append({name: parameter.grad.clone() for name, parameter in some.net.named_parameters()})
    same = {name for name in slopes[0] if torch.allclose(slopes[0][name], slopes[1][name], rtol=1e-4, atol=1e-7)}
    assert same == set(slopes[0]) - {"latents.table_CZ"}


def test_noise_of_latents_and_of_sentences_and_dropout_change_the_loss_and_only_by_their_generator() -> None:
    for changes in ({"latent_noise": 0.5}, {"text_noise": 0.5}, {"dropout": 0.5}):
        some, plain = hnet(**PLAIN | changes), hnet(**PLAIN)
        first, again, other = (some.loss(batch(), torch_stream(seed)).item() for seed in (0, 0, 1))
        assert first == again
        assert len({first, other, plain.loss(batch(), torch_stream(0)).item()}) == 3
        told = sentences(3)
        assert (some.latent_of(told) == plain.latent_of(told)).all()  # nothing is dropped where a model is used


def test_others_learn_from_free_latents_and_as_often_from_what_a_plain_sentence_tells() -> None:
    some, asked = hnet(), replace(batch(4000), plain_B=torch.arange(4000) < 2000)
    with torch.no_grad():
        free_BZ, told_BZ = some.latent_CZ[asked.concept_B], some.latent_of(asked.sentence_BD)
    found_BZ = some.drawn(asked, torch_stream(0))
    free_B, told_B = ((found_BZ == of_BZ).all(1) for of_BZ in (free_BZ, told_BZ))
    assert (free_B ^ told_B).all()
    assert free_B[2000:].all()  # a sentence with several right answers does not tell which
    assert float(told_B[:2000].float().mean()) == pytest.approx(0.5, abs=0.04)
    assert not found_BZ.requires_grad


def test_hyperclip_learns_from_noise_and_for_steps_of_its_own() -> None:
    """In units of the deviation of latents; hnet and hyperldm know nothing of either."""
    losses = [
        made("hyperclip", **PLAIN | changes).loss(batch(), torch_stream(0)).item() for changes in ({}, {"latent_noise": 0.5})
    ]
    assert losses[0] == losses[1] != made("hyperclip", **PLAIN | {"encoder_noise": 0.5}).loss(batch(), torch_stream(0)).item()
    section = SECTION.model_copy(update={"steps": 7, "encoder_steps": 3})
    assert {model: text_pace(section, model).steps for model in TEXT_MODELS} == dict.fromkeys(TEXT_MODELS, 7) | {"hyperclip": 3}


def test_dropout_keeps_the_mean() -> None:
    x = drop(torch.ones(20_000), 0.3, torch_stream(0))
    assert {round(value, 4) for value in x.unique().tolist()} == {0.0, 1.4286}
    assert float(x.mean()) == pytest.approx(1, abs=0.02)
    assert (drop(torch.ones(3), 0.3, None) == 1).all()


def test_hnet_learns_concepts_it_is_shown() -> None:
    """Of three concepts, each of which asks for the sign of one input."""

    def signed(count: int, seed: int) -> QuestionBatch:
        stream = torch_stream(seed, "signed")
        concept_B = torch.randint(3, (count,), generator=stream)
        inputs_BNE = torch.randn(count, 12, LEARNER.dim, generator=stream)
        sign_N = torch.tensor([-1.0] * 6 + [1.0] * 6)
        places_BN1 = concept_B[:, None, None].expand(-1, 12, 1)
        inputs_BNE.scatter_(2, places_BN1, inputs_BNE.gather(2, places_BN1).abs() * sign_N[:, None])
        return QuestionBatch(sentences()[concept_B], concept_B, concept_B, torch.full((count,), fill_value=True), inputs_BNE)

    some = hnet(dropout=0.0, text_noise=0.1, hidden=16)
    optimizer = torch.optim.Adam(some.net.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        some.loss(signed(32, step), torch_stream(1, step)).backward()
        optimizer.step()
    new = signed(200, 10_000)
    with torch.no_grad():
        assert new.loss(LEARNER, some.weights(new.sentence_BD, noise())).item() < 0.35  # log 2 at first
        assert new.loss(LEARNER, some.decode(some.latent_CZ[new.concept_B])).item() < 0.35
        other = some.weights(new.sentence_BD.roll(1, 0), noise())
        assert new.loss(LEARNER, other).item() > 0.6  # another's sentence


PERFECT: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "x0": lambda w, clean, a, s: clean,
    "eps": lambda w, clean, a, s: (w - a * clean) / s,
    "v": lambda w, clean, a, s: (a * w - clean) / s,
}


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver", "ancestral"])
@pytest.mark.parametrize("predicts", PERFECT)
@pytest.mark.parametrize("clip", [0.0, 4.0])
def test_a_perfect_denoiser_gives_back_the_latent(
    monkeypatch: pytest.MonkeyPatch, sampler: str, predicts: str, clip: float
) -> None:
    method = made("hyperldm", sampler=sampler, predicts=predicts, clip=clip, sampling_steps=20)
    clean_BZ = torch.randn(60, 4, generator=torch_stream(5)).clamp(-3, 3)

    def perfect(w_BZ: Tensor, t_B: Tensor, sentence_BD: Tensor, told_B: Tensor) -> Tensor:
        assert told_B.all()
        a, s = diffusion.scales(method.schedule, t_B, w_BZ.double())
        return PERFECT[predicts](w_BZ.double(), clean_BZ.double(), a, s).float()

    monkeypatch.setattr(method, "_predict", perfect)
    latent_CZ = method.source.latent_CZ.detach()
    expected_BZ = clean_BZ * latent_CZ.std(0, correction=0) + latent_CZ.mean(0)
    found_BZ = method.latents(sentences(60), noise())
    assert float((found_BZ - expected_BZ).abs().max()) < 1e-3 * float(latent_CZ.std())


@pytest.mark.parametrize("predicts", PERFECT)
def test_a_perfect_denoiser_has_no_loss(monkeypatch: pytest.MonkeyPatch, predicts: str) -> None:
    """So what is predicted in training is what is taken back in sampling."""
    method, asked = made("hyperldm", predicts=predicts, **PLAIN), batch(500)
    clean_BZ = method.scale.standardise(method.source.latent_CZ.detach()[asked.concept_B])
    seen: list[Tensor] = []

    def perfect(w_BZ: Tensor, t_B: Tensor, sentence_BD: Tensor, told_B: Tensor, generator: torch.Generator) -> Tensor:
        a, s = diffusion.scales(method.schedule, t_B, w_BZ)
        seen.extend((t_B, told_B, w_BZ))
        return PERFECT[predicts](w_BZ, clean_BZ, a, s)

    monkeypatch.setattr(method, "_predict", perfect)
    assert method.loss(asked, torch_stream(0)).item() < 1e-6
    times_B, told_B, w_BZ = seen
    assert {*times_B.tolist()} == {*range(50)}
    assert float((~told_B).float().mean()) == pytest.approx(SECTION.without_text, abs=0.07)
    assert float(w_BZ[times_B > 45].std()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
def test_guidance_goes_from_what_is_not_told_through_what_is(monkeypatch: pytest.MonkeyPatch, gamma: float) -> None:
    method = made("hyperldm", predicts="x0", clip=0.0)
    told_BZ, untold_BZ = (torch.randn(5, 4, generator=torch_stream(seed)) for seed in (1, 2))
    asked: list[bool] = []

    def spied(w_BZ: Tensor, t_B: Tensor, sentence_BD: Tensor, told_B: Tensor) -> Tensor:
        assert told_B.all() or not told_B.any()
        asked.append(bool(told_B[0]))
        return told_BZ if told_B[0] else untold_BZ

    monkeypatch.setattr(method, "_predict", spied)
    found_BZ = method.scale.standardise(method.latents(sentences(5), noise(), gamma=gamma))
    expected_BZ = {0: untold_BZ, 1: told_BZ, 1.5: 1.5 * told_BZ - 0.5 * untold_BZ, 2: 2 * told_BZ - untold_BZ}[gamma]
    np.testing.assert_allclose(found_BZ, expected_BZ, atol=1e-5)
    assert asked == ([True] * 5 if gamma == 1 else [True, False] * 5)


def test_without_guidance_no_sentence_matters_and_with_it_each_does() -> None:
    method, told = made("hyperldm"), sentences(8)
    with torch.no_grad():
        none, other = (method.latents(some, noise(), gamma=0.0) for some in (told, told.roll(1, 0)))
        assert (none == other).all()
        one, other = (method.latents(some, noise(), gamma=1.0) for some in (told, told.roll(1, 0)))
        assert (one != other).any(1).all()
        again, elsewhere = (method.latents(told, noise(seed)) for seed in (0, 1))
        assert (one == again).all()
        assert (one != elsewhere).any(1).all()


def test_a_withheld_sentence_has_no_slope() -> None:
    method = made("hyperldm")
    told_B = torch.tensor([True, False] * 4)
    sentence_BD = sentences(8).requires_grad_()
    found_BZ = method.net(torch.randn(8, 4, generator=torch_stream(0)), torch.arange(8), sentence_BD, told_B, torch_stream(0))
    found_BZ.square().sum().backward()
    assert (sentence_BD.grad.abs().sum(1) > 0).tolist() == told_B.tolist()
    method.net.zero_grad()
    nothing_B = torch.zeros(8, dtype=torch.bool)
    method.net(torch.randn(8, 4), torch.arange(8), sentence_BD, nothing_B).square().sum().backward()
    assert not any(parameter.grad.any() for parameter in method.net.reader.parameters())
    assert method.net.nothing_H.grad.any()


@pytest.mark.parametrize("model", TOLD)
def test_every_weight_has_a_part_in_the_loss(model: str) -> None:
    """The reference builds layers that it never uses."""
    method, concepts_B = made(model), torch.arange(CONCEPTS)
    every = replace(batch(CONCEPTS), sentence_BD=sentences(), concept_B=concepts_B, task_B=concepts_B)
    method.loss(every, torch_stream(0)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.net.parameters())


@pytest.mark.parametrize("model", OF_LATENTS)
def test_models_of_latents_train_no_hnet(model: str) -> None:
    method = made(model)
    before = {name: value.clone() for name, value in method.source.net.state_dict().items()}
    method.source.net.requires_grad_(requires_grad=False)  # as `undump_method` leaves it
    trained(method, 3)
    assert all((value == before[name]).all() for name, value in method.source.net.state_dict().items())


@pytest.fixture(scope="module")
def recipe() -> dict[str, HyperLDM]:
    """Networks trained as published, but for what they predict: cosine, times 1000."""
    found = {}
    for predicts in ("eps", "x0"):
        found[predicts] = made("hyperldm", predicts=predicts, times=1000, sampling_steps=1000, sampler="ancestral", clip=0.0)
        found[predicts].source.net.requires_grad_(requires_grad=False)
        assert trained(found[predicts], 150) < 0.9
    return found


@torch.no_grad()
def test_the_published_recipe_explodes_and_is_refused_by_name(
    recipe: dict[str, HyperLDM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step back divides an error of the noise by sqrt(1 - 0.999)."""
    told, eps = sentences(60), recipe["eps"]
    said = r"^sampled latents have a deviation of .* has exploded; let hyperldm\.predicts be x0, or set hyperldm\.clip to 4$"
    with pytest.raises(NumericError, match=said):
        eps.latents(told, noise())
    for name, method, clip in (("clip", eps, 4.0), ("x0", recipe["x0"], 0.0)):
        monkeypatch.setattr(method, "how", method.how | {"clip": clip})
        deviation = float(method.scale.standardise(method.latents(told, noise())).std())
        assert 0.4 < deviation < 1.6, name  # those of training have 1


@torch.no_grad()
def test_without_clipping_fewer_sentences_are_not_judged_and_what_is_not_finite_is(recipe: dict[str, HyperLDM]) -> None:
    found_BZ = recipe["eps"].scale.standardise(recipe["eps"].latents(sentences(20), noise()))
    assert float(found_BZ.std()) > 10 * EXPLODED  # of few nothing can be said; by how much it explodes
    refuse_exploded(found_BZ[:20])
    with pytest.raises(NumericError, match="exploded"):
        refuse_exploded(torch.full((1, 4), torch.nan))
    refuse_exploded(torch.randn(500, 4, generator=torch_stream(0)))
    with pytest.raises(NumericError, match=r"deviation of 4\."):
        refuse_exploded(4.2 * torch.randn(500, 4, generator=torch_stream(0)))


def test_sources_of_latents_keep_late_weights_and_others_their_best() -> None:
    some = models(*TEXT_MODELS)
    assert {model for model in TEXT_MODELS if text_pace(some.section, model).slack} == {*SOURCES}


def test_weights_of_the_average_are_saved() -> None:
    """The reference tracked an average and never used it."""
    subject = models("hyperldm").subject("hyperldm", hnet_of_tasks())
    subject.training.run()
    tensors = subject.tensors()
    assert not any(name.startswith("raw/") for name in tensors)
    for name, value in subject.training.best["average"].items():
        assert (tensors[f"average/{name}"] == value).all()
    assert any((subject.training.best["raw"][name] != tensors[f"average/{name}"]).any() for name in subject.training.best["raw"])


def test_hyperclip_is_the_symmetric_loss_of_cosines() -> None:
    method, asked = made("hyperclip", **PLAIN), batch(30)
    with torch.no_grad():
        method.net.log_scale.fill_(0.3)
        theta_CP = method.source.decode(method.source.latent_CZ).double()
        seen_CP = ((theta_CP - theta_CP.mean(0)) / theta_CP.std(0, correction=0).clamp_min(1e-6)).numpy()
    found_BD = layers(method.net, seen_CP)[asked.concept_B.numpy()]
    told_BD = asked.sentence_BD.double().numpy()
    found_BD, told_BD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found_BD, told_BD))
    logits_BB = SCALE * np.exp(0.3) * found_BD @ told_BD.T
    concepts = asked.concept_B.tolist()
    assert len({*concepts}) < 30  # some concept comes twice
    expected = 0.0
    for logits in (logits_BB, logits_BB.T):
        for place, own in enumerate(concepts):
            others = [logits[place, at] for at, concept in enumerate(concepts) if at == place or concept != own]
            expected += (np.log(np.exp(others).sum()) - logits[place, place]) / 30
    assert method.loss(asked, torch_stream(0)).item() == pytest.approx(expected, rel=1e-4)


def test_other_sentences_of_a_concept_are_no_mistakes() -> None:
    method = made("hyperclip", **PLAIN)
    asked = batch(6)
    same = replace(asked, sentence_BD=sentences(6), concept_B=torch.full((6,), 3))
    assert method.loss(same, torch_stream(0)).item() == pytest.approx(0, abs=1e-6)


def test_the_scale_of_hyperclip_is_learnt_and_the_loss_falls() -> None:
    method = made("hyperclip", **PLAIN)
    method.source.net.requires_grad_(requires_grad=False)
    before = method.net.log_scale.item()
    first = method.loss(batch(64), torch_stream(0)).item()
    assert trained(method, 100) < 0.6 * first
    assert abs(method.net.log_scale.item() - before) > 0.05


def climbed(method: HyperCLIP, steps: int, pull: float, *, lr: float = 0.05) -> tuple[Tensor, Tensor]:
    """The cosine of each sentence to the weights that are found for it, and how far their latents went."""
    method.how = dict(method.how) | {"guide_steps": steps, "guide_lr": lr}
    with torch.no_grad():
        latent_BZ = method.latents(sentences(), noise(), pull=pull)
        seen_BD = method.net(method.of_weights.standardise(method.source.decode(latent_BZ)))
    return torch.cosine_similarity(seen_BD, sentences()), method.scale.standardise(latent_BZ)


def test_hyperclip_climbs_towards_its_sentence() -> None:
    method = made("hyperclip")
    method.source.net.requires_grad_(requires_grad=False)
    method.net.requires_grad_(requires_grad=False)
    likeness = [float(climbed(method, steps, 0.0)[0].mean()) for steps in (0, 3, 10, 30, 80)]
    assert all(b > a for a, b in pairwise(likeness))
    start_BZ = climbed(method, 0, 0.0)[1]
    assert float(start_BZ.abs().max()) < 1e-5  # from the mean of latents


def test_a_strong_pull_keeps_latents_at_their_mean_and_each_sentence_climbs_alone() -> None:
    method = made("hyperclip")
    free_BZ, weak_BZ, held_BZ = (climbed(method, 60, pull)[1] for pull in (0.0, 1.0, 1e8))
    assert float(held_BZ.abs().max()) < 0.1
    assert float(free_BZ.abs().max()) > 1
    assert float(weak_BZ.norm()) < float(free_BZ.norm())
    with torch.no_grad():
        alone_BZ = method.latents(sentences()[:3], noise(), pull=0.0)
    torch.testing.assert_close(method.scale.standardise(alone_BZ), free_BZ[:3], rtol=1e-3, atol=1e-3)


def test_latents_are_regressed_in_units_of_their_deviation() -> None:
    method, asked = made("mlp", **PLAIN), batch()
    assert isinstance(method, LatentRegression)
    latent_CZ = method.source.latent_CZ.detach().double().numpy()
    want_BZ = ((latent_CZ - latent_CZ.mean(0)) / latent_CZ.std(0))[asked.concept_B.numpy()]
    told_BZ = layers(method.net, asked.sentence_BD.double().numpy())
    assert method.loss(asked, torch_stream(0)).item() == pytest.approx(np.square(told_BZ - want_BZ).mean(), rel=1e-5)
    found_BZ = method.latents(asked.sentence_BD, noise()).detach()
    np.testing.assert_allclose(found_BZ, told_BZ * latent_CZ.std(0) + latent_CZ.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        method.weights(asked.sentence_BD, noise()).detach(),
        decoded(method.source.net, found_BZ.double().numpy()),
        rtol=1e-4,
        atol=1e-5,
    )


def test_end_to_end_is_trained_on_answers_alone() -> None:
    method, asked = made("end-to-end", **PLAIN), batch()
    assert isinstance(method, EndToEnd)
    theta_BP = decoded(method.net, layers(method.net, asked.sentence_BD.double().numpy(), "reader."))
    np.testing.assert_allclose(method.weights(asked.sentence_BD, noise()).detach(), theta_BP, rtol=1e-4, atol=1e-5)
    assert method.loss(asked, torch_stream(0)).item() == pytest.approx(answer_loss(theta_BP, asked.inputs_BNE), rel=1e-5)


def test_joint_answers_the_same_image_by_its_sentence() -> None:
    method, asked = made("joint", **PLAIN), batch()
    assert isinstance(method, Joint)
    image_BNE = asked.inputs_BNE[:1, :1].expand(9, 1, -1)
    scores_BNW = method.scores(sentences(9), image_BNE).detach()
    assert scores_BNW.shape == (9, 1, 2)
    assert len(scores_BNW.flatten(1).unique(dim=0)) == 9
    scores_BNW = method.scores(asked.sentence_BD, asked.inputs_BNE).detach().double().numpy()
    log_BNW = scores_BNW - np.log(np.exp(scores_BNW).sum(-1, keepdims=True))
    expected = -(log_BNW[:, :3, 0].sum() + log_BNW[:, 3:, 1].sum()) / (9 * 6)
    assert method.loss(asked, torch_stream(0)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model", TOLD)
def test_a_seed_gives_the_same_weights_and_nothing_is_drawn_from_the_global_generator(model: str) -> None:
    of, before = hnet(), torch.get_rng_state()
    first, again, other = (build_text(facts(model) | {"seed": seed}, source=of).net.state_dict() for seed in (1, 1, 2))
    assert (torch.get_rng_state() == before).all()
    assert first.keys() == again.keys()
    assert all((value == again[name]).all() for name, value in first.items())
    assert any((value != other[name]).any() for name, value in first.items())
    assert all(value.isfinite().all() for value in first.values())


def models(*names: str, **changes: Any) -> TextModels:  # noqa: ANN401
    """As metatrain has them."""
    section = SECTION.model_copy(update=SMALL | {"models": names} | changes)
    rows = data()
    inputs = Inputs(torch.zeros(SENTENCE), torch.eye(SENTENCE)[:, : LEARNER.dim])
    pattern_LD = torch.randn(len(rows.classes), LEARNER.dim, generator=torch_stream(0, "pattern"))
    seen_NE = 2 * pattern_LD[torch.from_numpy(rows.label).long()]
    seen_NE = seen_NE + 0.3 * torch.randn(seen_NE.shape, generator=torch_stream(0, "images"))
    number_N = torch.arange(12) % 4  # of the tasks of training
    ends = PathEnds(torch.randn(12, LEARNER.size, generator=torch_stream(0, "ends")) + number_N[:, None], number_N)
    return TextModels(section, TASKS, vectors(), rows, LEARNER, inputs, seen_NE, 0, ends)


def hnet_of_tasks(**changes: Any) -> HNet:  # noqa: ANN401
    method = models("hnet", **changes).subject("hnet").training.method
    assert isinstance(method, HNet)
    return method


def generators(folder: Path, **changes: Any) -> TextGenerators:  # noqa: ANN401
    """All models, little trained, as they are read from their files."""
    all_models, checkpoints = models(*TEXT_MODELS, **changes), {}
    for model in sorted(TEXT_MODELS, key=OF_LATENTS.__contains__):
        of = None
        if model in OF_LATENTS:
            found = undump_text(checkpoints)
            assert found is not None
            of = found.source
        subject = all_models.subject(model, of)
        while not subject.training.finished:
            subject.training.run()
        save_checkpoint(folder / f"{model}.safetensors", subject.tensors(), subject.facts)
        checkpoints[model] = load_checkpoint(folder / f"{model}.safetensors")
    read = undump_text(checkpoints)
    assert read is not None
    return read


@pytest.mark.parametrize("source", SOURCES)
def test_models_that_are_read_are_those_that_were_saved(tmp_path: Path, source: str) -> None:
    all_models, read = models(*TEXT_MODELS, latents_of=source), generators(tmp_path, latents_of=source)
    assert read.source is read.methods[source]
    assert all(method.source is read.source for method in read.methods.values() if hasattr(method, "source"))
    assert {*read.methods} == {*TEXT_MODELS}
    assert (read.sentences.mean_D == all_models.scale.mean_D).all()
    assert (read.sentences.deviation_D == all_models.scale.deviation_D).all()
    assert read.inputs.basis_DE is not None
    assert read.learner == LEARNER
    assert read.facts["concepts"] == ["a", "b", "c"]
    assert read.facts["encoder"] == {"encoder": "made up"}
    for model, method in read.methods.items():
        of = read.source if model in OF_LATENTS else None
        subject = all_models.subject(model, of)
        while not subject.training.finished:
            subject.training.run()
        for name, value in subject.training.best["average"].items():
            assert (value == method.net.state_dict()[name]).all(), f"{model} {name}"
        assert not any(parameter.requires_grad for parameter in method.net.parameters())
    saved = subject.training.method
    saved.net.load_state_dict(subject.training.best["average"])
    told = sentences(3)
    with torch.no_grad():
        if isinstance(saved, Joint):
            images = torch.ones(3, 2, LEARNER.dim)
            assert (saved.scores(told, images) == read.methods[model].scores(told, images)).all()
        else:
            assert (saved.weights(told, noise()) == read.methods[model].weights(told, noise())).all()


def test_checkpoints_of_another_size_are_refused(tmp_path: Path) -> None:
    generators(tmp_path)
    tensors, about = load_checkpoint(tmp_path / "hnet.safetensors")
    for changes in ({"decoder": "free"}, {"concepts": ["a"]}, {"sentence": 5}, {"latent": 3}):
        with pytest.raises(CorruptArtifactError, match=r"^weights of another network than the hnet of sentences: average/"):
            undump_text({"hnet": (tensors, about | changes)})
    missing = {name: value for name, value in tensors.items() if name != "average/decoder.start_P"}
    with pytest.raises(CorruptArtifactError, match=r"average/decoder\.start_P has shape None"):
        undump_text({"hnet": (missing, about)})


def test_without_models_there_is_nothing_and_without_hnet_it_says_so(tmp_path: Path) -> None:
    assert undump_text({}) is None
    generators(tmp_path)
    only = undump_text({"joint": load_checkpoint(tmp_path / "joint.safetensors")})
    assert only is not None
    with pytest.raises(ParamsError, match=r"^hyperldm\.models: hnet was not trained; add it"):
        _ = only.source


def test_models_are_judged_on_validation_sentences_with_one_answer_and_on_the_same_images() -> None:
    """Training never sees a validation sentence; half of the images are right."""
    found = models("hnet")
    score = found.score()
    method = found.subject("hnet").training.method
    assert score(method) == score(method)
    assert 0 <= score(method) <= 100
    asked: list[Tensor] = []

    class Constant:
        def weights(self, sentence_BD: Tensor, noise: diffusion.Noise) -> Tensor:
            asked.append(sentence_BD)
            theta_BP = torch.zeros(len(sentence_BD), LEARNER.size)
            theta_BP[:, -1] = 1  # yes
            return theta_BP

    assert score(Constant()) == 50
    assert len(asked[0]) == 1  # "later", and not the ambiguous ones
    assert found.questions.sentence_TCD.shape[0] == 4
    assert not any((told_D == asked[0][0]).all() for told_D in found.questions.sentence_TCD.flatten(0, 1))
