"""The analytic optimum where classes and images are Gaussian: the posterior mean of a class given its support.

    w = m + Sb (Sb + Sw / K)^-1 (support mean - m)

m and Sb are mean and covariance of the class means, Sw is the covariance of images about their class, all over base classes. A
ridge adds to each covariance that share of its mean variance, since there are fewer base classes than features; a spread
other than 1 says how far new classes are apart, as a share of the distances between those that the backbone was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from metadiff.errors import DataError
from metadiff.rows import Rows
from metadiff.view import View, whitener


@dataclass(frozen=True)
class Posterior:
    """The posterior with its ridge and spread settled, and so a linear map of the support mean for each number of shots."""

    mean_D: Tensor
    between_DD: Tensor
    within_DD: Tensor
    _gains: dict[int, Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)

    def expect(self, mean_EWD: Tensor, shot: int) -> Tensor:
        """(E, W, D): the mean of each class, as expected from that of its support; float64."""
        if shot not in self._gains:
            self._gains[shot] = torch.linalg.solve(self.between_DD + self.within_DD / shot, self.between_DD)
        return self.mean_D + (mean_EWD.double() - self.mean_D) @ self._gains[shot]


class GaussianPosterior:
    """Class rows of new tasks in closed form; float64 inside."""

    def __init__(self, features_ND: Tensor, data: Rows) -> None:
        rows = data.of("train")
        labels = torch.from_numpy(np.unique(data.label[rows], return_inverse=True)[1]).to(features_ND.device)
        x_ND = features_ND[torch.from_numpy(rows)].double()
        counts_C = labels.bincount()
        means_CD = torch.zeros(len(counts_C), x_ND.shape[1], dtype=x_ND.dtype, device=x_ND.device).index_add(0, labels, x_ND)
        means_CD = means_CD / counts_C[:, None]
        apart_ND = x_ND - means_CD[labels]
        self.mean_D = means_CD.mean(0)
        self.between_DD = torch.cov(means_CD.T)
        self.within_DD = apart_ND.T @ apart_ND / (len(x_ND) - len(counts_C))

    def rows(self, support_EWSD: Tensor, *, ridge: float, spread: float = 1.0) -> Tensor:
        """(E, W, D): the posterior mean of each class."""
        posterior = self.settled(ridge=ridge, spread=spread)
        return posterior.expect(support_EWSD.double().mean(2), support_EWSD.shape[2]).to(support_EWSD.dtype)

    def settled(self, *, ridge: float, spread: float = 1.0) -> Posterior:
        between, within = (regularise(cov, ridge) for cov in (spread**2 * self.between_DD, self.within_DD))
        return Posterior(self.mean_D, between, within)

    def whitened(self, *, ridge: float) -> View:
        """From the base mean, in units in which features vary about their class in all directions alike."""
        if self.within_DD.trace() <= 0:
            raise DataError(
                "train: all images of a class have the same features, so there are no units of how these vary: write "
                "metatrain.whitened 0 and evaluate.whitened []"
            )
        return View(self.mean_D.float(), whitener(regularise(self.within_DD, ridge)).float())


def regularise(covariance_DD: Tensor, ridge: float) -> Tensor:
    share = ridge * covariance_DD.diagonal().mean()
    return covariance_DD + share * torch.eye(len(covariance_DD), dtype=covariance_DD.dtype, device=covariance_DD.device)
