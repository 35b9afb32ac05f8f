"""`metadiff inspect`: what it says is what the store holds."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from metadiff.cli import main
from metadiff.inspection import SHOWN_STEPS, plane_of, progress_table, summary
from metadiff.trajectory import Trajectories
from metadiff.trajectory_store import TrajectoryStore, open_trajectories, write_trajectories

PARAMS = {"learner": "linear", "scale": 10.0, "tasks": 30, "way": 3, "shot": 2, "sees": "classes", "optimizer": "sgd", "lr": 0.5}
PARAMS |= {"momentum": 0.9, "sam": 0.05, "steps": 40, "init_std": 0.1}
PARAMS |= {"hidden": 16, "dim": 0, "spread": 1.0, "weight_decay": 0.0, "noise": 0.0}
MLP = {"learner": "mlp", "hidden": 1600, "dim": 64, "spread": 0.2, "weight_decay": 0.01, "noise": 0.3, "sam": 0.0}
LAYOUT = [{"name": "weight", "shape": [3, 4], "offset": 0}, {"name": "bias", "shape": [3], "offset": 12}]
ABOUT = {"dataset": "birds", "params": PARAMS, "layout": LAYOUT, "seed": 7, "versions": {"torch": "9.9"}}
ABOUT |= {"refused": {"not finite": 3, "not improved": 4}}


def made(path: Path, *, kept: int = 5, told: dict[str, object] | None = None, **changes: object) -> TrajectoryStore:
    rng = np.random.default_rng(0)
    ids = (np.arange(23), np.zeros((23, 3)), np.zeros((23, 3, 2)))
    loss_TK = np.linspace(2, 0.5, kept) * np.linspace(0.9, 1.1, 23)[:, None]
    floats = (rng.normal(size=(23, kept, 15)), loss_TK, np.tile(np.linspace(0.25, 1, kept), (23, 1)))
    found = Trajectories(*(part.astype(np.int32) for part in ids), *(part.astype(np.float32) for part in floats))
    about = ABOUT | {"params": PARAMS | changes} | (told or {})
    write_trajectories(path, [found], count=23, block=10, steps=tuple(range(kept)), about=about)
    return open_trajectories(path)


def rows(store: TrajectoryStore) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=120)
    console.print(progress_table(store))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_the_summary_names_what_a_reader_needs(tmp_path: Path) -> None:
    lines = summary(made(tmp_path / "a.zarr"))
    assert lines[0] == "birds: 23 of 30 tasks accepted (3 not finite, 4 not improved)"
    assert lines[1] == "tasks     3-way, 2 support images a class, each sees all images of its classes; seed 7"
    assert lines[2] == "inputs    the features as they are"
    assert lines[3] == "vector    linear learner: 15 numbers: weight (3, 4) from 0, bias (3,) from 12"
    assert lines[4] == "path      sgd, SAM of radius 0.05, lr 0.5, momentum 0.9, 40 steps from Gaussian weights of deviation 0.1"
    assert lines[5].startswith("store     3 blocks of up to 10 tasks, 5 kept steps; torch 9.9, zarr 3.")


def test_the_summary_of_perceptrons_says_what_they_see_and_how_large_they_are(tmp_path: Path) -> None:
    lines = summary(made(tmp_path / "a.zarr", **MLP))
    seen = "64 whitened directions of the features, base classes at 0.2 of their distances"
    assert lines[2] == f"inputs    {seen}, with noise of deviation 0.3 in the gradient"
    assert lines[3].startswith("vector    mlp learner of 1,600 hidden units: 15 numbers: weight (3, 4)")
    assert lines[4].startswith("path      sgd, lr 0.5, momentum 0.9, weight decay 0.01, 40 steps from")
    assert "cosine learner of scale 10: 15" in summary(made(tmp_path / "b.zarr", learner="cosine"))[3]


def test_the_summary_of_networks_says_that_they_see_pixels(tmp_path: Path) -> None:
    lines = summary(made(tmp_path / "a.zarr", **MLP | {"learner": "conv"}))
    assert lines[2] == "inputs    the pixels, standardised, with noise of deviation 0.3 in the gradient"
    assert lines[3].startswith("vector    conv learner of 3 channels: 15 numbers")  # as many as the first part has rows


def test_the_summary_of_sentences_counts_them(tmp_path: Path) -> None:
    """One sentence of two tasks is one."""
    tasks = [{"number": n, "name": f"{n}", "kind": "some", "texts": [f"sentence {n}", "either"]} for n in (0, 3, 4)]
    lines = summary(made(tmp_path / "a.zarr", told={"tasks_of": "sentences", "descriptions": tasks}, sees="support"))
    assert lines[1] == "tasks     yes or no to 4 sentences of 3 tasks, 2 images that are right and as many that are wrong; seed 7"


def test_the_table_has_percentiles_over_the_tasks_at_kept_steps(tmp_path: Path) -> None:
    table = rows(made(tmp_path / "a.zarr"))
    assert table[0] == ["0", "1.8200", "2.0000", "2.1800", "25.0", "25.0", "25.0"]
    assert table[-1] == ["4", "0.4550", "0.5000", "0.5450", "100.0", "100.0", "100.0"]
    assert len(table) == 5
    many = rows(made(tmp_path / "b.zarr", kept=100))
    assert len(many) == SHOWN_STEPS
    assert (many[0][0], many[-1][0]) == ("0", "99")


def test_points_of_a_plane_keep_their_distances() -> None:
    rng = np.random.default_rng(0)
    flat_M2 = rng.normal(size=(9, 2))
    basis_2P = np.linalg.qr(rng.normal(size=(30, 2)))[0].T
    found_M2, share_2 = plane_of((flat_M2 @ basis_2P + 5).astype(np.float32))
    assert share_2.sum() == pytest.approx(1)
    assert share_2[0] > share_2[1]
    distances = (np.linalg.norm(points[:, None] - points, axis=-1) for points in (found_M2, flat_M2))
    np.testing.assert_allclose(*distances, atol=1e-5)


def test_the_command_prints_one_screen_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "a.zarr", kept=100)
    assert main(["inspect", "a.zarr"]) == 0
    printed = capsys.readouterr().out
    assert "birds: 23 of 30 tasks accepted" in printed
    assert printed.endswith("Picture:  plots/trajectories.png\n")
    assert len(printed.splitlines()) <= 24
    assert (tmp_path / "plots/trajectories.png").read_bytes().startswith(b"\x89PNG")


def test_a_store_that_is_not_whole_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect"]) == 65
    assert "data/trajectories/trajectories.zarr: no trajectory store; make it: dvc repro collect" in capsys.readouterr().err
    made(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/loss/c/0/0").unlink()
    assert main(["inspect", "a.zarr"]) == 65
    assert "loss/c/0/0: missing" in capsys.readouterr().err
