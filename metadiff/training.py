"""Pretraining of a backbone on the base classes, one call an epoch, and the features it then gives.

The order of the images and their augmentation are pure functions of (seed, epoch, step), so there is no generator to save:
weights, momentum and the epoch are the whole state, and a resumed run equals an uninterrupted one bit for bit.
Shapes: N images, B images of a batch, C channels, H x W pixels, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from metadiff.augment import augment
from metadiff.backbone import Backbone, build_heads, to_unit
from metadiff.checkpoint import under
from metadiff.errors import CorruptArtifactError, NumericError
from metadiff.numeric import refuse_non_finite
from metadiff.rng import torch_stream

if TYPE_CHECKING:
    from metadiff.params import Pretrain

EXTRACT_BATCH = 256
Score = Callable[[Tensor], float]
Blocks = np.ndarray | Iterable[np.ndarray]


class Pretraining:
    """The state of one pretraining: backbone and heads, momentum, epochs done, and the best weights so far.

    SGD with Nesterov momentum; weight decay on every parameter, batch normalisation included, as the common recipes have it.
    ``score`` judges the features of the validation images; the backbone of the best epoch, the first of equals, is kept.
    """

    def __init__(
        self,
        settings: Pretrain,
        *,
        backbone: Backbone,
        images_NHWC: np.ndarray,
        labels_N: np.ndarray,
        validation_NHWC: np.ndarray,
        score: Score,
        seed: int,
        autocast: bool = True,
    ) -> None:
        """Trains ``backbone`` where it is; ``autocast`` is for CUDA, and off only to compare with the CPU."""
        self.settings, self.seed, self.score, self.validation_NHWC = settings, seed, score, validation_NHWC
        self.device = backbone.mean_C.device
        self.autocast = autocast and self.device.type == "cuda"
        self.images_NHWC = torch.from_numpy(images_NHWC).to(self.device)
        classes, labels = torch.unique(torch.from_numpy(labels_N).long(), return_inverse=True)
        self.labels_N, self.backbone = labels.to(self.device), backbone
        self.heads = build_heads(backbone.feature_size, num_classes=len(classes), rotation=settings.rotation > 0, seed=seed).to(
            self.device
        )
        self.model = nn.ModuleDict({"backbone": backbone, "heads": self.heads})
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )
        self.epoch, self.best_epoch, self.best_score = 0, 0, -math.inf
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    @property
    def finished(self) -> bool:
        return bool(self.epoch >= self.settings.epochs)

    def run_epoch(self, advance: Callable[[int], None] = lambda _: None) -> dict[str, float]:
        """Train one epoch, judge it on the validation images, and return its row of the history; ``advance`` hears of images."""
        epoch, count = self.epoch + 1, len(self.labels_N)
        batches = list(batch_rows(count, batch=self.settings.batch, generator=torch_stream(self.seed, "order", epoch)))
        loss_sum, correct, seen = 0.0, 0, 0
        lrs = cosine_lr(self.settings.lr, epoch=epoch, epochs=self.settings.epochs, steps=len(batches))
        for step, (rows_B, lr) in enumerate(zip(batches, lrs, strict=True), start=1):
            loss, right = self._step(rows_B, lr=lr, epoch=epoch, step=step)
            loss_sum, correct, seen = loss_sum + loss * len(rows_B), correct + right, seen + len(rows_B)
            advance(len(rows_B))
        row = {"epoch": epoch, "loss": loss_sum / seen, "accuracy": correct / seen, "lr": lrs[0], "score": self._judge(epoch)}
        self.epoch, self.history = epoch, [*self.history, row]
        return row

    def best_backbone(self) -> Backbone:
        """A copy of the backbone with the weights of the best epoch, in evaluation mode."""
        backbone = deepcopy(self.backbone)
        backbone.load_state_dict(self.best)
        return backbone.eval()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that `restore` needs: tensors for a checkpoint, and facts that JSON can hold."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            if parameter in self.optimizer.state:  # not before the first step, nor without momentum
                tensors[f"momentum/{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        facts = {"epoch": self.epoch, "history": self.history}
        facts |= {"best_epoch": self.best_epoch, "best_score": self.best_score} if self.best_epoch else {}
        return {name: value.detach().clone() for name, value in tensors.items()}, facts

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a state of the same settings and images; refuses one with other tensors."""
        self._refuse_strangers(tensors, epoch=facts["epoch"])
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(tensors[f"model/{name}"])
            for name, parameter in self.model.named_parameters():
                if f"momentum/{name}" in tensors:
                    momentum = torch.empty_like(parameter).copy_(tensors[f"momentum/{name}"])
                    self.optimizer.state[parameter] = {"momentum_buffer": momentum}
        self.best = {name: value.to(self.device, copy=True) for name, value in under(tensors, "best").items()}
        self.epoch, self.history = facts["epoch"], list(facts["history"])
        self.best_epoch, self.best_score = facts.get("best_epoch", 0), facts.get("best_score", -math.inf)

    def _step(self, rows_B: Tensor, *, lr: float, epoch: int, step: int) -> tuple[float, int]:
        """One step of SGD; returns the loss and how many upright images were classified rightly."""
        rows_B = rows_B.to(self.device)
        generator = torch_stream(self.seed, "augment", epoch, step)
        x_BCHW = augment(to_unit(self.images_NHWC[rows_B]), settings=self.settings, generator=generator)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            loss, right = self._loss(x_BCHW, self.labels_N[rows_B])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        refuse_non_finite(loss, self.model, where=f"epoch {epoch}, step {step}, lr {lr:.6g}", lower="pretrain.lr")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return loss.item(), int(right)

    def _loss(self, x_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Classes of the upright images and, if wanted, which of four rotations each image has."""
        count = len(x_BCHW)
        if self.heads.rotations is not None:
            x_BCHW = torch.cat([torch.rot90(x_BCHW, turns, dims=(2, 3)) for turns in range(4)])
        features_BD = self.backbone.embed(x_BCHW)
        logits_BK = self.heads.classes(features_BD[:count])
        loss = functional.cross_entropy(logits_BK, labels_B, label_smoothing=self.settings.label_smoothing)
        if self.heads.rotations is not None:
            turns_4B = torch.arange(4, device=self.device).repeat_interleave(count)
            loss = loss + self.settings.rotation * functional.cross_entropy(self.heads.rotations(features_BD), turns_4B)
        return loss, (logits_BK.argmax(dim=1) == labels_B).sum()

    def _judge(self, epoch: int) -> float:
        """The score of this epoch's backbone, whose weights are kept when it is the best so far."""
        score = float(self.score(extract(self.backbone, self.validation_NHWC)))
        if not math.isfinite(score):
            raise NumericError(f"epoch {epoch}: the validation score is {score}")
        if score > self.best_score:
            self.best_epoch, self.best_score = epoch, score
            self.best = {name: value.detach().clone() for name, value in self.backbone.state_dict().items()}
        return score

    def _refuse_strangers(self, tensors: Mapping[str, Tensor], *, epoch: int) -> None:
        want = {f"model/{name}": value.shape for name, value in self.model.state_dict().items()}
        if epoch and self.settings.momentum > 0:
            want |= {f"momentum/{name}": value.shape for name, value in self.model.named_parameters()}
        if epoch:
            want |= {f"best/{name}": value.shape for name, value in self.backbone.state_dict().items()}
        have = {name: value.shape for name, value in tensors.items()}
        wrong = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
        if wrong:
            name = wrong[0]
            raise CorruptArtifactError(
                f"the saved state is of another training: {name} has shape {have.get(name)}, expected {want.get(name)}; "
                "delete it and run pretrain again"
            )


def cosine_lr(peak: float, *, epoch: int, epochs: int, steps: int) -> list[float]:
    """The learning rate of each step of an epoch (from 1): half a cosine from the peak to nearly 0 over all epochs."""
    done = (epoch - 1) * steps
    return [0.5 * peak * (1 + math.cos(math.pi * (done + step) / (epochs * steps))) for step in range(steps)]


def batch_rows(count: int, *, batch: int, generator: torch.Generator) -> list[Tensor]:
    """All rows in random order; a last batch of a single image is left out, batch normalisation cannot use it."""
    rows_N = torch.randperm(count, generator=generator)
    batches = [rows_N[start : start + batch] for start in range(0, count, batch)]
    return [rows_B for rows_B in batches if len(rows_B) > 1]


@torch.no_grad()
def extract(backbone: Backbone, images_NHWC: Blocks, *, batch: int = EXTRACT_BATCH, first: int = 0) -> Tensor:
    """(N, D) float32 features on the CPU, without augmentation; how the images are cut into blocks changes nothing.

    ``first`` is the number of the first image, for who is told of a bad one.
    """
    was_training = backbone.training
    backbone.eval()
    device = backbone.mean_C.device
    parts = [backbone(torch.from_numpy(part).to(device)).cpu() for part in rebatch(images_NHWC, batch=batch)]
    backbone.train(was_training)
    features_ND = torch.cat(parts) if parts else torch.zeros(0, backbone.feature_size)
    bad_N = ~features_ND.isfinite().all(dim=1)
    if bad_N.any():
        worst = first + int(bad_N.int().argmax())
        raise NumericError(f"{int(bad_N.sum())} of {len(bad_N)} feature vectors are not finite, the first of image {worst}")
    return features_ND


def rebatch(images_NHWC: Blocks, *, batch: int) -> Iterator[np.ndarray]:
    """Blocks of any lengths as batches of one length; only the last is shorter."""
    if isinstance(images_NHWC, np.ndarray):
        images_NHWC = [images_NHWC[start : start + batch] for start in range(0, len(images_NHWC), batch)]
    pending: list[np.ndarray] = []
    for block in images_NHWC:
        pending = [*pending, block]
        if sum(map(len, pending)) >= batch:
            joined = np.concatenate(pending)
            whole = len(joined) - len(joined) % batch
            yield from (joined[start : start + batch] for start in range(0, whole, batch))
            pending = [joined[whole:]]
    if sum(map(len, pending)):
        yield np.concatenate(pending)
