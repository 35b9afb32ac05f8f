"""Labelled images: where they come from, how they are drawn, and which classes are for training and which for testing."""

from __future__ import annotations

from pathlib import Path

from metadiff.errors import ParamsError
from metadiff.images.source import BadImageError, Entry, Source

__all__ = ["BadImageError", "Entry", "Source", "open_source"]

KANJI = ("kanji-radicals", "kanji-components")
SHAPES = "described-shapes"
PUBLISHED = ("omniglot", "miniimagenet", "tieredimagenet", "cifar-fs", "fc100", "cub")
SOURCES = (*KANJI, SHAPES, "folder", *PUBLISHED)


def open_source(
    name: str,
    *,
    path: Path,
    image_size: int,
    color: str,
    given_split: bool,
    min_images: int,
    shares: tuple[float, float, float] | None = None,
    split_seed: int = 0,
    quarter_turns: bool = False,
    unpacked: Path | None = None,
    scratch: Path | None = None,
) -> Source:
    """Only names and labels are read here; the images themselves are opened one by one, when they are drawn.

    ``shares`` and ``split_seed`` are for a source that splits its images itself. ``unpacked`` has a folder for each archive at
    ``path``; ``scratch`` takes what must be decoded before it can be read.
    """
    if name not in SOURCES:
        raise ParamsError(f"prepare.source must be one of {', '.join(SOURCES)}, got {name!r}")
    if name in PUBLISHED:
        assert scratch, "published data sets may need it"
        from metadiff.images import published

        return published.open_published(
            published.FACTS[name],
            path,
            sorted(unpacked.glob("*/*")) if unpacked else [],
            image_size=image_size,
            color=color,
            given_split=given_split,
            min_images=min_images,
            quarter_turns=quarter_turns,
            scratch=scratch,
        )
    if name == "folder":
        from metadiff.images import folder

        root = folder.top(unpacked) if unpacked and path.is_file() else path
        return folder.open_folder(root, image_size=image_size, color=color, given_split=given_split, min_images=min_images)
    if given_split:
        raise ParamsError(
            f"prepare.split: given needs prepare.source folder or a published data set, got {name}; write three shares"
        )
    if name == SHAPES:
        assert shares, "a split that is not given has them"
        from metadiff.images import shapes

        return shapes.open_shapes(path, image_size=image_size, color=color, shares=shares, seed=split_seed)
    from metadiff.images import kanji

    kind = name.removeprefix("kanji-")
    return kanji.open_kanji(kind, lock=path, image_size=image_size, color=color, min_images=min_images)
