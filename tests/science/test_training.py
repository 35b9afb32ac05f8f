"""Pretraining: it learns, resumes bit for bit, ignores global generators, and stops before a step that would spoil weights."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metadiff.backbone import build
from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.errors import CorruptArtifactError, NumericError
from metadiff.training import Pretraining, batch_rows, cosine_lr, extract

PLAIN = {
    "epochs": 3,
    "batch": 16,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "rotation": 0.0,
    "degrees": 10.0,
    "translate": 0.1,
    "scale": 0.1,
    "shear": 5.0,
    "flip": True,
    "jitter": 0.2,
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="checks of training on a GPU skipped: no CUDA device")


@pytest.fixture
def exact_cuda() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.deterministic = before


def shapes(count: int, *, seed: int = 0, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Bars, crosses and squares at random places, in noise; labels 4, 7 and 9, as a split's classes need not be 0, 1, 2."""
    rng = np.random.default_rng(seed)
    x_NHWC = rng.integers(0, 60, (count, side, side, 1), dtype=np.uint8)
    kinds_N = np.arange(count) % 3
    for x_HWC, kind in zip(x_NHWC, kinds_N, strict=True):
        top, left = rng.integers(2, side - 9, 2)
        part = x_HWC[top : top + 7, left : left + 7]
        if kind == 0:
            part[3] = 255
        elif kind == 1:
            part[3], part[:, 3] = 255, 255
        else:
            part[[0, -1]], part[:, [0, -1]] = 255, 255
    return x_NHWC, np.array([4, 7, 9])[kinds_N]


def spread(features_ND: torch.Tensor) -> float:
    return float(features_ND.std(0).mean())


def pretraining(*, device: str = "cpu", count: int = 41, autocast: bool = True, **changed: float) -> Pretraining:
    wanted = SimpleNamespace(**(PLAIN | changed))
    x_NHWC, labels_N = shapes(count)
    return Pretraining(
        wanted,
        backbone=build("conv4", channels=1, image_size=16, seed=0, mean_C=[0.2], std_C=[0.3]).to(device),
        images_NHWC=x_NHWC,
        labels_N=labels_N,
        validation_NHWC=shapes(9, seed=1)[0],
        score=spread,
        seed=0,
        autocast=autocast,
    )


def whole_state(run: Pretraining) -> dict[str, Any]:
    tensors, facts = run.state()
    return {name: value.cpu().numpy().tobytes() for name, value in tensors.items()} | facts


def run_through(folder: Path, *, stops: list[int], device: str = "cpu", **changed: float) -> Pretraining:
    """Train to the end, going through the disk and a new object after each epoch in ``stops``."""
    run = pretraining(device=device, **changed)
    while True:
        if run.epoch in stops:
            tensors, facts = run.state()
            save_checkpoint(folder / "state.safetensors", tensors, facts)
            run = pretraining(device=device, **changed)
            run.restore(*load_checkpoint(folder / "state.safetensors"))
        if run.finished:
            return run
        run.run_epoch()


@pytest.mark.parametrize(
    ("stops", "changed"),
    [([0], {}), ([1], {}), ([2], {}), ([3], {}), ([0, 1, 2, 3], {}), ([1, 2], {"rotation": 0.5, "momentum": 0.0})],
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, stops: list[int], changed: dict[str, float]) -> None:
    files = []
    for places in ([], stops):
        tensors, facts = run_through(tmp_path, stops=places, **changed).state()
        files.append(tmp_path / f"{len(files)}.safetensors")
        save_checkpoint(files[-1], tensors, facts)
    assert len(tensors) > 40
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_epoch_touches_no_global_generator_and_does_not_depend_on_one() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = pretraining(rotation=0.3)
    first.run_epoch()
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])
    torch.rand(17)
    np.random.rand(3)
    second = pretraining(rotation=0.3)
    second.run_epoch()
    assert whole_state(first) == whole_state(second)


def test_a_state_is_a_copy_that_later_epochs_do_not_change() -> None:
    run = pretraining()
    run.run_epoch()
    tensors, facts = run.state()
    kept, kept_facts = {name: value.clone() for name, value in tensors.items()}, json.dumps(facts)
    run.run_epoch()
    assert all(torch.equal(kept[name], value) for name, value in tensors.items())
    assert json.dumps(facts) == kept_facts


def test_a_small_problem_is_learnt() -> None:
    run = pretraining(count=240, epochs=6, label_smoothing=0.0, flip=False, degrees=0.0, shear=0.0)
    while not run.finished:
        run.run_epoch()
    assert run.history[-1]["loss"] < 0.3 * run.history[0]["loss"]
    assert run.history[-1]["accuracy"] > 0.9
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4, 5, 6]
    # the features separate unseen images too: nearest class mean, means from the training images
    x_NHWC, labels_N = shapes(240)
    new_NHWC, new_labels_N = shapes(60, seed=5)
    backbone = run.best_backbone()
    features_ND, new_ND = extract(backbone, x_NHWC), extract(backbone, new_NHWC)
    means_KD = torch.stack([features_ND[torch.from_numpy(labels_N == label)].mean(0) for label in (4, 7, 9)])
    guess_N = np.array([4, 7, 9])[torch.cdist(new_ND, means_KD).argmin(1).numpy()]
    assert (guess_N == new_labels_N).mean() > 0.9


def test_rotations_are_learnt_by_their_own_head() -> None:
    run = pretraining(count=120, epochs=1, rotation=1.0)
    plain = pretraining(count=120, epochs=1)
    assert {n for n, _ in run.heads.named_parameters()} - {n for n, _ in plain.heads.named_parameters()} == {
        "rotations.weight",
        "rotations.bias",
    }
    before = run.heads.rotations.weight.clone()
    assert run.run_epoch()["loss"] > plain.run_epoch()["loss"]
    assert not torch.equal(before, run.heads.rotations.weight)


def test_one_step_is_torch_sgd_on_the_smoothed_cross_entropy() -> None:
    still = dict.fromkeys(["degrees", "translate", "scale", "shear", "flip", "jitter"], 0)
    run, twin = (pretraining(count=12, batch=12, **still) for _ in range(2))
    run.run_epoch()
    parameters = [*twin.backbone.parameters(), *twin.heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    logits_BK = twin.heads.classes(twin.backbone.train()(twin.images_NHWC))
    # label smoothing by hand: 0.9 of the true class and 0.1 spread over all three
    target_BK = 0.9 * torch.nn.functional.one_hot(twin.labels_N, 3) + 0.1 / 3
    (-(target_BK * logits_BK.log_softmax(1)).sum(1).mean()).backward()
    optimizer.step()
    for ours, theirs in zip(run.model.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("poison", ["weight", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_step(poison: str) -> None:
    run = pretraining()
    run.run_epoch()
    weights = run.heads.classes.weight
    if poison == "weight":
        with torch.no_grad():
            weights[1, 2] = math.nan
        expected = r"epoch 2, step 1, lr 0\.0375.* loss nan, gradient norm nan; .*: heads\.classes\.weight;"
    else:
        weights.register_hook(lambda gradient: gradient * math.inf)
        expected = r"epoch 2, step 1, lr 0\.0375.* loss \d.*, gradient norm (inf|nan); .*: gradient of heads\.classes\.weight;"
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    with pytest.raises(NumericError, match=expected):
        run.run_epoch()
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0, equal_nan=True)
    assert run.epoch == 1


def test_a_learning_rate_that_diverges_is_an_error_and_not_a_result() -> None:
    run = pretraining(lr=1e30, weight_decay=1.0)
    with pytest.raises(NumericError, match=r"epoch 1, step [2-4]"):
        run.run_epoch()


def test_the_best_epoch_is_the_first_with_the_highest_score_and_its_weights_are_kept() -> None:
    scores = iter([0.2, 0.7, 0.7, 0.5])
    run = pretraining(epochs=4)
    run.score = lambda _: next(scores)
    snapshots = []
    while not run.finished:
        run.run_epoch()
        snapshots.append({name: value.clone() for name, value in run.backbone.state_dict().items()})
    best = run.best_backbone()
    assert (run.best_epoch, run.best_score) == (2, 0.7)
    assert not best.training
    assert all(torch.equal(snapshots[1][name], value) for name, value in best.state_dict().items())
    assert not torch.equal(snapshots[3]["encoder.blocks.0.conv.weight"], best.encoder.blocks[0].conv.weight)


def test_a_score_that_is_not_finite_is_refused() -> None:
    run = pretraining()
    run.score = lambda _: math.nan
    with pytest.raises(NumericError, match="epoch 1: the validation score is nan"):
        run.run_epoch()


@pytest.mark.parametrize("damage", ["missing", "shape", "extra"])
def test_the_state_of_another_training_is_refused(damage: str) -> None:
    run = pretraining()
    run.run_epoch()
    tensors, facts = run.state()
    if damage == "missing":
        del tensors["momentum/heads.classes.bias"]
    elif damage == "shape":
        tensors["model/heads.classes.bias"] = torch.zeros(8)
    else:
        tensors["model/heads.rotations.bias"] = torch.zeros(4)
    with pytest.raises(CorruptArtifactError, match=r"of another training: .*bias has shape .*expected"):
        pretraining().restore(tensors, facts)


def test_the_learning_rate_is_half_a_cosine_over_all_steps() -> None:
    lrs = [lr for epoch in (1, 2, 3) for lr in cosine_lr(0.2, epoch=epoch, epochs=3, steps=5)]
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    expected = []
    for _ in range(15):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert lrs == pytest.approx(expected, rel=1e-9)


@given(count=st.integers(2, 60), batch=st.integers(2, 20), seed=st.integers(0, 5))
def test_batches_hold_every_row_once_but_for_a_lonely_last_one(count: int, batch: int, seed: int) -> None:
    batches = batch_rows(count, batch=batch, generator=torch.Generator().manual_seed(seed))
    rows = torch.cat(batches).tolist()
    lonely = count % batch == 1
    assert len(rows) == len(set(rows)) == count - lonely
    assert set(rows) <= set(range(count))
    assert all(len(part) == batch for part in batches[:-1])
    assert len(batches[-1]) >= 2


@pytest.mark.parametrize("cuts", [[], [1], [5, 6], [0, 7, 7, 12]])
def test_features_do_not_depend_on_how_the_images_are_cut_into_blocks(cuts: list[int]) -> None:
    x_NHWC = shapes(13)[0]
    backbone = build("conv4", channels=1, image_size=16, seed=0)
    whole = extract(backbone, x_NHWC, batch=4)
    assert whole.shape == (13, 64)
    assert whole.dtype == torch.float32
    assert torch.equal(whole, extract(backbone, iter(np.split(x_NHWC, cuts)), batch=4))


def test_extraction_is_in_evaluation_mode_in_the_order_given_and_leaves_the_backbone_as_it_was() -> None:
    x_NHWC = shapes(7)[0]
    backbone = build("conv4", channels=1, image_size=16, seed=0).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    features_ND = extract(backbone, x_NHWC, batch=3)
    assert backbone.training
    assert not features_ND.requires_grad
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    backbone.eval()
    for i in range(7):
        torch.testing.assert_close(features_ND[i], backbone(torch.from_numpy(x_NHWC[i : i + 1]))[0].detach())
    assert not backbone.training


def test_extraction_of_nothing_has_no_rows_and_non_finite_features_are_refused() -> None:
    backbone = build("conv4", channels=1, image_size=16, seed=0)
    assert extract(backbone, []).shape == (0, 64)
    with torch.no_grad():
        backbone.encoder.blocks[3].norm.weight[0] = math.nan
    with pytest.raises(NumericError, match="3 of 3 feature vectors are not finite, the first of image 0"):
        extract(backbone, shapes(3)[0])
    with pytest.raises(NumericError, match="3 of 3 feature vectors are not finite, the first of image 512"):
        extract(backbone, shapes(3)[0], first=512)


def test_autocast_is_never_on_for_the_cpu() -> None:
    assert not pretraining(autocast=True).autocast


@pytest.mark.gpu
@needs_cuda
def test_one_step_on_cuda_is_that_on_the_cpu(exact_cuda: None) -> None:
    runs = [pretraining(device=device, count=16, rotation=0.5, autocast=False) for device in ("cpu", "cuda")]
    rows = [run.run_epoch() for run in runs]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-4)
    for on_cpu, on_gpu in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_resumed_equals_uninterrupted_on_cuda(tmp_path: Path, exact_cuda: None, stop: int) -> None:
    expected = whole_state(run_through(tmp_path, stops=[], device="cuda"))
    assert whole_state(run_through(tmp_path, stops=[stop], device="cuda")) == expected
