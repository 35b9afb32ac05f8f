"""The diffusion core against closed forms and against diffusers, step for step."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from metadiff import diffusion
from metadiff.diffusion import Schedule

T = 1000
EXACT = {"rtol": 1e-9, "atol": 1e-9}
SAMPLERS = {
    "mean step": partial(diffusion.ancestral, noise=None),
    "ddim": diffusion.ddim,
    "dpm-solver": diffusion.dpm_solver_2m,
}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=stream(seed))


def test_the_linear_schedule_is_the_papers() -> None:
    schedule = diffusion.linear(T)
    assert schedule.abar_T.dtype == torch.float64
    assert float(schedule.abar_T[0]) == pytest.approx(1 - 1e-4, rel=1e-12)
    assert float(schedule.abar_T[-1]) == pytest.approx(4.036e-5, rel=1e-3)
    eta = (1 - schedule.abar_T / torch.cat([torch.ones(1, dtype=torch.float64), schedule.abar_T[:-1]])) / schedule.s_T
    assert float(eta.sum()) == pytest.approx(11.41, abs=5e-3)
    assert int(eta.argmin()) == 26


def test_fewer_times_add_as_much_noise_in_all() -> None:
    short, long = diffusion.linear(100), diffusion.linear(T)
    assert math.log(short.abar_T[-1]) == pytest.approx(math.log(long.abar_T[-1]), rel=0.12)


@pytest.mark.parametrize("steps", [10, 100, T])
def test_the_cosine_schedule_is_that_of_diffusers(steps: int) -> None:
    theirs = DDPMScheduler(num_train_timesteps=steps, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(diffusion.cosine(steps).abar_T, theirs.double(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("betas", [[0.0, 0.1], [0.1, 1.0], [-0.1], [float("nan")], [[0.1]]])
def test_a_schedule_that_is_none_is_refused(betas: list[float]) -> None:
    with pytest.raises(ValueError, match="each between 0 and 1"):
        diffusion.given(torch.tensor(betas))


def test_a_linear_schedule_too_short_to_hold_its_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 20 times, not 20"):
        diffusion.linear(20)
    assert len(diffusion.linear(21)) == 21


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_what_a_network_predicts_converts_exactly(kind: diffusion.Kind, t: int) -> None:
    schedule, w0, eps = diffusion.linear(T), normal(3, 5), normal(3, 5, seed=1)
    t_B = torch.full((3,), t)
    w_t = diffusion.add_noise(schedule, w0, eps, t_B)
    a, s = diffusion.scales(schedule, t_B, w0)
    torch.testing.assert_close(w_t, a * w0 + s * eps, rtol=0, atol=0)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), **EXACT)
    found = diffusion.to_x0(kind, diffusion.target(kind, w0, eps, a, s), w_t, a, s)
    torch.testing.assert_close(found, w0, **EXACT)
    torch.testing.assert_close(diffusion.to_eps(found, w_t, a, s), eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(diffusion.to_v(found, w_t, a, s), a * eps - s * w0, rtol=1e-6, atol=1e-6)


def test_each_task_is_noised_at_its_own_time() -> None:
    schedule, w0, eps = diffusion.linear(T), normal(2, 4, 3), normal(2, 4, 3, seed=1)
    both = diffusion.add_noise(schedule, w0, eps, torch.tensor([3, 900]))
    for row, t in enumerate((3, 900)):
        alone = diffusion.add_noise(schedule, w0[row : row + 1], eps[row : row + 1], torch.tensor([t]))
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, T])
def test_times_fall_evenly_from_the_last(steps: int) -> None:
    found = diffusion.times(diffusion.linear(T), steps)
    assert found[0] == T - 1
    assert len(set(found)) == steps
    gaps = {a - b for a, b in pairwise(found)}
    assert max(gaps, default=1) - min(gaps, default=1) <= 1


@pytest.mark.parametrize("steps", [0, T + 1])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="sampling steps must be 1 to 1000"):
        diffusion.times(diffusion.linear(T), steps)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 20, T])
def test_a_perfect_denoiser_is_recovered_exactly(name: str, steps: int) -> None:
    w0 = normal(4, 6)
    found = SAMPLERS[name](lambda _w, _t: w0, normal(4, 6, seed=1), diffusion.linear(T), steps=steps)
    torch.testing.assert_close(found, w0, rtol=1e-6, atol=1e-6)


def gaussian_denoiser(schedule: Schedule, mu: float, sigma: float) -> diffusion.Denoise:
    """The best estimate of w_0 ~ N(mu, sigma^2) from w_t, in closed form."""

    def denoise(w: torch.Tensor, t: int) -> torch.Tensor:
        a, s = float(schedule.a_T[t]), float(schedule.s_T[t])
        return mu + a * sigma**2 / (a**2 * sigma**2 + s**2) * (w - a * mu)

    return denoise


@pytest.mark.parametrize("name", ["ddim", "dpm-solver"])
def test_the_deterministic_samplers_follow_the_flow_of_a_gaussian(name: str) -> None:
    schedule, mu, sigma, w = diffusion.linear(T), 1.5, 0.3, normal(200)
    a, s = float(schedule.a_T[-1]), float(schedule.s_T[-1])
    want = mu + sigma * (w - a * mu) / math.sqrt(a**2 * sigma**2 + s**2)
    error = {
        steps: float((SAMPLERS[name](gaussian_denoiser(schedule, mu, sigma), w, schedule, steps=steps) - want).abs().max())
        for steps in (20, 200, T)
    }
    assert error[T] < 0.01
    assert error[200] < 0.2 * error[20]


def test_the_second_order_sampler_needs_fewer_steps() -> None:
    schedule, w = diffusion.linear(T), normal(200)
    denoise = gaussian_denoiser(schedule, 0.0, 0.5)
    want = diffusion.ddim(denoise, w, schedule, steps=T)
    first = (diffusion.ddim(denoise, w, schedule, steps=20) - want).abs().max()
    second = (diffusion.dpm_solver_2m(denoise, w, schedule, steps=20) - want).abs().max()
    assert second < 0.5 * first


def test_ancestral_samples_have_the_distribution_of_the_data() -> None:
    schedule, mu, sigma = diffusion.linear(T), -0.7, 0.4
    noise = diffusion.gaussian_noise(stream(1))
    found = diffusion.ancestral(gaussian_denoiser(schedule, mu, sigma), normal(20_000), schedule, steps=T, noise=noise)
    assert float(found.mean()) == pytest.approx(mu, abs=0.01)
    assert float(found.std()) == pytest.approx(sigma, abs=0.015)


def test_without_noise_the_steps_forget_where_they_began_more_than_they_should() -> None:
    """The reference leaves the noise out of the ancestral step, so what should be a draw shrinks towards the mean."""
    schedule = diffusion.linear(T)
    found = diffusion.ancestral(gaussian_denoiser(schedule, 0.0, 0.4), normal(2000), schedule, steps=T, noise=None)
    assert float(found.std()) < 0.1


def network(w: torch.Tensor, t: int) -> torch.Tensor:
    """Any smooth function will do as an estimate of the noise."""
    return torch.sin(w) + 0.1 * math.cos(t / 100)


def as_x0(schedule: Schedule) -> diffusion.Denoise:
    return lambda w, t: diffusion.to_x0("eps", network(w, t), w, float(schedule.a_T[t]), float(schedule.s_T[t]))


@pytest.mark.parametrize("steps", [10, 50, T])
def test_ddim_is_that_of_diffusers(steps: int) -> None:
    theirs = DDIMScheduler(timestep_spacing="trailing", beta_schedule="linear", clip_sample=False, set_alpha_to_one=True)
    theirs.alphas_cumprod = diffusion.linear(T).abar_T
    theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    theirs.set_timesteps(steps)
    want = normal(5, 3)
    for t in theirs.timesteps:
        want = theirs.step(network(want, int(t)), t, want).prev_sample
    schedule = diffusion.linear(T)
    torch.testing.assert_close(diffusion.ddim(as_x0(schedule), normal(5, 3), schedule, steps=steps), want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("steps", [10, 50])
def test_ancestral_is_that_of_diffusers(steps: int) -> None:
    theirs = DDPMScheduler(timestep_spacing="trailing", variance_type="fixed_large", clip_sample=False)
    theirs.alphas_cumprod = diffusion.linear(T).abar_T
    theirs.one = torch.ones((), dtype=torch.float64)
    theirs.set_timesteps(steps)
    want, generator, seen = normal(5, 3), stream(1), []
    schedule, noise = diffusion.linear(T), diffusion.gaussian_noise(stream(1))
    diffusion.ancestral(as_x0(schedule), want, schedule, steps=steps, noise=noise, watch=lambda w, _: seen.append(w))
    for t, ours in zip(theirs.timesteps, seen, strict=True):  # their last step, to no noise at all, still adds noise
        torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-6)
        want = theirs.step(network(want, int(t)), t, want, generator=generator).prev_sample


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_dpm_solver_is_that_of_diffusers(steps: int) -> None:
    theirs = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    want = normal(5, 3)
    for t in theirs.timesteps:
        want = theirs.step(network(want, int(t)), t, want).prev_sample
    schedule = diffusion.linear(T)
    found = diffusion.dpm_solver_2m(as_x0(schedule), normal(5, 3), schedule, steps=steps)
    torch.testing.assert_close(found, want.double(), rtol=2e-3, atol=2e-3)  # their tables are float32


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_watcher_sees_every_step_and_changes_nothing(name: str) -> None:
    schedule, seen = diffusion.linear(T), []
    sampler = SAMPLERS[name]
    found = sampler(as_x0(schedule), normal(2, 3), schedule, steps=7, watch=lambda w, x0: seen.append((w.clone(), x0.clone())))
    assert len(seen) == 7
    torch.testing.assert_close(found, sampler(as_x0(schedule), normal(2, 3), schedule, steps=7), rtol=0, atol=0)
