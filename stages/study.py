"""A cell of a study: the stages, run in a folder of its own with the project's parameters as the study changes them.

    python -m stages.study few-shot grocery        prepares the data set, once for all its seeds
    python -m stages.study few-shot grocery 3      all further stages, with shared.seed 3

studies/<study>/params.yaml says which `datasets` and `seeds` there are, the `paths` of the data sets, and what `changes` in
params.yaml: for `all` of them, then for one data set. Instead of a path a data set may have `backbones`, a data set of another
study: its images and, seed by seed, its backbones are taken as they are, with the parameters that made them. With
`split_by_seed: true` a seed is prepare.split_seed too, and each cell prepares the images for itself.

In its folder, cells/<dataset>/<seed>, a cell has such a params.yaml and the artifacts under their usual names; what finished
there before, with the same parameters, inputs and code, is published again. What the study's table is made of is copied to
results/<dataset>/<seed>, with the seconds that each classifier takes for 1,000 tasks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from ruamel.yaml import YAML

from metadiff.artifact import read_manifest, write_json
from metadiff.errors import ParamsError
from metadiff.params import load
from stages.imports import ROOT
from stages.timing import adaptation_seconds, described_seconds

STUDIES = ROOT / "studies"
PREPARED, BACKBONE = Path("data/prepared"), Path("data/backbone")
STAGES = ("prepare", "pretrain", "collect", "metatrain", "evaluate")
OWN = {"shared": {"seed"}, "prepare": {"path"}}  # what the study says elsewhere than in its changes
BEFORE = {"prepare", "pretrain"}  # sections of what other studies can take over
TABLES = ("draws.csv", "chain.csv", "described.csv")  # not empty where whole weights are generated, or tasks are described


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stages.study", description="Make a cell of a study.")
    parser.add_argument("study", choices=sorted(path.parent.name for path in STUDIES.glob("*/params.yaml")))
    parser.add_argument("dataset", help="as in the study's params.yaml")
    parser.add_argument("seed", nargs="?", type=int, help="of all training; without it the data set is prepared")
    chosen = parser.parse_args(arguments)
    study, dataset = STUDIES / chosen.study, chosen.dataset
    try:
        return prepare(study, dataset) if chosen.seed is None else make(study, dataset, chosen.seed)
    except ParamsError as error:
        print(error, file=sys.stderr)
        return os.EX_USAGE


def prepare(study: Path, dataset: str) -> int:
    other, name = source_of(study, dataset)
    if other != study:
        raise ParamsError(f"{study / 'params.yaml'}: backbones: the images of {dataset} are prepared by {other.name}/{name}")
    if splits_by_seed(study):
        raise ParamsError(f"{study / 'params.yaml'}: split_by_seed: each cell of {dataset} prepares its images; say its seed")
    compose(study, dataset, cell_folder(study, dataset))
    return run("prepare", cell_folder(study, dataset))


def make(study: Path, dataset: str, seed: int) -> int:
    """A cell."""
    cell, made = cell_folder(study, dataset, seed), made_elsewhere(study, dataset, seed)
    compose(study, dataset, cell, seed)
    for here, there in made.values():
        share(there / here, cell / here)
    if "pretrain" in made:
        refuse_other_parameters(cell)
    for stage in STAGES:
        code = 0 if stage in made else run(stage, cell)
        if code:
            return code
    keep_results(cell, results_folder(study, dataset, seed))
    return 0


def made_elsewhere(study: Path, dataset: str, seed: int) -> dict[str, tuple[Path, Path]]:
    """The stages that the cell does not run itself: where each puts what it makes, and the folder that has it."""
    source = source_of(study, dataset)
    if source == (study, dataset):
        return {} if splits_by_seed(study) else {"prepare": (PREPARED, cell_folder(study, dataset))}
    prepared = cell_folder(*source, seed if splits_by_seed(source[0]) else None)
    return {"prepare": (PREPARED, prepared), "pretrain": (BACKBONE, cell_folder(*source, seed))}


def cell_folder(study: Path, dataset: str, seed: int | None = None) -> Path:
    return study / "cells" / dataset / ("" if seed is None else str(seed))


def results_folder(study: Path, dataset: str, seed: int) -> Path:
    return study / "results" / dataset / str(seed)


Source = tuple[Path, str]  # a study and a data set of it


def varied_of(study: Path) -> dict[str, Any]:
    """What its params.yaml says."""
    varied: dict[str, Any] = YAML(typ="safe").load(study / "params.yaml")
    return varied


def source_of(study: Path, dataset: str) -> Source:
    """Whose images and backbones those of a data set are: its own, or those of one of another study."""
    varied = varied_of(study)
    if dataset not in varied["datasets"]:
        raise ParamsError(f"{study / 'params.yaml'}: datasets: no data set {dataset}; there are {', '.join(varied['datasets'])}")
    if dataset not in varied.get("backbones", {}):
        return study, dataset
    other, _, name = varied["backbones"][dataset].partition("/")
    path = study.parent / other / "params.yaml"
    if not (other and path.is_file() and name in varied_of(path.parent)["paths"]):
        raise ParamsError(
            f"{study / 'params.yaml'}: backbones.{dataset}: expected a study and one of its data sets, as few-shot/omniglot, "
            f"got {varied['backbones'][dataset]}"
        )
    return path.parent, name


def seeds_of(varied: Mapping[str, Any], dataset: str) -> list[int]:
    """Of a study's parameters: all its seeds but where it has fewer."""
    return list(varied.get("fewer", {}).get(dataset, varied["seeds"]))


def splits_by_seed(study: Path) -> bool:
    """Whether a seed is that of the split too, so that cells differ in their images."""
    return bool(varied_of(study).get("split_by_seed", False))


def compose(study: Path, dataset: str, cell: Path, seed: int = 0) -> None:
    """The parameters of a cell, checked."""
    yaml = YAML()
    params, own, source = yaml.load(ROOT / "params.yaml"), (study, dataset), source_of(study, dataset)
    borrowed = [(section, values) for section, values in changes_of(*source) if section in BEFORE] if source != own else []
    for section, values in borrowed + changes_of(*own):
        params.setdefault(section, {}).update(values)
    params["shared"]["seed"] = seed
    if splits_by_seed(source[0]):
        params["prepare"]["split_seed"] = seed
    params["prepare"]["path"] = os.path.relpath(ROOT / varied_of(source[0])["paths"][source[1]], cell)
    if params["pretrain"]["weights"] != "none":
        params["pretrain"]["weights"] = os.path.relpath(ROOT / params["pretrain"]["weights"], cell)
    cell.mkdir(parents=True, exist_ok=True)
    yaml.dump(params, cell / "params.yaml")
    load(cell / "params.yaml")


def changes_of(study: Path, dataset: str) -> list[tuple[str, dict[str, Any]]]:
    """By section of params.yaml, for all data sets and then for this one."""
    varied, found = varied_of(study), []
    for name in ("all", dataset):
        for section, values in varied["changes"].get(name, {}).items():
            where = f"{study / 'params.yaml'}: changes.{name}.{section}"
            if section in BEFORE and dataset in varied.get("backbones", {}):
                if name == "all":  # is of the other data sets
                    continue
                raise ParamsError(f"{where}: the backbones are those of {varied['backbones'][dataset]}; remove it")
            own = OWN.get(section, set()) | ({"split_seed"} if section == "prepare" and splits_by_seed(study) else set())
            for key in own & set(values):
                raise ParamsError(f"{where}.{key}: the study sets it by its seeds and paths; remove it")
            found.append((section, values))
    return found


def share(made: Path, here: Path) -> None:
    """What was made elsewhere, by hard links, so that the cell has it as its own."""
    if not made.is_dir():
        raise ParamsError(f"{made}: not here; dvc pull it, or make the study that it is of")
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(made, here, copy_function=os.link)


def refuse_other_parameters(cell: Path) -> None:
    """Of a backbone from elsewhere: a cell must not say other parameters than those that made it."""
    params = load(cell / "params.yaml")
    for folder, section in ((PREPARED, params.prepare), (BACKBONE, params.pretrain)):
        made, said = read_manifest(cell / folder)["params"], section.model_dump(mode="json")
        other = [key for key, value in made.items() if key != "path" and said.get(key) != value]
        if other:
            key = other[0]
            raise ParamsError(
                f"{cell / folder}: was made with {key} {made[key]}, the parameters say {said.get(key)}: make that study again"
            )


def run(stage: str, cell: Path) -> int:
    """The stage as a process, with the code beside this file.

    Ctrl-C reaches it by itself, as part of the same group; what is sent to this process alone is passed on.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []  # what came while the stage was being started

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if started:
            started[0].send_signal(number)
        else:
            early.append(number)

    signal.signal(signal.SIGTERM, pass_on)  # before there is a stage that could outlive this process
    signal.signal(signal.SIGINT, lambda *_: None)
    started.append(subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=cell, env=environment))
    for number in early:
        started[0].send_signal(number)
    while started[0].poll() is None:  # not wait(): a signal just before it would be handled only after it
        time.sleep(0.1)
    return started[0].returncode


def keep_results(cell: Path, results: Path) -> None:
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    found = cell / "data/results"
    tables = [name for name in TABLES if has_content(found / name)]
    memory = ["memory.json"] if (found / "memory.json").is_file() else []
    for name in ("metrics.json", "episodes.csv", "lineage.json", *tables, *memory):
        shutil.copy(found / name, results / name)
    described = described_seconds(cell)
    write_json(results / "seconds.json", adaptation_seconds(cell) | ({"described": described} if described else {}))


def has_content(table: Path) -> bool:
    """A column beside the first, and a row."""
    header, _, rows = table.read_text(encoding="utf-8").partition("\n") if table.is_file() else ("", "", "")
    return "," in header and bool(rows)


if __name__ == "__main__":
    sys.exit(main())
