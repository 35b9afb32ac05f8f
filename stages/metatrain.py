"""features, trajectories -> generators: of class rows, one a model of `metatrain.models`; of whole weights, one of `mcdi.models`,
or, from a sentence, one of `hyperldm.models`.

The unit of work is the training between two judgements on validation tasks: a killed run goes on after the last one it
finished, bit for bit. Workers train several models beside each other; one that goes out from another begins when that is trained.
The weights of the best judgement are kept, the trained ones beside their moving average.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from metadiff.checkpoint import load_checkpoint
from metadiff.errors import ParamsError
from metadiff.metatraining import Pace
from metadiff.methods.mcdi import chain_of
from stages.executors import Job, computed
from stages.runner import Run, Stage, main
from stages.trainings import FEATURES, PREPARED, TRAJECTORIES, Trainings, Unit, opened, train_unit

if TYPE_CHECKING:
    from metadiff.params import McDi, Metatrain

STATE, MODEL = "state.safetensors", "model.safetensors"


def build(run: Run[Metatrain]) -> None:
    check_schedule(run.mcdi)
    trainings = Trainings(run.params, run.mcdi, run.hyperldm, run.seed, run.device, run.out)
    of = {model: Training(run, model, pace) for model, pace in trainings.paces.items()}
    for training in of.values():
        if training.finished:
            keep(run, training, trainings)
    total, done = sum(training.pace.steps for training in of.values()), sum(training.done for training in of.values())
    with (
        run.progress("training", total=total, done=done, unit="steps") as advance,
        closing(computed(next_units(trainings, of), machine=run.machine, of_disk=True)) as units,
    ):
        for name, unit in units:
            training = of[model_of(name)]
            advance(training.take(unit))
            if training.finished:
                keep(run, training, trainings)
    opened.cache_clear()
    pd.concat([curve(training) for training in of.values()], axis=1).sort_index().to_csv(
        run.out / "curves.csv", lineterminator="\n"
    )


def check_schedule(section: McDi) -> None:
    """A chain that begins with noise, before any training begins."""
    try:
        for model in section.models:
            chain_of(section.model_dump() | {"model": model})
    except ValueError as error:
        raise ParamsError(f"params.yaml: mcdi.schedule: {error}") from None


class Training:
    """Of a model, as far as its finished units have come."""

    def __init__(self, run: Run[Metatrain], model: str, pace: Pace) -> None:
        self.run, self.model, self.pace = run, model, pace
        self.ends = [min(start + pace.val_every, pace.steps) for start in range(0, pace.steps, pace.val_every)]
        found = {end: run.finished_unit(unit_name(model, end)) for end in self.ends}
        self.done = max((end for end, folder in found.items() if folder), default=0)
        self.folder = found.get(self.done)

    @property
    def finished(self) -> bool:
        return self.done == self.pace.steps

    @property
    def until(self) -> int:
        """The step after which the next unit ends."""
        return next(end for end in self.ends if end > self.done)

    def take(self, unit: Unit) -> int:
        """The next unit, to the disk; how many steps it has."""
        former, name = self.done, unit_name(self.model, self.until)
        number = self.ends.index(self.until)
        with self.run.unit(name) as folder:
            (folder / STATE).write_bytes(unit.state)
            if unit.model is not None:
                (folder / MODEL).write_bytes(unit.model)
        self.done, self.folder = self.until, self.run.whole_unit(name)
        if number >= 2:
            self.run.drop_unit(unit_name(self.model, self.ends[number - 2]))  # two are kept: one may turn out to be damaged
        return self.done - former


def next_units(trainings: Trainings, of: Mapping[str, Training]) -> Iterator[tuple[str, Job[Unit]] | None]:
    """Of each model, in their order, what comes after its finished units; None where all that is left waits for such a unit."""
    handed_out = set[str]()
    while left := [training for training in of.values() if not training.finished]:
        for training in left:
            name, before = unit_name(training.model, training.until), trainings.before(training.model)
            if name not in handed_out and (before is None or of[before].finished):
                handed_out.add(name)
                state = training.folder / STATE if training.folder else None
                yield name, partial(train_unit, trainings, training.model, training.done, state)
                break
        else:
            yield None


def keep(run: Run[Metatrain], training: Training, trainings: Trainings) -> None:
    """The model of a training that is finished."""
    assert training.folder
    os.link(training.folder / MODEL, trainings.trained(training.model))
    facts = load_checkpoint(training.folder / STATE)[1]
    run.say(f"{training.model}: weights of step {facts['best_step']}, {facts['best_score']:.1f} % on validation tasks")
    run.say(*facts["remarks"])


def curve(training: Training) -> pd.DataFrame:
    assert training.folder
    history = load_checkpoint(training.folder / STATE)[1]["history"]
    return pd.DataFrame(history).set_index("step").sort_index(axis=1).add_prefix(f"{training.model}_")


def unit_name(model: str, step: int) -> str:
    return f"{model}-{step:08d}"


def model_of(name: str) -> str:
    return name.rpartition("-")[0]


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
