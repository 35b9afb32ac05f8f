"""The picture of `metadiff chains`: from noise to weights of a new task, by a generator and by an optimiser.

A panel a draw, in the plane through three weights: the noise, where the chain ends and where the optimiser does. The contours are
the loss of the weights in this plane; the states on the way lie beside it, so each dot has the colour of its own loss.
Shapes: G draws, T times, W ways, S shots, Q queries, P weights, X by Y places of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metadiff.chains import states
from metadiff.diffusion import Noise
from metadiff.episodes import draw_episodes
from metadiff.errors import NumericError
from metadiff.methods.mcdi import McDi
from metadiff.objectives import OnSupport
from metadiff.paths import rule_of
from metadiff.pictures import Pictures
from metadiff.rows import Rows
from metadiff.trajectory import follow, kept_steps
from metadiff.weightgenerator import WeightGenerator

Axes = Any  # of matplotlib
DRAWS = 3
GRID, LEVELS = 61, 25  # places a side, and contours
MARGIN = 0.2  # of what is drawn, on each side
INK = {"chain": "white", "optimiser": "#ff9f5a"}


@dataclass(frozen=True)
class Task:
    """A generator, and the support and the queries of a task for it."""

    generator: WeightGenerator
    support_WS: Pictures
    query_WQ: Pictures

    @torch.no_grad()
    def losses(self, theta_NP: Tensor) -> Tensor:
        """(N,): the cross-entropy of standardised weights on the queries."""
        seen_WQE = self.generator.inputs.seen(self.query_WQ)
        objective = OnSupport(self.generator.learner, seen_WQE.expand(len(theta_NP), -1, -1, -1))
        return objective.measure(self.generator.scale.restore(theta_NP))[0]


def task_of(generator: WeightGenerator, data: Rows, pictures: Pictures, *, episode: int, **sizes: int) -> Task:
    """A validation episode."""
    drawn = draw_episodes(data, "val", way=generator.learner.way, episodes=1, first=episode, **sizes)
    return Task(generator, *(pictures[torch.from_numpy(ids[0]).long()] for ids in (drawn.support_EWS, drawn.query_EWQ)))


@dataclass(frozen=True)
class Walk:
    """The standardised weights of a draw, from noise on, and at which times a segment ends."""

    theta_TP: Tensor
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Plane:
    """Through three weights: the second lies in the first direction, the third on the upper side of it."""

    origin_P: Tensor
    basis_P2: Tensor

    @classmethod
    def through(cls, origin_P: Tensor, second_P: Tensor, third_P: Tensor) -> Plane:
        basis_P2, lengths_22 = torch.linalg.qr(torch.stack([second_P - origin_P, third_P - origin_P], dim=1))
        return cls(origin_P, basis_P2 * lengths_22.diagonal().sign())

    def places(self, theta_NP: Tensor) -> Tensor:
        """(N, 2): where weights are, seen from above."""
        return (theta_NP - self.origin_P) @ self.basis_P2

    def weights(self, places_N2: Tensor) -> Tensor:
        """(N, P): the weights in the plane."""
        return self.origin_P + places_N2 @ self.basis_P2.T


@torch.no_grad()
def chain_walks(task: Task, noise: Noise) -> list[Walk]:
    """One a draw."""
    assert isinstance(task.generator.method, McDi), "a start has no chain"
    theta_TGP = states(task.generator, task.support_WS.expand(DRAWS), noise)
    if not bool(theta_TGP.isfinite().all()):
        raise NumericError("a chain comes to weights that are not finite; train its generator with a lower mcdi.lr")
    theta_GTP = task.generator.scale.standardise(theta_TGP).transpose(0, 1)
    chain = task.generator.method.chain
    return [Walk(theta_TP, chain.bounds if chain.rule == "local" else (len(chain),)) for theta_TP in theta_GTP]


def optimiser_walks(task: Task, chains: Sequence[Walk], about: Mapping[str, Any]) -> list[Walk]:
    """From the noise of each chain, on the support; ``about`` says how the paths were made that the generator has learnt from."""
    scale, seen_WSE = task.generator.scale, task.generator.inputs.seen(task.support_WS)
    start_GP = scale.restore(torch.stack([chain.theta_TP[0] for chain in chains]))
    objective = OnSupport(task.generator.learner, seen_WSE.expand(len(start_GP), -1, -1, -1))
    theta_GTP, _, _ = follow(objective, start_GP, rule=rule_of(about), kept=tuple(range(about["steps"] + 1)))
    ends = kept_steps(about["steps"], len(chains[0].ends) + 1)[1:]
    return [Walk(theta_TP, ends) for theta_TP in scale.standardise(theta_GTP)]


def mean_loss(task: Task, walks: Sequence[Walk], time: int) -> float:
    """Over draws, at a time of their walks."""
    return float(task.losses(torch.stack([walk.theta_TP[time] for walk in walks])).mean())


def window(places_N2: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates of a square grid about all places."""
    low_2, high_2 = places_N2.aminmax(dim=0)
    half = (0.5 + MARGIN) * float((high_2 - low_2).max())
    x_X, y_Y = (torch.linspace(middle - half, middle + half, GRID) for middle in ((low_2 + high_2) / 2).tolist())
    return x_X, y_Y


def landscape(task: Task, plane: Plane, x_X: Tensor, y_Y: Tensor) -> Tensor:
    """(Y, X): the loss of the weights in a plane, a row at a time."""
    rows = (plane.weights(torch.stack([x_X, y.expand(len(x_X))], dim=1)) for y in y_Y)
    return torch.stack([task.losses(theta_XP) for theta_XP in rows])


def draw_chains(path: Path, task: Task, chains: Sequence[Walk], optimisers: Sequence[Walk], *, title: str) -> Path:
    """All panels have one scale of places and one of colours, whose end is the loss of noise."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    pairs = [*zip(chains, optimisers, strict=True)]
    planes = [Plane.through(chain.theta_TP[0], chain.theta_TP[-1], optimiser.theta_TP[-1]) for chain, optimiser in pairs]
    walked = zip(planes, pairs, strict=True)
    x_X, y_Y = window(torch.cat([plane.places(walk.theta_TP) for plane, pair in walked for walk in pair]))
    losses_GYX = torch.stack([landscape(task, plane, x_X, y_Y) for plane in planes])
    least, noise = float(losses_GYX.min()), mean_loss(task, chains, 0)
    style = {"cmap": "viridis", "norm": Normalize(least, noise)}
    figure = Figure(figsize=(11, 4.1), layout="constrained")
    panels = figure.subplots(1, len(pairs), sharex=True, sharey=True)
    levels = torch.linspace(least, noise, LEVELS)
    for number, axes in enumerate(panels):
        filled = axes.contourf(x_X, y_Y, losses_GYX[number], levels=levels, extend="max", **style)
        for walk, ink in zip(pairs[number], INK.values(), strict=True):
            _draw_walk(axes, planes[number].places(walk.theta_TP), task.losses(walk.theta_TP), walk.ends, ink, style)
        axes.set(title=f"draw {number + 1}", aspect="equal", xlabel="towards the end of the chain")
    panels[0].set_ylabel("across, to the optimiser's side")
    figure.colorbar(filled, ax=panels, label="cross-entropy of the queries", format="%.1f")
    _explain(panels[0])
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _draw_walk(axes: Axes, places_T2: Tensor, loss_T: Tensor, ends: Sequence[int], ink: str, style: dict[str, Any]) -> None:
    axes.plot(*places_T2.T, color=ink, linewidth=1.2)
    for marker, size, times in ((".", 40, [*range(len(loss_T))]), ("D", 45, [*ends])):
        axes.scatter(
            *places_T2[times].T, c=loss_T[times], marker=marker, s=size, edgecolors=ink, linewidths=0.9, zorder=3, **style
        )
    axes.plot(*places_T2[0], "o", color="black", markeredgecolor="white", zorder=4)


def _explain(axes: Axes) -> None:
    for name, ink in INK.items():
        axes.plot([], color=ink, label=name)
    axes.plot([], "D", color="none", markeredgecolor="white", label="end of a segment")
    axes.plot([], "o", color="black", markeredgecolor="white", label="noise")
    axes.legend(fontsize=8, facecolor="dimgray", labelcolor="white", framealpha=0.7)
