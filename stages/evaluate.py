"""features, generators -> metrics.json, and a table with one row an episode and classifier.

Every classifier is measured on the very same episodes, a pure function of (seed, index); episodes.h5 holds their images as rows
of data/backbone/features.h5. What a classifier leaves open (a ridge, where angles are measured from, the temperature of its
probabilities) is chosen on validation episodes; test episodes are classified once, with what was chosen. Accuracies are in per
cent, with the half width of the 95 % interval over episodes; differences are paired.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from metadiff.artifact import write_json
from metadiff.baselines.gaussian import GaussianPosterior
from metadiff.checkpoint import load_checkpoint
from metadiff.classifiers import NAMES, Generators, classifiers, drawn_rows
from metadiff.episodes import draw_episodes, shared_groups
from metadiff.evaluation import accuracy, class_rows, cosines, targets
from metadiff.generator import Generator, Kind, undump
from metadiff.judging import choose, judge, summary
from metadiff.methods import SAMPLERS, Sampling
from metadiff.methods.metadiff import MODELS
from metadiff.rows import Rows
from metadiff.store import read_features, read_rows, write_arrays
from stages.checks import results_contract
from stages.runner import Run, Stage, main

if TYPE_CHECKING:
    from metadiff.params import Evaluate

FEATURES = Path("data/backbone/features.h5")
GENERATOR = Path("data/generator")
SPLITS = ("val", "test")  # in this order: what is left open is chosen on the first


def build(run: Run[Evaluate]) -> None:
    section, data = run.params, read_rows(FEATURES)
    features_ND = torch.from_numpy(read_features(FEATURES)).to(run.device)
    generators = load_generators(run.device)
    posterior = GaussianPosterior(features_ND, data)
    centres = {"origin": None, "base mean": posterior.mean_D.float()}  # from where angles are measured
    every = dict(classifiers(section, posterior, generators))
    sizes = {"way": section.way, "query": section.query, "episodes": section.episodes, "seed": section.seed}
    drawn = {cell: draw_episodes(data, cell[0], shot=cell[1], **sizes) for cell in product(SPLITS, section.shots)}
    judged, chosen = [], {}
    with run.progress("classifying", total=len(every) * len(drawn) * section.episodes, unit="episodes") as advance:
        for name, candidates in every.items():
            validation = {shot: drawn["val", shot] for shot in section.shots}
            choice, seen = choose(candidates, features_ND, validation, centres=centres)
            chosen[name] = vars(choice)
            for (split, shot), episodes in drawn.items():
                if split != "val":
                    rows_GEWD = class_rows(candidates[choice.candidate], features_ND, episodes)
                    seen[shot] = cosines(rows_GEWD, features_ND, episodes, centre_D=centres[choice.centre])
                parts = judge(seen[shot], targets(episodes), temperature=choice.temperature[shot])
                judged.append([with_cell(part, split, shot, name) for part in parts])
                advance(section.episodes)
                run.stop_if_asked(f"after {name}", "starts over")
    rows, bins = (pd.concat(parts, ignore_index=True) for parts in zip(*judged, strict=True))
    overlaps = {cell: shared_groups(episodes, data.group) for cell, episodes in drawn.items()}
    rows["overlap"] = [overlaps[row.split, row.shot][row.episode] for row in rows.itertuples()]
    checks = results_contract(rows, splits=SPLITS, shots=section.shots, episodes=section.episodes, classifiers=tuple(every))
    write_json(run.out / "checks.json", checks)
    rows.to_csv(run.out / "episodes.csv", index=False, lineterminator="\n")
    bins.to_csv(run.out / "calibration.csv", index=False, lineterminator="\n")
    write_arrays(run.out / "episodes.h5", {f"{s}/shot{k}/{n}": ids for (s, k), e in drawn.items() for n, ids in vars(e).items()})
    sampling_curve(run, generators, features_ND, data).to_csv(run.out / "sampling.csv", index=False, lineterminator="\n")
    about = {"dataset": data.dataset, "way": section.way, "query": section.query, "episodes": section.episodes}
    write_json(run.out / "metrics.json", about | summary(rows, bins) | {"chosen": chosen})


def with_cell(table: pd.DataFrame, split: str, shot: int, classifier: str) -> pd.DataFrame:
    for name, value in (("classifier", classifier), ("shot", shot), ("split", split)):
        table.insert(0, name, value)
    return table


def load_generators(device: str) -> Generators:
    """By model and kind of weights. That of the gradient as it began is what the reference's code evaluates."""
    kinds: dict[str, tuple[Kind, ...]] = {"regression": ("average",), "gradient": ("average", "untrained")}
    found: dict[str, dict[Kind, Generator]] = {}
    for path in sorted(GENERATOR.glob("*.safetensors"), key=lambda path: MODELS.index(path.stem)):
        tensors, facts = load_checkpoint(path)
        wanted = kinds.get(path.stem, ("average", "raw"))
        found[path.stem] = {kind: undump(tensors, facts, kind=kind, device=device) for kind in wanted}
    return found


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
                run.stop_if_asked("while drawing the sampling curve", "starts over")
            table[f"{NAMES.get(model, model)} {sampler} {shot}-shot"] = values
    return table


STAGE = Stage(
    name="evaluate",
    out=Path("data/results"),
    build=build,
    inputs=(FEATURES.parent, GENERATOR),
    versions=("great-expectations", "h5py", "numpy", "pandas", "safetensors"),
    shared=("threads", "device", "deterministic"),
    lower="evaluate.draws or evaluate.episodes",
)

if __name__ == "__main__":
    main(STAGE)
