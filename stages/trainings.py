"""What `metatrain` trains, model by model, each from what lies on the disk; and a unit of such a training, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from metadiff.checkpoint import checkpoint_bytes, load_checkpoint
from metadiff.conditioning import Ends
from metadiff.courses import PathEnds
from metadiff.hypernet import LatentSource
from metadiff.inputs import Inputs, load_inputs
from metadiff.learner import Perceptron, build_learner
from metadiff.metatraining import Pace, Subject, pace_of
from metadiff.paths import as_shown
from metadiff.picturefiles import read_pictures
from metadiff.pictures import Pictures
from metadiff.rowmodels import row_subject
from metadiff.rows import Rows
from metadiff.store import read_rows
from metadiff.tasks import SENTENCES, read_tasks
from metadiff.textbuild import OF_LATENTS, text_pace
from metadiff.textmodels import TextModels, undump_method
from metadiff.trajectory_store import TrajectoryStore, open_trajectories
from metadiff.vectors import read_vectors
from metadiff.weightmodels import WeightModels, weight_pace

if TYPE_CHECKING:
    from metadiff.params import HyperLDM, McDi, Metatrain

PREPARED = Path("data/prepared")
IMAGES, FEATURES = PREPARED / "images.h5", Path("data/backbone/features.h5")
TRAJECTORIES = Path("data/trajectories")
START = "reptile"


@dataclass(frozen=True)
class Trainings:
    """Which models there are, and where those that are trained can be found: plain values, so that a worker can have them."""

    rows: Metatrain
    weights: McDi
    text: HyperLDM
    seed: int
    device: str
    out: Path

    @property
    def paces(self) -> dict[str, Pace]:
        """Of each model; those that others go out from come first."""
        weights = sorted(self.weights.models, key=lambda model: model != START)
        text = sorted(self.text.models, key=OF_LATENTS.__contains__)
        return {
            **{model: pace_of(self.rows) for model in self.rows.models},
            **{model: weight_pace(self.weights, model) for model in weights},
            **{model: text_pace(self.text, model) for model in text},
        }

    def before(self, model: str) -> str | None:
        """The one that a model goes out from when that is trained."""
        return {**dict.fromkeys(self.weights.based, START), **dict.fromkeys(OF_LATENTS, self.text.latents_of)}.get(model)

    def trained(self, model: str) -> Path:
        return self.out / f"{model}.safetensors"


@dataclass(frozen=True)
class Opened:
    """What trainings need of the disk, read when a model asks for it; and the trainings that are under way in this process."""

    of: Trainings
    subjects: dict[str, Subject] = field(default_factory=dict)

    def begin(self, model: str) -> Subject:
        known = self.of.before(model)
        before = load_checkpoint(self.of.trained(known)) if known else None
        if model in self.of.weights.models:
            return self.weight_models.subject(model, before[0]["average/theta_P"].to(self.of.device) if before else None)
        if model in self.of.text.models:
            source = undump_method(*before, device=self.of.device) if before else None
            assert source is None or isinstance(source, LatentSource)
            return self.text_models.subject(model, source)
        section = self.of.rows
        return row_subject(
            section, model=model, features_ND=self.pictures.features, data=self.data, ends=self.row_ends, seed=self.of.seed
        )

    @cached_property
    def data(self) -> Rows:
        return read_rows(FEATURES)

    @cached_property
    def store(self) -> TrajectoryStore:
        return open_trajectories(TRAJECTORIES / "trajectories.zarr")

    @cached_property
    def inputs(self) -> Inputs:
        """What the recorded paths' learner saw of an image."""
        return load_inputs(TRAJECTORIES / "inputs.safetensors").to(self.of.device)

    @cached_property
    def pictures(self) -> Pictures:
        pixels = bool(self.of.weights.models or self.of.text.models) and self.inputs.of_pixels
        return read_pictures(FEATURES, IMAGES, pixels=pixels).to(self.of.device)

    @cached_property
    def row_ends(self) -> Ends | None:
        """Where the trajectories end, as rows a class, if they are what is learnt."""
        if self.of.rows.target != "trajectory-ends":
            return None
        (rows,) = self.store.attributes["layout"]  # a base learner of rows alone
        weights_NWD = torch.from_numpy(self.store.end_points()).view(-1, *rows["shape"])
        return Ends(weights_NWD.to(self.of.device), torch.from_numpy(self.store.classes))

    @cached_property
    def weight_models(self) -> WeightModels:
        return WeightModels(self.of.weights, self.pictures, self.data, self.store, self.inputs, self.of.seed)

    @cached_property
    def text_models(self) -> TextModels:
        section, store = self.of.text, self.store
        tasks, vectors = read_tasks(PREPARED, self.data), read_vectors(PREPARED / SENTENCES)
        learner = build_learner(store.attributes["learner"])
        assert isinstance(learner, Perceptron), "conflicts.py refuses the others"
        seen_NE = self.inputs.seen(as_shown(store, self.pictures, self.data))
        ends = path_ends(store) if "hvae" in section.models else None
        return TextModels(section, tasks, vectors, self.data, learner, self.inputs, seen_NE, self.of.seed, ends)


def path_ends(store: TrajectoryStore) -> PathEnds:
    return PathEnds(torch.from_numpy(store.end_points()), torch.from_numpy(store.described))


@lru_cache(maxsize=1)
def opened(of: Trainings) -> Opened:
    """One at a time in a process."""
    return Opened(of)


@dataclass(frozen=True)
class Unit:
    """A training after another judgement: its state as a checkpoint and, if it is done, the trained model as another one."""

    state: bytes
    model: bytes | None


def train_unit(of: Trainings, model: str, done: int, state: Path | None) -> Unit:
    """From so many steps, as this process has it or as this checkpoint says, to the next judgement on validation tasks."""
    here = opened(of)
    subject = here.subjects.pop(model, None)  # where this fails, it is of no step any more
    if subject is None or subject.training.step != done:
        subject = here.begin(model)
        if state:
            subject.training.restore(*load_checkpoint(state))
    training = subject.training
    training.run()
    tensors, facts = training.state()
    if not training.finished:
        here.subjects[model] = subject
        return Unit(checkpoint_bytes(tensors, facts), None)
    facts |= {"remarks": subject.remarks()}
    return Unit(checkpoint_bytes(tensors, facts), checkpoint_bytes(subject.tensors(), subject.facts))
