"""A trained method with the scales of its weights: what lies on disk, and what makes classifiers for new tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from metadiff.baselines.gaussian import Posterior
from metadiff.checkpoint import under
from metadiff.conditioning import Scale, Scales, condition_on
from metadiff.diffusion import Noise
from metadiff.errors import CorruptArtifactError
from metadiff.methods import Method, Sampling
from metadiff.methods.metadiff import build, support_guide
from metadiff.view import FROM_ORIGIN, View

Kind = Literal["average", "raw", "untrained"]  # the moving average of the weights, the weights themselves, or where they began
SCALE = ("mean_D", "deviation")
POSTERIOR = ("mean_D", "between_DD", "within_DD")


@dataclass(frozen=True)
class Generator:
    method: Method
    scales: Scales
    posterior: Posterior | None = None  # what it was trained to correct; without one the means of supports
    view: View = FROM_ORIGIN  # of features: scales, posterior and network are in its units, and so are angles with its rows

    def rows(self, support_EWSD: Tensor, sampling: Sampling, noise: Noise, *, guidance: float = 0.0) -> Tensor:
        """(E, W, D) rows of a cosine classifier; ``guidance`` is how strongly the support's own loss steers the sampling."""
        seen_EWSD = self.view.of(support_EWSD)
        if guidance:
            guide = support_guide(seen_EWSD, self.scales.weights, strength=guidance)
            sampling = replace(sampling, guide=guide)
        condition = condition_on(seen_EWSD, self.scales.features, self.posterior)
        return self.view.back(self.scales.weights.restore(self.method.sample(condition, sampling, noise)))


def dump(
    best: Mapping[str, Mapping[str, Tensor]], scales: Scales, posterior: Posterior | None = None, view: View = FROM_ORIGIN
) -> dict[str, Tensor]:
    """The tensors of a checkpoint: both kinds of trained weights, the scales, and the posterior and the view if there are any."""
    tensors = trained_tensors(best, posterior) | {f"view/{name}": value for name, value in view.tensors().items()}
    return tensors | {f"scale/{of}/{name}": value for of, scale in vars(scales).items() for name, value in vars(scale).items()}


def undump(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, kind: Kind, device: str = "cpu") -> Generator:
    """The generator with one kind of its weights; refuses those of another network."""
    method = build(facts, device=device)
    what = f"{facts['model']} denoiser for {facts['feature_size']} features"
    method.net.load_state_dict(trained_weights(tensors, method.net, kind, what))
    scale = {of: Scale(*(tensors[f"scale/{of}/{name}"].to(device) for name in SCALE)) for of in ("weights", "features")}
    view = View(**under(tensors, "view", device=device))
    return Generator(method, Scales(**scale), posterior_in(tensors, device), view)


def trained_tensors(best: Mapping[str, Mapping[str, Tensor]], posterior: Posterior | None) -> dict[str, Tensor]:
    """What checkpoints of all methods hold: both kinds of trained weights, and the posterior if there is one."""
    tensors = {f"{kind}/{name}": value for kind, weights in best.items() for name, value in weights.items()}
    return tensors | ({f"posterior/{name}": getattr(posterior, name) for name in POSTERIOR} if posterior else {})


def posterior_in(tensors: Mapping[str, Tensor], device: str) -> Posterior | None:
    parts = [tensors[f"posterior/{name}"].to(device) for name in POSTERIOR if f"posterior/{name}" in tensors]
    return Posterior(*parts) if parts else None


def trained_weights(tensors: Mapping[str, Tensor], net: nn.Module, kind: Kind, what: str) -> dict[str, Tensor]:
    """One kind of weights among the tensors of a checkpoint; those of the network itself if it is to stay untrained."""
    have = under(tensors, kind)
    want = dict(net.state_dict())
    if kind == "untrained":
        return want
    shapes, found = ({name: tuple(value.shape) for name, value in weights.items()} for weights in (want, have))
    wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if wrong:
        raise CorruptArtifactError(
            f"weights of another network than the {what}: {kind}/{wrong[0]} has shape {found.get(wrong[0])}, expected "
            f"{shapes.get(wrong[0])}; run metatrain again"
        )
    return have
