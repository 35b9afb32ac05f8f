"""dvc.yaml says exactly what each stage depends on: its code, its parameters, its inputs; and DVC acts on it."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from metadiff.params import leaves, load
from stages.imports import PACKAGES, ROOT, closure
from stages.runner import Stage
from tests.repository import Repository, copy_project

STAGES = ("prepare", "pretrain", "collect", "metatrain", "evaluate")
GRAPH: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
LEAVES = leaves(load(ROOT / "params.yaml"))


def declared(name: str) -> Stage:
    return importlib.import_module(f"stages.{name}").STAGE


def names(entries: list[Any]) -> list[str]:
    """Outs without their options."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def uses(stage: str, leaf: str) -> bool:
    section, _, key = leaf.partition(".")
    return section in (stage, *declared(stage).methods) or (section == "shared" and key in declared(stage).shared)


def test_the_graph_has_these_stages() -> None:
    assert tuple(GRAPH) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_import_graph(stage: str) -> None:
    deps = [dep for dep in GRAPH[stage]["deps"] if Path(dep).parts[0] in PACKAGES]
    assert deps == [path.as_posix() for path in closure(f"stages.{stage}")], "run: make deps"


@pytest.mark.parametrize("stage", STAGES)
def test_other_dependencies_are_what_the_stage_declares(stage: str) -> None:
    rest = {dep for dep in GRAPH[stage]["deps"] if Path(dep).parts[0] not in PACKAGES}
    raw = {"${prepare.path}"} if declared(stage).raw(load(ROOT / "params.yaml")) else set()
    assert rest == {"constraints.txt"} | raw | {path.as_posix() for path in declared(stage).inputs}


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_what_the_stage_declares(stage: str) -> None:
    listed = GRAPH[stage]["params"]
    covered = {leaf for leaf in LEAVES if any(leaf == entry or leaf.startswith(f"{entry}.") for entry in listed)}
    assert covered == {leaf for leaf in LEAVES if uses(stage, leaf)}


@pytest.mark.parametrize("stage", STAGES)
def test_outs_lie_in_the_folder_that_the_stage_publishes(stage: str) -> None:
    outs = names(GRAPH[stage].get("outs", []) + GRAPH[stage].get("metrics", []))
    folder = declared(stage).out.as_posix()
    assert outs == [folder] or all(out.startswith(f"{folder}/") for out in outs)


def test_the_constraints_are_the_lock() -> None:
    """The packages that shape bytes, as requirements.lock pins them: no other version, none missing."""
    locked = {line.split(" ")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line for line in lines if not line.startswith("#")}
    assert pins <= locked
    named = {line.split("==")[0] for line in pins}
    assert {name for stage in STAGES for name in declared(stage).versions} <= named | {"torch"}


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The project with stand-ins for its outs, recorded as if every stage had run: nothing is stale."""
    repository = copy_project(tmp_path_factory.mktemp("checkout"))
    for stage in STAGES:
        for out in names(GRAPH[stage].get("outs", []) + GRAPH[stage].get("metrics", [])):
            path = repository.root / out
            path = path if path.suffix else path / "stand-in"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    repository.run("dvc", "commit", "--force", "--quiet")
    assert status(repository) == {}
    return repository


def status(repository: Repository) -> dict[str, Any]:
    with Repo(str(repository.root)) as repo:
        return {name.rpartition(":")[2]: changes for name, changes in repo.status().items()}


def change(value: Any) -> Any:  # noqa: ANN401 - whatever a leaf of params.yaml may be
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 + 0.0007
        case str():
            return f"{value}-other"
        case _:
            return [*value[1:], value[0]] if len(set(value)) > 1 else [*value, 9]


@pytest.mark.parametrize("leaf", LEAVES)
def test_changing_a_parameter_makes_exactly_the_stages_stale_that_use_it(committed: Repository, leaf: str) -> None:
    path = committed.root / "params.yaml"
    before = path.read_text()
    yaml = YAML()
    params = yaml.load(before)
    section, _, key = leaf.partition(".")
    params[section][key] = change(LEAVES[leaf])
    yaml.dump(params, path)
    try:
        assert set(status(committed)) == {stage for stage in STAGES if uses(stage, leaf)}
    finally:
        path.write_text(before)


def test_comments_and_layout_make_nothing_stale(committed: Repository) -> None:
    path = committed.root / "params.yaml"
    before = path.read_text()
    path.write_text("# another comment\n\n" + before.replace("  seed: 0  ", "  seed:   0  # why not?").replace("5.0e-3", "0.005"))
    (committed.root / "README.md").write_text("new words")
    try:
        assert path.read_text() != before
        assert status(committed) == {}
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("metadiff/backbone.py", {"pretrain"}),
        ("metadiff/baselines/ncm.py", {"pretrain", "evaluate"}),
        ("metadiff/denoiser.py", {"metatrain", "evaluate"}),
        ("metadiff/trajectory.py", {"collect", "metatrain", "evaluate"}),
        ("metadiff/images/kanji.py", {"prepare"}),
        ("stages/runner.py", set(STAGES)),
        ("metadiff/cli.py", set()),
    ],
)
def test_changing_code_makes_exactly_the_stages_stale_that_import_it(committed: Repository, file: str, stale: set[str]) -> None:
    path: Path = committed.root / file
    before = path.read_text()
    path.write_text(before + "\n# changed\n")
    try:
        assert set(status(committed)) == stale
    finally:
        path.write_text(before)
