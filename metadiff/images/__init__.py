"""Labelled images: where they come from, how they are drawn, and which classes are for training and which for testing."""

from __future__ import annotations

from pathlib import Path

from metadiff.errors import ParamsError
from metadiff.images.source import BadImageError, Entry, Source

__all__ = ["BadImageError", "Entry", "Source", "open_source"]

SOURCES = ("kanji-radicals", "kanji-components", "folder")


def open_source(name: str, *, path: Path, image_size: int, color: str, given_split: bool, min_images: int) -> Source:
    """Only names are read here; the images themselves are opened one by one, when they are drawn."""
    if name not in SOURCES:
        raise ParamsError(f"prepare.source must be one of {', '.join(SOURCES)}, got {name!r}")
    if name == "folder":
        from metadiff.images import folder

        return folder.open_folder(path, image_size=image_size, color=color, given_split=given_split, min_images=min_images)
    if given_split:
        raise ParamsError(f"prepare.split: given needs prepare.source folder, got {name}; write three shares")
    from metadiff.images import kanji

    kind = name.removeprefix("kanji-")
    return kanji.open_kanji(kind, lock=path, image_size=image_size, color=color, min_images=min_images)
