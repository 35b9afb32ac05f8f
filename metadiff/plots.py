"""One picture of a run, for people who look rather than read: training, generators, sampling, calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DATA = Path("data")
CURVES = Path("backbone/curves/plots/metrics")
SHOWN = ("ncm", "gaussian", "regression", "metadiff", "metadiff-mean")  # of the classifiers


def draw_run(path: Path, data: Path = DATA) -> Path | None:
    """The picture of what is here; nothing if no result is."""
    panels: dict[Path, Callable[[Axes, Path], None]] = {
        data / CURVES / "train/loss.tsv": _training_loss,
        data / CURVES / "val/ncm_accuracy.tsv": _backbone_accuracy,
        data / "generator/curves.csv": _generators,
        data / "results/sampling.csv": _sampling,
        data / "results/calibration.csv": _calibration,
    }
    panels = {file: panel for file, panel in panels.items() if file.is_file()}
    if not panels:
        return None
    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (file, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        panel(axes, file)
        axes.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _training_loss(axes: Axes, file: Path) -> None:
    curve = pd.read_csv(file, sep="\t")
    axes.plot(curve["step"] + 1, curve["loss"], marker=".")
    axes.set(title="Backbone: training loss", xlabel="epoch")


def _backbone_accuracy(axes: Axes, file: Path) -> None:
    curve = pd.read_csv(file, sep="\t")
    axes.plot(curve["step"] + 1, curve["ncm_accuracy"], marker=".")
    axes.set(title="Backbone: NCM on validation, %", xlabel="epoch")


def _generators(axes: Axes, file: Path) -> None:
    curves = pd.read_csv(file, index_col="step").filter(regex="_score$")
    for name, values in curves.items():
        if "gradient" not in str(name):  # far below: it would hide the others
            axes.plot(curves.index, values, marker=".", label=str(name).removesuffix("_score"))
    axes.set(title="Generators: accuracy on validation, %", xlabel="step")
    _legend(axes)


def _sampling(axes: Axes, file: Path) -> None:
    curves = pd.read_csv(file, index_col="steps")
    fewest = min((int(str(name).split()[-1].removesuffix("-shot")) for name in curves), default=1)
    curves = curves.filter(regex=rf"^metadiff .* {fewest}-shot$")
    for name, values in curves.items():
        axes.plot(curves.index, values, marker=".", label=str(name).split()[1])
    axes.set(title=f"Sampling: {fewest}-shot accuracy on validation, %", xlabel="steps", xscale="log")
    _legend(axes)


def _calibration(axes: Axes, file: Path) -> None:
    bins = pd.read_csv(file)
    bins = bins[(bins["split"] == "test") & (bins["shot"] == bins["shot"].min()) & (bins["count"] > 0)]
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for name in SHOWN:
        part = bins[bins["classifier"] == name]
        if len(part):
            axes.plot(part["confidence"] / part["count"], part["correct"] / part["count"], marker=".", label=name)
    axes.set(title="Calibration on test, fewest shots", xlabel="confidence", ylabel="accuracy")
    _legend(axes)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
