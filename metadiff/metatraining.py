"""Meta-training of a weight generator: any method that has a loss and can sample, the same loop for all.

A batch, its noise and its dropout are pure functions of (seed, step), so weights, their moving average, the optimiser's moments
and the step are the whole state, and a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn

from metadiff.checkpoint import under
from metadiff.conditioning import BaseTasks, Batch
from metadiff.errors import CorruptArtifactError, NumericError
from metadiff.methods import Method
from metadiff.numeric import refuse_non_finite
from metadiff.rng import torch_stream

if TYPE_CHECKING:
    from metadiff.params import Metatrain

WARMUP = 100  # steps over which the learning rate rises
MOVED = 0.01  # a network that has moved by a smaller share of its length was not trained
MOMENTS = {"adam": ("exp_avg", "exp_avg_sq", "step"), "sgd": ()}
Weights = dict[str, Tensor]


class Trainable(Protocol):
    @property
    def net(self) -> nn.Module: ...


M = TypeVar("M", bound=Trainable)
B = TypeVar("B")


@dataclass(frozen=True)
class Lesson(Generic[M, B]):
    """A batch by its stream; the loss of a batch, its slope left in the gradients; a score on validation."""

    draw: Callable[[Generator], B]
    slope: Callable[[M, B, Generator], Tensor]
    score: Callable[[M], float]


@dataclass(frozen=True)
class Pace:
    """For how long, how fast, and how often it is judged."""

    steps: int
    lr: float
    weight_decay: float
    ema: float
    val_every: int
    bf16: bool = False
    compile: bool = False
    optimizer: str = "adam"  # adam: AdamW | sgd
    rate: str = "metatrain.lr"  # the parameter that says how fast
    slack: float = 0.0  # by how much a later judgement may be below the best, for its weights to be kept


@dataclass(frozen=True)
class Subject:
    """A model to be trained: the training as it begins, what its checkpoint is read with, and its tensors in the end."""

    training: MetaTraining[Any, Any]
    facts: Mapping[str, Any]
    dump: Callable[[Mapping[str, Weights]], Weights]

    def tensors(self) -> Weights:
        return self.dump(self.training.best)

    def remarks(self) -> list[str]:
        """What a user should know of a training that is done."""
        share = self.training.moved()
        if share >= MOVED:
            return []
        name, rate = self.facts["model"], self.training.pace.lr
        return [
            f"{name}: the network has moved by {100 * share:.2g} % of its length in {self.training.step:,} steps: it is not "
            f"trained; raise {self.training.pace.rate}, which is {rate:g}, or take an adaptive optimizer"
        ]


def pace_of(section: object) -> Pace:
    """What a section of the parameters says of it."""
    return Pace(**{field.name: getattr(section, field.name) for field in fields(Pace) if hasattr(section, field.name)})


def rows_lesson(section: Metatrain, tasks: BaseTasks, score: Callable[[Method], float]) -> Lesson[Method, Batch]:
    """To generate class rows."""
    return Lesson(partial(tasks.draw, tasks=section.batch, way=section.way, shots=section.shots), backward, score)


def backward(method: Method, batch: Batch, generator: Generator) -> Tensor:
    """The slope of a method's loss."""
    loss = method.loss(batch, generator)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


class MetaTraining(Generic[M, B]):
    """The state of one meta-training: weights, their average, the optimiser's moments, steps done, and the best weights so far.

    The method is judged with its averaged weights; those of the best judgement (or one hardly worse) are kept, raw and average.
    """

    def __init__(self, pace: Pace, method: M, lesson: Lesson[M, B], *, seed: int) -> None:
        self.pace, self.method, self.lesson, self.seed = pace, method, lesson, seed
        self.device = next(method.net.parameters()).device
        if pace.compile:
            torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())  # tells the compiler too
            method.net.compile()
        self.autocast = pace.bf16 and self.device.type == "cuda"
        made = torch.optim.AdamW if pace.optimizer == "adam" else torch.optim.SGD
        self.optimizer = made(method.net.parameters(), lr=pace.lr, weight_decay=pace.weight_decay)
        self.begun: Weights = {name: value.detach().clone() for name, value in method.net.state_dict().items()}
        self.average: Weights = {name: value.detach().clone() for name, value in method.net.state_dict().items()}
        self.step, self.best_step, self.best_score = 0, 0, -math.inf
        self.best: dict[str, Weights] = {}
        self.history: list[dict[str, float]] = []

    @property
    def moments(self) -> tuple[str, ...]:
        return MOMENTS[self.pace.optimizer]

    @property
    def finished(self) -> bool:
        return bool(self.step >= self.pace.steps)

    def run(self) -> dict[str, float]:
        """Train until the next judgement, judge, and return its row of the history."""
        until = min(self.step + self.pace.val_every, self.pace.steps)
        losses = [self._step(step) for step in range(self.step + 1, until + 1)]
        self.step = until
        row = {"step": until, "loss": sum(losses) / len(losses), "lr": self._lr(until)}
        row |= {"score_raw": self._judge(self.method.net.state_dict()), "score": self._judge(self.average)}
        best = max((former["score"] for former in self.history), default=-math.inf)
        if row["score"] > best or (self.pace.slack and row["score"] >= best - self.pace.slack):
            self.best_step, self.best_score = until, row["score"]
            raw = {name: value.detach().clone() for name, value in self.method.net.state_dict().items()}
            self.best = {"raw": raw, "average": {name: value.clone() for name, value in self.average.items()}}
        self.history = [*self.history, row]
        return row

    def moved(self) -> float:
        """How far the weights are from where they began, as a share of their length there."""
        now, length = self.method.net.state_dict(), math.sqrt(sum(float(value.square().sum()) for value in self.begun.values()))
        return math.sqrt(sum(float((now[name] - value).square().sum()) for name, value in self.begun.items())) / max(
            length, 1e-12
        )

    def state(self) -> tuple[Weights, dict[str, Any]]:
        """Everything that `restore` needs: tensors for a checkpoint, and facts that JSON can hold."""
        tensors = {f"raw/{name}": value for name, value in self.method.net.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for name, parameter in self.method.net.named_parameters():
            tensors |= {f"{moment}/{name}": self.optimizer.state[parameter][moment] for moment in self.moments}
        tensors |= {f"best/{kind}/{name}": value for kind, best in self.best.items() for name, value in best.items()}
        facts = {"step": self.step, "history": self.history, "best_step": self.best_step, "best_score": self.best_score}
        return {name: value.detach().clone() for name, value in tensors.items()}, facts

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a state of the same settings; refuses one with other tensors."""
        self._refuse_strangers(tensors)
        with torch.no_grad():
            for name, value in self.method.net.state_dict().items():
                value.copy_(tensors[f"raw/{name}"])
                self.average[name].copy_(tensors[f"average/{name}"])
            for name, parameter in self.method.net.named_parameters():
                moments = {moment: tensors[f"{moment}/{name}"].clone() for moment in self.moments}
                on_device = {"exp_avg", "exp_avg_sq"}
                self.optimizer.state[parameter] = {
                    moment: value.to(self.device) if moment in on_device else value for moment, value in moments.items()
                }
        for kind in ("raw", "average"):
            best = under(tensors, f"best/{kind}")
            self.best[kind] = {name: value.to(self.device, copy=True) for name, value in best.items()}
        self.step, self.history = facts["step"], list(facts["history"])
        self.best_step, self.best_score = facts["best_step"], facts["best_score"]

    def _step(self, step: int) -> float:
        batch = self.lesson.draw(torch_stream(self.seed, "batch", step))
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.lesson.slope(self.method, batch, torch_stream(self.seed, "noise", step))
        lr = self._lr(step)
        refuse_non_finite(loss, self.method.net, where=f"step {step}, lr {lr:.6g}", lower=self.pace.rate)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        decay = min(self.pace.ema, step / (step + 10))  # a young average forgets the first weights fast
        with torch.no_grad():
            for name, value in self.method.net.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        return loss.item()

    def _lr(self, step: int) -> float:
        """Up over the first steps, then half a cosine down to nearly 0."""
        return self.pace.lr * min(1.0, step / WARMUP) * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.pace.steps))

    def _judge(self, weights: Mapping[str, Tensor]) -> float:
        kept = {name: value.detach().clone() for name, value in self.method.net.state_dict().items()}
        self.method.net.load_state_dict(dict(weights))
        score = float(self.lesson.score(self.method))
        self.method.net.load_state_dict(kept)
        if not math.isfinite(score):
            raise NumericError(f"step {self.step}: the validation score is {score}")
        return score

    def _refuse_strangers(self, tensors: Mapping[str, Tensor]) -> None:
        shapes = {name: value.shape for name, value in self.method.net.state_dict().items()}
        kinds = ("raw", "average", *(moment for moment in self.moments if moment != "step"), "best/raw", "best/average")
        want = {f"{kind}/{name}": shape for kind in kinds for name, shape in shapes.items()}
        want |= {f"step/{name}": torch.Size([]) for name in shapes if "step" in self.moments}
        have = {name: value.shape for name, value in tensors.items()}
        wrong = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
        if wrong:
            name = wrong[0]
            raise CorruptArtifactError(
                f"the saved state is of another training: {name} has shape {have.get(name)}, expected {want.get(name)}; "
                "delete it and run metatrain again"
            )
