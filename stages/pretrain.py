"""images -> a backbone trained on the base classes, or one whose weights lie on the disk, and one feature vector an image.

The unit of work is an epoch, then a number of images: a killed run goes on after the last that it finished, bit for bit. The
backbone that is kept is that of the epoch with the best nearest-class-mean accuracy on fixed episodes of validation classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from metadiff.artifact import write_json
from metadiff.backbone import Backbone, channel_statistics, dump
from metadiff.backbone import build as build_backbone
from metadiff.baselines.ncm import mean_rows
from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.episodes import draw_episodes
from metadiff.errors import ParamsError
from metadiff.evaluation import accuracy
from metadiff.resnet101 import ResNet101
from metadiff.rows import Rows
from metadiff.store import image_blocks, image_shape, read_rows, write_features
from metadiff.training import Pretraining
from stages.checks import features_contract
from stages.features import features
from stages.runner import Run, Stage, log_row, main

if TYPE_CHECKING:
    from metadiff.params import Pretrain

PREPARED = Path("data/prepared")
IMAGES = PREPARED / "images.h5"
BACKBONE = "backbone.safetensors"


def build(run: Run[Pretrain]) -> None:
    data = read_rows(IMAGES)
    weights = run.params.weights_file
    backbone, said = read(run, weights) if weights else train(run, data)
    save_checkpoint(run.out / BACKBONE, *dump(backbone))
    features_ND = features(
        run, IMAGES, run.out / BACKBONE, count=len(data.label), batches=1 if weights and run.device == "cpu" else 8
    )
    checks = features_contract(features_ND, rows=len(data.label))
    write_features(run.out / "features.h5", features_ND, rows=data)
    write_json(run.out / "checks.json", checks)
    val = data.of("val")
    score = validation_score(run.params, data.take(val))(torch.from_numpy(features_ND[val]))
    run.say(f"{said}, {score:.1f} % on validation episodes")


def read(run: Run[Pretrain], weights: Path) -> tuple[Backbone, str]:
    """The backbone with these weights, and what the end of the stage says of it."""
    if not weights.is_file():
        raise ParamsError(f"params.yaml: pretrain.weights: no such file: {weights}")
    height, _, channels = image_shape(IMAGES)
    backbone = build_backbone(run.params.backbone, channels=channels, image_size=height, seed=run.seed)
    assert isinstance(backbone.encoder, ResNet101), "conflicts.py refuses weights for the others"
    backbone.encoder.read(weights)
    return backbone, f"ResNet-101 of {weights}, to which the classes that it was trained on are not new"


def train(run: Run[Pretrain], data: Rows) -> tuple[Backbone, str]:
    """The best backbone of a training, and what the end of the stage says of it."""
    training = begin(run, data)
    resume(run, training)
    live = run.live(map(curves, training.history))
    count = len(data.of("train"))
    with run.progress("training", total=run.params.epochs * count, done=training.epoch * count, unit="images") as advance:
        while not training.finished:
            with run.unit(unit_name(training.epoch + 1)) as folder:
                log_row(live, curves(training.run_epoch(advance)))
                save_checkpoint(folder / "state.safetensors", *training.state())
            run.drop_unit(unit_name(training.epoch - 2))  # two are kept: one may turn out to be damaged
    return training.best_backbone(), f"best of {run.params.epochs} epochs: {training.best_epoch}"


def begin(run: Run[Pretrain], data: Rows) -> Pretraining:
    """A training that has not begun: fresh weights from the seed, images of the base and the validation classes in memory."""
    train, val = data.of("train"), data.of("val")
    height, _, channels = image_shape(IMAGES)
    mean_C, std_C = channel_statistics(image_blocks(IMAGES, train))
    shape = {"channels": channels, "image_size": height}
    backbone = build_backbone(run.params.backbone, seed=run.seed, mean_C=mean_C, std_C=std_C, **shape).to(run.device)
    return Pretraining(
        run.params,
        backbone=backbone,
        images_NHWC=np.concatenate([*image_blocks(IMAGES, train)]),
        labels_N=data.label[train],
        validation_NHWC=np.concatenate([*image_blocks(IMAGES, val)]),
        score=validation_score(run.params, data.take(val)),
        seed=run.seed,
    )


def validation_score(section: Pretrain, data: Rows) -> Callable[[torch.Tensor], float]:
    """Per cent of nearest-class-mean on validation episodes: the same ones after every epoch and for every seed."""
    sizes = {"way": section.val_way, "shot": section.val_shot, "query": section.val_query, "episodes": section.val_episodes}
    episodes = draw_episodes(data, "val", seed=0, **sizes)

    def score(features_ND: torch.Tensor) -> float:
        return accuracy(mean_rows, features_ND, episodes)

    return score


def resume(run: Run[Pretrain], training: Pretraining) -> None:
    """Go on after the last finished epoch, if there is one."""
    for epoch in range(run.params.epochs, 0, -1):
        folder = run.finished_unit(unit_name(epoch))
        if folder:
            training.restore(*load_checkpoint(folder / "state.safetensors"))
            return


def unit_name(epoch: int) -> str:
    return f"epoch-{epoch:05d}"


def curves(row: dict[str, float]) -> dict[str, float]:
    """A row of the history under the names that the plots carry."""
    return {"train/loss": row["loss"], "train/accuracy": 100 * row["accuracy"], "val/ncm_accuracy": row["score"], "lr": row["lr"]}


STAGE = Stage(
    name="pretrain",
    out=Path("data/backbone"),
    build=build,
    inputs=(PREPARED,),
    raw=lambda params: params.pretrain.weights_file,
    versions=("dvclive", "great-expectations", "h5py", "numpy", "safetensors", "torchvision"),
    shared=("seed", "threads", "device", "deterministic"),
    lower="pretrain.batch",
)

if __name__ == "__main__":
    main(STAGE)
