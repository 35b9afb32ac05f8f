"""The figure of `metadiff toy`: how near each classifier comes to the best one, and how draws settle about what can be known.

Shapes: G draws, D features, T steps, N points; everything else as in `metadiff.toy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadiff.conditioning import condition_on
from metadiff.diffusion import gaussian_noise
from metadiff.evaluation import mean_and_ci95
from metadiff.generator import Generator
from metadiff.rng import torch_stream
from metadiff.toy import CLASSIFIERS, FINE, SHOTS, Scores, Size, World, posterior, test_episodes

Axes = Any  # of matplotlib
POINTS, PATHS = 200, 6
LOWEST = 50  # per cent; what is worse is written, not drawn
COLOURS = {1: "tab:blue", 5: "tab:orange"}


def draw_toy(path: Path, scores: Scores, world: World, generators: Mapping[str, Generator], size: Size, seed: int) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_accuracies(left, scores)
    draw_one_class(right, world, generators["task"], size, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def draw_accuracies(axes: Axes, scores: Scores) -> None:
    names = [name for name in CLASSIFIERS if name != "bayes"]
    for shot in SHOTS:
        best, _ = mean_and_ci95(scores[shot]["bayes"])
        axes.axvline(best, color=COLOURS[shot], linestyle="--", label=f"bayes, {shot} shot{'s' * (shot > 1)}")
        means, halves = zip(*(mean_and_ci95(scores[shot][name]) for name in names), strict=True)
        axes.errorbar(means, range(len(names)), xerr=halves, fmt="o", color=COLOURS[shot], capsize=4)
    for row, name in enumerate(names):
        below = [f"{scores[shot][name].mean():.0f}" for shot in SHOTS if scores[shot][name].mean() < LOWEST]
        if below:
            axes.text(LOWEST + 0.5, row, f"\N{LEFTWARDS ARROW} {', '.join(below)}", va="center")
    axes.set_xlim(LOWEST, 100)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy on unseen classes, per cent", title="every classifier on the same episodes")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left")


def draw_one_class(axes: Axes, world: World, generator: Generator, size: Size, seed: int) -> None:
    """Seen along the widest direction of the class means and one that is narrow."""
    episodes, narrow = test_episodes(world, replace(size, episodes=1), 1, seed), size.features // 2
    seen_D2 = world.axes_DD[:, [0, narrow]]
    support_11SD = world.features_ND[torch.from_numpy(episodes.support_EWS[:1, :1]).long()]
    mean_11D, covariance_DD = posterior(support_11SD, world.between_DD)
    walk_TG2 = (walks(generator, support_11SD, seed).double() @ seen_D2).numpy()
    for number in range(PATHS):
        path_T2 = walk_TG2[:, number]
        axes.plot(*path_T2.T, color="tab:gray", linewidth=0.9, label=None if number else "from noise to a draw")
        axes.plot(*path_T2[0], "o", color="tab:gray", markersize=5, markerfacecolor="white")
    axes.plot(*walk_TG2[-1].T, ".", color="tab:blue", markersize=4, label=f"{POINTS} draws")
    ring_N2 = ellipse((mean_11D[0, 0] @ seen_D2).numpy(), (seen_D2.T @ covariance_DD @ seen_D2).numpy())
    axes.plot(*ring_N2.T, color="black", linewidth=1.2, label="95 % of the true posterior")
    truth_D = world.means_CD[int(episodes.classes_EW[0, 0])]
    marks = {"support mean (ncm)": ("s", "tab:red", support_11SD[0, 0].mean(0).double()), "true mean": ("*", "gold", truth_D)}
    marks["posterior mean"] = ("P", "black", mean_11D[0, 0])
    for label, (marker, colour, point_D) in marks.items():
        style = {"color": colour, "markersize": 12, "markeredgecolor": "white", "linestyle": "", "zorder": 3}
        axes.plot(*(point_D @ seen_D2).numpy(), marker, label=label, **style)
    axes.set(xlabel="along the widest direction of class means", ylabel="along a narrow one", title="one class, one image of it")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left")


@torch.no_grad()
def walks(generator: Generator, support_11SD: Tensor, seed: int) -> Tensor:
    """(T, G, D): the weights at each step of each draw, and where they end."""
    steps: list[Tensor] = []
    sampling = replace(FINE, watch=lambda weights, _estimate: steps.append(weights))
    condition = condition_on(support_11SD.repeat(1, POINTS, 1, 1), generator.scales.weights)
    steps.append(generator.method.sample(condition, sampling, gaussian_noise(torch_stream(seed, "toy", "figure"))))
    return generator.scales.weights.restore(torch.cat(steps))


def ellipse(centre_2: NDArray[np.float64], covariance_22: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2): the line that holds 95 % of a normal distribution."""
    angle_N = np.linspace(0, 2 * np.pi, 200)
    radius = np.sqrt(-2 * np.log(0.05))
    ring_N2: NDArray[np.float64] = (
        centre_2 + radius * np.c_[np.cos(angle_N), np.sin(angle_N)] @ np.linalg.cholesky(covariance_22).T
    )
    return ring_N2
