"""Along the chain of a generator of whole weights: where it is at each time, from noise to the end.

Shapes: T + 1 times, E tasks, W ways, S shots, D features, P weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metadiff.diffusion import Noise, gaussian_noise
from metadiff.evaluation import WeightsOf
from metadiff.pictures import Pictures
from metadiff.rng import torch_stream
from metadiff.weightgenerator import WeightGenerator

if TYPE_CHECKING:
    from metadiff.params import Evaluate


def states(generator: WeightGenerator, support_EWS: Pictures, noise: Noise) -> Tensor:
    """(T + 1, E, P): the weights that the chain has come to at each time."""
    found: list[Tensor] = []
    generator.weights(support_EWS, noise, watch=lambda _time, theta_EP: found.append(generator.scale.restore(theta_EP)))
    return torch.stack(found)


def chain_states(generator: WeightGenerator, section: Evaluate) -> WeightsOf:
    """The states of the draw that is judged alone, each of them as if it were a draw."""

    def weights(support_EWS: Pictures, batch: int) -> Tensor:
        return states(generator, support_EWS, gaussian_noise(torch_stream(section.seed, "draw", 0, batch)))

    return weights
