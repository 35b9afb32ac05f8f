"""A training must stop before it writes what is not a number into its weights."""

import torch
from torch import Tensor, nn

from metadiff.errors import NumericError


def refuse_non_finite(loss: Tensor, model: nn.Module, *, where: str, lower: str) -> None:
    """Raise if the loss or a gradient is not finite; to be called between the backward pass and the optimiser's step."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(gradients.values())
    if bool(torch.isfinite(loss) & torch.isfinite(norm)):
        return
    named = [*model.named_parameters(), *((f"gradient of {name}", g) for name, g in gradients.items())]
    bad = next((name for name, value in named if not value.isfinite().all()), "none but the loss or the norm itself")
    raise NumericError(
        f"{where}: loss {loss.item():.6g}, gradient norm {norm.item():.6g}; first tensor that is not finite: {bad}; "
        f"nothing was changed by this step; lower {lower}"
    )
