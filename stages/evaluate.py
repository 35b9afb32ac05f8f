"""features, trajectories, generators -> metrics.json, its lineage.json, and a table with one row an episode and classifier.

Every classifier is measured on the very same episodes, a pure function of (seed, index); episodes.h5 holds their images as rows
of data/backbone/features.h5. What a classifier leaves open (a ridge, where angles are measured from, the temperature of its
probabilities) is chosen on validation episodes; test episodes are classified once, with what was chosen. Accuracies are in per
cent, with the half width of the 95 % interval over episodes; differences are paired.
The unit of work is a classifier: a killed run goes on after the last one it finished, and several workers may share them.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from metadiff.artifact import write_json
from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.baselines.nearest import PathEnds
from metadiff.classifiers import classifiers, make_generators, make_training_tasks, make_weight_generators, read_checkpoints
from metadiff.episodes import draw_episodes, shared_groups
from metadiff.judging import Verdict, summary, verdict
from metadiff.picturefiles import read_pictures
from metadiff.pictures import Pictures
from metadiff.store import read_rows, write_arrays
from metadiff.trajectory_store import open_trajectories
from metadiff.weightclassifiers import of_weights
from stages.checks import results_contract
from stages.curves import chain_curve, draws_curve, sampling_curve
from stages.described import answer_sentences
from stages.executors import Job, computed_units
from stages.memory import memory_facts
from stages.runner import Run, Stage, main

if TYPE_CHECKING:
    from metadiff.params import Evaluate

IMAGES, FEATURES = Path("data/prepared/images.h5"), Path("data/backbone/features.h5")
TRAJECTORIES, GENERATOR = Path("data/trajectories"), Path("data/generator")


def build(run: Run[Evaluate]) -> None:
    section, data = run.params, read_rows(FEATURES)
    checkpoints = read_checkpoints(GENERATOR)
    weights = make_weight_generators(checkpoints, run.device)
    of_pixels = any(made.inputs.of_pixels for made in weights.values())
    pictures = read_pictures(FEATURES, IMAGES, pixels=of_pixels)
    shown = pictures.to(run.device)
    sizes, episodes_of = {"way": section.way, "query": section.query, "seed": section.seed}, section.episodes_of
    drawn = {
        (split, shot): draw_episodes(data, split, shot=shot, episodes=episodes, **sizes)
        for (split, episodes), shot in product(episodes_of.items(), section.shots)
    }
    features, generators = shown.features, make_generators(checkpoints, run.device)
    store = open_trajectories(TRAJECTORIES / "trajectories.zarr") if weights else None
    ends = PathEnds.of(store) if store is not None else None
    tasks = make_training_tasks(ends, weights, features, data)
    candidates = dict(classifiers(section, GaussianPosterior(features, data), generators, weights, tasks))
    names = [*candidates]
    judge = partial(verdict, section=section, drawn=drawn, data=data, checkpoints=checkpoints, ends=ends)

    def job_of(name: str) -> Job[Verdict]:
        seen = pictures if of_weights(name) else Pictures(pictures.features)
        return partial(judge, name, pictures=seen, device=run.device)

    size = dict.fromkeys(names, sum(episodes_of.values()) * len(section.shots))
    folders = computed_units(run, size, job_of, save_unit, what="classifying", unit="episodes")
    *tables, choices = zip(*map(load_unit, folders), strict=True)
    chosen = dict(zip(names, choices, strict=True))
    rows, bins = (pd.concat(parts, ignore_index=True) for parts in tables)
    overlaps = {cell: shared_groups(episodes, data.group) for cell, episodes in drawn.items()}
    rows["overlap"] = [overlaps[row.split, row.shot][row.episode] for row in rows.itertuples()]
    checks = results_contract(rows, episodes=episodes_of, shots=section.shots, classifiers=tuple(names))
    write_json(run.out / "checks.json", checks)
    rows.to_csv(run.out / "episodes.csv", index=False, lineterminator="\n")
    bins.to_csv(run.out / "calibration.csv", index=False, lineterminator="\n")
    write_arrays(run.out / "episodes.h5", {f"{s}/shot{k}/{n}": ids for (s, k), e in drawn.items() for n, ids in vars(e).items()})
    sampling_curve(run, generators, features, data).to_csv(run.out / "sampling.csv", index=False, lineterminator="\n")
    draws_curve(run, weights, chosen, shown, data).to_csv(run.out / "draws.csv", index=False, lineterminator="\n")
    chain_curve(run, weights, shown, data).to_csv(run.out / "chain.csv", index=False, lineterminator="\n")
    memory: dict[str, Any] = {}
    if store is not None:
        tuned = candidates["finetune-random"][chosen["finetune-random"]["candidate"]]
        memory = memory_facts(run, weights, store, tuned, pictures=shown, data=data)
    write_json(run.out / "memory.json", memory)
    about = {"dataset": data.dataset} | {key: getattr(section, key) for key in ("way", "query", "episodes", "val_episodes")}
    of_text = answer_sentences(run, IMAGES.parent, checkpoints, data, pictures)
    write_json(run.out / "metrics.json", about | summary(rows, bins) | {"chosen": chosen} | of_text)
    write_json(run.out / "lineage.json", run.lineage())


def save_unit(folder: Path, found: Verdict) -> None:
    found.rows.to_csv(folder / "rows.csv", index=False)
    found.bins.to_csv(folder / "bins.csv", index=False)
    write_json(folder / "choice.json", vars(found.choice))


def load_unit(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    rows, bins = (pd.read_csv(folder / name) for name in ("rows.csv", "bins.csv"))
    return rows, bins, json.loads((folder / "choice.json").read_bytes())


STAGE = Stage(
    name="evaluate",
    out=Path("data/results"),
    build=build,
    inputs=(IMAGES.parent, FEATURES.parent, TRAJECTORIES, GENERATOR),
    versions=("great-expectations", "h5py", "numpy", "pandas", "safetensors", "zarr"),
    shared=("threads", "device", "deterministic"),
    lower="evaluate.draws or evaluate.episodes",
)

if __name__ == "__main__":
    main(STAGE)
