"""The analytic optimum where classes and images are Gaussian: the posterior mean of a class given its support.

    w = m + Sb (Sb + Sw / K)^-1 (support mean - m)

m and Sb are mean and covariance of the class means, Sw is the covariance of images about their class, all over base classes. A
ridge adds to each covariance that share of its mean variance, since there are fewer base classes than features; a spread
other than 1 says how far new classes are apart, as a share of the distances between those that the backbone was trained on.
"""

import numpy as np
import torch
from torch import Tensor

from metadiff.rows import Rows


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
        between, within = (regularise(cov, ridge) for cov in (spread**2 * self.between_DD, self.within_DD))
        gain_DD = torch.linalg.solve(between + within / support_EWSD.shape[2], between).T
        apart_EWD = support_EWSD.double().mean(2) - self.mean_D
        rows_EWD: Tensor = self.mean_D + apart_EWD @ gain_DD.T
        return rows_EWD.to(support_EWSD.dtype)


def regularise(covariance_DD: Tensor, ridge: float) -> Tensor:
    share = ridge * covariance_DD.diagonal().mean()
    return covariance_DD + share * torch.eye(len(covariance_DD), dtype=covariance_DD.dtype, device=covariance_DD.device)
