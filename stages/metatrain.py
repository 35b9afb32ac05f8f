"""features, trajectories -> generators of classifier weights, one a model of `metatrain.models`.

The unit of work is the training between two judgements on validation episodes: a killed run goes on after the last one it
finished, bit for bit. The weights of the best judgement are kept, the trained ones beside their moving average.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.conditioning import BaseTasks, Ends
from metadiff.diffusion import gaussian_noise
from metadiff.episodes import draw_episodes
from metadiff.evaluation import accuracy
from metadiff.generator import Generator, dump
from metadiff.metatraining import MetaTraining
from metadiff.methods import Method
from metadiff.methods.metadiff import network_facts, sampling_of
from metadiff.rng import torch_stream
from metadiff.rows import Rows
from metadiff.store import read_features, read_rows
from metadiff.trajectory_store import open_trajectories
from stages.runner import Run, Stage, main

if TYPE_CHECKING:
    from metadiff.params import Metatrain

FEATURES = Path("data/backbone/features.h5")
TRAJECTORIES = Path("data/trajectories")


def build(run: Run[Metatrain]) -> None:
    data = read_rows(FEATURES)
    features_ND = torch.from_numpy(read_features(FEATURES)).to(run.device)
    ends = trained_weights(run.device) if run.params.target == "trajectory-ends" else None
    tasks = {model: base_tasks(run.params, features_ND, data, ends, model) for model in run.params.models}
    trainings = {model: begin(run, tasks[model], data, model) for model in run.params.models}
    curves = []
    sizes = {"total": len(trainings) * run.params.steps, "done": sum(training.step for training in trainings.values())}
    with run.progress("training", **sizes, unit="steps") as advance:
        for model, training in trainings.items():
            train(run, training, model, advance)
            save_checkpoint(
                run.out / f"{model}.safetensors",
                dump(training.best, training.tasks.scales, training.tasks.posterior),
                training.facts,
            )
            curve = pd.DataFrame(training.history).set_index("step").sort_index(axis=1)  # a restored history has another order
            curves.append(curve.add_prefix(f"{model}_"))
            run.say(f"{model}: best after {training.best_step} steps, {training.best_score:.1f} % on validation episodes")
    pd.concat(curves, axis=1).to_csv(run.out / "curves.csv", lineterminator="\n")


def base_tasks(section: Metatrain, features_ND: torch.Tensor, data: Rows, ends: Ends | None, model: str) -> BaseTasks:
    """The reference's network knows the means of supports alone."""
    tasks = BaseTasks(features_ND, data, spread=section.spread, ends=ends)
    if section.correct == "posterior" and model != "gradient":
        tasks.posterior = GaussianPosterior(tasks.features_ND, data).settled(ridge=section.ridge)
    return tasks


def begin(run: Run[Metatrain], tasks: BaseTasks, data: Rows, model: str) -> MetaTraining:
    """A training as it was after its last finished unit, if there is one."""
    score = validation_score(run.params, tasks, data, model)
    facts = network_facts(run.params, model, feature_size=tasks.features_ND.shape[1], seed=run.seed)
    training = MetaTraining(run.params, facts=facts, tasks=tasks, score=score, seed=run.seed)
    for end in reversed(unit_ends(run.params)):
        folder = run.finished_unit(unit_name(model, end))
        if folder:
            training.restore(*load_checkpoint(folder / "state.safetensors"))
            break
    return training


def train(run: Run[Metatrain], training: MetaTraining, model: str, advance: Callable[[int], None]) -> None:
    ends = unit_ends(run.params)
    while not training.finished:
        done = training.step
        number = done // run.params.val_every
        with run.unit(unit_name(model, ends[number])) as folder:
            training.run()
            save_checkpoint(folder / "state.safetensors", *training.state())
        if number >= 2:
            run.drop_unit(unit_name(model, ends[number - 2]))  # two are kept: one may turn out to be damaged
        advance(training.step - done)


def unit_ends(section: Metatrain) -> list[int]:
    """After how many steps each unit ends."""
    return [min(start + section.val_every, section.steps) for start in range(0, section.steps, section.val_every)]


def trained_weights(device: str) -> Ends:
    """Where the trajectories end, as rows a class."""
    store = open_trajectories(TRAJECTORIES / "trajectories.zarr")
    (rows,) = store.attributes["layout"]  # a base learner of rows alone
    weights_NWD = torch.from_numpy(store.end_points()).view(-1, *rows["shape"])
    return Ends(weights_NWD.to(device), torch.from_numpy(store.classes))


def validation_score(section: Metatrain, tasks: BaseTasks, data: Rows, model: str) -> Callable[[Method], float]:
    """Per cent on validation episodes, the mean over the numbers of shots: the same episodes and noise at every judgement."""
    sizes = {"way": section.way, "query": section.val_query, "episodes": section.val_episodes}
    episodes = [draw_episodes(data, "val", shot=shot, seed=0, **sizes) for shot in section.shots]
    sampling = sampling_of(model, section.sampler, section.gradient_steps if model == "gradient" else section.sampling_steps)

    def score(method: Method) -> float:
        def rows(support_EWSD: torch.Tensor, batch: int) -> torch.Tensor:
            noise = gaussian_noise(torch_stream(0, "validation", batch))
            return Generator(method, tasks.scales, tasks.posterior).rows(support_EWSD, sampling, noise)[None]

        return sum(accuracy(rows, tasks.features_ND, drawn) for drawn in episodes) / len(episodes)

    return score


def unit_name(model: str, step: int) -> str:
    return f"{model}-{step:08d}"


STAGE = Stage(
    name="metatrain",
    out=Path("data/generator"),
    build=build,
    inputs=(FEATURES.parent, TRAJECTORIES),
    versions=("h5py", "numpy", "pandas", "safetensors", "zarr"),
    shared=("seed", "threads", "device", "deterministic"),
    lower="metatrain.batch",
)

if __name__ == "__main__":
    main(STAGE)
