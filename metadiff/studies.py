"""Where the numbers of a study are from: what a cell keeps of its results, and what dvc.lock of the study says of its outs."""

from __future__ import annotations

import json
from pathlib import Path

from ruamel.yaml import YAML

from metadiff.errors import DataError
from metadiff.lineage import Chain, last_commit, parsed, strangers

FOLDERS = {
    "prepare": "prepared",
    "pretrain": "backbone",
    "collect": "trajectories",
    "metatrain": "generator",
    "evaluate": "results",
}


def read_cell(root: Path, cell: str) -> Chain:
    """Of a cell such as few-shot/kanji-radicals/3."""
    names = cell.split("/")
    if len(names) != 3 or not (root / "studies" / names[0] / "dvc.lock").is_file():
        there = ", ".join(sorted(lock.parent.name for lock in root.glob("studies/*/dvc.lock"))) or "none"
        raise DataError(
            f"{cell}: expected a study, a data set and a seed, as in few-shot/kanji-radicals/3; studies there are: {there}"
        )
    study, dataset, seed = names
    path = Path("studies", study, "dvc.lock")
    locked = parsed(path, (root / path).read_bytes(), YAML(typ="safe").load)["stages"]
    found = {out["path"]: out for stage in locked.values() for out in stage["outs"]}
    cells, results = f"studies/{study}/cells/{dataset}", Path("studies", study, "results", dataset, seed)
    outs = {  # what was prepared is that of all seeds, or of the cell
        stage: found.get(f"{cells}/{seed}/data/{name}") or found.get(f"{cells}/data/{name}") for stage, name in FOLDERS.items()
    }
    if None in outs.values() or not (root / results / "lineage.json").is_file():
        raise DataError(f"{cell}: not made, or not here; make it: make study NAME={study}, or dvc pull")
    told, metrics = (
        parsed(results / name, (root / results / name).read_bytes(), json.loads) for name in ("lineage.json", "metrics.json")
    )
    lock = {
        stage: {"deps": [], "outs": [{**out, "path": f"data/{FOLDERS[stage]}"}]} for stage, out in outs.items() if out is not None
    }
    commit = last_commit(root, path)
    return Chain(f"study {cell}", commit, tuple(sorted(strangers(root, told["stages"], commit))), told["stages"], lock, metrics)
