"""Names of files that anyone may have written, on any machine."""

from __future__ import annotations

import os
import unicodedata

CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")  # that file managers leave, besides hidden files


def is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def portable(name: str) -> str:
    """NFC, and bytes that are no text as their codes, so that a name is the same wherever the files were packed."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))
