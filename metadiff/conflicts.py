"""Parameters that are right by themselves and wrong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from metadiff import yamlfile

if TYPE_CHECKING:
    from metadiff.params import Collect, Evaluate, HyperLDM, McDi, Metatrain, Prepare, Pretrain

SHORTEST_LINEAR = 21  # fewer times than this would need a beta above 1
SMALLEST_IMAGE = 16  # backbones that are trained halve the side four times
BUILTIN = {"kanji-radicals": ".json", "kanji-components": ".json", "described-shapes": ".safetensors"}  # what a path ends in
SHAPES_OF_A_KIND = 48  # images in the smallest split


def conflicts(
    prepare: Prepare | None,
    pretrain: Pretrain | None,
    collect: Collect | None,
    metatrain: Metatrain | None,
    mcdi: McDi | None,
    hyperldm: HyperLDM | None,
    evaluate: Evaluate | None,
) -> Iterator[tuple[str, str]]:
    """What is right by itself and wrong together, as (first key, text); a section that is None is not looked at."""
    if prepare:
        yield from _source_conflicts(prepare)
    if prepare and pretrain and prepare.image_size < SMALLEST_IMAGE:
        yield (
            "prepare.image_size",
            f"must be at least {SMALLEST_IMAGE} for pretrain.backbone {pretrain.backbone}, got {prepare.image_size}",
        )
    if pretrain and pretrain.backbone == "resnet101" and not pretrain.weights_file:
        yield (
            "pretrain.weights",
            "must be a safetensors file for pretrain.backbone resnet101, which is not trained here, got none",
        )
    if pretrain and pretrain.backbone != "resnet101" and pretrain.weights_file:
        yield (
            "pretrain.weights",
            f"must be none for pretrain.backbone {pretrain.backbone}, which is trained, got {pretrain.weights}",
        )
    if collect:
        yield from _collect_conflicts(collect)
    if prepare and collect and collect.tasks_of == "episodes" and collect.shot > prepare.min_images:
        yield "collect.shot", f"must be at most prepare.min_images {prepare.min_images}, got {collect.shot}"
    needed = [("evaluate.shots", max(evaluate.shots), "evaluate.query", evaluate.query)] if evaluate else []
    needed += [("pretrain.val_shot", pretrain.val_shot, "pretrain.val_query", pretrain.val_query)] if pretrain else []
    needed += [("metatrain.shots", max(metatrain.shots), "metatrain.val_query", metatrain.val_query)] if metatrain else []
    needed += [("mcdi.shots", max(mcdi.shots), "mcdi.val_query", mcdi.val_query)] if mcdi and mcdi.models else []
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
    if mcdi and mcdi.models:
        yield from _weight_conflicts(mcdi, collect, evaluate)
    if metatrain and mcdi and hyperldm and not (metatrain.models or mcdi.models or hyperldm.models):
        yield "metatrain.models", "must have a model where mcdi.models and hyperldm.models have none, got none"
    if hyperldm and hyperldm.models:
        yield from _text_conflicts(hyperldm, prepare, collect)


def _text_conflicts(hyperldm: HyperLDM, prepare: Prepare | None, collect: Collect | None) -> Iterator[tuple[str, str]]:
    """What weights from sentences need."""
    of_latents = [model for model in hyperldm.models if model not in ("end-to-end", "joint")]
    if of_latents and hyperldm.latents_of not in hyperldm.models:
        others = ", ".join(hyperldm.models)
        yield "hyperldm.latents_of", f"must be one of hyperldm.models, which are {others}, got {hyperldm.latents_of}"
    if "maml" in hyperldm.models and hyperldm.images < 2:
        yield (
            "hyperldm.images",
            f"must be at least 2 for maml, which learns from one half and is judged by the other, got {hyperldm.images}",
        )
    if hyperldm.schedule == "linear" and hyperldm.times < SHORTEST_LINEAR:
        yield "hyperldm.times", f"must be at least {SHORTEST_LINEAR} for hyperldm.schedule linear, got {hyperldm.times}"
    if hyperldm.sampling_steps > hyperldm.times:
        yield "hyperldm.sampling_steps", f"must be at most hyperldm.times {hyperldm.times}, got {hyperldm.sampling_steps}"
    if prepare and prepare.encoder == "none":
        yield "prepare.encoder", "hyperldm.models need the vectors of sentences; write cached or minilm, got none"
    if not collect:
        return
    if collect.learner != "mlp":
        yield "collect.learner", f"must be mlp for hyperldm.models, got {collect.learner}"
    if collect.way != 2:
        yield "collect.way", f"must be 2 for hyperldm.models, whose tasks are questions of yes or no, got {collect.way}"
    if collect.dim == 0:
        yield "collect.dim", "must be at least 1 for hyperldm.models, whose learner sees whitened inputs, got 0"
    if "hvae" in hyperldm.models and collect.tasks_of != "sentences":
        yield "collect.tasks_of", f"must be sentences for hvae, which learns from their paths, got {collect.tasks_of}"
    if "hvae" in hyperldm.models and collect.start != "common":
        yield "collect.start", f"must be common for hvae: weights that began apart are of permuted units, got {collect.start}"


def _weight_conflicts(mcdi: McDi, collect: Collect | None, evaluate: Evaluate | None) -> Iterator[tuple[str, str]]:
    """What whole weights as targets need."""
    if mcdi.segments > mcdi.times:
        yield "mcdi.segments", f"must be at most mcdi.times {mcdi.times}, got {mcdi.segments}"
    if mcdi.window == "overlap" and not mcdi.weighted:
        yield (
            "mcdi.window",
            "overlap needs mcdi.weighted true: without its factors the targets of a time contradict each other",
        )
    if mcdi.based and "reptile" not in mcdi.models:
        yield "mcdi.models", f"{mcdi.based[0]} goes out from what reptile has learnt; add reptile"
    if mcdi.turned and mcdi.base == "none":
        yield "mcdi.turned", "needs mcdi.base reptile: without a base any order of a network's channels is as good"
    if not collect:
        return
    if collect.tasks_of == "sentences":  # then the rest would say what no value of it can mend
        yield "mcdi.models", "must be [] for collect.tasks_of sentences, whose paths are of no classes"
        return
    if collect.learner == "conv":
        if mcdi.correct != "means":
            yield (
                "mcdi.correct",
                f"must be means for collect.learner conv, whose generators are told by images, got {mcdi.correct}",
            )
    elif collect.dim == 0:
        yield "collect.dim", "must be at least 1 for mcdi.models: its denoiser is for whitened inputs, got 0"
    if mcdi.turned and collect.learner != "conv":
        yield "mcdi.turned", f"must be false for collect.learner {collect.learner}: heads have no channels"
    if (collect.keep - 1) % mcdi.segments:
        yield "collect.keep", f"must be 1 more than a multiple of mcdi.segments {mcdi.segments}, got {collect.keep}"
    if mcdi.based and collect.sees != "support":
        yield "mcdi.models", f"{mcdi.based[0]} needs collect.sees support, got {collect.sees}"
    if mcdi.based and collect.noise:
        yield "mcdi.models", f"{mcdi.based[0]} needs collect.noise 0: its paths see images as they are, got {collect.noise:g}"
    if collect.sees == "support" and max(mcdi.shots) > collect.shot:
        yield "mcdi.shots", f"must be at most collect.shot {collect.shot}, what a path has seen of a class, got {max(mcdi.shots)}"
    if evaluate and evaluate.way != collect.way:
        yield "evaluate.way", f"must be collect.way {collect.way} for mcdi.models, got {evaluate.way}"


def _collect_conflicts(collect: Collect) -> Iterator[tuple[str, str]]:
    if collect.tasks_of == "sentences" and collect.way != 2:
        yield "collect.way", f"must be 2 for collect.tasks_of sentences, got {collect.way}"
    if collect.tasks_of == "sentences" and collect.sees != "support":
        yield "collect.sees", f"must be support for collect.tasks_of sentences, got {collect.sees}"
    if collect.keep > collect.steps + 1:
        yield "collect.keep", f"must be at most collect.steps + 1 = {collect.steps + 1}, got {collect.keep}"
    if collect.learner in ("mlp", "conv") and collect.sees != "support":
        must = f"must be support for collect.learner {collect.learner}"
        yield "collect.sees", f"{must}, got {collect.sees}; raise collect.shot to show it more"
    if collect.learner == "conv" and collect.spread != 1:
        yield "collect.spread", f"must be 1 for collect.learner conv, which sees images and no features, got {collect.spread:g}"
    if collect.noise and collect.sees != "support":  # tasks that see all images of a class share them
        yield "collect.noise", f"must be 0 for collect.sees {collect.sees}, got {collect.noise:g}"
    if collect.weight_decay * collect.lr > 1:
        most = 1 / collect.lr
        yield "collect.weight_decay", f"must be at most 1 / collect.lr = {most:g}, got {collect.weight_decay:g}"


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
    if collect.tasks_of == "sentences":
        yield "metatrain.target", "must be class-means for collect.tasks_of sentences, whose paths are of no classes"
        return
    if metatrain.spread != collect.spread:  # the features that they were trained on are those that a batch draws
        must = f"must be collect.spread {collect.spread:g} for metatrain.target trajectory-ends"
        yield "metatrain.spread", f"{must}, got {metatrain.spread:g}"
    if metatrain.whitened:
        yield "metatrain.whitened", f"must be 0 for metatrain.target trajectory-ends, got {metatrain.whitened:g}"
    if collect.dim:
        yield "metatrain.target", f"trajectory-ends needs collect.dim 0, got {collect.dim}"
    if metatrain.way != collect.way:
        yield "metatrain.way", f"must be collect.way {collect.way} for metatrain.target trajectory-ends, got {metatrain.way}"
    if collect.learner != "cosine":
        yield "metatrain.target", f"trajectory-ends needs collect.learner cosine, got {collect.learner}"
    if collect.sees != "classes":  # a batch draws supports of its own, not those that the weights were fitted to
        yield "metatrain.target", f"trajectory-ends needs collect.sees classes, got {collect.sees}"
    if "gradient" in metatrain.models:  # weights and features have scales of their own, so their difference is no gradient
        yield "metatrain.models", "gradient needs metatrain.target class-means, got trajectory-ends; leave it out"


def _source_conflicts(prepare: Prepare) -> Iterator[tuple[str, str]]:
    ending = BUILTIN.get(prepare.source)
    if not ending and prepare.path.endswith(tuple(BUILTIN.values())):
        yield (
            "prepare.path",
            f"must be a folder or an archive for prepare.source {prepare.source}, got {yamlfile.short(prepare.path)}",
        )
    if prepare.source == "folder" and prepare.path.lower().endswith((".csv", ".tsv")):
        yield "prepare.path", f"must be the folder that the table of images lies in, got {yamlfile.short(prepare.path)}"
    if ending and not prepare.path.endswith(ending):
        yield "prepare.path", f"must end in {ending} for prepare.source {prepare.source}, got {yamlfile.short(prepare.path)}"
    if ending and prepare.split == "given":
        yield (
            "prepare.split",
            f"given needs prepare.source folder or a published data set, got {prepare.source}; write three shares",
        )
    if prepare.source == "described-shapes" and prepare.color != "rgb":
        yield (
            "prepare.color",
            f"must be rgb for prepare.source described-shapes, whose tasks ask for colours, got {prepare.color}",
        )
    if prepare.encoder == "cached" and prepare.source != "described-shapes":
        yield (
            "prepare.encoder",
            f"cached needs prepare.source described-shapes, got {prepare.source}; write none or another",
        )
    if prepare.source == "described-shapes" and prepare.min_images > SHAPES_OF_A_KIND:
        most = f"must be at most {SHAPES_OF_A_KIND} for prepare.source described-shapes"
        yield "prepare.min_images", f"{most}, got {prepare.min_images}"
    if prepare.quarter_turns and prepare.source != "omniglot":
        yield "prepare.quarter_turns", f"true needs prepare.source omniglot, got {prepare.source}; write false"
    if prepare.quarter_turns and prepare.split != "given":  # else a drawing could be in one split and, turned, in another
        yield "prepare.quarter_turns", "true needs prepare.split given; write false"
