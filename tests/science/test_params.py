"""Every wrong file is made by editing the text of the real params.yaml; the lines to expect are found by searching that text."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.serialize import parse_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from metadiff.errors import ParamsError
from metadiff.images import PUBLISHED
from metadiff.params import Params, leaves, load

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
KEYS = [f"{name}.{key}" for name, field in Params.model_fields.items() for key in field.annotation.model_fields]
SEED = "a whole number from 0 to 2147483647"
SPLIT = "given, or a list of 3 items, each a number above 0 and below 1"
SHOT = "a whole number from 1 to 100"
SHOTS = f"a list of 1 to 20 items, each {SHOT}"
RATE = "a number above 0 and at most 10"
RATES = f"a list of 1 to 50 items, each {RATE}"
ANY_RATES = f"a list of 0 to 50 items, each {RATE}"
STEP = "a whole number from 1 to 1000000"
STEPS = f"a list of 1 to 50 items, each {STEP}"
SHARED = "a section with the keys seed, threads, device, deterministic"
TOO_MANY = "images a class, but prepare.min_images promises only 20; lower one or raise that"
PROGRAM = [sys.executable, "-m", "metadiff.params"]


def line_of(key: str, text: str = TEXT) -> int:
    """The line of a section or of a dotted key, by search."""
    section, _, name = key.partition(".")
    lines = text.split("\n")
    start = lines.index(f"{section}:")
    return start + 1 if not name else 1 + next(n for n in range(start + 1, len(lines)) if lines[n].startswith(f"  {name}:"))


def set_value(key: str, value: str, text: str = TEXT) -> str:
    lines = text.split("\n")
    at = line_of(key, text) - 1
    lines[at] = re.sub(r"^(\s+[a-z_]+:).*", lambda found: f"{found[1]} {value}", lines[at])
    return "\n".join(lines)


def replace(old: str, new: str, text: str = TEXT) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def complaints(folder: Path, content: str | bytes) -> list[str]:
    """The lines of the ParamsError, without the folder."""
    path = folder / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ParamsError) as caught:
        load(path)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{folder}/") for line in lines]


ENDS = set_value("metatrain.whitened", "0", set_value("metatrain.spread", "1", set_value("metatrain.target", "trajectory-ends")))
TRAINED = set_value("metatrain.models", "[task]", ENDS)
PATHS = set_value("mcdi.models", "[local]", set_value("collect.keep", "4", set_value("collect.dim", "64")))
NETWORKS = set_value("mcdi.models", "[reptile, local]", set_value("collect.learner", "conv", PATHS))
NETWORKS = set_value("collect.sees", "support", NETWORKS)
SHAPES = set_value("prepare.path", "data/builtin/x.safetensors", set_value("prepare.source", "described-shapes"))
SHAPES = set_value("prepare.color", "rgb", SHAPES)
ASKED = set_value("collect.sees", "support", set_value("collect.way", "2", set_value("collect.tasks_of", "sentences", SHAPES)))
TOLD = set_value("collect.dim", "64", set_value("collect.learner", "mlp", set_value("prepare.encoder", "cached", ASKED)))
TOLD = set_value("hyperldm.models", "[hnet, hyperldm, hyperclip, mlp, end-to-end, joint]", TOLD)
WRONG_VALUES = [  # key, what to write, what it must be
    ("shared.seed", "-1", f"must be {SEED}, got the number -1"),
    ("shared.seed", "2147483648", f"must be {SEED}, got the number 2147483648"),
    ("shared.seed", "1.0", f"must be {SEED}, got the number 1.0"),
    ("shared.seed", "1e3", f"must be {SEED}, got the number 1000.0"),
    ("shared.seed", "true", f"must be {SEED}, got true"),
    ("shared.seed", "", f"must be {SEED}, got nothing (null)"),
    ("shared.seed", "~", f"must be {SEED}, got nothing (null)"),
    ("shared.seed", "2026-01-31", f"must be {SEED}, got '2026-01-31' of the YAML type timestamp"),
    ("shared.seed", "2026-13-45", f"must be {SEED}, got '2026-13-45' of the YAML type timestamp"),
    ("shared.seed", "!!int zero", f"must be {SEED}, got 'zero', which is no YAML int"),
    ("shared.seed", "!mine 0", f"must be {SEED}, got '0' of the YAML type !mine"),
    ("shared.seed", "0x" + "f" * 5000, f"must be {SEED}, got '0x{'f' * 55}...', which is no YAML int"),
    ("shared.seed", "&loop [*loop]", f"must be {SEED}, got the list [a list]"),
    ("shared.threads", "0", "must be a whole number from 1 to 256, got the number 0"),
    ("shared.threads", "two", "must be a whole number from 1 to 256, got the text 'two'"),
    ("shared.device", "cud", "must be one of cpu, cuda, got the text 'cud'; did you mean cuda?"),
    ("shared.device", "0", "must be one of cpu, cuda, got the number 0"),
    ("shared.deterministic", "yes", "must be true or false, got the text 'yes'"),
    ("shared.deterministic", "on", "must be true or false, got the text 'on'"),
    ("shared.deterministic", "off", "must be true or false, got the text 'off'"),
    ("shared.deterministic", "1", "must be true or false, got the number 1"),
    ("prepare.path", "''", "must be a text of 1 to 4096 characters, got the text ''"),
    ("prepare.path", "12", "must be a text of 1 to 4096 characters, got the number 12"),
    ("prepare.path", "!!int a.json", "must be a text of 1 to 4096 characters, got 'a.json', which is no YAML int"),
    ("prepare.path", "photos", "must end in .json for prepare.source kanji-radicals, got 'photos'"),
    ("prepare.source", "folder", None),
    ("prepare.source", "kanji", None),
    ("prepare.image_size", "7", "must be a whole number from 8 to 512, got the number 7"),
    ("prepare.image_size", "15", "must be at least 16 for pretrain.backbone conv4, got 15"),
    ("prepare.image_size", "32px", "must be a whole number from 8 to 512, got the text '32px'"),
    ("prepare.color", "grey", "must be one of gray, rgb, got the text 'grey'; did you mean gray?"),
    (
        "prepare.split",
        "given",
        "given needs prepare.source folder or a published data set, got kanji-radicals; write three shares",
    ),
    ("prepare.split", "gven", f"must be {SPLIT}, got the text 'gven'; did you mean given?"),
    ("prepare.split", "[0.5, 0.5]", f"must be {SPLIT}, got the list [0.5, 0.5]"),
    ("prepare.split", "[0.2, 0.2, 0.2, 0.4]", f"must be {SPLIT}, got the list [0.2, 0.2, 0.2, 0.4]"),
    ("metatrain.whitened", "1.0e-5", "must be a number from 0 to 1000000.0, 0 or at least 0.001, got the number 1e-05"),
    ("prepare.split", "[0.6, 0.2, 0.1]", f"must be {SPLIT}, that add up to 1, got the list [0.6, 0.2, 0.1]"),
    ("prepare.split", "[0.8, 0, 0.2]", "must be a number above 0 and below 1, got the number 0"),
    ("prepare.split", "{train: 1}", f"must be {SPLIT}, got a section"),
    ("prepare.min_images", "1", "must be a whole number from 2 to 100000, got the number 1"),
    ("pretrain.lr", "'0,1'", "must be a number above 0 and at most 10, got the text '0,1'"),
    ("pretrain.lr", "0", "must be a number above 0 and at most 10, got the number 0"),
    ("pretrain.lr", ".inf", "must be a number above 0 and at most 10, got the number inf"),
    ("pretrain.lr", ".nan", "must be a number above 0 and at most 10, got the number nan"),
    ("pretrain.lr", "9" * 400, f"must be a number above 0 and at most 10, got the number {'9' * 57}..."),
    ("pretrain.momentum", "1", "must be a number of at least 0 and below 1, got the number 1"),
    ("pretrain.weight_decay", "-1e-4", "must be a number from 0 to 1, got the number -0.0001"),
    ("collect.keep", "1", "must be a whole number from 2 to 10000, got the number 1"),
    ("collect.keep", "62", "must be at most collect.steps + 1 = 61, got 62"),
    ("collect.shot", "21", "must be at most prepare.min_images 20, got 21"),
    ("collect.lr", "0", "must be a number above 0 and at most 1000, got the number 0"),
    ("collect.sees", "class", "must be one of support, classes, got the text 'class'; did you mean classes?"),
    ("collect.noise", "0.1", "must be 0 for collect.sees classes, got 0.1"),
    ("collect.weight_decay", "11", "must be a number from 0 to 10, got the number 11"),
    ("collect.channels", "0", "must be a whole number from 1 to 4096, got the number 0"),
    ("collect.dim", "-1", "must be a whole number from 0 to 65536, got the number -1"),
    ("collect.learner", "mpl", "must be one of cosine, linear, mlp, conv, got the text 'mpl'; did you mean mlp?"),
    ("evaluate.finetune_lrs", "[0.03, 0.01]", f"must be {RATES}, in increasing order, got the list [0.03, 0.01]"),
    ("evaluate.finetune_lrs", "[0.01, 11]", f"must be {RATE}, got the number 11"),
    ("evaluate.finetune_sgd_lrs", "[0.03, 0.01]", f"must be {ANY_RATES}, in increasing order, got the list [0.03, 0.01]"),
    ("evaluate.finetune_lrs", "[]", f"must be {RATES}, got the list []"),
    ("evaluate.finetune_steps", "[30, 30]", f"must be {STEPS}, in increasing order, got the list [30, 30]"),
    ("evaluate.finetune_steps", "[0, 30]", f"must be {STEP}, got the number 0"),
    ("evaluate.finetune_few", "0", f"must be {STEP}, got the number 0"),
    ("evaluate.finetune_few", "2.5", f"must be {STEP}, got the number 2.5"),
    ("evaluate.shots", "[]", f"must be {SHOTS}, got the list []"),
    ("evaluate.shots", "5", f"must be {SHOTS}, got the number 5"),
    ("evaluate.shots", "[5, 1]", f"must be {SHOTS}, in increasing order, got the list [5, 1]"),
    ("evaluate.shots", "[1, 1]", f"must be {SHOTS}, in increasing order, got the list [1, 1]"),
    ("evaluate.shots", "[1, five]", f"must be {SHOT}, got the text 'five'"),
    ("evaluate.shots", "!!set {1, 5}", f"must be {SHOTS}, got a value of the YAML type set"),
]
SOURCES = f"must be one of kanji-radicals, kanji-components, described-shapes, folder, {', '.join(PUBLISHED)}"
KANJI_FILE = "data/builtin/kanjivg.json"
OTHER_WORDS = {
    "prepare.source: folder": f"prepare.path: must be a folder or an archive for prepare.source folder, got '{KANJI_FILE}'",
    "prepare.source: kanji": f"prepare.source: {SOURCES}, got the text 'kanji'",
}


@pytest.mark.parametrize(
    ("key", "value", "expected"), WRONG_VALUES, ids=[f"{key}: {value[:20]}" for key, value, _ in WRONG_VALUES]
)
def test_wrong_value(tmp_path: Path, key: str, value: str, expected: str | None) -> None:
    wanted = f"{key}: {expected}" if expected else OTHER_WORDS[f"{key}: {value}"]
    assert complaints(tmp_path, set_value(key, value)) == [f"params.yaml:{line_of(wanted.partition(':')[0])}: {wanted}"]


def at(key: str, text: str, *, offset: int = 0) -> str:
    return f"params.yaml:{line_of(key) + offset}: {text}"


EMPTY = "it must have named sections with a `key: value` a line"
END = len(TEXT.split("\n"))
WRONG_TEXTS = {
    "unknown key": (
        replace("  epochs:", "  epoch:"),
        [
            at("pretrain", "pretrain.epochs: missing; it must be a whole number from 1 to 10000"),
            at("pretrain.epochs", "pretrain.epoch: unknown key; did you mean pretrain.epochs?"),
        ],
    ),
    "far key": (
        replace("  threads:", "  zzz: 1\n  threads:"),
        [at("shared.threads", "shared.zzz: unknown key; the keys here are seed, threads, device, deterministic")],
    ),
    "key of another section": (
        replace("  epochs:", "  way: 5\n  epochs:"),
        [at("pretrain.epochs", "pretrain.way: unknown key; it belongs to collect or metatrain or evaluate")],
    ),
    "key of two sections": (
        replace("  epochs:", "  seed: 5\n  epochs:"),
        [at("pretrain.epochs", "pretrain.seed: unknown key; it belongs to shared or evaluate")],
    ),
    "key at the top": (
        replace("\npretrain:", "\nlr: 1\npretrain:"),
        [at("pretrain", "lr: unknown key; it belongs to pretrain or collect or metatrain or mcdi or hyperldm")],
    ),
    "wrong section": (
        replace("\nshared:", "\nshard:"),
        [
            f"params.yaml:1: shared: missing; it must be {SHARED}",
            at("shared", "shard: unknown key; did you mean shared?"),
        ],
    ),
    "key with a line break": (
        replace("  threads:", '  "x\\ny": 1\n  threads:'),
        [at("shared.threads", "shared.'x\\ny': unknown key; the keys here are seed, threads, device, deterministic")],
    ),
    "section of nothing": (
        re.sub(r"shared:\n(  .*\n)+", "shared:\n", TEXT),
        [at("shared", f"shared: must be {SHARED}, got nothing (null)")],
    ),
    "item of a list, in its own line": (
        set_value("evaluate.shots", "\n    - 1\n    - 500"),
        [at("evaluate.shots", f"evaluate.shots: must be {SHOT}, got the number 500", offset=2)],
    ),
    "two items": (
        set_value("evaluate.shots", "[0,\n    1.5]"),
        [
            at("evaluate.shots", f"evaluate.shots: must be {SHOT}, got the number 0"),
            at("evaluate.shots", f"evaluate.shots: must be {SHOT}, got the number 1.5", offset=1),
        ],
    ),
    "a table instead of its folder": (
        set_value("prepare.source", "folder", set_value("prepare.path", "own/Labels.CSV")),
        [at("prepare.path", "prepare.path: must be the folder that the table of images lies in, got 'own/Labels.CSV'")],
    ),
    "pictures of described shapes": (
        set_value("prepare.source", "described-shapes"),
        [
            at(
                "prepare.path",
                f"prepare.path: must end in .safetensors for prepare.source described-shapes, got '{KANJI_FILE}'",
            ),
            at(
                "prepare.color",
                "prepare.color: must be rgb for prepare.source described-shapes, whose tasks ask for colours, got gray",
            ),
        ],
    ),
    "more shapes of a kind than there are": (
        set_value("prepare.min_images", "49", SHAPES),
        [at("prepare.min_images", "prepare.min_images: must be at most 48 for prepare.source described-shapes, got 49")],
    ),
    "shapes whose split is given": (
        set_value("prepare.split", "given", SHAPES),
        [
            at(
                "prepare.split",
                "prepare.split: given needs prepare.source folder or a published data set, got described-shapes; "
                "write three shares",
            )
        ],
    ),
    "sentences instead of a folder": (
        set_value("prepare.source", "folder", SHAPES),
        [
            at(
                "prepare.path",
                "prepare.path: must be a folder or an archive for prepare.source folder, got 'data/builtin/x.safetensors'",
            )
        ],
    ),
    "cached sentences of other images": (
        set_value("prepare.encoder", "cached"),
        [
            at(
                "prepare.encoder",
                "prepare.encoder: cached needs prepare.source described-shapes, got kanji-radicals; write none or another",
            )
        ],
    ),
    "sentences of five ways": (
        set_value("collect.way", "5", ASKED),
        [at("collect.way", "collect.way: must be 2 for collect.tasks_of sentences, got 5")],
    ),
    "sentences of whole classes": (
        set_value("collect.sees", "classes", ASKED),
        [at("collect.sees", "collect.sees: must be support for collect.tasks_of sentences, got classes")],
    ),
    "rows of trajectories of sentences": (
        set_value("metatrain.models", "[task]", set_value("metatrain.target", "trajectory-ends", ASKED)),
        [
            at(
                "metatrain.target",
                "metatrain.target: must be class-means for collect.tasks_of sentences, whose paths are of no classes",
            )
        ],
    ),
    "whole weights of sentences without text": (
        set_value("mcdi.models", "[local]", ASKED),
        [at("mcdi.models", "mcdi.models: must be [] for collect.tasks_of sentences, whose paths are of no classes")],
    ),
    "no model at all": (
        set_value("metatrain.models", "[]"),
        [
            at(
                "metatrain.models",
                "metatrain.models: must have a model where mcdi.models and hyperldm.models have none, got none",
            )
        ],
    ),
    "latents of nobody": (
        set_value("hyperldm.models", "[hyperldm, hyperclip, mlp]", TOLD),
        [
            at(
                "hyperldm.latents_of",
                "hyperldm.latents_of: must be one of hyperldm.models, which are hyperldm, hyperclip, mlp, got hnet",
            )
        ],
    ),
    "latents of another source": (
        set_value("hyperldm.latents_of", "maml", set_value("hyperldm.models", "[hnet, joint]", TOLD)),
        [at("hyperldm.latents_of", "hyperldm.latents_of: must be one of hyperldm.models, which are hnet, joint, got maml")],
    ),
    "no image to judge an adapted latent by": (
        set_value("hyperldm.images", "1", set_value("hyperldm.latents_of", "maml", set_value("hyperldm.models", "[maml]", TOLD))),
        [
            at(
                "hyperldm.images",
                "hyperldm.images: must be at least 2 for maml, which learns from one half and is judged by the other, got 1",
            )
        ],
    ),
    "weights of paths that began apart": (
        set_value("hyperldm.latents_of", "hvae", set_value("hyperldm.models", "[hvae]", TOLD)),
        [
            at(
                "collect.start",
                "collect.start: must be common for hvae: weights that began apart are of permuted units, got own",
            )
        ],
    ),
    "weights of paths of episodes": (
        set_value(
            "collect.tasks_of",
            "episodes",
            set_value("collect.start", "common", set_value("hyperldm.models", "[hnet, hvae]", TOLD)),
        ),
        [at("collect.tasks_of", "collect.tasks_of: must be sentences for hvae, which learns from their paths, got episodes")],
    ),
    "few linear times of latents": (
        set_value("hyperldm.times", "20", set_value("hyperldm.schedule", "linear", TOLD)),
        [at("hyperldm.times", "hyperldm.times: must be at least 21 for hyperldm.schedule linear, got 20")],
    ),
    "more sampling steps of latents than times": (
        set_value("hyperldm.sampling_steps", "21", set_value("hyperldm.times", "20", TOLD)),
        [at("hyperldm.sampling_steps", "hyperldm.sampling_steps: must be at most hyperldm.times 20, got 21")],
    ),
    "weights from sentences without vectors": (
        set_value("prepare.encoder", "none", TOLD),
        [
            at(
                "prepare.encoder",
                "prepare.encoder: hyperldm.models need the vectors of sentences; write cached or minilm, got none",
            )
        ],
    ),
    "weights from sentences of another learner": (
        set_value("collect.learner", "cosine", TOLD),
        [at("collect.learner", "collect.learner: must be mlp for hyperldm.models, got cosine")],
    ),
    "weights from sentences of more ways": (
        set_value(
            "hyperldm.models", "[end-to-end]", set_value("collect.tasks_of", "episodes", set_value("collect.way", "5", TOLD))
        ),
        [
            at(
                "collect.way",
                "collect.way: must be 2 for hyperldm.models, whose tasks are questions of yes or no, got 5",
            )
        ],
    ),
    "weights from sentences of features as they are": (
        set_value("collect.dim", "0", TOLD),
        [at("collect.dim", "collect.dim: must be at least 1 for hyperldm.models, whose learner sees whitened inputs, got 0")],
    ),
    "query too many": (
        set_value("evaluate.query", "19"),
        [at("evaluate.shots", f"evaluate.shots: 5 + evaluate.query 19 = 24 {TOO_MANY}")],
    ),
    "metatrain.val_query too many": (
        set_value("metatrain.val_query", "16"),
        [at("metatrain.shots", f"metatrain.shots: 5 + metatrain.val_query 16 = 21 {TOO_MANY}")],
    ),
    "trajectories of another way": (
        set_value("metatrain.way", "4", TRAINED),
        [at("metatrain.way", "metatrain.way: must be collect.way 5 for metatrain.target trajectory-ends, got 4")],
    ),
    "trajectories of the support alone": (
        set_value("collect.sees", "support", TRAINED),
        [at("metatrain.target", "metatrain.target: trajectory-ends needs collect.sees classes, got support")],
    ),
    "trained weights of classes that lie elsewhere": (
        set_value("metatrain.spread", "0.5", TRAINED),
        [at("metatrain.spread", "metatrain.spread: must be collect.spread 1 for metatrain.target trajectory-ends, got 0.5")],
    ),
    "trained weights of whitened features": (
        set_value("metatrain.whitened", "0.3", TRAINED),
        [at("metatrain.whitened", "metatrain.whitened: must be 0 for metatrain.target trajectory-ends, got 0.3")],
    ),
    "trained weights of reduced features": (
        set_value("collect.dim", "64", TRAINED),
        [at("metatrain.target", "metatrain.target: trajectory-ends needs collect.dim 0, got 64")],
    ),
    "perceptrons that see all images": (
        set_value("collect.learner", "mlp"),
        [
            at(
                "collect.sees",
                "collect.sees: must be support for collect.learner mlp, got classes; raise collect.shot to show it more",
            )
        ],
    ),
    "networks that see all images": (
        set_value("collect.learner", "conv"),
        [
            at(
                "collect.sees",
                "collect.sees: must be support for collect.learner conv, got classes; raise collect.shot to show it more",
            )
        ],
    ),
    "networks told by what a posterior expects": (
        set_value("mcdi.correct", "posterior", NETWORKS),
        [
            at(
                "mcdi.correct",
                "mcdi.correct: must be means for collect.learner conv, whose generators are told by images, got posterior",
            )
        ],
    ),
    "networks of features that are moved": (
        set_value("collect.spread", "0.5", NETWORKS),
        [at("collect.spread", "collect.spread: must be 1 for collect.learner conv, which sees images and no features, got 0.5")],
    ),
    "whole weights on features as they are": (
        set_value("collect.dim", "0", PATHS),
        [at("collect.dim", "collect.dim: must be at least 1 for mcdi.models: its denoiser is for whitened inputs, got 0")],
    ),
    "segments between kept steps": (
        set_value("mcdi.segments", "2", PATHS),
        [at("collect.keep", "collect.keep: must be 1 more than a multiple of mcdi.segments 2, got 4")],
    ),
    "a difference to weights that nothing learns": (
        set_value("mcdi.models", "[ocd]", set_value("collect.sees", "support", PATHS)),
        [at("mcdi.models", "mcdi.models: ocd goes out from what reptile has learnt; add reptile")],
    ),
    "all weights as a difference that nothing learns": (
        set_value("mcdi.base", "reptile", set_value("mcdi.models", "[local]", set_value("collect.sees", "support", PATHS))),
        [at("mcdi.models", "mcdi.models: local goes out from what reptile has learnt; add reptile")],
    ),
    "a backbone of no weights": (
        set_value("pretrain.backbone", "resnet101"),
        [
            at(
                "pretrain.weights",
                "pretrain.weights: must be a safetensors file for pretrain.backbone resnet101, which is not trained here, "
                "got none",
            )
        ],
    ),
    "weights of a backbone that is trained": (
        set_value("pretrain.weights", "x.safetensors"),
        [
            at(
                "pretrain.weights",
                "pretrain.weights: must be none for pretrain.backbone conv4, which is trained, got x.safetensors",
            )
        ],
    ),
    "turned slopes about no base": (
        set_value("mcdi.turned", "true", NETWORKS),
        [at("mcdi.turned", "mcdi.turned: needs mcdi.base reptile: without a base any order of a network's channels is as good")],
    ),
    "turned slopes of heads": (
        set_value("mcdi.turned", "true", set_value("mcdi.base", "reptile", set_value("collect.learner", "mlp", NETWORKS))),
        [at("mcdi.turned", "mcdi.turned: must be false for collect.learner mlp: heads have no channels")],
    ),
    "a difference on images that tasks share": (
        set_value("mcdi.models", "[ocd, reptile]", PATHS),
        [at("mcdi.models", "mcdi.models: ocd needs collect.sees support, got classes")],
    ),
    "whole weights of another way": (
        set_value("evaluate.way", "4", PATHS),
        [at("evaluate.way", "evaluate.way: must be collect.way 5 for mcdi.models, got 4")],
    ),
    "more segments than steps": (
        set_value("mcdi.segments", "3", set_value("mcdi.times", "2", PATHS)),
        [at("mcdi.segments", "mcdi.segments: must be at most mcdi.times 2, got 3")],
    ),
    "targets that contradict each other": (
        set_value("mcdi.window", "overlap", set_value("mcdi.weighted", "false", PATHS)),
        [
            at(
                "mcdi.window",
                "mcdi.window: overlap needs mcdi.weighted true: without its factors the targets of a time contradict each other",
            )
        ],
    ),
    "whole weights judged on too many images": (
        set_value("mcdi.val_query", "16", PATHS),
        [at("mcdi.shots", f"mcdi.shots: 5 + mcdi.val_query 16 = 21 {TOO_MANY}")],
    ),
    "a decay beyond 0": (
        set_value("collect.weight_decay", "0.6", set_value("collect.lr", "2")),
        [at("collect.weight_decay", "collect.weight_decay: must be at most 1 / collect.lr = 0.5, got 0.6")],
    ),
    "no gradient for trained weights": (
        ENDS,
        [
            at(
                "metatrain.models",
                "metatrain.models: gradient needs metatrain.target class-means, got trajectory-ends; leave it out",
            )
        ],
    ),
    "trajectories of another learner": (
        set_value("collect.learner", "linear", TRAINED),
        [at("metatrain.target", "metatrain.target: trajectory-ends needs collect.learner cosine, got linear")],
    ),
    "linear schedule too short": (
        set_value(
            "metatrain.times", "20", set_value("metatrain.gradient_steps", "21", set_value("evaluate.gradient_steps", "22"))
        ),
        [
            at("metatrain.times", "metatrain.times: must be at least 21 for metatrain.schedule linear, got 20"),
            at("metatrain.gradient_steps", "metatrain.gradient_steps: must be at most metatrain.times 20, got 21"),
            at("evaluate.gradient_steps", "evaluate.gradient_steps: must be at most metatrain.times 20, got 22"),
        ],
    ),
    "more sampling steps than times": (
        set_value(
            "metatrain.sampling_steps",
            "1001",
            set_value("evaluate.curve", "[1, 2000]", set_value("evaluate.sampling_steps", "[1, 1002]")),
        ),
        [
            at("metatrain.sampling_steps", "metatrain.sampling_steps: must be at most metatrain.times 1000, got 1001"),
            at("evaluate.sampling_steps", "evaluate.sampling_steps: must be at most metatrain.times 1000, got 1002"),
            at("evaluate.curve", "evaluate.curve: must be at most metatrain.times 1000, got 2000"),
        ],
    ),
    "val_shot too many": (
        set_value("pretrain.val_shot", "6"),
        [at("pretrain.val_shot", f"pretrain.val_shot: 6 + pretrain.val_query 15 = 21 {TOO_MANY}")],
    ),
    "duplicate key": (
        replace("  epochs:", "  batch: 3\n  epochs:"),
        [at("pretrain.batch", f"pretrain.batch: given twice, first in line {line_of('pretrain.epochs')}; keep one", offset=1)],
    ),
    "duplicate section": (
        TEXT + "shared: {}\n",
        [f"params.yaml:{END}: shared: given twice, first in line {line_of('shared')}; keep one"],
    ),
    "number as a key": (
        replace("  threads:", "  1: 1\n  threads:"),
        [at("shared.threads", "shared.1: a key must be a text, got one of the YAML type int")],
    ),
    "list as a key": (
        replace("  threads:", "  ? [a]\n  : 1\n  threads:"),
        [at("shared.threads", "shared: a key must be a text, got one of the YAML type seq")],
    ),
    "tab": (
        replace("  threads:", "\tthreads:"),
        [at("shared.threads", "not YAML: found character '\\t' that cannot start any token; indent with spaces, not tabs")],
    ),
    "open quote": (
        TEXT + "x: 'open\n",
        [f"params.yaml:{END + 1}: not YAML: found unexpected end of stream (while scanning a quoted scalar from line {END})"],
    ),
    "undefined alias": (set_value("shared.seed", "*s"), [at("shared.seed", "not YAML: found undefined alias 's'")]),
    "second colon": (set_value("shared.seed", "a: 1"), [at("shared.seed", "not YAML: mapping values are not allowed here")]),
    "two documents": (
        TEXT + "---\na: 1\n",
        [
            f"params.yaml:{END}: not YAML: but found another document "
            f"(expected a single document in the stream from line {line_of('shared')})"
        ],
    ),
    "merge of a number": (
        replace("  threads:", "  <<: 1\n  threads:"),
        [
            at(
                "shared.threads",
                "not YAML: expected a mapping or list of mappings for merging, but found scalar "
                f"(while constructing a mapping from line {line_of('shared.seed')})",
            )
        ],
    ),
    "directive": (
        "%YAML 1.1\n---\n" + TEXT,
        ["params.yaml:1: a line must not begin with %: the file is always read as YAML 1.2"],
    ),
    "directive after a byte order mark": (
        "\ufeff%YAML 1.1\n---\n" + TEXT,
        ["params.yaml:1: a line must not begin with %: the file is always read as YAML 1.2"],
    ),
    "no such character": ('a: "\\U00110000"\n', ["params.yaml:1: not YAML: chr() arg not in range(0x110000)"]),
    "no such character at all": ('a: "\\UFFFFFFFF"\n', ["params.yaml:1: not YAML: Python int too large to convert to C int"]),
    "empty section, its keys in order": (
        re.sub(r"shared:\n(  .*\n)+", "shared: {}\n", TEXT),
        [
            at("shared", f"shared.seed: missing; it must be {SEED}"),
            at("shared", "shared.threads: missing; it must be a whole number from 1 to 256"),
            at("shared", "shared.device: missing; it must be one of cpu, cuda"),
            at("shared", "shared.deterministic: missing; it must be true or false"),
        ],
    ),
    "control character": (replace("conv4  ", "conv4\x07"), [at("pretrain.backbone", "not YAML: a control character, code 7")]),
    "deep nesting": ("a: " + "[" * 700 + "]" * 700, ["params.yaml:1: not YAML for parameters: nested too deeply"]),
    "not UTF-8": (
        TEXT.replace("conv4  ", "conv\xe4").encode("latin-1"),
        [at("pretrain.backbone", "not UTF-8: byte 0xe4; save the file as UTF-8")],
    ),
    "UTF-16": (TEXT.encode("utf-16"), ["params.yaml:1: not UTF-8: byte 0xff; save the file as UTF-8"]),
    "empty": ("", [f"params.yaml:1: the file is empty; {EMPTY}"]),
    "comments only": ("# nothing\n", [f"params.yaml:1: the file is empty; {EMPTY}"]),
    "list at the top": ("- 1\n", [f"params.yaml:1: the file does not consist of sections; {EMPTY}"]),
    "text at the top": ("hello\n", [f"params.yaml:1: the file does not consist of sections; {EMPTY}"]),
}


@pytest.mark.parametrize("name", WRONG_TEXTS)
def test_wrong_text(tmp_path: Path, name: str) -> None:
    content, expected = WRONG_TEXTS[name]
    assert complaints(tmp_path, content) == expected


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = TEXT
    for key, value in {"evaluate.query": "19", "pretrain.lr": "'0,1'", "shared.device": "gpu", "prepare.split": "given"}.items():
        text = set_value(key, value, text)
    assert complaints(tmp_path, replace("  flip:", "  flop:", text)) == [
        at("shared.device", "shared.device: must be one of cpu, cuda, got the text 'gpu'; did you mean cpu?"),
        at(
            "prepare.split",
            "prepare.split: given needs prepare.source folder or a published data set, got kanji-radicals; write three shares",
        ),
        at("pretrain", "pretrain.flip: missing; it must be true or false"),
        at("pretrain.lr", "pretrain.lr: must be a number above 0 and at most 10, got the text '0,1'"),
        at("pretrain.flip", "pretrain.flop: unknown key; did you mean pretrain.flip?"),
        at("evaluate.shots", f"evaluate.shots: 5 + evaluate.query 19 = 24 {TOO_MANY}"),
    ]


def test_quarter_turns_need_omniglot_and_its_published_split(tmp_path: Path) -> None:
    """Otherwise a drawing could be in one split and, turned, in another."""
    text = set_value("prepare.quarter_turns", "true", set_value("prepare.path", "x", set_value("prepare.source", "cub")))
    only = "prepare.quarter_turns: true needs prepare.source omniglot, got cub; write false"
    assert at("prepare.quarter_turns", only) in complaints(tmp_path, text)
    text = set_value("prepare.source", "omniglot", text)
    assert complaints(tmp_path, text) == [
        at("prepare.quarter_turns", "prepare.quarter_turns: true needs prepare.split given; write false")
    ]
    (tmp_path / "params.yaml").write_text(set_value("prepare.split", "given", text))
    assert load(tmp_path / "params.yaml").prepare.quarter_turns


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ParamsError) as caught:
            load(path)
        assert str(caught.value) == f"{path}: cannot be read: {reason}"


GOOD = {
    "as it is": TEXT,
    "byte order mark": "\ufeff" + TEXT,
    "Windows line ends": TEXT.replace("\n", "\r\n"),
    "1e-4": set_value("pretrain.lr", "1e-4"),
    "010 is ten": set_value("shared.threads", "010"),
    "hexadecimal": set_value("shared.threads", "0x10"),
    "underscore": set_value("evaluate.episodes", "2_000"),
    "alias": set_value("evaluate.seed", "*s", set_value("shared.seed", "&s 7")),
    "merge": replace("  lr: 0.03", "  <<: {lr: 0.5, momentum: 0.2}", replace("  momentum: 0.9          # Nesterov", "", TEXT)),
    "merge, overridden": replace("  lr: 0.03 ", "  <<: {lr: 0.5}\n  lr: 0.25 "),
    "trained weights of moved classes": set_value("metatrain.spread", "0.5", set_value("collect.spread", "0.5", TRAINED)),
    "perceptrons, with noise": set_value(
        "collect.noise", "0.3", set_value("collect.sees", "support", set_value("collect.learner", "mlp"))
    ),
    "networks, with a start for all tasks and a generator": set_value("collect.dim", "0", NETWORKS),
    "shapes": set_value("prepare.min_images", "48", SHAPES),
    "what sentences ask": ASKED,
    "all weights from sentences": TOLD,
    "whose paths are of episodes": set_value("collect.tasks_of", "episodes", TOLD),
    "from sentences alone": set_value("metatrain.models", "[]", TOLD),
    "vectors of descriptions": set_value("prepare.encoder", "minilm"),
    "given, of a folder": set_value(
        "prepare.split", "given", set_value("prepare.path", "x", set_value("prepare.source", "folder"))
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_values_are_what_dvc_reads(tmp_path: Path, name: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(GOOD[name].encode())
    seen = parse_yaml(GOOD[name], str(path))
    flat = {f"{name}.{key}": value for name, section in seen.items() for key, value in section.items()}
    assert leaves(load(path)) == {key: tuple(value) if isinstance(value, list) else value for key, value in flat.items()}


def test_the_traps_of_yaml_have_these_values(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(set_value("pretrain.lr", "1e-4", set_value("shared.threads", "010")))
    params = load(path)
    assert (params.pretrain.lr, params.shared.threads) == (0.0001, 10)
    assert isinstance(params.pretrain.degrees, float)


def test_the_file_and_the_models_have_the_same_keys() -> None:
    sections = re.split(r"^(\w+):\n", TEXT, flags=re.MULTILINE)[1:]
    written = [
        f"{name}.{key}"
        for name, body in zip(sections[::2], sections[1::2], strict=True)
        for key in re.findall(r"^  (\w+):", body, re.M)
    ]
    assert list(leaves(load(ROOT / "params.yaml"))) == KEYS == written


def test_no_model_has_a_default() -> None:
    models: list[type[BaseModel]] = [Params, *(field.annotation for field in Params.model_fields.values())]
    assert all(field.is_required() for model in models for field in model.model_fields.values())


def test_params_cannot_be_changed() -> None:
    params = load(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.pretrain.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        params.shared = params.shared
    assert isinstance(params.evaluate.shots, tuple)


def try_to_load(path: Path, content: bytes) -> None:
    """Loads or raises a ParamsError in lines of the promised form; anything else fails the test."""
    path.write_bytes(content)
    message = ""
    try:
        load(path)
    except ParamsError as error:
        message = str(error)
    lines = message.split("\n") if message else []
    assert all(line.isprintable() and re.match(rf"{re.escape(str(path))}(:[1-9]\d*)?: \S", line) for line in lines)


ANY_VALUE = st.sampled_from(
    ["", "1", "-1", "1.5", "yes", "true", "[]", "[1]", "{}", "{a: 1}", "null", ".nan", "!x y", "'", "*a", "&a [*a]", "|"]
)
FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(key=st.sampled_from(KEYS), value=ANY_VALUE | st.text(max_size=20))
def test_any_value_gives_no_traceback(tmp_path: Path, key: str, value: str) -> None:
    try_to_load(tmp_path / "params.yaml", set_value(key, value).encode(errors="surrogatepass"))


@pytest.mark.parametrize("key", KEYS)
def test_a_key_deleted_or_renamed_is_named(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    lines = TEXT.split("\n")
    number = line_of(key)
    [missing] = complaints(tmp_path, "\n".join(lines[: number - 1] + lines[number:]))
    assert missing.startswith(at(section, f"{key}: missing; it must be "))
    renamed = [*lines[: number - 1], lines[number - 1].replace(name, f"{name}x", 1), *lines[number:]]
    missing, unknown = complaints(tmp_path, "\n".join(renamed))
    assert missing.startswith(at(section, f"{key}: missing; it must be "))
    assert unknown == at(key, f"{key}x: unknown key; did you mean {key}?")


@FUZZ
@given(
    start=st.integers(0, len(TEXT.encode())),
    length=st.integers(0, 40),
    new=st.binary(max_size=20) | st.text("\t'\"[]{}&*!%|>\n-?:<#,.", max_size=8),
)
def test_any_bytes_give_no_traceback(tmp_path: Path, start: int, length: int, new: bytes | str) -> None:
    raw = TEXT.encode()
    middle = new.encode() if isinstance(new, str) else new
    try_to_load(tmp_path / "params.yaml", raw[:start] + middle + raw[start + length :])
    try_to_load(tmp_path / "params.yaml", middle)


def test_the_command_exits_0_or_64(tmp_path: Path) -> None:
    good = subprocess.run(PROGRAM, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout, good.stderr) == (0, "params.yaml: ok\n", "")
    bad = tmp_path / "bad.yaml"
    bad.write_text(set_value("pretrain.lr", "fast"))
    told = subprocess.run([*PROGRAM, str(bad)], cwd=ROOT, capture_output=True, text=True, check=False)
    line = f"{bad}:{line_of('pretrain.lr')}: pretrain.lr: must be a number above 0 and at most 10, got the text 'fast'\n"
    assert (told.returncode, told.stdout, told.stderr) == (64, "", line)


def test_checking_parameters_loads_no_heavy_package() -> None:
    code = "import sys, metadiff.params; print(sorted({'torch', 'numpy', 'dvc', 'prefect', 'zarr'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
