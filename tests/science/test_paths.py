"""Batches of paths: weights and a support that belong together."""

import numpy as np
import pytest
import torch
from torch import Tensor

from metadiff.conditioning import BaseTasks
from metadiff.errors import DataError
from metadiff.learner import Learner
from metadiff.paths import PathImages, PathTasks, WeightScale
from metadiff.rng import torch_stream
from metadiff.rows import Rows

CLASSES, IMAGES, WAY, SEEN, PATHS, SEGMENTS = 6, 8, 3, 4, 20, 2
LEARNER = Learner("linear", way=WAY, dim=1, scale=1.0)
FEATURES = torch.arange(CLASSES * IMAGES, dtype=torch.float32)[:, None]  # an image's only feature is its row


def rows() -> Rows:
    label = np.repeat(np.arange(CLASSES), IMAGES).astype(np.int32)
    names = np.array([f"class {number}".encode() for number in range(CLASSES)])
    return Rows(
        label, np.zeros(len(label), np.uint8), np.arange(len(label), dtype=np.int32), np.full(len(label), b"x"), names, "rows"
    )


def path_images(*, alone: bool) -> PathImages:
    """Random classes in random order, and some images of each."""
    rng = np.random.default_rng(0)
    classes_NW = np.stack([rng.permutation(CLASSES)[:WAY] for _ in range(PATHS)])
    rows_NWS = np.stack([[rng.permutation(IMAGES)[:SEEN] + IMAGES * c for c in task] for task in classes_NW])
    return PathImages(torch.from_numpy(classes_NW), torch.from_numpy(rows_NWS) if alone else None)


def tasks(seen: PathImages) -> PathTasks:
    """Every number of a path's weights is the path's own."""
    path_NKP = torch.arange(PATHS).float()[:, None, None].expand(-1, SEGMENTS, LEARNER.size)
    scale = WeightScale(torch.zeros(LEARNER.size), torch.ones(LEARNER.size))
    return PathTasks(BaseTasks(FEATURES, rows()), path_NKP, seen, scale)


def drawn(seen: PathImages, shot: int) -> tuple[Tensor, Tensor]:
    """Which paths, and the means of their supports by class."""
    batch = tasks(seen).draw(torch_stream(0, "paths"), tasks=300, shots=(shot,))
    assert batch.condition.shots_B.tolist() == [shot]
    return batch.path_BKP[:, 0, 0].long(), batch.condition.mean_BWD[..., 0]


def test_a_support_is_some_of_the_images_that_the_path_has_seen() -> None:
    seen = path_images(alone=True)
    assert seen.rows_NWS is not None
    path_B, row_BW = drawn(seen, 1)
    assert (seen.rows_NWS[path_B] == row_BW.long()[..., None]).any(-1).all()
    assert len(row_BW[path_B == path_B[0]].unique(dim=0)) > 1
    path_B, mean_BW = drawn(seen, SEEN)
    torch.testing.assert_close(mean_BW, seen.rows_NWS[path_B].float().mean(-1))


def test_a_path_that_has_seen_its_classes_as_wholes_is_told_by_any_of_their_images() -> None:
    seen = path_images(alone=False)
    path_B, row_BW = drawn(seen, 1)
    assert torch.equal(row_BW.long() // IMAGES, seen.classes_NW[path_B])
    assert len(row_BW.unique()) == CLASSES * IMAGES


@pytest.mark.parametrize(("alone", "there"), [(True, SEEN), (False, IMAGES)])
def test_more_shots_than_a_path_has_seen_are_refused(alone: bool, there: int) -> None:
    message = rf"^train: {there + 1} shots, a path has seen {there} images of a class: lower mcdi.shots$"
    with pytest.raises(DataError, match=message):
        drawn(path_images(alone=alone), there + 1)
