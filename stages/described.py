"""What `evaluate` adds where there are models of sentences: described.csv, a row a task, classifier, split and template.

Every classifier answers the same images of the same tasks. What it leaves open is chosen on validation tasks, by their seen
template: on all if it sees labelled images, on those whose sentence has one answer if not. Test tasks are answered once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from metadiff.artifact import write_json
from metadiff.asking import Asked, Told, choice_of, described_classifiers, reads_sentence, sees_images, spreads
from metadiff.concepts import DescribedTask
from metadiff.described import AMBIGUOUS, answers, sentences_of
from metadiff.evaluation import TYPICAL, correct_counts, log_probabilities, mean_and_ci95, negative_log_likelihood
from metadiff.pictures import Pictures
from metadiff.questions import draw_questions, tasks_by_number
from metadiff.rows import Rows
from metadiff.tasks import SENTENCES, read_tasks
from metadiff.textmodels import Checkpoints, TextGenerators, undump_text
from metadiff.vectors import read_vectors
from stages.executors import Job, computed_units

if TYPE_CHECKING:
    from metadiff.params import Evaluate
    from stages.runner import Run

SPLITS = ("val", "test")  # in this order: what is left open is chosen on the first
TEXTS = {"seen": 0, "unseen": -1}  # templates of a sentence: the first, and the one that training never has, if there are several
COLUMNS = ("split", "text", "task", "kind", "classifier", "correct", "queries", "nll")
Cells = Mapping[str, tuple[list[DescribedTask], Mapping[str, Asked]]]  # by split: tasks, and by template what is asked
SPREAD = (0.8, 1.2)  # of latents that were drawn for many tasks
MANY = 50
Found = tuple[pd.DataFrame, str]  # rows, and the candidate that was chosen


def answer_sentences(
    run: Run[Evaluate], prepared: Path, checkpoints: Checkpoints, data: Rows, pictures: Pictures
) -> dict[str, Any]:
    """For metrics.json: by split, template, one answer or several, and classifier; and what was chosen. Nothing if untrained."""
    made = undump_text(checkpoints)
    if made is None:
        pd.DataFrame(columns=COLUMNS).to_csv(run.out / "described.csv", index=False, lineterminator="\n")
        return {}
    section = run.params
    cells, told = what_is_asked(made, section, prepared, data, pictures.features.cpu())
    names = [name for name, _ in described_classifiers(made, told, section)]

    def job_of(unit: str) -> Job[Found]:
        return partial(answered, unit.removeprefix("sentences-"), section, cells, told, checkpoints, run.device)

    sizes = {f"sentences-{name}": sum(len(tasks) for tasks, _ in cells.values()) for name in names}
    run.say(*repeated(cells, section, data))
    folders = computed_units(run, sizes, job_of, save_unit, what="answering", unit="tasks")
    rows = pd.concat([pd.read_csv(folder / "rows.csv") for folder in folders], ignore_index=True)
    rows.to_csv(run.out / "described.csv", index=False, lineterminator="\n")
    chosen = {name: json.loads((folder / "choice.json").read_bytes()) for name, folder in zip(names, folders, strict=True)}
    found, spread = summary(rows), spreads(made, section, cells["test"][1]["seen"])
    run.say(*told_lines(found["test"]), *doubtful(spread, tasks=len(cells["test"][0])))
    return {
        "described": found,
        "chosen_by_text": chosen,
        "spread_of_latents": {name: round(value, 4) for name, value in spread.items()},
    }


def what_is_asked(made: TextGenerators, section: Evaluate, prepared: Path, data: Rows, features_ND: Tensor) -> tuple[Cells, Told]:
    """By split its tasks, and by template what is asked of them: the images are the same; and what training was told."""
    tasks, vectors = read_tasks(prepared, data), read_vectors(prepared / SENTENCES)
    inputs_NI, cells = made.inputs.of(features_ND), {}
    sizes = {"shot": section.labelled, "query": section.sentence_images}
    for split in SPLITS:
        own = tasks_by_number(tasks, split)
        drawn = draw_questions(own, data, splits=(split,), **sizes, numbers=range(len(own)), seed=section.seed, repeat=True)
        images = inputs_NI[drawn.support_EWS], inputs_NI[drawn.query_EWQ].flatten(1, 2)
        chosen = list(own.values())
        told_TCD = sentences_of(chosen, vectors, made.sentences)
        cells[split] = chosen, {text: Asked(told_TCD[:, TEXTS[text]], *images) for text in worded(tasks)}
    return cells, Told.of(tasks, vectors, made.sentences)


def worded(tasks: Sequence[DescribedTask]) -> list[str]:
    """Of TEXTS those that differ: a class is described in one way."""
    return [*TEXTS][: max(len(task.texts) for task in tasks)]


def answered(name: str, section: Evaluate, cells: Cells, told: Told, checkpoints: Checkpoints, device: str) -> Found:
    """One classifier on all tasks. Of plain values, so that a worker elsewhere can do it."""
    made = undump_text(checkpoints, device=device)
    assert made is not None
    candidates = dict(described_classifiers(made, told.to(device), section))[name]
    target_Q = answers(section.sentence_images)
    tasks, asked = cells["val"]
    judged_by = torch.tensor([sees_images(name) or task.kind not in AMBIGUOUS for task in tasks])
    with torch.no_grad():
        best, seen = choice_of(candidates, asked["seen"].to(device), target_Q, judged_by)
        parts = []
        for split, (tasks, asked) in cells.items():
            for text, one in asked.items():
                if (split, text) == ("val", "seen"):
                    scores = seen
                elif text == "seen" or reads_sentence(name):  # else they are the same, whatever the words
                    scores = candidates[best](one.to(device)).cpu()
                parts.append(table(split, text, name, tasks, log_probabilities(scores, TYPICAL), target_Q))
    return pd.concat(parts, ignore_index=True), best


def table(split: str, text: str, name: str, tasks: list[DescribedTask], log_EQW: Tensor, target_Q: Tensor) -> pd.DataFrame:
    facts = {
        "split": split,
        "text": text,
        "task": [task.name for task in tasks],
        "kind": [task.kind for task in tasks],
        "classifier": name,
        "correct": correct_counts(log_EQW, target_Q),
        "queries": len(target_Q),
        "nll": negative_log_likelihood(log_EQW, target_Q).round(6),
    }
    return pd.DataFrame(facts, columns=COLUMNS)


def summary(rows: pd.DataFrame) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    several = rows["kind"].isin(AMBIGUOUS).map({False: "plain", True: "ambiguous"})
    for (split, text, group, name), part in rows.groupby(["split", "text", several, "classifier"], sort=False):
        mean, ci95 = mean_and_ci95(np.asarray(100 * part["correct"] / part["queries"], dtype=np.float64))
        found = {"accuracy": round(mean, 3), "ci95": round(ci95, 3), "nll": round(float(part["nll"].mean()), 4)}
        metrics.setdefault(split, {}).setdefault(text, {}).setdefault(group, {})[name] = found
    return metrics


def repeated(cells: Cells, section: Evaluate, data: Rows) -> Iterator[str]:
    """Where tasks have too few images for what is asked of them."""
    need = section.labelled + section.sentence_images
    for split, (tasks, _) in cells.items():
        images_C = np.bincount(data.label[data.of(split)], minlength=len(data.classes))
        right = [int(images_C[[*task.yes]].sum()) for task in tasks]
        if few := sum(there < need for there in right):
            yield (
                f"{few} of {len(right)} {split} tasks have fewer than {need} images that are right, one {min(right)}: the same "
                "come again; lower evaluate.adapt_images, evaluate.text_adapt_images or evaluate.sentence_images"
            )


def told_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """How often each classifier is right, the best first."""
    for group, found in metrics["seen"].items():
        best_first = sorted(found, key=lambda name: -found[name]["accuracy"])
        shown = ", ".join(f"{name} {found[name]['accuracy']:.1f}" for name in best_first)
        yield f"{group} test sentences, per cent of the answers that are right: {shown}"


def doubtful(spread: Mapping[str, float], *, tasks: int) -> Iterator[str]:
    """What is spread otherwise than the latents of training; of few tasks nothing can be said."""
    low, high = SPREAD
    for name, value in spread.items():
        if tasks >= MANY and not low <= value <= high:
            yield (
                f"{name}: sampled latents have a deviation of {value:.2f} where those of training have 1 and {low:g} to {high:g} "
                "is sound: raise hyperldm.steps, or lower evaluate.gammas"
            )


def save_unit(folder: Path, found: Found) -> None:
    rows, choice = found
    rows.to_csv(folder / "rows.csv", index=False)
    write_json(folder / "choice.json", choice)
