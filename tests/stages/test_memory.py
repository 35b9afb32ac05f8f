"""What evaluate says of generators whose memory is known, by a store that stands for the recorded paths."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metadiff.candidates import OfWeights
from metadiff.diffusion import Noise
from metadiff.inputs import Inputs
from metadiff.learner import Perceptron
from metadiff.objectives import OnSupport
from metadiff.paths import WeightScale, followed
from metadiff.pictures import Pictures
from metadiff.rng import numpy_stream
from metadiff.symmetry import with_classes
from metadiff.trajectory import Rule, follow
from stages.memory import memory_facts
from tests.science.test_episodes import rows

WAY, DIM, TASKS, STEPS = 3, 4, 30, 40
NET = Perceptron("mlp", WAY, DIM, hidden=5)
DATA = rows([8] * 6, split=1)
FEATURES = torch.randn(len(DATA.label), DIM, generator=torch.Generator().manual_seed(0))
SECTION = SimpleNamespace(way=WAY, shots=[1, 2], query=4, curve_episodes=20, seed=0)
ABOUT = {"optimizer": "adam", "lr": 0.05, "momentum": 0.9, "sam": 0.0, "weight_decay": 0.1, "steps": STEPS, "spread": 1.0}
ABOUT |= {"sees": "support"}
SUPPORT = np.random.default_rng(0).integers(0, len(DATA.label), (TASKS, WAY, 2))
CLASSES = np.zeros((TASKS, WAY), dtype=np.int64)  # not asked: paths say which images they have seen
STARTS = torch.stack([NET.start(numpy_stream(0, number), 1.0) for number in range(TASKS)])


def ends_from(start_TP: Tensor) -> Tensor:
    rule = Rule("adam", 0.05, momentum=0.9, sam=0.0, weight_decay=0.1)
    return follow(OnSupport(NET, FEATURES[SUPPORT]), start_TP, rule=rule, kept=(STEPS,))[0][:, 0]


ENDS = ends_from(STARTS)
STORE = SimpleNamespace(
    end_points=lambda most: ENDS[:most].numpy(),
    attributes={"params": ABOUT},
    blocks_of=lambda _most: 2,
    classes=CLASSES,
    support=SUPPORT,
    rows=lambda block: slice(20 * block, 20 * block + 20),
)
SCALE = WeightScale.of(NET, ENDS)


class Told:
    """What a run gives, and what it was told."""

    def __init__(self) -> None:
        self.params, self.said = SECTION, []

    def say(self, *lines: str) -> None:
        self.said += lines

    def stop_if_asked(self, *_: str) -> None: ...

    @contextmanager
    def progress(self, *_: str, **_kind: Any) -> Iterator[Callable[[int], None]]:  # noqa: ANN401
        yield lambda count: None


@dataclass
class Known:
    """Gives as weights what a function of the first draw makes."""

    made_of: Callable[[int, Noise], Tensor]
    scale: WeightScale = SCALE
    learner: Perceptron = NET
    inputs: Inputs = field(default_factory=Inputs)

    def weights(self, support_EWS: Pictures, noise: Noise) -> Tensor:
        return self.made_of(len(support_EWS), noise)

    def draws(self, support_EWS: Pictures, noises: list[Noise]) -> Tensor:
        return torch.stack([self.weights(support_EWS, noise) for noise in noises])

    def logits(self, theta_EP: Tensor, images_EN: Pictures) -> Tensor:
        return self.learner.logits(theta_EP, images_EN.features)


def by_heart(count: int, noise: Noise, ends: Tensor = ENDS) -> Tensor:
    """Training weights with their classes in another order."""
    chosen = noise(torch.zeros(count, TASKS)).argmax(1)
    return with_classes(ends[chosen], noise(torch.zeros(count, WAY)).argsort(1), NET)


def fresh(count: int, noise: Noise) -> Tensor:
    return noise(torch.zeros(count, NET.size)) * SCALE.deviation_P


def told(**weights: Known) -> tuple[dict[str, Any], list[str]]:
    run, tuned = Told(), OfWeights(lambda support, _batch: ENDS[: len(support)][None], Known(fresh).logits)
    return memory_facts(run, weights, STORE, tuned, pictures=Pictures(FEATURES), data=DATA), run.said


def test_a_generator_of_copies_is_one_by_heart_and_errs_where_they_err() -> None:
    found, said = told(local=Known(by_heart), vanilla=Known(fresh))
    assert [*found] == ["local", "vanilla"]
    assert found["local"]["ratio"] < 1e-3
    assert found["local"]["overlap"]["nearest"] == 1
    assert found["local"]["overlap"]["draws"] < 1
    assert found["vanilla"]["ratio"] > 0.5
    assert found["vanilla"]["overlap"]["nearest"] < 1
    assert [line.split(":")[0] for line in said] == ["local by heart", "vanilla not by heart"]
    assert said == [f"{name} {facts['verdict']}" for name, facts in found.items()]


def test_one_that_starts_elsewhere_learned_from_other_paths() -> None:
    """From the same start those of the same supports end elsewhere, and copies of these are by heart too."""
    ends = ends_from(STARTS[:1].expand(TASKS, -1))
    scale = WeightScale.of(NET, ends, STARTS[0])
    moved = Known(lambda count, noise: by_heart(count, noise, ends), scale)
    found, _ = told(local=moved, ocd=Known(by_heart, scale))
    assert found["local"]["ratio"] < 1e-3
    assert found["ocd"]["ratio"] > 0.5


def test_a_path_is_reconstructed_from_the_images_that_it_has_seen() -> None:
    shown: list[Tensor] = []

    class Looking(Known):
        def weights(self, support_EWS: Pictures, noise: Noise) -> Tensor:
            shown.append(support_EWS.features)
            return super().weights(support_EWS, noise)

    units = torch.arange(4, -1, -1)
    enter, shift, leave, rest = ENDS.split([5 * DIM, 5, 5 * WAY, WAY], dim=1)
    turned = [enter.view(-1, 5, DIM)[:, units].flatten(1), shift[:, units], leave.view(-1, 5, WAY)[:, units].flatten(1), rest]
    found, _ = told(local=Looking(lambda count, _noise: torch.cat(turned, dim=1)[:count]), vanilla=Known(fresh))
    assert found["local"]["reconstruction"] < 1e-3
    assert found["vanilla"]["reconstruction"] > 0.5
    assert torch.equal(shown[-1], FEATURES[SUPPORT])


@pytest.mark.parametrize("kept", [(STEPS,), (10, STEPS)])
def test_paths_are_followed_on_their_own_supports(kept: tuple[int, ...]) -> None:
    found = followed(STORE, NET, FEATURES, STARTS[0], kept=kept)
    assert found.shape == (TASKS, len(kept), NET.size)
    torch.testing.assert_close(found[:, -1], ends_from(STARTS[:1].expand(TASKS, -1)))


def test_without_noise_nothing_is_told() -> None:
    assert told() == told(**{"weights-regression": Known(fresh), "reptile": Known(fresh)}) == ({}, [])
