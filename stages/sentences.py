"""Embeddings of all sentences of the described shapes, for those who change the wording: `make sentences`.

Nothing else needs a text encoder: the file that this writes is part of the project, as the lock of the kanji is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from metadiff.concepts import described_tasks
from metadiff.errors import DataError, ParamsError
from metadiff.text import encoder_of, write_cached

FILE = Path("data/builtin/described-shapes.safetensors")


def sentences() -> list[str]:
    """They are the same however the tasks are split."""
    return sorted({text for task in described_tasks((0.6, 0.2, 0.2), 0) for text in task.texts})


def main() -> None:
    found = sentences()
    try:
        write_cached(FILE, found, encoder_of("minilm"))
    except (ParamsError, DataError) as error:
        sys.exit(f"sentences: {error}")
    print(f"{FILE}: {len(found):,} sentences, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
