"""The denoisers: symmetry, what they see, where they begin, and the reference's network written out a second time."""

import pytest
import torch
from torch.nn.functional import softplus

from metadiff.denoiser import Condition, GradientDenoiser, TaskDenoiser, initialise, time_features

B, W, D = 3, 5, 12


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def condition(shots: float = 2.0, ways: int = W, seed: int = 1) -> Condition:
    return Condition(normal(B, ways, D, seed=seed), torch.full((B,), shots))


def task(*, dropout: float = 0.0, joint: bool = False, trained: bool = True) -> TaskDenoiser:
    net = TaskDenoiser(D, hidden=16, dropout=dropout, joint=joint)
    initialise(net, seed=0)
    if trained:
        torch.nn.init.normal_(net.leave.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return net


def gradient(*, sum_over_shots: bool = False) -> GradientDenoiser:
    net = GradientDenoiser(D, sum_over_shots=sum_over_shots)
    initialise(net, seed=0)
    return net


NETS = {"task": task(), "joint": task(joint=True), "gradient": gradient()}
T_B = torch.tensor([0, 500, 999])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("ways", [2, 5, 9])
def test_the_order_of_the_classes_is_the_order_of_the_rows(name: str, ways: int) -> None:
    net, w, known, order = NETS[name], normal(B, ways, D), condition(ways=ways), torch.randperm(ways)
    out = net(w, T_B, known)
    assert out.shape == w.shape
    turned = net(w[:, order], T_B, Condition(known.mean_BWD[:, order], known.shots_B))
    torch.testing.assert_close(turned, out[:, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_tasks_of_a_batch_do_not_see_each_other(name: str) -> None:
    net, w, known = NETS[name], normal(B, W, D), condition()
    alone = net(w[1:2], T_B[1:2], Condition(known.mean_BWD[1:2], known.shots_B[1:2]))
    torch.testing.assert_close(net(w, T_B, known)[1:2], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", [*NETS.values(), gradient(sum_over_shots=True)], ids=[*NETS, "sum"])
@pytest.mark.parametrize("ones", [{"t"}, {"shots"}, {"t", "shots"}], ids=lambda ones: "+".join(sorted(ones)))
def test_one_time_or_number_of_shots_may_stand_for_all(net: torch.nn.Module, ones: set[str]) -> None:
    w, known, t_B = normal(B, W, D), condition(shots=3.0), torch.full((B,), 700)
    short = Condition(known.mean_BWD, known.shots_B[:1] if "shots" in ones else known.shots_B)
    torch.testing.assert_close(net(w, t_B[:1] if "t" in ones else t_B, short), net(w, t_B, known), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "sees"), [("task", False), ("joint", True), ("gradient", False)])
def test_only_a_joint_denoiser_lets_rows_see_each_other(name: str, sees: bool) -> None:
    net, w, known = NETS[name], normal(B, W, D), condition()
    other = w.clone()
    other[:, 0] += 1
    assert bool((net(w, T_B, known)[:, 1:] != net(other, T_B, known)[:, 1:]).any()) is sees


def test_the_task_denoiser_begins_as_the_support_mean() -> None:
    known = condition()
    assert torch.equal(task(trained=False)(normal(B, W, D), T_B, known), known.mean_BWD)


def test_the_task_denoiser_sees_weights_time_and_shots() -> None:
    net, w, known = NETS["task"], normal(B, W, D), condition()
    out = net(w, T_B, known)
    assert (net(w + 0.1, T_B, known) != out).any()
    assert (net(w, T_B - torch.tensor([0, 9, 9]), known) != out)[1:].any()
    assert (net(w, T_B, condition(shots=5.0)) != out).any()


def test_the_gradient_denoiser_sees_the_gradient_and_the_time_alone() -> None:
    net, w, known = NETS["gradient"], normal(B, W, D), condition()
    moved = Condition(known.mean_BWD + 3, known.shots_B * 7)
    torch.testing.assert_close(net(w + 3, T_B, moved), net(w, T_B, known), rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_the_support_loss_by_autograd() -> None:
    """Mean over shots, or the reference's sum: the network must be given exactly this."""
    support, w = normal(B, W, 4, D, seed=3), normal(B, W, D).requires_grad_()
    (w[:, :, None] - support).square().sum().backward()
    for sums in (False, True):
        net = gradient(sum_over_shots=sums)
        seen = []
        net.layers[0].register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        net(w.detach(), T_B, Condition(support.mean(2), torch.full((B,), 4.0)))
        torch.testing.assert_close(seen[0], w.grad if sums else w.grad / 4, rtol=1e-5, atol=1e-5)


def test_the_gradient_denoiser_is_the_references_network() -> None:
    """Section 3 of the method's notes, written out with plain matrices."""
    net, w, known = NETS["gradient"], normal(B, W, D), condition()
    p = dict(net.named_parameters())
    te = time_features(T_B)[:, None]
    g = 2 * (w - known.mean_BWD)

    def line(kind: str, number: int, x: torch.Tensor) -> torch.Tensor:
        return x @ p[f"{kind}.{number}.weight"].T + p[f"{kind}.{number}.bias"]

    x1 = softplus(line("layers", 0, g) * line("times", 0, te))
    x2 = softplus(line("layers", 1, x1) * line("times", 1, te))
    x3 = softplus(line("layers", 2, x2) * line("times", 2, te)) + x2
    x4 = softplus(line("layers", 3, x3) * line("times", 3, te)) + x1
    h = line("layers", 4, x4) * line("times", 4, te)
    s = torch.sigmoid(line("gate", 2, torch.relu(line("gate", 0, te))))
    torch.testing.assert_close(net(w, T_B, known), g + (1 - s) * h, rtol=1e-5, atol=1e-5)


def test_at_512_features_it_has_the_references_size() -> None:
    net = GradientDenoiser(512)
    assert sum(p.numel() for p in net.parameters()) == 807_745
    assert sum(p.numel() for p in net.gate.parameters()) == 51_521


def test_time_features_are_the_references() -> None:
    found = time_features(torch.tensor([0, 7, 999]))
    assert found.shape == (3, 320)
    for i in (0, 1, 80, 159):
        frequency = 10_000 ** (-i / 160)
        angle = torch.tensor([0.0, 7.0, 999.0]) * frequency
        torch.testing.assert_close(found[:, i], angle.cos(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            found[:, 160 + i], torch.sin(torch.tensor([0.0, 7.0, 999.0]) * frequency), rtol=1e-3, atol=1e-3
        )


def test_dropout_draws_from_the_generator_given_and_from_nothing_else() -> None:
    net, w, known, state = task(dropout=0.5), normal(B, W, D), condition(), torch.get_rng_state()
    one, two, other = (net(w, T_B, known, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(net(w, T_B, known), net(w, T_B, known))
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_keeps_the_mean() -> None:
    net, x = task(dropout=0.7), torch.ones(200, 50, 10)
    kept = net.drop(x, torch.Generator().manual_seed(0))
    assert float((kept == 0).float().mean()) == pytest.approx(0.7, abs=0.01)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.03)


def test_a_seed_gives_the_same_weights_and_another_seed_others() -> None:
    one, two = GradientDenoiser(D), GradientDenoiser(D)
    initialise(one, seed=3)
    initialise(two, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    initialise(two, seed=4)
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    shapes = {}
    for parameter in one.parameters():  # no two layers share their numbers
        assert not torch.equal(shapes.setdefault(parameter.shape, parameter + 1), parameter)
