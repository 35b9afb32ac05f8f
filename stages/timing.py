"""How long the classifiers of a study's cell take to be made: seconds for 1,000 tasks on the threads of the cell."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from metadiff.params import load

WARMED = 20  # one-shot tasks


def adaptation_seconds(cell: Path) -> dict[str, float]:
    """For each classifier, as it was chosen: how long it takes to be made for 1,000 one-shot tasks."""
    import torch

    from metadiff.baselines.gaussian import GaussianPosterior
    from metadiff.baselines.nearest import PathEnds
    from metadiff.classifiers import (
        classifiers,
        make_generators,
        make_training_tasks,
        make_weight_generators,
        read_checkpoints,
    )
    from metadiff.episodes import draw_episodes
    from metadiff.evaluation import BATCH
    from metadiff.picturefiles import read_pictures
    from metadiff.store import read_rows
    from metadiff.trajectory_store import open_trajectories

    params = load(cell / "params.yaml")
    torch.set_num_threads(params.shared.threads)
    section, path = params.evaluate, cell / "data/backbone/features.h5"
    chosen = json.loads((cell / "data/results/metrics.json").read_bytes())["chosen"]
    data, checkpoints = read_rows(path), read_checkpoints(cell / "data/generator")
    weights = make_weight_generators(checkpoints, "cpu")
    of_pixels = any(made.inputs.of_pixels for made in weights.values())
    pictures = read_pictures(path, cell / "data/prepared/images.h5", pixels=of_pixels)
    features_ND = pictures.features
    ends = PathEnds.of(open_trajectories(cell / "data/trajectories/trajectories.zarr")) if weights else None
    tasks = make_training_tasks(ends, weights, features_ND, data)
    made = make_generators(checkpoints, "cpu"), weights, tasks
    sizes = {"way": section.way, "shot": 1, "query": section.query}
    episodes, few = (draw_episodes(data, "test", **sizes, episodes=count, seed=section.seed) for count in (BATCH, WARMED))
    seconds = {}
    for name, candidates in classifiers(section, GaussianPosterior(features_ND, data), *made):
        candidate = candidates[chosen[name]["candidate"]]
        candidate.adapt(pictures, few)  # to warm up
        start = time.perf_counter()
        candidate.adapt(pictures, episodes)
        seconds[name] = (time.perf_counter() - start) * 1000 / BATCH
    return seconds


def described_seconds(cell: Path) -> dict[str, float]:
    """For each classifier of described tasks, as it was chosen: how long it takes to answer 1,000 of them; {} without any."""
    import torch

    from metadiff.asking import described_classifiers
    from metadiff.classifiers import read_checkpoints
    from metadiff.picturefiles import read_pictures
    from metadiff.store import read_rows
    from metadiff.textmodels import undump_text
    from stages.described import what_is_asked

    made = undump_text(read_checkpoints(cell / "data/generator"))
    if made is None:
        return {}
    params, path, prepared = load(cell / "params.yaml"), cell / "data/backbone/features.h5", cell / "data/prepared"
    torch.set_num_threads(params.shared.threads)
    chosen = json.loads((cell / "data/results/metrics.json").read_bytes())["chosen_by_text"]
    data, section = read_rows(path), params.evaluate
    features_ND = read_pictures(path, prepared / "images.h5", pixels=False).features
    cells, told = what_is_asked(made, section, prepared, data, features_ND)
    tasks, asked = cells["test"]
    seconds = {}
    for name, candidates in described_classifiers(made, told, section):
        answers_of = torch.no_grad()(candidates[chosen[name]])
        answers_of(replace(asked["seen"]))  # to warm up; what is asked once more is remembered
        start = time.perf_counter()
        answers_of(asked["seen"])
        seconds[name] = (time.perf_counter() - start) * 1000 / len(tasks)
    return seconds
