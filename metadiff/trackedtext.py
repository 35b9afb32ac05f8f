"""A finished run's models of sentences, read from a checkout, from an experiment in DVC's cache, or from a saved classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from metadiff.askmodels import MODEL, AskModels
from metadiff.checkpoint import load_checkpoint
from metadiff.errors import DataError, ParamsError
from metadiff.evaluation import TYPICAL
from metadiff.tasks import SENTENCES
from metadiff.textmodels import latents_of
from metadiff.tracked import Tracked
from metadiff.trackedruns import GENERATOR, MADE_BY, load_saved, opened, read_backbone, unpack, verified
from metadiff.vectors import read_vectors

PREPARED = Path("data/prepared")
STUDY = "python -m stages.study from-text described-shapes 0"


def open_models(run: str | Path) -> Tracked:
    """With `asks`, and of no sentence yet."""
    return opened(run, of_file=of_file, of_run=of_run, made_by=("prepare", *MADE_BY))


def of_run(root: Path, told: Mapping[str, Any]) -> Tracked:
    path = root / GENERATOR / f"{MODEL}.safetensors"
    manifests, metrics, stages = verified(root, more=(PREPARED,))
    if not path.is_file():
        raise ParamsError(
            f"hyperldm.models: the run has no {MODEL}, which makes classifiers of sentences; add hnet and {MODEL} and run: dvc "
            f"repro; or ask a run of the study that has them, of: {STUDY}"
        )
    lineage = {
        "dataset": metrics["dataset"],
        "method": MODEL,
        "chosen": {"candidate": "", "view": "", "temperature": {"1": TYPICAL}},
        "validation": validation(metrics),
        "manifests": manifests,
        "stages": stages,
        **told,
    }
    own = load_checkpoint(path)
    source = latents_of(own[1])
    checkpoints = {source: load_checkpoint(path.with_name(f"{source}.safetensors")), MODEL: own}
    asks = AskModels(checkpoints, read_vectors(root / PREPARED / SENTENCES))
    return Tracked(lineage, read_backbone(root), {}, None, asks)


def of_file(path: Path) -> Tracked:
    tracked = unpack(*load_saved(path))
    if tracked is None or tracked.asks is None:
        raise DataError(f"{path}: holds no models of sentences; save what Classifier.from_text made")
    return tracked


def validation(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Per cent of the answers to validation sentences with one meaning, by whether training had such a wording."""
    texts = metrics["described"]["val"]
    return {text: texts[text]["plain"][f"{MODEL}-mean"]["accuracy"] for text in texts if "plain" in texts[text]}


def asked(tracked: Tracked, sentence: str, *, gamma: float, draws: int) -> Tracked:
    """With what was asked in its lineage."""
    chosen = {**tracked.lineage["chosen"], "candidate": f"gamma {gamma:g}, {draws} draws"}
    return replace(tracked, lineage={**tracked.lineage, "chosen": chosen, "sentence": sentence})
