"""The strict typed form of params.yaml: what each parameter may be. The values themselves live in that file alone.

``python -m metadiff.params [FILE]`` checks a file: exit 0, or 64 and one line a problem.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from metadiff import yamlfile
from metadiff.errors import ParamsError
from metadiff.problems import problems

SMALLEST_IMAGE = {"conv4": 16, "resnet12": 16}  # each halves the side four times


def _sum_to_one(shares: tuple[float, float, float]) -> tuple[float, float, float]:
    if abs(math.fsum(shares) - 1) > 1e-6:
        raise ValueError("that add up to 1")
    return shares


def _increasing(shots: tuple[int, ...]) -> tuple[int, ...]:
    if any(first >= second for first, second in pairwise(shots)):
        raise ValueError("in increasing order")
    return shots


Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Shot = Annotated[int, Field(ge=1, le=100)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Shared(Section):
    seed: Seed
    threads: Annotated[int, Field(ge=1, le=256)]
    device: Literal["cpu", "cuda"]
    deterministic: bool


class Prepare(Section):
    source: Literal["kanji-radicals", "kanji-components", "folder"]
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    image_size: Annotated[int, Field(ge=8, le=512)]
    color: Literal["gray", "rgb"]
    split: Literal["given"] | Annotated[tuple[Share, Share, Share], AfterValidator(_sum_to_one)]
    split_seed: Seed
    min_images: Annotated[int, Field(ge=2, le=100_000)]
    on_bad: Literal["stop", "skip"]


class Pretrain(Section):
    backbone: Literal["conv4", "resnet12"]
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch: Annotated[int, Field(ge=2, le=65_536)]  # batch norm needs two
    lr: Annotated[float, Field(gt=0, le=10)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    rotation: Annotated[float, Field(ge=0, le=10)]
    degrees: Annotated[float, Field(ge=0, le=180)]
    translate: Annotated[float, Field(ge=0, lt=1)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, lt=90)]
    flip: bool
    jitter: Annotated[float, Field(ge=0, le=1)]
    val_way: Annotated[int, Field(ge=2, le=100)]
    val_shot: Shot
    val_query: Annotated[int, Field(ge=1, le=1000)]
    val_episodes: Annotated[int, Field(ge=2, le=1_000_000)]


class Evaluate(Section):
    way: Annotated[int, Field(ge=2, le=100)]
    shots: Annotated[tuple[Shot, ...], Field(min_length=1, max_length=20), AfterValidator(_increasing)]
    query: Annotated[int, Field(ge=1, le=1000)]
    episodes: Annotated[int, Field(ge=2, le=1_000_000)]  # an interval needs two
    seed: Seed


class Params(Section):
    shared: Shared
    prepare: Prepare
    pretrain: Pretrain
    evaluate: Evaluate


AnySection = TypeVar("AnySection", bound=Section)


def load(path: Path | str = "params.yaml") -> Params:
    """The parameters, or a ParamsError with one line for each thing wrong with the file."""
    path = Path(path)
    document = yamlfile.read(path)
    found = problems(document, Params)
    sections = document.data.get
    clashes = conflicts(
        _valid(Prepare, sections("prepare")), _valid(Pretrain, sections("pretrain")), _valid(Evaluate, sections("evaluate"))
    )
    found += [(document.line(tuple(key.split("."))), f"{key}: {text}") for key, text in clashes]
    if found:
        raise ParamsError(yamlfile.report(path, found))
    return Params.model_validate(document.data)


def leaves(params: Params) -> dict[str, object]:
    """Every parameter by its dotted key, in the order of the models."""
    return {f"{name}.{key}": value for name, section in params for key, value in section}


def conflicts(prepare: Prepare | None, pretrain: Pretrain | None, evaluate: Evaluate | None) -> Iterator[tuple[str, str]]:
    """What is right by itself and wrong together, as (first key, text); a section that is None is not looked at."""
    if prepare:
        yield from _source_conflicts(prepare)
    if prepare and pretrain and prepare.image_size < SMALLEST_IMAGE[pretrain.backbone]:
        smallest = SMALLEST_IMAGE[pretrain.backbone]
        yield (
            "prepare.image_size",
            f"must be at least {smallest} for pretrain.backbone {pretrain.backbone}, got {prepare.image_size}",
        )
    needed = [("evaluate.shots", max(evaluate.shots), "evaluate.query", evaluate.query)] if evaluate else []
    needed += [("pretrain.val_shot", pretrain.val_shot, "pretrain.val_query", pretrain.val_query)] if pretrain else []
    for key, shot, other, query in needed:
        if prepare and shot + query > prepare.min_images:
            sums = f"{shot} + {other} {query} = {shot + query}"
            yield (
                key,
                f"{sums} images a class, but prepare.min_images promises only {prepare.min_images}; lower one or raise that",
            )


def _source_conflicts(prepare: Prepare) -> Iterator[tuple[str, str]]:
    is_folder = prepare.source == "folder"
    if is_folder and prepare.path.endswith(".json"):
        yield "prepare.path", f"must be a folder of images for prepare.source folder, got {yamlfile.short(prepare.path)}"
    if not is_folder and not prepare.path.endswith(".json"):
        yield "prepare.path", f"must end in .json for prepare.source {prepare.source}, got {yamlfile.short(prepare.path)}"
    if not is_folder and prepare.split == "given":
        yield "prepare.split", f"given needs prepare.source folder, got {prepare.source}; write three shares"


def _valid(model: type[AnySection], data: object) -> AnySection | None:
    try:
        return model.model_validate(data)
    except ValidationError:
        return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m metadiff.params", description="Check a file of parameters.")
    parser.add_argument("file", nargs="?", default="params.yaml", type=Path)
    path = parser.parse_args(arguments).file
    try:
        load(path)
    except ParamsError as error:
        print(error, file=sys.stderr)
        return os.EX_USAGE
    print(f"{path}: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
