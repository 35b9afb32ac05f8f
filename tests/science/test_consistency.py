"""Local consistency diffusion against its algebra: what a perfect denoiser reaches, what the loss is, how schedules begin."""

import math

import pytest
import torch
from torch import Tensor

from metadiff import diffusion
from metadiff.consistency import SCHEDULES, Chain, Rule, Window, add_noise, chain, ddim, mean_steps, squared_errors

SIZE = 512


def path(segments: int) -> Tensor:
    """One known path of weights, float64."""
    generator = torch.Generator().manual_seed(segments)
    steps = torch.randn(segments, SIZE, generator=generator, dtype=torch.float64)
    return torch.randn(SIZE, generator=generator, dtype=torch.float64) + 0.5 * steps.cumsum(0)


def bayes(steps: Chain, path_KP: Tensor) -> Tensor:
    """The minimiser of the loss for this path: over the targets whose window holds t, by their posterior given x."""
    last = [len(steps) if steps.rule == "naive" else bound for bound in steps.bounds]

    def f(x: Tensor, t: int) -> Tensor:
        every = [number for number in range(len(last)) if steps.starts[number] <= t < last[number]]
        active_A = torch.tensor(every[-1:] if steps.rule == "vanilla" else every)
        abar_A = steps.level(active_A, torch.full_like(active_A, t))
        of_f_A, of_eps_A = steps.factors(active_A, torch.full_like(active_A, t))
        eps_AP = (x - abar_A.sqrt()[:, None] * path_KP[active_A]) / (1 - abar_A).sqrt()[:, None]
        length_A = torch.tensor([last[number] - steps.starts[number] for number in active_A]).double()
        log_A = -eps_AP.square().sum(1) / 2 - SIZE / 2 * (1 - abar_A).log() - length_A.log()
        share_A = log_A.softmax(0)
        return (share_A * of_f_A * of_eps_A) @ eps_AP / (share_A * of_f_A.square()).sum()

    return f  # type: ignore[return-value]


def reached(steps: Chain, path_KP: Tensor) -> list[float]:
    """The relative distance to each kept weight at its boundary, the worst of five chains."""
    worst = torch.zeros(len(steps.bounds))
    for seed in range(5):
        start = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        seen: dict[int, Tensor] = {}
        mean_steps(bayes(steps, path_KP), start, steps, watch=lambda t, x, seen=seen: seen.update({t: x}))
        found = [(seen[bound] - path_KP[i]).norm() / path_KP[i].norm() for i, bound in enumerate(steps.bounds)]
        worst = torch.maximum(worst, torch.stack(found).float())
    return [float(value) for value in worst]


@pytest.mark.parametrize("schedule", ["gentle", "cosine"])
@pytest.mark.parametrize("times", [20, 21])
@pytest.mark.parametrize("segments", [1, 2, 3, 5])
@pytest.mark.parametrize("window", ["overlap", "disjoint"])
def test_a_perfect_denoiser_passes_every_local_target(schedule: str, times: int, segments: int, window: Window) -> None:
    steps = chain(schedule, times=times, segments=segments, rule="local", window=window)
    assert max(reached(steps, path(segments))) < 1e-5


@pytest.mark.parametrize("times", [20, 21])
def test_naive_targets_end_elsewhere_and_vanilla_passes_none_on_its_way(times: int) -> None:
    shape = {"times": times, "segments": 3, "window": "overlap"}
    naive = reached(chain("cosine", rule="naive", **shape), path(3))  # type: ignore[arg-type]
    assert naive[-1] > 0.2
    vanilla = reached(chain("cosine", rule="vanilla", **shape), path(3))  # type: ignore[arg-type]
    assert vanilla[-1] < 1e-5
    assert min(vanilla[:-1]) > 0.2


def test_the_loss_is_what_a_step_onto_the_target_asks_for() -> None:
    """In float64: an f without loss makes the mean step that the algebra of the target's own chain gives."""
    steps = chain("gentle", times=20, segments=3, rule="local", window="overlap")
    generator = torch.Generator().manual_seed(0)
    theta, eps = torch.randn(2, 20, SIZE, generator=generator, dtype=torch.float64)
    for target, bound in enumerate(steps.bounds):
        t_B = torch.arange(bound)
        target_B = torch.full_like(t_B, target)
        of_f, of_eps = steps.factors(target_B, t_B)
        f = (of_eps / of_f)[:, None] * eps[:bound]
        assert squared_errors(steps, f, eps[:bound], target_B, t_B).max() < 1e-24
        x = add_noise(steps, theta[:bound], eps[:bound], target_B, t_B)
        alpha, abar, own = (value[:, None] for value in (steps.alpha_T[t_B], steps.abar_KT[-1, t_B], steps.abar_KT[target, t_B]))
        after = own / alpha  # abar^i of the next time
        want = after.sqrt() * theta[:bound] + alpha.sqrt() * (1 - after) / (1 - own).sqrt() * eps[:bound]
        torch.testing.assert_close((x - (1 - alpha) / (1 - abar).sqrt() * f) / alpha.sqrt(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["vanilla", "naive", "local"])
def test_one_segment_is_ddpm_with_its_weight(rule: Rule) -> None:
    """Of a schedule in the usual direction: the same noisy weights, (1 - abar) times the usual loss, the same mean step."""
    usual = diffusion.cosine(20)
    steps = chain("cosine", times=20, segments=1, rule=rule, window="overlap")
    generator = torch.Generator().manual_seed(0)
    theta, eps, f = torch.randn(3, 20, 7, generator=generator, dtype=torch.float64)
    t_B, target_B = torch.arange(20), torch.zeros(20, dtype=torch.long)
    torch.testing.assert_close(add_noise(steps, theta, eps, target_B, t_B), diffusion.add_noise(usual, theta, eps, 19 - t_B))
    weight_B1 = 1 - usual.abar_T[19 - t_B][:, None]
    torch.testing.assert_close(squared_errors(steps, f, eps, target_B, t_B), weight_B1 * (f - eps).square())
    a_T, s_T = usual.a_T, usual.s_T
    ours = mean_steps(lambda x, t: x.sin(), theta[0], steps)
    theirs = diffusion.ancestral(lambda x, t: (x - s_T[t] * x.sin()) / a_T[t], theta[0], usual, steps=20, noise=None)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("window", ["overlap", "disjoint"])
def test_ddim_ends_each_segment_on_the_weights_that_it_leads_to(window: Window) -> None:
    steps, path_KP = chain("gentle", times=20, segments=3, rule="local", window=window), path(3)
    seen: dict[int, Tensor] = {}
    start = torch.randn(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ddim(lambda _x, t: path_KP[int(steps.own(t))], start, steps, watch=lambda t, x: seen.update({t: x}))
    assert torch.equal(seen[0], start)
    for bound, theta in zip(steps.bounds, path_KP, strict=True):
        torch.testing.assert_close(seen[bound], theta, rtol=1e-12, atol=1e-12)


def test_ddim_of_one_target_is_the_usual_one() -> None:
    usual, start = diffusion.cosine(20), torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = chain("cosine", times=20, segments=3, rule="vanilla", window="disjoint")
    ours = ddim(lambda x, _t: x.sin(), start, steps)
    torch.testing.assert_close(ours, diffusion.ddim(lambda x, _t: x.sin(), start, usual, steps=20))


@pytest.mark.parametrize("rule", ["vanilla", "local"])
@pytest.mark.parametrize("segments", [1, 3])
def test_an_estimate_of_the_weights_is_as_good_as_f(rule: Rule, segments: int) -> None:
    """The estimate of what a time leads to gives an f without loss for that target."""
    steps = chain("gentle", times=20, segments=segments, rule=rule, window="disjoint")
    theta, eps = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t_B = torch.arange(20)
    target_B = steps.own(t_B)
    x = add_noise(steps, theta, eps, target_B, t_B)
    assert squared_errors(steps, steps.f_of(theta, x, t_B), eps, target_B, t_B).max() < 1e-20


@pytest.mark.parametrize(("times", "segments"), [(20, 1), (20, 2), (20, 3), (20, 6), (21, 3), (50, 3), (5, 5)])
def test_gentle_starts_from_noise_and_amplifies_little(times: int, segments: int) -> None:
    steps = chain("gentle", times=times, segments=segments, rule="local", window="disjoint")
    assert len(steps) == times
    assert steps.bounds == tuple(round(times * i / segments) for i in range(1, segments + 1))
    assert float(steps.abar_KT[0, 0]) <= 1e-3
    if (times, segments) == (20, 3):
        assert steps.bounds == (7, 13, 20)
        assert float(steps.alpha_T.min()) ** -0.5 == pytest.approx(1.64, abs=0.01)


def test_a_schedule_that_does_not_start_from_noise_is_refused_with_one_that_does() -> None:
    with pytest.raises(
        ValueError, match=r"schedule linear with 20 times and 3 segments does not start from noise: 0\.89 of .* gentle"
    ):
        chain("linear", times=20, segments=3, rule="local", window="overlap")
    with pytest.raises(ValueError, match="cosinus; there are gentle, cosine, linear"):
        chain("cosinus", times=20, segments=3, rule="local", window="overlap")
    assert all(
        math.isclose(float(chain(name, times=1000, segments=1, rule="vanilla", window="overlap").alpha_T.max()), 1, abs_tol=0.01)
        for name in SCHEDULES
    )


@pytest.mark.parametrize("window", ["overlap", "disjoint"])
def test_times_are_drawn_over_each_target_s_window(window: Window) -> None:
    steps = chain("gentle", times=20, segments=3, rule="local", window=window)
    target_B, t_B = steps.draw(30_000, torch.Generator().manual_seed(0))
    for number, (first, bound) in enumerate(zip(steps.starts, steps.bounds, strict=True)):
        counts = torch.bincount(t_B[target_B == number], minlength=20)
        expected = 30_000 / 3 / (bound - first)
        assert counts[:first].sum() == counts[bound:].sum() == 0
        assert ((counts[first:bound] - expected).abs() < 6 * math.sqrt(expected)).all()
