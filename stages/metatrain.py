"""features, trajectories -> generators: of class rows, one a model of `metatrain.models`; of whole weights, one of `mcdi.models`,
or, from a sentence, one of `hyperldm.models`.

The unit of work is the training between two judgements on validation tasks: a killed run goes on after the last one it
finished, bit for bit. The weights of the best judgement are kept, the trained ones beside their moving average.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.conditioning import Ends
from metadiff.courses import PathEnds
from metadiff.errors import ParamsError
from metadiff.hypernet import LatentSource
from metadiff.inputs import Inputs, load_inputs
from metadiff.learner import Perceptron, build_learner
from metadiff.metatraining import MetaTraining, Pace, Subject, pace_of
from metadiff.methods.mcdi import chain_of
from metadiff.paths import as_shown
from metadiff.picturefiles import read_pictures
from metadiff.pictures import Pictures
from metadiff.rowmodels import row_subject
from metadiff.rows import Rows
from metadiff.store import read_rows
from metadiff.tasks import SENTENCES, read_tasks
from metadiff.textbuild import OF_LATENTS
from metadiff.textmodels import TextModels, undump_method
from metadiff.trajectory_store import TrajectoryStore, open_trajectories
from metadiff.vectors import read_vectors
from metadiff.weightmodels import WeightModels
from stages.runner import Run, Stage, main

if TYPE_CHECKING:
    from metadiff.params import McDi, Metatrain

PREPARED = Path("data/prepared")
IMAGES, FEATURES = PREPARED / "images.h5", Path("data/backbone/features.h5")
TRAJECTORIES = Path("data/trajectories")
START = "reptile"  # what `ocd` goes out from


def build(run: Run[Metatrain]) -> None:
    plan, curves = plan_of(run), []
    done = sum(max(finished_units(run, model, pace), default=0) for model, (pace, _) in plan.items())
    with run.progress("training", total=sum(pace.steps for pace, _ in plan.values()), done=done, unit="steps") as advance:
        for model, (_, begin) in plan.items():
            subject = begin()
            train(run, model, subject.training, advance)
            save_checkpoint(run.out / f"{model}.safetensors", subject.tensors(), subject.facts)
            training = subject.training
            curve = pd.DataFrame(training.history).set_index("step").sort_index(axis=1)  # a restored history has another order
            curves.append(curve.add_prefix(f"{model}_"))
            run.say(f"{model}: weights of step {training.best_step}, {training.best_score:.1f} % on validation tasks")
            run.say(*subject.remarks())
    pd.concat(curves, axis=1).sort_index().to_csv(run.out / "curves.csv", lineterminator="\n")


def plan_of(run: Run[Metatrain]) -> dict[str, tuple[Pace, Callable[[], Subject]]]:
    """Each model with its pace, and how its training begins: one after the other, so that they need no memory together."""
    data, section, weights, text = read_rows(FEATURES), run.params, run.mcdi, run.hyperldm
    store, inputs = recorded_paths(run.device) if weights.models or text.models else (None, Inputs())
    pictures = read_pictures(FEATURES, IMAGES, pixels=inputs.of_pixels).to(run.device)
    ends = trained_weights(run.device) if section.target == "trajectory-ends" else None
    rows = partial(row_subject, section, features_ND=pictures.features, data=data, ends=ends, seed=run.seed)
    plan: dict[str, tuple[Pace, Callable[[], Subject]]] = {
        model: (pace_of(section), partial(rows, model=model)) for model in section.models
    }
    if store is not None and weights.models:
        models = WeightModels(weights, pictures, data, store, inputs, run.seed)
        check_schedule(weights)
        in_order = sorted(weights.models, key=lambda model: model != START)  # others may go out from what it has learnt
        plan |= {model: (models.pace(model), partial(begin_weights, models, model, run.out)) for model in in_order}
    if store is not None and text.models:
        told = text_models(run, data, store, inputs, pictures)
        latents_first = sorted(text.models, key=OF_LATENTS.__contains__)
        plan |= {model: (told.pace(model), partial(begin_text, told, model, run.out)) for model in latents_first}
    return plan


def recorded_paths(device: str) -> tuple[TrajectoryStore, Inputs]:
    """And what their learner saw of an image."""
    inputs = load_inputs(TRAJECTORIES / "inputs.safetensors").to(device)
    return open_trajectories(TRAJECTORIES / "trajectories.zarr"), inputs


def text_models(run: Run[Metatrain], data: Rows, store: TrajectoryStore, inputs: Inputs, pictures: Pictures) -> TextModels:
    tasks, vectors = read_tasks(PREPARED, data), read_vectors(PREPARED / SENTENCES)
    learner = build_learner(store.attributes["learner"])
    assert isinstance(learner, Perceptron), "conflicts.py refuses the others"
    seen_NE = inputs.seen(as_shown(store, pictures, data))
    ends = path_ends(store) if "hvae" in run.hyperldm.models else None
    return TextModels(run.hyperldm, tasks, vectors, data, learner, inputs, seen_NE, run.seed, ends)


def path_ends(store: TrajectoryStore) -> PathEnds:
    return PathEnds(torch.from_numpy(store.end_points()), torch.from_numpy(store.described))


def begin_text(models: TextModels, model: str, out: Path) -> Subject:
    """What is of latents goes out from those that were learnt before."""
    if model not in OF_LATENTS:
        return models.subject(model)
    saved = out / f"{models.section.latents_of}.safetensors"
    source = undump_method(*load_checkpoint(saved), device=str(models.seen_NE.device))
    assert isinstance(source, LatentSource)
    return models.subject(model, source)


def check_schedule(section: McDi) -> None:
    """A chain that begins with noise, before any training begins."""
    try:
        for model in section.models:
            chain_of(section.model_dump() | {"model": model})
    except ValueError as error:
        raise ParamsError(f"params.yaml: mcdi.schedule: {error}") from None


def begin_weights(models: WeightModels, model: str, out: Path) -> Subject:
    """`ocd` goes out from where `reptile` has come to."""
    if model != "ocd":
        return models.subject(model)
    start_P = load_checkpoint(out / f"{START}.safetensors")[0]["average/theta_P"]
    return models.subject(model, start_P.to(models.device))


def train(run: Run[Metatrain], model: str, training: MetaTraining[Any, Any], advance: Callable[[int], None]) -> None:
    finished = finished_units(run, model, training.pace)
    if finished:
        training.restore(*load_checkpoint(finished[max(finished)] / "state.safetensors"))
    ends = unit_ends(training.pace)
    while not training.finished:
        done = training.step
        number = done // training.pace.val_every
        with run.unit(unit_name(model, ends[number])) as folder:
            training.run()
            save_checkpoint(folder / "state.safetensors", *training.state())
        if number >= 2:
            run.drop_unit(unit_name(model, ends[number - 2]))  # two are kept: one may turn out to be damaged
        advance(training.step - done)


def unit_ends(pace: Pace) -> list[int]:
    """After how many steps each unit ends."""
    return [min(start + pace.val_every, pace.steps) for start in range(0, pace.steps, pace.val_every)]


def finished_units(run: Run[Metatrain], model: str, pace: Pace) -> dict[int, Path]:
    """By the step after which a unit ended."""
    found = {end: run.finished_unit(unit_name(model, end)) for end in unit_ends(pace)}
    return {end: folder for end, folder in found.items() if folder}


def trained_weights(device: str) -> Ends:
    """Where the trajectories end, as rows a class."""
    store = open_trajectories(TRAJECTORIES / "trajectories.zarr")
    (rows,) = store.attributes["layout"]  # a base learner of rows alone
    weights_NWD = torch.from_numpy(store.end_points()).view(-1, *rows["shape"])
    return Ends(weights_NWD.to(device), torch.from_numpy(store.classes))


def unit_name(model: str, step: int) -> str:
    return f"{model}-{step:08d}"


STAGE = Stage(
    name="metatrain",
    out=Path("data/generator"),
    build=build,
    inputs=(PREPARED, FEATURES.parent, TRAJECTORIES),
    versions=("h5py", "numpy", "pandas", "safetensors", "zarr"),
    shared=("seed", "threads", "device", "deterministic"),
    methods=("mcdi", "hyperldm"),
    lower="metatrain.batch, mcdi.batch or hyperldm.batch",
)

if __name__ == "__main__":
    main(STAGE)
