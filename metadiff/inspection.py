"""What a trajectory store holds, on one screen and in one picture: `metadiff inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from metadiff.trajectory import Floats
from metadiff.trajectory_store import TrajectoryStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERCENTILES = (5, 50, 95)
SHOWN_STEPS = 12  # rows of the table
SHOWN_PATHS = 40
INK, MUTED = "#2a5d9f", "#8a8f98"


def summary(store: TrajectoryStore) -> list[str]:
    """What was drawn, what a vector is, how it was optimised, how it is stored: a line each."""
    about, params = store.attributes, store.attributes["params"]
    refused = ", ".join(f"{number:,} {reason}" for reason, number in about["refused"].items())
    parts = ", ".join(f"{part['name']} {tuple(part['shape'])} from {part['offset']}" for part in about["layout"])
    kinds = {"cosine": f" of scale {params['scale']:g}", "mlp": f" of {params['hidden']:,} hidden units"}
    kinds |= {"conv": f" of {about['layout'][0]['shape'][0]} channels"}
    versions = ", ".join(f"{name} {version}" for name, version in (about["versions"] | {"zarr": about["zarr"]}).items())
    return [
        f"{about['dataset']}: {len(store):,} of {params['tasks']:,} tasks accepted ({refused})",
        f"tasks     {_tasks(store)}; seed {about['seed']}",
        f"inputs    {_inputs(params)}",
        f"vector    {params['learner']} learner{kinds.get(params['learner'], '')}: {store.size:,} numbers: {parts}",
        f"path      {_optimizer(params)} from Gaussian weights of deviation {params['init_std']:g}",
        f"store     {store.blocks} blocks of up to {about['block']:,} tasks, {len(store.steps)} kept steps; {versions}",
    ]


def _tasks(store: TrajectoryStore) -> str:
    params = store.attributes["params"]
    if store.tasks_of == "sentences":
        told = store.attributes["descriptions"]
        texts = {text for task in told for text in task["texts"]}
        asked = f"yes or no to {len(texts):,} sentences of {len(told):,} tasks"
        return f"{asked}, {params['shot']} images that are right and as many that are wrong"
    sees = "its support" if params["sees"] == "support" else "all images of its classes"
    return f"{params['way']}-way, {params['shot']} support images a class, each sees {sees}"


def _inputs(params: Mapping[str, Any]) -> str:
    """What the learner saw of an image, and with what it was disturbed."""
    noise = f", with noise of deviation {params['noise']:g} in the gradient" if params["noise"] else ""
    if params["learner"] == "conv":
        return f"the pixels, standardised{noise}"
    seen = f"{params['dim']:,} whitened directions of the features" if params["dim"] else "the features as they are"
    spread = f", base classes at {params['spread']:g} of their distances" if params["spread"] != 1 else ""
    return seen + spread + noise


def _optimizer(params: Mapping[str, Any]) -> str:
    sam = f", SAM of radius {params['sam']:g}" if params["sam"] else ""
    decay = f", weight decay {params['weight_decay']:g}" if params["weight_decay"] else ""
    rates = f"lr {params['lr']:g}, momentum {params['momentum']:g}{decay}"
    return f"{params['optimizer']}{sam}, {rates}, {params['steps']:,} steps"


def progress_table(store: TrajectoryStore) -> Table:
    """Loss and accuracy over tasks at the kept steps, or at some of them, always with the first and the last."""
    table = Table()
    table.add_column("step", justify="right")
    for name in ("loss", "accuracy %"):
        for percentile in PERCENTILES:
            table.add_column(f"{name}\n{percentile}th" if percentile != 50 else f"{name}\nmedian", justify="right")
    loss_3K, accuracy_3K = (np.percentile(values_NK, PERCENTILES, axis=0) for values_NK in (store.loss, store.accuracy))
    count = len(store.steps)
    for k in sorted({round(i * (count - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)}):
        cells = [f"{value:.4f}" for value in loss_3K[:, k]] + [f"{100 * value:.1f}" for value in accuracy_3K[:, k]]
        table.add_row(str(store.steps[k]), *cells)
    return table


def draw(store: TrajectoryStore, path: Path) -> Path:
    """The fan of losses over all tasks, and the paths of the first tasks in the plane that shows most of them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    fan, plane = figure.subplots(1, 2)
    _draw_fan(fan, store.steps, store.loss)
    _draw_paths(plane, store.weights(0)[:SHOWN_PATHS], store.steps)
    figure.suptitle(f"{store.attributes['dataset']}: {len(store):,} trajectories", fontsize=11)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def plane_of(points_MP: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points in the plane of their two largest principal components, and the share of the variance that each shows."""
    centred_MP = points_MP.astype(np.float64) - points_MP.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred_MP @ centred_MP.T)  # of the points' products: there are fewer points than parameters
    order = values.argsort()[::-1][:2]
    return vectors[:, order] * np.sqrt(np.maximum(values[order], 0)), values[order] / values.sum()


def _draw_fan(axes: Axes, steps_K: NDArray[Any], loss_NK: Floats) -> None:
    low, lower, middle, upper, high = np.percentile(loss_NK, (5, 25, 50, 75, 95), axis=0)
    axes.fill_between(steps_K, low, high, color=INK, alpha=0.15, linewidth=0, label="5th to 95th percentile")
    axes.fill_between(steps_K, lower, upper, color=INK, alpha=0.35, linewidth=0, label="25th to 75th percentile")
    axes.plot(steps_K, middle, color=INK, marker=".", label="median")
    axes.set(title="Loss of each task on what it sees", xlabel="step of the optimiser", ylabel="cross-entropy", yscale="log")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)


def _draw_paths(axes: Axes, weights_TKP: Floats, steps_K: NDArray[Any]) -> None:
    tasks, kept = weights_TKP.shape[:2]
    flat_M2, share_2 = plane_of(weights_TKP.reshape(tasks * kept, -1))
    for path_K2 in flat_M2.reshape(tasks, kept, 2):
        axes.plot(*path_K2.T, color=MUTED, linewidth=0.8, zorder=1)
    steps_M = np.tile(steps_K, tasks)
    dots = axes.scatter(flat_M2[:, 0], flat_M2[:, 1], c=steps_M, cmap="viridis_r", s=14, zorder=2)
    axes.figure.colorbar(dots, ax=axes, label="step of the optimiser")
    axes.set(title=f"Paths of {tasks} tasks, from light to dark", xlabel=f"first component, {100 * share_2[0]:.0f} % of variance")
    axes.set_ylabel(f"second component, {100 * share_2[1]:.0f} %")
    axes.grid(alpha=0.25)
