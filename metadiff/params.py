"""The strict typed form of params.yaml: what each parameter may be. The values themselves live in that file alone.

``python -m metadiff.params [FILE]`` checks a file: exit 0, or 64 and one line a problem.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from metadiff import yamlfile
from metadiff.conflicts import conflicts
from metadiff.errors import ParamsError
from metadiff.problems import problems

LEAST_RIDGE = 1e-3  # of units that have to be undone
Number = TypeVar("Number", int, float)


def _sum_to_one(shares: tuple[float, float, float]) -> tuple[float, float, float]:
    if abs(math.fsum(shares) - 1) > 1e-6:
        raise ValueError("that add up to 1")
    return shares


def _increasing(values: tuple[Number, ...]) -> tuple[Number, ...]:
    if any(first >= second for first, second in pairwise(values)):
        raise ValueError("in increasing order")
    return values


def _none_or_enough(ridge: float) -> float:
    if 0 < ridge < LEAST_RIDGE:  # single precision cannot undo such units
        raise ValueError(f"0 or at least {LEAST_RIDGE:g}")
    return ridge


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("all different")
    return names


Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Shot = Annotated[int, Field(ge=1, le=100)]
Shots = Annotated[tuple[Shot, ...], Field(min_length=1, max_length=20), AfterValidator(_increasing)]
Model = Literal["task", "gradient", "regression"]
TextSource = Literal["hnet", "maml", "hvae"]
TextModel = Literal["hnet", "maml", "hvae", "hyperldm", "hyperclip", "mlp", "end-to-end", "joint"]
WeightModel = Literal["local", "vanilla", "naive", "ocd", "weights-regression", "reptile"]
Sampler = Literal["ddim", "dpm-solver", "ancestral", "mean-step"]
SamplingSteps = Annotated[int, Field(ge=1, le=100_000)]
Ridge = Annotated[float, Field(gt=0, le=1e6)]
Spread = Annotated[float, Field(gt=0, le=10)]
Draws = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(gt=0, le=1e6)]
Gamma = Annotated[float, Field(ge=0, le=100)]
Pull = Annotated[float, Field(ge=0, le=1e6)]
AdaptImages = Annotated[int, Field(ge=2, le=10_000, multiple_of=2)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
OptimizerSteps = Annotated[int, Field(ge=1, le=1_000_000)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Shared(Section):
    seed: Seed
    threads: Annotated[int, Field(ge=1, le=256)]
    device: Literal["cpu", "cuda"]
    deterministic: bool


class Prepare(Section):
    source: Literal[
        "kanji-radicals",
        "kanji-components",
        "described-shapes",
        "folder",
        "omniglot",
        "miniimagenet",
        "tieredimagenet",
        "cifar-fs",
        "fc100",
        "cub",
    ]
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    image_size: Annotated[int, Field(ge=8, le=512)]
    color: Literal["gray", "rgb"]
    split: Literal["given"] | Annotated[tuple[Share, Share, Share], AfterValidator(_sum_to_one)]
    split_seed: Seed
    min_images: Annotated[int, Field(ge=2, le=100_000)]
    encoder: Annotated[str, Field(min_length=1, max_length=4096)]
    on_bad: Literal["stop", "skip"]
    quarter_turns: bool


class Pretrain(Section):
    backbone: Literal["conv4", "resnet12", "resnet101"]
    weights: Annotated[str, Field(min_length=1, max_length=4096)]
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

    @property
    def weights_file(self) -> Path | None:
        """Of weights that are read; without it they are trained."""
        return None if self.weights == "none" else Path(self.weights)


class Collect(Section):
    tasks_of: Literal["episodes", "sentences"]
    learner: Literal["cosine", "linear", "mlp", "conv"]
    scale: Annotated[float, Field(gt=0, le=1000)]
    hidden: Annotated[int, Field(ge=1, le=65_536)]
    channels: Annotated[int, Field(ge=1, le=4096)]
    dim: Annotated[int, Field(ge=0, le=65_536)]
    spread: Spread
    tasks: Annotated[int, Field(ge=1, le=10_000_000)]
    block: Annotated[int, Field(ge=1, le=65_536)]
    way: Annotated[int, Field(ge=2, le=100)]
    shot: Shot
    sees: Literal["support", "classes"]
    optimizer: Literal["sgd", "adam"]
    lr: Annotated[float, Field(gt=0, le=1000)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    sam: Annotated[float, Field(ge=0, le=100)]
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    noise: Annotated[float, Field(ge=0, le=100)]
    steps: Annotated[int, Field(ge=1, le=1_000_000)]
    keep: Annotated[int, Field(ge=2, le=10_000)]
    init_std: Annotated[float, Field(gt=0, le=100)]
    start: Literal["own", "common"]


class Metatrain(Section):
    models: Annotated[tuple[Model, ...], Field(min_length=0, max_length=3), AfterValidator(_distinct)]
    target: Literal["class-means", "trajectory-ends"]
    whitened: Annotated[float, Field(ge=0, le=1e6), AfterValidator(_none_or_enough)]
    spread: Spread
    correct: Literal["means", "posterior"]
    ridge: Ridge
    way: Annotated[int, Field(ge=2, le=100)]
    shots: Shots
    batch: Annotated[int, Field(ge=1, le=65_536)]
    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    lr: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    hidden: Annotated[int, Field(ge=1, le=65_536)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    joint: bool
    sum_over_shots: bool
    schedule: Literal["linear", "cosine"]
    times: Annotated[int, Field(ge=2, le=100_000)]
    bf16: bool
    compile: bool
    sampler: Sampler
    sampling_steps: SamplingSteps
    gradient_steps: SamplingSteps
    val_every: Annotated[int, Field(ge=1, le=10_000_000)]
    val_query: Annotated[int, Field(ge=1, le=1000)]
    val_episodes: Annotated[int, Field(ge=2, le=1_000_000)]


class McDi(Section):
    models: Annotated[tuple[WeightModel, ...], Field(min_length=0, max_length=6), AfterValidator(_distinct)]
    base: Literal["none", "reptile"]
    turned: bool
    segments: Annotated[int, Field(ge=1, le=1000)]
    window: Literal["overlap", "disjoint"]
    schedule: Literal["gentle", "cosine", "linear"]
    times: Annotated[int, Field(ge=1, le=10_000)]
    sampler: Literal["mean-step", "ddim"]
    weighted: bool
    correct: Literal["means", "posterior"]
    ridge: Ridge
    shots: Shots
    batch: Annotated[int, Field(ge=1, le=65_536)]
    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    optimizer: Literal["adam", "sgd"]
    lr: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    inner: Literal["sgd", "adam"]
    inner_lr: Annotated[float, Field(gt=0, le=10)]
    inner_steps: Annotated[int, Field(ge=1, le=1000)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    hidden: Annotated[int, Field(ge=1, le=65_536)]
    layers: Annotated[int, Field(ge=1, le=100)]
    start_steps: Annotated[int, Field(ge=1, le=10_000)]
    start_turn: Annotated[int, Field(ge=0, le=1000)]
    start_inner: Literal["sgd", "adam"]
    start_lr: Annotated[float, Field(gt=0, le=10)]
    start_tours: Annotated[int, Field(ge=1, le=10_000_000)]
    start_optimizer: Literal["adam", "sgd"]
    start_rate: Annotated[float, Field(gt=0, le=1)]
    val_every: Annotated[int, Field(ge=1, le=10_000_000)]
    val_query: Annotated[int, Field(ge=1, le=1000)]
    val_episodes: Annotated[int, Field(ge=2, le=1_000_000)]

    @property
    def based(self) -> list[str]:
        """The models that generate a difference to what `reptile` has learnt."""
        return [model for model in self.models if model == "ocd" or (self.base == "reptile" and model != "reptile")]


class HyperLDM(Section):
    models: Annotated[tuple[TextModel, ...], Field(min_length=0, max_length=8), AfterValidator(_distinct)]
    latents_of: TextSource
    decoder: Literal["modulated", "free"]
    latent: Annotated[int, Field(ge=1, le=65_536)]
    hidden: Annotated[int, Field(ge=1, le=65_536)]
    text_hidden: Annotated[int, Field(ge=1, le=65_536)]
    text_noise: Annotated[float, Field(ge=0, le=100)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    match: Annotated[float, Field(ge=0, le=1e6)]
    latent_noise: Annotated[float, Field(ge=0, le=100)]
    encoder_noise: Annotated[float, Field(ge=0, le=100)]
    inner_steps: Annotated[int, Field(ge=1, le=1000)]
    inner_lr: LearningRate
    kl: Annotated[float, Field(ge=0, le=1e6)]
    batch: Annotated[int, Field(ge=1, le=65_536)]
    images: Annotated[int, Field(ge=1, le=10_000)]
    latent_batch: Annotated[int, Field(ge=1, le=65_536)]
    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    encoder_steps: Annotated[int, Field(ge=1, le=10_000_000)]
    lr: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    predicts: Literal["x0", "eps", "v"]
    schedule: Literal["linear", "cosine"]
    times: Annotated[int, Field(ge=2, le=100_000)]
    without_text: Annotated[float, Field(ge=0, lt=1)]
    clip: Annotated[float, Field(ge=0, le=1000)]
    sampler: Literal["ddim", "dpm-solver", "ancestral"]
    sampling_steps: SamplingSteps
    guide_steps: OptimizerSteps
    guide_lr: Annotated[float, Field(gt=0, le=10)]
    val_every: Annotated[int, Field(ge=1, le=10_000_000)]
    val_images: Annotated[int, Field(ge=1, le=1000)]


class Evaluate(Section):
    way: Annotated[int, Field(ge=2, le=100)]
    shots: Shots
    query: Annotated[int, Field(ge=1, le=1000)]
    episodes: Annotated[int, Field(ge=2, le=1_000_000)]  # an interval needs two
    val_episodes: Annotated[int, Field(ge=2, le=1_000_000)]
    seed: Seed
    ridges: Annotated[tuple[Ridge, ...], Field(min_length=1, max_length=50), AfterValidator(_increasing)]
    spreads: Annotated[tuple[Spread, ...], Field(min_length=1, max_length=50), AfterValidator(_increasing)]
    whitened: Annotated[tuple[Ridge, ...], Field(min_length=0, max_length=50), AfterValidator(_increasing)]
    sampler: Sampler
    sampling_steps: Annotated[tuple[SamplingSteps, ...], Field(min_length=1, max_length=50), AfterValidator(_increasing)]
    gradient_steps: SamplingSteps
    draws: Draws
    guidance: Annotated[tuple[Guidance, ...], Field(min_length=0, max_length=50), AfterValidator(_increasing)]
    finetune_lrs: Annotated[tuple[LearningRate, ...], Field(min_length=1, max_length=50), AfterValidator(_increasing)]
    finetune_sgd_lrs: Annotated[tuple[LearningRate, ...], Field(min_length=0, max_length=50), AfterValidator(_increasing)]
    finetune_steps: Annotated[tuple[OptimizerSteps, ...], Field(min_length=1, max_length=50), AfterValidator(_increasing)]
    finetune_few: OptimizerSteps
    curve: Annotated[tuple[SamplingSteps, ...], Field(min_length=0, max_length=50), AfterValidator(_increasing)]
    draw_curve: Annotated[tuple[Draws, ...], Field(min_length=0, max_length=50), AfterValidator(_increasing)]
    curve_episodes: Annotated[int, Field(ge=2, le=1_000_000)]
    sentence_images: Annotated[int, Field(ge=1, le=1000)]
    gammas: Annotated[tuple[Gamma, ...], Field(min_length=1, max_length=20), AfterValidator(_increasing)]
    pulls: Annotated[tuple[Pull, ...], Field(min_length=1, max_length=20), AfterValidator(_increasing)]
    adapt_images: Annotated[tuple[AdaptImages, ...], Field(min_length=0, max_length=20), AfterValidator(_increasing)]
    text_adapt_images: Annotated[tuple[AdaptImages, ...], Field(min_length=0, max_length=20), AfterValidator(_increasing)]
    adapt_gamma: Gamma
    adapt_pulls: Annotated[tuple[Pull, ...], Field(min_length=1, max_length=20), AfterValidator(_increasing)]
    adapt_lr: LearningRate
    adapt_steps: OptimizerSteps

    @property
    def episodes_of(self) -> dict[str, int]:
        """How many each split has a shot; on the first is chosen what is left open."""
        return {"val": self.val_episodes, "test": self.episodes}

    @property
    def labelled(self) -> int:
        """How many labelled images a way a described task has; one draw of several is always chosen by one."""
        return max((*self.adapt_images, *self.text_adapt_images), default=2) // 2


class Params(Section):
    shared: Shared
    prepare: Prepare
    pretrain: Pretrain
    collect: Collect
    metatrain: Metatrain
    mcdi: McDi
    hyperldm: HyperLDM
    evaluate: Evaluate


def load(path: Path | str = "params.yaml") -> Params:
    """The parameters, or a ParamsError with one line for each thing wrong with the file."""
    path = Path(path)
    document = yamlfile.read(path)
    found = problems(document, Params)
    valid = {name: _valid(field.annotation, document.data.get(name)) for name, field in Params.model_fields.items()}
    clashes = conflicts(**{name: section for name, section in valid.items() if name != "shared"})
    found += [(document.line(tuple(key.split("."))), f"{key}: {text}") for key, text in clashes]
    if found:
        raise ParamsError(yamlfile.report(path, found))
    return Params.model_validate(document.data)


def leaves(params: Params) -> dict[str, object]:
    """Every parameter by its dotted key, in the order of the models."""
    return {f"{name}.{key}": value for name, section in params for key, value in section}


def _valid(model: Any, data: object) -> Any:  # noqa: ANN401 - a section's class, and the section or None
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
