"""Parameters that suit somebody's own images, for params.yaml."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from metadiff.artifact import write_synced
from metadiff.errors import DataError
from metadiff.images.source import shown
from metadiff.images.splits import split_sizes
from metadiff.importing import Survey
from metadiff.params import Params, load
from metadiff.rows import SPLITS

SHARES = (0.66, 0.14, 0.2)  # where every split then has classes enough
SIDES = range(16, 81, 16)  # pixels: what the backbones halve four times; few-shot images have at most 84
SHOTS, QUERY = (1, 5), 15  # as in the literature
FEW_SHOTS = (1, 3)  # of classes that leave too little for queries beside five
LEAST_QUERY = 3
LEAST = max(FEW_SHOTS) + LEAST_QUERY  # images a class
COLUMN = 27  # of comments
LISTED = 20  # classes named in a message


@dataclass(frozen=True)
class Setting:
    section: str
    key: str
    value: Any
    why: str = ""


def propose(found: Survey, params: Params) -> list[Setting]:
    """Settings for all that depends on the images; the rest of ``params`` stays as it is."""
    way = max(params.evaluate.way, params.metatrain.way, params.collect.way, params.pretrain.val_way)
    _refuse(found, way)
    label, fewest = next(iter(found.counts.items()))
    shots, query = shots_and_query(fewest)
    return [
        *_prepare(found, way, need=max(shots) + query, why=f"the smallest class, {shown(label)}, has {fewest}"),
        *_augmentation(colored=_colored(found)),
        Setting("pretrain", "val_shot", max(shots)),
        Setting("pretrain", "val_query", query),
        Setting("metatrain", "shots", list(shots)),
        Setting("metatrain", "val_query", query),
        Setting("evaluate", "shots", list(shots)),
        Setting("evaluate", "query", query),
    ]


def shots_and_query(fewest: int) -> tuple[tuple[int, ...], int]:
    """What classes of as many images allow."""
    shots = SHOTS if fewest >= 2 * max(SHOTS) else FEW_SHOTS
    return shots, min(QUERY, fewest - max(shots))


def shares(num_classes: int, *, way: int) -> tuple[float, float, float]:
    """The usual ones, or as much for validation and test as an episode needs."""
    usual = split_sizes(num_classes, SHARES)
    val, test = max(usual[1], way), max(usual[2], way)
    if (val, test) == usual[1:]:
        return SHARES
    for digits in range(2, 7):  # as few as say it
        parts = round(val / num_classes, digits), round(test / num_classes, digits)
        found = (round(1 - sum(parts), digits), *parts)
        if split_sizes(num_classes, found)[1:] == (val, test):
            break
    return found


def image_size(found: Survey) -> int:
    """The side nearest to that of the square in the middle of most images."""
    side = median(min(seen.width, seen.height) for _, seen in found.good)
    return min(SIDES, key=lambda size: (abs(size - side), size))


def project_path(folder: Path) -> str:
    """From the current folder, the project, on; as it is if it lies elsewhere."""
    path = Path(os.path.abspath(folder))
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.as_posix()


def as_yaml(settings: Sequence[Setting]) -> str:
    sections = CommentedMap()
    for setting in settings:
        section = sections.setdefault(setting.section, CommentedMap())
        section[setting.key] = _plain(setting.value)
        if setting.why:
            section.yaml_add_eol_comment(setting.why, setting.key, column=COLUMN)
    return _dumped(sections)


def applied(settings: Sequence[Setting], path: Path) -> str:
    """The text of the file with these settings in it, comments kept; checked as a whole."""
    sections = YAML().load(path.read_text(encoding="utf-8-sig"))
    for setting in settings:
        sections[setting.section][setting.key] = _plain(setting.value)
    text = _dumped(sections)
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / path.name
        copy.write_text(text, encoding="utf-8")
        load(copy)
    return text


def write(settings: Sequence[Setting], path: Path) -> None:
    """Whole or not at all."""
    write_synced(path.resolve(), applied(settings, path))


def _prepare(found: Survey, way: int, *, need: int, why: str) -> Iterator[Setting]:
    yield Setting("prepare", "source", "folder")
    yield Setting("prepare", "path", project_path(found.source.root))
    yield Setting("prepare", "image_size", image_size(found), "a smaller multiple of 16 is faster")
    yield Setting("prepare", "color", "rgb" if _colored(found) else "gray")
    yield _split(found, way)
    yield Setting("prepare", "min_images", need, why)
    bad = len(found.bad)
    yield Setting("prepare", "on_bad", "skip" if bad else "stop", f"goes on without {bad:,} that cannot be used" if bad else "")


def _split(found: Survey, way: int) -> Setting:
    if found.given_split:
        return Setting("prepare", "split", "given")
    parts = shares(len(found.counts), way=way)
    sizes = zip(SPLITS, split_sizes(len(found.counts), parts), strict=True)
    return Setting("prepare", "split", list(parts), f"{', '.join(f'{name} {size}' for name, size in sizes)} classes")


def _augmentation(*, colored: bool) -> Iterator[Setting]:
    """As suits photos; of gray images many are drawings and letters, which are other ones when mirrored."""
    for key, value in {"degrees": 10, "translate": 0.1, "scale": 0.1, "shear": 10}.items():
        yield Setting("pretrain", key, value)
    yield Setting("pretrain", "flip", colored, "false where a mirrored image is another one, as with letters")
    yield Setting("pretrain", "jitter", 0.2 if colored else 0.0)


def _colored(found: Survey) -> bool:
    return any(seen.colored for _, seen in found.good)


def _refuse(found: Survey, way: int) -> None:
    """Each line is a reason why no three splits of episodes can be made of these images."""
    lines = [
        f"class {shown(label)}: {have} usable images, at least {LEAST} are needed; add images or remove the class"
        for label, have in found.counts.items()
        if have < LEAST
    ]
    lines = lines[:LISTED] + ([f"... and {len(lines) - LISTED} more classes"] if len(lines) > LISTED else [])
    need = f"{way}-way episodes"
    if found.given_split:
        sizes = Counter(found.split.values())
        short = [split for split in SPLITS if sizes[split] < way]
        lines += [f"split {split}: {sizes[split]} classes, {need} need {way}; add classes or lower the ways" for split in short]
    elif len(found.counts) < len(SPLITS) * way:
        most = f"at least {len(SPLITS) * way} are needed, {way} each for {need} in train, val and test"
        lines.append(f"{shown(str(found.source.root))}: {len(found.counts)} classes, {most}; add classes or lower the ways")
    if lines:
        raise DataError("\n".join(lines))


def _plain(value: object) -> object:
    """A list on one line."""
    if not isinstance(value, list):
        return value
    items = CommentedSeq(value)
    items.fa.set_flow_style()
    return items


def _dumped(sections: CommentedMap) -> str:
    yaml, text = YAML(), io.StringIO()
    yaml.width = 1 << 16  # a long path is not folded
    yaml.dump(sections, text)
    return text.getvalue()
