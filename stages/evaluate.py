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
import torch

from metadiff.artifact import write_json
from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.baselines.nearest import PathEnds
from metadiff.candidates import OfWeights
from metadiff.classifiers import (
    NAMES,
    Generators,
    classifiers,
    drawn_rows,
    make_generators,
    make_training_tasks,
    make_weight_generators,
    read_checkpoints,
)
from metadiff.episodes import draw_episodes, shared_groups
from metadiff.evaluation import (
    TYPICAL,
    accuracy,
    correct_counts,
    log_probabilities,
    negative_log_likelihood,
    targets,
)
from metadiff.judging import Verdict, summary, verdict
from metadiff.methods import SAMPLERS, Sampling
from metadiff.rows import Rows
from metadiff.store import read_features, read_rows, write_arrays
from metadiff.trajectory_store import open_trajectories
from metadiff.weightclassifiers import WITHOUT_NOISE, WeightGenerators, drawn_weights
from stages.checks import results_contract
from stages.executors import Job, computed_units
from stages.memory import memory_facts
from stages.runner import Run, Stage, main

if TYPE_CHECKING:
    from metadiff.params import Evaluate

FEATURES = Path("data/backbone/features.h5")
TRAJECTORIES, GENERATOR = Path("data/trajectories"), Path("data/generator")
SPLITS = ("val", "test")  # in this order: what is left open is chosen on the first


def build(run: Run[Evaluate]) -> None:
    section, data = run.params, read_rows(FEATURES)
    features_ND, checkpoints = read_features(FEATURES), read_checkpoints(GENERATOR)
    sizes = {"way": section.way, "query": section.query, "episodes": section.episodes, "seed": section.seed}
    drawn = {(split, shot): draw_episodes(data, split, shot=shot, **sizes) for split, shot in product(SPLITS, section.shots)}
    features, generators = torch.from_numpy(features_ND).to(run.device), make_generators(checkpoints, run.device)
    weights = make_weight_generators(checkpoints, run.device)
    store = open_trajectories(TRAJECTORIES / "trajectories.zarr") if weights else None
    ends = PathEnds.of(store) if store is not None else None
    tasks = make_training_tasks(ends, weights, features, data)
    candidates = dict(classifiers(section, GaussianPosterior(features, data), generators, weights, tasks))
    names = [*candidates]
    judge = partial(verdict, section=section, drawn=drawn, data=data, features_ND=features_ND, checkpoints=checkpoints, ends=ends)

    def job_of(name: str) -> Job[Verdict]:
        return partial(judge, name, device=run.device)

    size = dict.fromkeys(names, len(drawn) * section.episodes)
    folders = computed_units(run, size, job_of, save_unit, what="classifying", unit="episodes")
    *tables, choices = zip(*map(load_unit, folders), strict=True)
    rows, bins = (pd.concat(parts, ignore_index=True) for parts in tables)
    overlaps = {cell: shared_groups(episodes, data.group) for cell, episodes in drawn.items()}
    rows["overlap"] = [overlaps[row.split, row.shot][row.episode] for row in rows.itertuples()]
    checks = results_contract(rows, splits=SPLITS, shots=section.shots, episodes=section.episodes, classifiers=tuple(names))
    write_json(run.out / "checks.json", checks)
    rows.to_csv(run.out / "episodes.csv", index=False, lineterminator="\n")
    bins.to_csv(run.out / "calibration.csv", index=False, lineterminator="\n")
    write_arrays(run.out / "episodes.h5", {f"{s}/shot{k}/{n}": ids for (s, k), e in drawn.items() for n, ids in vars(e).items()})
    sampling_curve(run, generators, features, data).to_csv(run.out / "sampling.csv", index=False, lineterminator="\n")
    draws_curve(run, weights, features, data).to_csv(run.out / "draws.csv", index=False, lineterminator="\n")
    memory: dict[str, Any] = {}
    if store is not None:
        tuned = candidates["finetune-random"][choices[names.index("finetune-random")]["candidate"]]
        memory = memory_facts(run, weights, store, tuned, features_ND=features, data=data)
    write_json(run.out / "memory.json", memory)
    about = {"dataset": data.dataset, "way": section.way, "query": section.query, "episodes": section.episodes}
    write_json(run.out / "metrics.json", about | summary(rows, bins) | {"chosen": dict(zip(names, choices, strict=True))})
    write_json(run.out / "lineage.json", run.lineage())


def save_unit(folder: Path, found: Verdict) -> None:
    found.rows.to_csv(folder / "rows.csv", index=False)
    found.bins.to_csv(folder / "bins.csv", index=False)
    write_json(folder / "choice.json", vars(found.choice))


def load_unit(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    rows, bins = (pd.read_csv(folder / name) for name in ("rows.csv", "bins.csv"))
    return rows, bins, json.loads((folder / "choice.json").read_bytes())


def sampling_curve(run: Run[Evaluate], generators: Generators, features_ND: torch.Tensor, data: Rows) -> pd.DataFrame:
    """Accuracy on validation episodes by number of sampling steps: one row a number, one column a model, sampler and shot."""
    section = run.params
    sizes = {"way": section.way, "query": section.query, "episodes": section.curve_episodes, "seed": section.seed}
    episodes = {shot: draw_episodes(data, "val", shot=shot, **sizes) for shot in section.shots}
    models = [model for model in generators if model != "regression"]
    table = pd.DataFrame({"steps": section.curve})
    columns = list(product(models, SAMPLERS, section.shots))
    with run.progress("sampling curve", total=len(columns) * len(section.curve), unit="points") as advance:
        for model, sampler, shot in columns:
            values = []
            for steps in section.curve:
                rows = drawn_rows(generators[model]["average"], section, Sampling(sampler, steps))
                values.append(round(accuracy(rows, features_ND, episodes[shot]), 3))
                advance(1)
                run.stop_if_asked("while drawing the sampling curve", "draws it anew, after the classifiers")
            table[f"{NAMES.get(model, model)} {sampler} {shot}-shot"] = values
    return table


def draws_curve(run: Run[Evaluate], weights: WeightGenerators, features_ND: torch.Tensor, data: Rows) -> pd.DataFrame:
    """Accuracy and likelihood on validation episodes where the probabilities of several generated classifiers are averaged."""
    section, drawing = run.params, {model: made for model, made in weights.items() if model not in WITHOUT_NOISE}
    sizes = {"way": section.way, "query": section.query, "episodes": section.curve_episodes, "seed": section.seed}
    table = pd.DataFrame({"draws": section.draw_curve})
    with run.progress("draws curve", total=len(drawing) * len(section.shots), unit="columns") as advance:
        for (model, made), shot in product(drawing.items(), section.shots if section.draw_curve else ()):
            episodes = draw_episodes(data, "val", shot=shot, **sizes)
            several = OfWeights(drawn_weights(made, section, draws=section.draw_curve[-1]), made.logits)
            scores_GEQW, target_Q = several.scores(features_ND, episodes)[""], targets(episodes)
            logs = [log_probabilities(scores_GEQW[:draws], TYPICAL) for draws in section.draw_curve]
            table[f"{model} {shot}-shot"] = [round(100 * correct_counts(log, target_Q).mean() / len(target_Q), 3) for log in logs]
            table[f"{model} {shot}-shot nll"] = [round(negative_log_likelihood(log, target_Q).mean(), 4) for log in logs]
            advance(1)
            run.stop_if_asked("while drawing the draws curve", "draws it anew, after the classifiers")
    return table


STAGE = Stage(
    name="evaluate",
    out=Path("data/results"),
    build=build,
    inputs=(FEATURES.parent, TRAJECTORIES, GENERATOR),
    versions=("great-expectations", "h5py", "numpy", "pandas", "safetensors", "zarr"),
    shared=("threads", "device", "deterministic"),
    lower="evaluate.draws or evaluate.episodes",
)

if __name__ == "__main__":
    main(STAGE)
