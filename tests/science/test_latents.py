"""Latents without sentences: `maml` against gradients by hand and one task at a time, `hvae` against torch's distributions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy

from metadiff.courses import HELD, PathEnds, hvae_course
from metadiff.described import QuestionBatch
from metadiff.errors import DataError
from metadiff.hypernet import LatentSource
from metadiff.methods.latents import HVAE, MAML, TABLE, divergence, parted
from metadiff.rng import torch_stream
from metadiff.standard import Standard
from metadiff.textbuild import SOURCES, build_text
from metadiff.textmodels import undump_method
from tests.science.test_hyperldm import LEARNER, batch, facts, models

SMALL_RATE, STEPS = 0.2, 4
PATHS = 60


def maml(**changes: Any) -> MAML:  # noqa: ANN401
    """In float64."""
    found = build_text(facts("maml", **{"inner_lr": SMALL_RATE, "inner_steps": STEPS} | changes))
    assert isinstance(found, MAML)
    found.net.double()
    return found


def scale_of(theta_NP: Tensor) -> dict[str, Tensor]:
    return {f"weights/{name}": value for name, value in vars(Standard.of(theta_NP)).items()}


def hvae(theta_NP: Tensor, **changes: Any) -> HVAE:  # noqa: ANN401
    found = build_text(facts("hvae", **changes), known=scale_of(theta_NP))
    assert isinstance(found, HVAE)
    return found


def ends(count: int = PATHS) -> Tensor:
    """Weights that three numbers say all of."""
    stream = torch_stream(0, "ends")
    found_NP = torch.randn(count, 3, generator=stream) @ torch.randn(3, LEARNER.size, generator=stream)
    return 2 * found_NP + torch.randn(LEARNER.size, generator=stream)


def double(asked: QuestionBatch) -> QuestionBatch:
    return replace(asked, inputs_BNE=asked.inputs_BNE.double())


def plain_loss(method: MAML, latent_Z: Tensor, inputs_NE: Tensor) -> Tensor:
    """Of one task, by autograd all the way; the first half of its images is wrong."""
    theta_P = method.decode(latent_Z[None])[0]
    enter_HE, shift_H, leave_HW = theta_P[:15].view(3, 5), theta_P[15:18], theta_P[18:24].view(3, 2)
    scores_NW = (inputs_NE @ enter_HE.T + shift_H).relu() @ leave_HW + theta_P[24:]
    return cross_entropy(scores_NW, torch.arange(2).repeat_interleave(len(inputs_NE) // 2))


def alone(method: MAML, inputs_NE: Tensor, *, steps: int = STEPS) -> Tensor:
    """Where the steps of one task lead."""
    latent_Z = method.net.start.latent_Z.detach()
    for _ in range(steps):
        latent_Z = latent_Z.detach().requires_grad_()
        (slope_Z,) = torch.autograd.grad(plain_loss(method, latent_Z, inputs_NE), [latent_Z])
        latent_Z = latent_Z - SMALL_RATE * slope_Z
    return latent_Z.detach()


@pytest.mark.parametrize("steps", [1, STEPS])
def test_inner_steps_are_those_of_each_task_alone(steps: int) -> None:
    method, asked = maml(inner_steps=steps), double(batch(5, 4))
    found_BZ = method.adapted(asked.inputs_BNE)
    expected_BZ = torch.stack([alone(method, inputs_NE, steps=steps) for inputs_NE in asked.inputs_BNE])
    torch.testing.assert_close(found_BZ, expected_BZ, rtol=1e-9, atol=1e-12)
    assert (found_BZ != method.net.start.latent_Z).any(1).all()
    with torch.no_grad():
        assert (method.adapted(asked.inputs_BNE) == found_BZ).all()  # as in validation


def test_inner_steps_lower_the_loss_of_every_task() -> None:
    method, asked = maml(inner_steps=10), double(batch(8, 6))
    start_Z = method.net.start.latent_Z.detach()
    for latent_Z, inputs_NE in zip(method.adapted(asked.inputs_BNE), asked.inputs_BNE, strict=True):
        assert plain_loss(method, latent_Z, inputs_NE) < plain_loss(method, start_Z, inputs_NE)


def test_no_slope_goes_through_the_inner_steps() -> None:
    """By a plain loop over tasks: the slope is that where the steps have led, and the start has that of the latents."""
    method, asked = maml(), double(batch(5, 4))
    method.loss(asked, torch_stream(0)).backward()
    found = {name: parameter.grad.clone() for name, parameter in method.net.named_parameters()}
    method.net.zero_grad()
    slopes, start_Z = [], method.net.start.latent_Z
    for inputs_NE in asked.inputs_BNE:
        wrong, right = inputs_NE[:4], inputs_NE[4:]
        latent_Z = alone(method, torch.cat([wrong[::2], right[::2]])).requires_grad_()
        loss = plain_loss(method, latent_Z, torch.cat([wrong[1::2], right[1::2]])) / 5
        loss.backward()
        slopes.append(latent_Z.grad)
    start_Z.grad = torch.stack(slopes).sum(0)
    for name, parameter in method.net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-8, atol=1e-12)


def test_the_images_of_a_task_are_parted_within_each_way() -> None:
    asked = replace(batch(2, 5), inputs_BNE=torch.arange(20.0).view(2, 10, 1))
    inner, outer = parted(asked)
    assert inner.inputs_BNE[0].flatten().tolist() == [0, 2, 4, 5, 7, 9]
    assert outer.inputs_BNE[1].flatten().tolist() == [11, 13, 16, 18]
    assert outer.target_N.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("decoder", ["modulated", "free"])
def test_maml_learns_to_adapt(decoder: str) -> None:
    """New tasks, each of which asks for the sign of one input."""

    def signed(count: int, seed: int) -> QuestionBatch:
        stream = torch_stream(seed, "signed")
        inputs_BNE = torch.randn(count, 16, LEARNER.dim, generator=stream)
        place_B = torch.randint(3, (count,), generator=stream)
        place_BN1 = place_B[:, None, None].expand(-1, 16, 1)
        sign_N = torch.tensor([-1.0] * 8 + [1.0] * 8)
        inputs_BNE.scatter_(2, place_BN1, inputs_BNE.gather(2, place_BN1).abs() * sign_N[:, None])
        return QuestionBatch(torch.zeros(count, 1), place_B, place_B, torch.full((count,), fill_value=True), inputs_BNE)

    method = build_text(facts("maml", decoder=decoder, inner_lr=0.5, inner_steps=5, hidden=16))
    assert isinstance(method, MAML)
    optimizer = torch.optim.Adam(method.net.parameters(), lr=1e-2)
    for step in range(200):
        optimizer.zero_grad()
        method.loss(signed(32, step), torch_stream(0)).backward()
        optimizer.step()
    inner, outer = parted(signed(200, 10_000))
    with torch.no_grad():
        before = outer.loss(LEARNER, method.decode(method.net.start.latent_Z.expand(200, -1))).item()
        after = outer.loss(LEARNER, method.decode(method.adapted(inner.inputs_BNE))).item()
    assert before > 0.6
    assert after < 0.45


def test_the_divergence_is_that_of_torch() -> None:
    mean_BZ, log_variance_BZ = (torch.randn(7, 4, generator=torch_stream(seed)).double() for seed in (1, 2))
    expected_B = kl_divergence(Normal(mean_BZ, (0.5 * log_variance_BZ).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean_BZ, log_variance_BZ), expected_B)
    assert divergence(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]


@pytest.mark.parametrize("kl", [0.0, 2.0])
def test_the_loss_of_hvae_is_its_squared_error_and_its_divergence(kl: float) -> None:
    theta_NP = ends()
    method = hvae(theta_NP, kl=kl)
    mean_NZ, log_variance_NZ = method.encode(theta_NP)
    assert mean_NZ.shape == log_variance_NZ.shape == (PATHS, 4)
    noise_NZ = torch.randn(PATHS, 4, generator=torch_stream(3))
    found_NP = method.decode(mean_NZ + (0.5 * log_variance_NZ).exp() * noise_NZ)
    assert found_NP.shape == theta_NP.shape
    apart_NP = ((found_NP - theta_NP) / theta_NP.std(0, correction=0)).detach().double().numpy()
    spread = kl * kl_divergence(Normal(mean_NZ, (0.5 * log_variance_NZ).exp()), Normal(0.0, 1.0)).sum(1).mean().item()
    expected = (np.square(apart_NP).sum(1).mean() + spread) / LEARNER.size
    assert method.loss(theta_NP, torch_stream(3)).item() == pytest.approx(expected, rel=1e-4)


def test_weights_are_encoded_standardised_and_decoded_in_their_own_units() -> None:
    """The same of weights in other units, by the same network."""
    theta_NP, factor_P = ends(), torch.rand(LEARNER.size, generator=torch_stream(4)) + 0.5
    first, other = hvae(theta_NP), hvae(factor_P * theta_NP + 3)
    torch.testing.assert_close(other.encode(factor_P * theta_NP + 3)[0], first.encode(theta_NP)[0], rtol=1e-3, atol=1e-4)
    latent_BZ = torch.randn(6, 4, generator=torch_stream(5))
    torch.testing.assert_close(other.decode(latent_BZ), factor_P * first.decode(latent_BZ) + 3, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.scale.restore(first.scale.standardise(theta_NP)), theta_NP)


def test_hvae_gives_back_weights_that_few_numbers_say() -> None:
    theta_NP = ends(400)
    method = hvae(theta_NP, kl=0.01, hidden=32)
    optimizer = torch.optim.Adam(method.net.parameters(), lr=5e-3)
    for step in range(400):
        optimizer.zero_grad()
        method.loss(theta_NP[:300], torch_stream(0, step)).backward()
        optimizer.step()
    with torch.no_grad():
        found_NP = method.decode(method.encode(theta_NP[300:])[0])
        error = method.scale.standardise(found_NP) - method.scale.standardise(theta_NP[300:])
    assert float(error.square().mean()) < 0.03  # of new ones; their variance is 1


def test_every_weight_has_a_part_in_the_loss() -> None:
    for method, asked in ((maml(), double(batch(9, 4))), (hvae(ends()), ends())):
        method.loss(asked, torch_stream(0)).backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.net.parameters())


@pytest.mark.parametrize("model", ["maml", "hvae"])
def test_a_seed_gives_the_same_weights_and_nothing_is_drawn_from_the_global_generator(model: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (
        build_text(facts(model) | {"seed": seed}, known=scale_of(ends())).net.state_dict() for seed in (1, 1, 2)
    )
    assert (torch.get_rng_state() == before).all()
    assert all((value == again[name]).all() for name, value in first.items())
    assert any((value != other[name]).any() for name, value in first.items())


def finished(model: str, **changes: Any) -> tuple[LatentSource, dict[str, Tensor]]:  # noqa: ANN401
    """Trained by its course, and read back; and its checkpoint."""
    subject = models(model, latents_of=model, **changes).subject(model)
    while not subject.training.finished:
        subject.training.run()
    found = undump_method(subject.tensors(), subject.facts)
    assert isinstance(found, LatentSource)
    return found, subject.tensors()


@pytest.mark.parametrize("model", SOURCES)
def test_every_source_has_a_latent_a_concept_and_decodes_it(model: str) -> None:
    found, tensors = finished(model)
    assert found.latent_CZ.shape == (3, 4)
    assert len(found.latent_CZ.unique(dim=0)) == 3
    assert found.decode(found.latent_CZ).shape == (3, LEARNER.size)
    assert found.learner == LEARNER
    assert found.device == torch.device("cpu")
    again = finished(model)[1]
    assert all((value == again[name]).all() for name, value in tensors.items())


def test_latents_of_maml_are_adapted_to_images_of_their_concept() -> None:
    """Of the average of its weights, on images that training shows: a plain loop over concepts."""
    found, _ = finished("maml", inner_lr=SMALL_RATE, inner_steps=STEPS, lr=1.0)  # far from where it began
    assert isinstance(found, MAML)
    some = models("maml")
    rows_CWS = some.questions.images.draw(torch.tensor([0, 1, 2]), 64, torch_stream(0, "maml", "latents"))
    for concept, rows_WS in enumerate(rows_CWS):  # the first tasks of a, b and c are the first three
        expected_Z = alone(found, some.seen_NE[rows_WS.flatten()])
        torch.testing.assert_close(found.latent_CZ[concept], expected_Z, rtol=1e-4, atol=1e-5)


def test_latents_of_hvae_are_means_over_the_paths_of_a_concept() -> None:
    """Tasks 0 and 3 are both of concept a."""
    found, _ = finished("hvae", lr=1.0)
    assert isinstance(found, HVAE)
    weights_NP = models("hvae").ends.weights_NP
    mean_NZ = found.encode(weights_NP)[0]
    for concept, places in enumerate(([0, 4, 8, 3, 7, 11], [1, 5, 9], [2, 6, 10])):
        torch.testing.assert_close(found.latent_CZ[concept], mean_NZ[places].mean(0))


def test_one_concept_of_ten_is_kept_from_hvae() -> None:
    """Neither its scale nor its batches are of them."""
    some = models("hvae")
    concept_N = some.questions.concept_T[some.ends.task_N]
    kept_NP = some.ends.weights_NP[concept_N % HELD != 0]
    course = some.course("hvae")
    torch.testing.assert_close(course.before["weights/mean_D"], kept_NP.mean(0))
    drawn_BP = torch.cat([course.draw(torch_stream(seed)) for seed in range(20)])
    assert {*map(tuple, drawn_BP.tolist())} == {*map(tuple, kept_NP.tolist())}


def test_concepts_without_paths_are_refused() -> None:
    some = models("hvae")
    few = PathEnds(some.ends.weights_NP[:1], some.ends.task_N[:1])
    said = r"^data/trajectories: 2 of 3 concepts of training have no path, such as 'b': raise collect\.tasks and run: dvc repro$"
    with pytest.raises(DataError, match=said):
        hvae_course(some.section, some.questions, some.tasks, few)


def test_maml_is_judged_on_images_that_it_has_not_adapted_to() -> None:
    """An answer by the images that are shown is right of them alone."""
    shown: list[Tensor] = []

    class Spied:
        learner = LEARNER

        def adapted(self, inputs_BNE: Tensor) -> Tensor:
            shown.append(inputs_BNE)
            return torch.zeros(len(inputs_BNE), 4)

        def decode(self, latent_BZ: Tensor) -> Tensor:
            theta_BP = torch.zeros(len(latent_BZ), LEARNER.size)
            theta_BP[:, -1] = 1  # yes
            return theta_BP

    score = models("maml").course("maml").score
    assert score(Spied()) == 50
    assert shown[0].shape == (1, 10, LEARNER.dim)  # "later", and not the ambiguous one


def test_a_source_in_training_has_no_latents_of_concepts() -> None:
    for method in (maml(), hvae(ends())):
        with pytest.raises(AssertionError, match="trained"):
            _ = method.latent_CZ


def test_a_checkpoint_has_what_the_course_knows() -> None:
    assert {name for name in finished("maml")[1] if name.startswith(("latents/", "weights/"))} == {TABLE}
    assert {name for name in finished("hvae")[1] if name.startswith(("latents/", "weights/"))} == {
        TABLE,
        "weights/mean_D",
        "weights/deviation_D",
    }
