"""The orders in which the weights of one and the same classifier can stand: that of its classes, and that of its hidden units or
channels.

Shapes: B vectors of P weights, W ways, H hidden units; of a layer of a network O channels that it leads to, C that it comes from,
J numbers of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metadiff.layout import parts_of
from metadiff.learner import BaseLearner, Learner
from metadiff.matching import pairing
from metadiff.network import Network, Wires, network_of, wires_of

CLASSES = {"weight": 1, "bias": 1, "leave.weight": 2, "leave.bias": 1}  # the axis of each part that goes over classes,
UNITS = {"enter.weight": 1, "enter.bias": 1, "leave.weight": 1}  # and that over hidden units


def with_classes(theta_BP: Tensor, order_BW: Tensor, learner: BaseLearner) -> Tensor:
    """The class that becomes number w is the one that was number ``order[w]``."""
    return _reordered(theta_BP, order_BW, learner, CLASSES)


def with_units_of(theta_BP: Tensor, other_BP: Tensor, learner: BaseLearner) -> Tensor:
    """The same classifiers with their hidden units in the order in which they lie nearest to others; with channels in one in
    which they lie near, each layer by what reaches it from the ones before."""
    if isinstance(learner, Network):
        return _with_channels_of(theta_BP, other_BP, learner)
    if isinstance(learner, Learner):
        return theta_BP
    units_BHU, other_BHU = (_units(found_BP, learner) for found_BP in (theta_BP, other_BP))
    return _reordered(theta_BP, pairing(-units_BHU @ other_BHU.mT), learner, UNITS)


def _with_channels_of(theta_BP: Tensor, other_BP: Tensor, learner: Network) -> Tensor:
    found, (*layers, last) = [], zip(wires_of(learner, theta_BP), wires_of(learner, other_BP), strict=True)
    order_BC = torch.arange(learner.colours, device=theta_BP.device)[None]
    for mine, theirs in layers:
        kernel_BOCJ = mine.kernel_BOCJ.take_along_dim(order_BC[:, None, :, None], dim=2)
        one, other = (
            torch.cat([kernel.flatten(2), bias[..., None]], dim=-1)
            for kernel, bias in ((kernel_BOCJ, mine.bias_BO), (theirs.kernel_BOCJ, theirs.bias_BO))
        )
        order_BC = pairing(-one @ other.mT)
        ordered_BOCJ = kernel_BOCJ.take_along_dim(order_BC[..., None, None], dim=1)
        found.append(Wires(ordered_BOCJ, mine.bias_BO.take_along_dim(order_BC, dim=1)))
    mine = last[0]
    found.append(Wires(mine.kernel_BOCJ.take_along_dim(order_BC[:, None, :, None], dim=2), mine.bias_BO))
    return network_of(found)


def _units(theta_BP: Tensor, learner: BaseLearner) -> Tensor:
    """What enters and leaves each hidden unit."""
    parts = parts_of(theta_BP, learner.layout())
    return torch.cat([parts["enter.weight"], parts["enter.bias"][..., None], parts["leave.weight"]], dim=-1)


def _reordered(theta_BP: Tensor, order_BK: Tensor, learner: BaseLearner, axes: Mapping[str, int]) -> Tensor:
    parts = parts_of(theta_BP, learner.layout())
    for name, axis in axes.items():
        if name in parts:
            shape = [1] * parts[name].ndim
            shape[0], shape[axis] = order_BK.shape
            parts[name] = parts[name].take_along_dim(order_BK.view(shape), dim=axis)
    return torch.cat([part.flatten(1) for part in parts.values()], dim=1)
