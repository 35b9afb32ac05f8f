"""Nearest class mean: the strongest baseline that learns nothing."""

from torch import Tensor
from torch.nn.functional import normalize


def cosine_ncm(support_EWSD: Tensor, query_EQD: Tensor) -> Tensor:
    """Scores (E, Q, W): the cosine between each query and each class's mean support vector."""
    mean_EWD = support_EWSD.mean(2)
    return normalize(query_EQD, dim=-1) @ normalize(mean_EWD, dim=-1).transpose(1, 2)
