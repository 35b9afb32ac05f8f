"""Few-shot episodes: which classes, which support and which query images.

Episode number i of a split is a pure function of (seed, i): its classes and the order of each class's images do not depend on
how many episodes are drawn, and the support of 1 shot is contained in the support of 5.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metadiff.errors import DataError
from metadiff.rng import numpy_stream
from metadiff.rows import Rows

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Episodes:
    """Rows of the data a position: E episodes, W ways, S shots, Q query images a class."""

    classes_EW: Ints
    support_EWS: Ints
    query_EWQ: Ints


def draw_episodes(
    data: Rows, split: str, *, way: int, shot: int, query: int, episodes: int, seed: int, first: int = 0
) -> Episodes:
    """Episodes over all classes of a split, from number ``first`` on; support and query of a class never share a group."""
    rows = data.of(split)
    rows_of = {int(label): rows[data.label[rows] == label] for label in np.unique(data.label[rows])}
    if len(rows_of) < way:
        raise DataError(f"{split}: {way}-way episodes need {way} classes, there are {len(rows_of)}: lower way or prepare more")
    for label, members in rows_of.items():
        have = query_capacity(data.group[members], shot=shot)
        if have < query:
            raise DataError(
                f"class {data.class_names[label]}: {len(members)} images leave {max(have, 0)} for queries beside {shot} shots, "
                f"{query} are needed: lower the shots or queries, or raise prepare.min_images"
            )
    sizes = {"way": way, "shot": shot, "query": query}
    streams = (numpy_stream(seed, split, "episode", index) for index in range(first, first + episodes))
    drawn = [_draw(rows_of, data.group, stream, **sizes) for stream in streams]
    classes, support, queries = (np.asarray(part, dtype=np.int32) for part in zip(*drawn, strict=True))
    return Episodes(classes, support, queries)


def query_capacity(group_N: Ints, *, shot: int) -> int:
    """How many query images remain in a class for the least lucky support: the images outside its ``shot`` largest groups."""
    sizes = np.sort(np.unique(group_N, return_counts=True)[1])
    return int(sizes[: max(0, len(sizes) - shot)].sum())


def shared_groups(episodes: Episodes, group_N: Ints) -> NDArray[np.int64]:
    """For each episode the number of query images whose group is also in their class's support: 0 for every sound episode."""
    support, query = group_N[episodes.support_EWS], group_N[episodes.query_EWQ]
    return np.asarray((query[..., :, None] == support[..., None, :]).any(-1).sum((1, 2)))


def _draw(
    rows_of: dict[int, NDArray[np.int64]], group_N: Ints, stream: np.random.Generator, *, way: int, shot: int, query: int
) -> tuple[list[int], list[Ints], list[Ints]]:
    classes = [int(label) for label in stream.permutation(sorted(rows_of))[:way]]
    support, queries = [], []
    for label in classes:
        order = stream.permutation(rows_of[label])
        shown, rest = order[:shot], order[shot:]
        support.append(shown)
        queries.append(rest[~np.isin(group_N[rest], group_N[shown])][:query])
    return classes, support, queries
