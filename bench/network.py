"""The slopes of whole networks: by products of patches, as `collect` takes them, and by a grouped convolution and autograd.

python -m bench.network

The network of Omniglot on one thread: tasks a second, for several numbers of tasks at once and of images of each.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import stages  # noqa: F401 - pins the instruction set, as in a run
from metadiff.layout import tensors_of
from metadiff.network import Network

NETWORK, ROUNDS = Network("conv", way=5, side=28, colours=1, channels=64), 3
TASKS, SHOTS = (16, 64), (1, 5)
RESULT = Path(__file__).parent / "results" / "network.json"


def grouped(theta_TP: Tensor, pixels_TNQ: Tensor, hot_NW: Tensor) -> Tensor:
    """A group of channels for each task."""
    tasks, images = pixels_TNQ.shape[:2]
    with torch.enable_grad():
        leaf_TP = theta_TP.detach().requires_grad_()
        *convolutions, leave_TFW, shift_TW = tensors_of(leaf_TP, NETWORK.layout())
        seen = pixels_TNQ.transpose(0, 1).reshape(images, tasks, NETWORK.side, NETWORK.side)
        for layer, weight, bias in zip(NETWORK.layers, convolutions[::2], convolutions[1::2], strict=True):
            kernels = weight.flatten(0, 1).permute(0, 3, 1, 2)
            seen = conv2d(seen, kernels, bias.flatten(), stride=layer.kernel, padding=layer.border, groups=tasks).relu()
        logits_TNW = seen.view(images, tasks, -1).transpose(0, 1) @ leave_TFW + shift_TW[:, None]
        loss = -(logits_TNW.log_softmax(-1) * hot_NW).sum() / images
    return torch.autograd.grad(loss, leaf_TP)[0]


def rate(work: Callable[[], object], tasks: int) -> float:
    """Tasks a second of processor time, the best of some rounds after one to warm up."""
    work()
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return tasks / min(times)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    found = []
    for shot in SHOTS:
        hot_NW = torch.eye(NETWORK.way).repeat_interleave(shot, 0)
        for tasks in TASKS:
            stream = torch.Generator().manual_seed(0)
            theta_TP = 0.05 * torch.randn(tasks, NETWORK.size, generator=stream)
            pixels_TNQ = torch.randn(tasks, len(hot_NW), NETWORK.side**2, generator=stream)
            case = theta_TP, pixels_TNQ, hot_NW
            torch.testing.assert_close(
                NETWORK.slope(*case), grouped(*case), rtol=1e-3, atol=1e-3
            )  # a unit at 0 may be cut off or not
            rates = [rate(lambda way=way, case=case: way(*case), tasks) for way in (NETWORK.slope, grouped)]
            found.append({"tasks": tasks, "images": len(hot_NW), "patches": rates[0], "grouped": rates[1]})
            print(
                f"{tasks:4} tasks of {len(hot_NW):2} images: {rates[0]:7.0f} tasks/s by patches {rates[1]:7.0f} grouped",
                flush=True,
            )
    facts = {"machine": platform.machine(), "torch": torch.__version__, "rows": found}
    RESULT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
