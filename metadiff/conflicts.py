"""Parameters that are right by themselves and wrong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from metadiff import yamlfile

if TYPE_CHECKING:
    from metadiff.params import Collect, Evaluate, Metatrain, Prepare, Pretrain

SHORTEST_LINEAR = 21  # fewer times than this would need a beta above 1
SMALLEST_IMAGE = {"conv4": 16, "resnet12": 16}  # each halves the side four times


def conflicts(
    prepare: Prepare | None,
    pretrain: Pretrain | None,
    collect: Collect | None,
    metatrain: Metatrain | None,
    evaluate: Evaluate | None,
) -> Iterator[tuple[str, str]]:
    """What is right by itself and wrong together, as (first key, text); a section that is None is not looked at."""
    if prepare:
        yield from _source_conflicts(prepare)
    if prepare and pretrain and prepare.image_size < SMALLEST_IMAGE[pretrain.backbone]:
        smallest = SMALLEST_IMAGE[pretrain.backbone]
        yield (
            "prepare.image_size",
            f"must be at least {smallest} for pretrain.backbone {pretrain.backbone}, got {prepare.image_size}",
        )
    if collect and collect.keep > collect.steps + 1:
        yield "collect.keep", f"must be at most collect.steps + 1 = {collect.steps + 1}, got {collect.keep}"
    if prepare and collect and collect.shot > prepare.min_images:
        yield "collect.shot", f"must be at most prepare.min_images {prepare.min_images}, got {collect.shot}"
    needed = [("evaluate.shots", max(evaluate.shots), "evaluate.query", evaluate.query)] if evaluate else []
    needed += [("pretrain.val_shot", pretrain.val_shot, "pretrain.val_query", pretrain.val_query)] if pretrain else []
    needed += [("metatrain.shots", max(metatrain.shots), "metatrain.val_query", metatrain.val_query)] if metatrain else []
    for key, shot, other, query in needed:
        if prepare and shot + query > prepare.min_images:
            sums = f"{shot} + {other} {query} = {shot + query}"
            yield (
                key,
                f"{sums} images a class, but prepare.min_images promises only {prepare.min_images}; lower one or raise that",
            )
    if metatrain and collect and metatrain.target == "trajectory-ends":
        yield from _target_conflicts(metatrain, collect)
    if metatrain:
        yield from _sampling_conflicts(metatrain, evaluate)


def _sampling_conflicts(metatrain: Metatrain, evaluate: Evaluate | None) -> Iterator[tuple[str, str]]:
    if metatrain.schedule == "linear" and metatrain.times < SHORTEST_LINEAR:
        yield "metatrain.times", f"must be at least {SHORTEST_LINEAR} for metatrain.schedule linear, got {metatrain.times}"
    asked = [("metatrain.sampling_steps", metatrain.sampling_steps), ("metatrain.gradient_steps", metatrain.gradient_steps)]
    if evaluate:
        asked += [("evaluate.sampling_steps", max(evaluate.sampling_steps)), ("evaluate.gradient_steps", evaluate.gradient_steps)]
        asked += [("evaluate.curve", max(evaluate.curve, default=1))]
    for key, steps in asked:
        if steps > metatrain.times:
            yield key, f"must be at most metatrain.times {metatrain.times}, got {steps}"


def _target_conflicts(metatrain: Metatrain, collect: Collect) -> Iterator[tuple[str, str]]:
    """What trained weights as targets need."""
    if metatrain.spread != 1:  # they were trained on features left where they are
        yield "metatrain.spread", f"must be 1 for metatrain.target trajectory-ends, got {metatrain.spread:g}"
    if metatrain.way != collect.way:
        yield "metatrain.way", f"must be collect.way {collect.way} for metatrain.target trajectory-ends, got {metatrain.way}"
    if collect.learner != "cosine":
        yield "metatrain.target", f"trajectory-ends needs collect.learner cosine, got {collect.learner}"
    if collect.sees != "classes":  # a batch draws supports of its own, not those that the weights were fitted to
        yield "metatrain.target", f"trajectory-ends needs collect.sees classes, got {collect.sees}"
    if "gradient" in metatrain.models:  # weights and features have scales of their own, so their difference is no gradient
        yield "metatrain.models", "gradient needs metatrain.target class-means, got trajectory-ends; leave it out"


def _source_conflicts(prepare: Prepare) -> Iterator[tuple[str, str]]:
    is_builtin = prepare.source.startswith("kanji-")
    if not is_builtin and prepare.path.endswith(".json"):
        yield (
            "prepare.path",
            f"must be a folder or an archive for prepare.source {prepare.source}, got {yamlfile.short(prepare.path)}",
        )
    if prepare.source == "folder" and prepare.path.lower().endswith((".csv", ".tsv")):
        yield "prepare.path", f"must be the folder that the table of images lies in, got {yamlfile.short(prepare.path)}"
    if is_builtin and not prepare.path.endswith(".json"):
        yield "prepare.path", f"must end in .json for prepare.source {prepare.source}, got {yamlfile.short(prepare.path)}"
    if is_builtin and prepare.split == "given":
        yield (
            "prepare.split",
            f"given needs prepare.source folder or a published data set, got {prepare.source}; write three shares",
        )
    if prepare.quarter_turns and prepare.source != "omniglot":
        yield "prepare.quarter_turns", f"true needs prepare.source omniglot, got {prepare.source}; write false"
    if prepare.quarter_turns and prepare.split != "given":  # else a drawing could be in one split and, turned, in another
        yield "prepare.quarter_turns", "true needs prepare.split given; write false"
