"""features -> trajectories.zarr: for each training task the path of an optimiser through the weights of its classifier.

The unit of work is a block of tasks: a killed run goes on after the last one it finished. Blocks may be computed by several
workers (stages/executors.py). A path that is not finite or does not end lower than it began is refused and counted.
A whole network sees the images themselves. Tasks are few-shot episodes of base classes, or what the sentences of training ask.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from metadiff.artifact import file_sha256, write_array, write_json
from metadiff.episodes import Episodes, draw_episodes
from metadiff.errors import NumericError
from metadiff.inputs import Inputs, moved, save_inputs, whitened, with_pixels
from metadiff.learner import BaseLearner
from metadiff.picturefiles import read_pictures
from metadiff.pictures import Pictures
from metadiff.questions import LEARNT_FROM, draw_questions, tasks_by_number
from metadiff.rows import Rows
from metadiff.store import image_shape, read_rows
from metadiff.tasks import read_tasks
from metadiff.trajectory import Floats, Trajectories, collect_block, kept_steps, learner_of, refusals
from metadiff.trajectory_store import open_trajectories, write_trajectories
from stages.checks import trajectories_contract
from stages.contracts import trajectory_facts
from stages.executors import Job, computed_units
from stages.runner import Run, Stage, main

if TYPE_CHECKING:
    from metadiff.concepts import DescribedTask
    from metadiff.params import Collect

PREPARED, BACKBONE = Path("data/prepared"), Path("data/backbone")
IMAGES, FEATURES = PREPARED / "images.h5", BACKBONE / "features.h5"
INPUTS = "inputs.safetensors"
REFUSED = "refused.json"
SPLITS_OF = {"episodes": ("train",), "sentences": LEARNT_FROM}
WORST = 0.5  # the share of refused tasks beyond which the settings are to blame


def build(run: Run[Collect]) -> None:
    section, data = run.params, read_rows(FEATURES)
    shape, pictures = image_shape(IMAGES), read_pictures(FEATURES, IMAGES, pixels=section.learner == "conv")
    inputs, seen_NE = what_is_seen(section, pictures, data, colours=shape[2])
    learner = learner_of(section, seen_NE.shape[1], shape)
    of_sentences = section.tasks_of == "sentences"
    tasks = read_tasks(PREPARED, data) if of_sentences else ()
    told = tasks_by_number(tasks, "train") if of_sentences else {}
    run.reserve(2 * 4 * section.tasks * section.keep * learner.size)
    folders = collect(run, data, learner, seen_NE, told)
    refused = count_refused(folders, section)
    accepted = section.tasks - sum(refused.values())
    kept = kept_steps(section.steps, section.keep)
    save_inputs(run.out / INPUTS, inputs, {"dim": section.dim, "spread": section.spread})
    about = description(run, learner, data, told) | {"refused": refused}
    path = run.out / "trajectories.zarr"
    write_trajectories(path, map(load_unit, folders), count=accepted, block=section.block, steps=kept, about=about)
    store = open_trajectories(path)
    facts = pd.concat([trajectory_facts(store.block(block), data, tasks) for block in range(store.blocks)], ignore_index=True)
    sizes = {"accepted": accepted, "drawn": section.tasks, "way": section.way, "shot": section.shot}
    write_json(run.out / "checks.json", trajectories_contract(facts, **sizes, tasks_of=section.tasks_of))
    loss, accuracy = (np.median(values_NK, axis=0) for values_NK in (store.loss, store.accuracy))
    run.say(f"median loss {loss[0]:.3f} -> {loss[-1]:.3f}, accuracy {100 * accuracy[0]:.1f} -> {100 * accuracy[-1]:.1f} %")
    run.say(f"{section.tasks:,} tasks: {accepted:,} accepted, " + ", ".join(f"{n:,} {why}" for why, n in refused.items()))


def what_is_seen(section: Collect, pictures: Pictures, data: Rows, *, colours: int) -> tuple[Inputs, Floats]:
    """What the base learner sees of any image, and the numbers that it is trained on: those of base classes moved together."""
    moved_ND = moved(pictures.features, data, section.spread)
    inputs = whitened(moved_ND, data, section.dim) if section.dim else Inputs()
    if pictures.pixels is not None:
        inputs = with_pixels(inputs, pictures.pixels, data, colours)
    return inputs, inputs.seen(replace(pictures, features=moved_ND)).numpy()


def collect(
    run: Run[Collect], data: Rows, learner: BaseLearner, seen_NE: Floats, told: Mapping[int, DescribedTask]
) -> list[Path]:
    """A folder a block: the accepted trajectories, and how many were refused for which reason."""
    section = run.params
    rows = np.sort(np.concatenate([data.of(split) for split in SPLITS_OF[section.tasks_of]]))
    base, base_NE = data.take(rows), seen_NE[rows]
    starts = range(0, section.tasks, section.block)
    blocks = {f"block-{n:05d}": range(start, min(start + section.block, section.tasks)) for n, start in enumerate(starts)}

    def job_of(name: str) -> Job[Trajectories]:
        numbers = blocks[name]
        block = partial(
            collect_block, section, learner, numbers, drawn(run, base, told, numbers), seen_NE=base_NE, label_N=base.label
        )
        return partial(block, seed=run.seed, device=run.device)

    sizes = {name: len(numbers) for name, numbers in blocks.items()}
    return computed_units(run, sizes, job_of, partial(save_unit, rows=rows), what="collecting", unit="tasks")


def drawn(run: Run[Collect], base: Rows, told: Mapping[int, DescribedTask], numbers: range) -> Episodes:
    """The tasks of these numbers: of base classes or, where there are, of described tasks by their number among all."""
    section = run.params
    if told:
        return draw_questions(told, base, splits=LEARNT_FROM, shot=section.shot, query=0, numbers=numbers, seed=run.seed)
    sizes = {"way": section.way, "shot": section.shot, "query": 0, "episodes": len(numbers)}
    return draw_episodes(base, "train", **sizes, first=numbers.start, seed=run.seed)


def save_unit(folder: Path, found: Trajectories, *, rows: NDArray[np.int64]) -> None:
    """The accepted ones of a block, their support by its rows in the features: the workers had those alone that tasks may see."""
    bad = refusals(found)
    good = found.take(~np.any([*bad.values()], axis=0))
    for name, values in vars(good).items():
        write_array(folder / f"{name}.npy", rows[values].astype(np.int32) if name == "support_TWS" else values)
    write_json(folder / REFUSED, {reason: int(bad_T.sum()) for reason, bad_T in bad.items()})


def load_unit(folder: Path) -> Trajectories:
    names = [field.name for field in fields(Trajectories)]
    return Trajectories(**{name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in names})


def count_refused(folders: list[Path], section: Collect) -> dict[str, int]:
    """How many tasks were refused by reason; NumericError if they are most of them."""
    refused: Counter[str] = Counter()
    for folder in folders:
        refused.update(json.loads((folder / REFUSED).read_bytes()))
    if sum(refused.values()) > WORST * section.tasks:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in refused.items())
        raise NumericError(f"of {section.tasks:,} trajectories {reasons}; lower collect.lr, which is {section.lr:g}")
    return dict(refused)


def description(run: Run[Collect], learner: BaseLearner, data: Rows, told: Mapping[int, DescribedTask]) -> dict[str, Any]:
    """What makes a vector readable without this code: where it comes from, what lies where in it, and what it was asked."""
    section = run.params
    descriptions = [
        {"number": number, "name": task.name, "kind": task.kind, "texts": list(task.texts)} for number, task in told.items()
    ]
    return {
        "dataset": data.dataset,
        "tasks_of": section.tasks_of,
        **({"descriptions": descriptions} if told else {}),
        "features": {"file": FEATURES.as_posix(), "sha256": file_sha256(FEATURES)},
        "inputs": {"file": INPUTS, "sha256": file_sha256(run.out / INPUTS), "dim": section.dim, "spread": section.spread},
        "learner": asdict(learner),
        "layout": [{"name": part.name, "shape": list(part.shape), "offset": part.offset} for part in learner.layout()],
        "params": section.model_dump(mode="json"),
        "seed": run.seed,
        "versions": {"numpy": np.__version__, "torch": torch.__version__},
    }


STAGE = Stage(
    name="collect",
    out=Path("data/trajectories"),
    build=build,
    inputs=(PREPARED, BACKBONE),
    versions=("great-expectations", "h5py", "numpy", "pandas", "safetensors", "zarr"),
    shared=("seed", "threads", "device", "deterministic"),
    lower="collect.block",
)

if __name__ == "__main__":
    main(STAGE)
