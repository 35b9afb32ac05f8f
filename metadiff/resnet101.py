"""ResNet-101 as torchvision has it, with weights that lie on the disk: what the author of Mc-Di embeds tasks with.

It is not trained here. It has seen ImageNet, so classes that are of ImageNet too are not new to it.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from metadiff.errors import DataError

SIZE = 2048  # numbers of a feature vector
SHOWN = 224  # pixels a side, as those that it was trained on
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images
TOGETHER = 64  # images: more need more memory
CLASSIFIER, COUNTER = "fc.", "num_batches_tracked"  # of whose tensors features need none


class ResNet101(nn.Module):
    """Without its classifier; grey images are shown as coloured ones."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet101  # takes a second, which other backbones need not wait

        self.net = resnet101(weights=None)
        self.net.fc = nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([self._some(x) for x in torch.split(x_NCHW, TOGETHER)])

    def _some(self, x_NCHW: Tensor) -> Tensor:
        mean_C11, deviation_C11 = (x_NCHW.new_tensor(of)[:, None, None] for of in (MEAN, DEVIATION))
        shown = functional.interpolate(x_NCHW, size=(SHOWN, SHOWN), mode="bilinear", antialias=True)
        out: Tensor = self.net((shown.expand(-1, 3, -1, -1) - mean_C11) / deviation_C11)
        return out

    def read(self, path: Path) -> None:
        """The weights of a safetensors file, by torchvision's names or timm's, which are the same."""
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            made = "docs/own-images.md says how one is made of a .pth"
            raise DataError(f"{path}: not a safetensors file ({error}); {made}") from None
        want = {name: value for name, value in self.net.state_dict().items() if COUNTER not in name}
        have = {name: value for name, value in tensors.items() if COUNTER not in name and not name.startswith(CLASSIFIER)}
        wrong = sorted(name for name in want.keys() | have.keys() if _shape(want.get(name)) != _shape(have.get(name)))
        if wrong:
            name = wrong[0]
            raise DataError(f"{path}: no ResNet-101: {name} has {_shape(have.get(name))}, expected {_shape(want.get(name))}")
        self.net.load_state_dict(have, strict=False)  # the counters are of training

    @torch.no_grad()
    def fold(self) -> None:
        """Each norm into the convolution before it: the same but for rounding, where nothing is trained any more."""
        for part in [*self.net.modules()]:
            for conv, norm in pairwise(dict(part.named_children())):
                if isinstance(part.get_submodule(norm), nn.BatchNorm2d):
                    setattr(part, conv, fuse_conv_bn_eval(part.get_submodule(conv), part.get_submodule(norm)))
                    setattr(part, norm, nn.Identity())


def _shape(value: Tensor | None) -> str:
    return "no such tensor" if value is None else f"shape {tuple(value.shape)}"
