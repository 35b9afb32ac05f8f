"""Meta-training of a weight generator: any method that has a loss and can sample, the same loop for all.

A batch, its noise and its dropout are pure functions of (seed, step), so weights, their moving average, Adam's moments and the
step are the whole state, and a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metadiff.conditioning import BaseTasks
from metadiff.errors import CorruptArtifactError, NumericError
from metadiff.methods import Method
from metadiff.methods.metadiff import build
from metadiff.numeric import refuse_non_finite
from metadiff.rng import torch_stream

if TYPE_CHECKING:
    from metadiff.params import Metatrain

WARMUP = 100  # steps over which the learning rate rises
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
Weights = dict[str, Tensor]
Score = Callable[[Method], float]


class MetaTraining:
    """The state of one meta-training: weights, their average, Adam's moments, steps done, and the best weights so far.

    ``score`` judges the method, with its averaged weights, on validation episodes; the weights of the best judgement are kept,
    the raw ones beside their average.
    """

    def __init__(self, settings: Metatrain, *, facts: Mapping[str, Any], tasks: BaseTasks, score: Score, seed: int) -> None:
        """``facts`` are what the network is built from, with the weights that their seed gives."""
        self.settings, self.facts, self.tasks, self.score, self.seed = settings, facts, tasks, score, seed
        self.device = tasks.features_ND.device
        self.method = method = build(facts, device=str(self.device))
        if settings.compile:
            torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())  # tells the compiler too
            method.net.compile()
        self.autocast = settings.bf16 and self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(method.net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.average: Weights = {name: value.detach().clone() for name, value in method.net.state_dict().items()}
        self.step, self.best_step, self.best_score = 0, 0, -math.inf
        self.best: dict[str, Weights] = {}
        self.history: list[dict[str, float]] = []

    @property
    def finished(self) -> bool:
        return bool(self.step >= self.settings.steps)

    def run(self) -> dict[str, float]:
        """Train until the next judgement, judge, and return its row of the history."""
        until = min(self.step + self.settings.val_every, self.settings.steps)
        losses = [self._step(step) for step in range(self.step + 1, until + 1)]
        self.step = until
        row = {"step": until, "loss": sum(losses) / len(losses), "lr": self._lr(until)}
        row |= {"score_raw": self._judge(self.method.net.state_dict()), "score": self._judge(self.average)}
        if row["score"] > self.best_score:
            self.best_step, self.best_score = until, row["score"]
            raw = {name: value.detach().clone() for name, value in self.method.net.state_dict().items()}
            self.best = {"raw": raw, "average": {name: value.clone() for name, value in self.average.items()}}
        self.history = [*self.history, row]
        return row

    def state(self) -> tuple[Weights, dict[str, Any]]:
        """Everything that `restore` needs: tensors for a checkpoint, and facts that JSON can hold."""
        tensors = {f"raw/{name}": value for name, value in self.method.net.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for name, parameter in self.method.net.named_parameters():
            tensors |= {f"{moment}/{name}": self.optimizer.state[parameter][moment] for moment in MOMENTS}
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
                moments = {moment: tensors[f"{moment}/{name}"].clone() for moment in MOMENTS}
                on_device = {"exp_avg", "exp_avg_sq"}
                self.optimizer.state[parameter] = {
                    moment: value.to(self.device) if moment in on_device else value for moment, value in moments.items()
                }
        for kind in ("raw", "average"):
            start = f"best/{kind}/"
            found = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            self.best[kind] = {name: value.to(self.device, copy=True) for name, value in found.items()}
        self.step, self.history = facts["step"], list(facts["history"])
        self.best_step, self.best_score = facts["best_step"], facts["best_score"]

    def _step(self, step: int) -> float:
        settings = self.settings
        draw = torch_stream(self.seed, "batch", step)
        batch = self.tasks.draw(draw, tasks=settings.batch, way=settings.way, shots=settings.shots)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.method.loss(batch, torch_stream(self.seed, "noise", step))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        lr = self._lr(step)
        refuse_non_finite(loss, self.method.net, where=f"step {step}, lr {lr:.6g}", lower="metatrain.lr")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        decay = min(settings.ema, step / (step + 10))  # a young average forgets the first weights fast
        with torch.no_grad():
            for name, value in self.method.net.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        return loss.item()

    def _lr(self, step: int) -> float:
        """Up over the first steps, then half a cosine down to nearly 0."""
        return self.settings.lr * min(1.0, step / WARMUP) * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.settings.steps))

    def _judge(self, weights: Mapping[str, Tensor]) -> float:
        kept = {name: value.detach().clone() for name, value in self.method.net.state_dict().items()}
        self.method.net.load_state_dict(dict(weights))
        score = float(self.score(self.method))
        self.method.net.load_state_dict(kept)
        if not math.isfinite(score):
            raise NumericError(f"step {self.step}: the validation score is {score}")
        return score

    def _refuse_strangers(self, tensors: Mapping[str, Tensor]) -> None:
        shapes = {name: value.shape for name, value in self.method.net.state_dict().items()}
        kinds = ("raw", "average", "exp_avg", "exp_avg_sq", "best/raw", "best/average")
        want = {f"{kind}/{name}": shape for kind in kinds for name, shape in shapes.items()}
        want |= {f"step/{name}": torch.Size([]) for name in shapes}
        have = {name: value.shape for name, value in tensors.items()}
        wrong = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
        if wrong:
            name = wrong[0]
            raise CorruptArtifactError(
                f"the saved state is of another training: {name} has shape {have.get(name)}, expected {want.get(name)}; "
                "delete it and run metatrain again"
            )
