"""An experiment's worktree: other parameters, the same cache, and a checkout that nobody touched."""

from pathlib import Path

import pytest

from flows import worktree
from flows.dvcrepo import stage_order
from metadiff.comparison import results
from metadiff.errors import ParamsError
from stages.imports import ROOT
from tests.repository import Repository

pytestmark = pytest.mark.timeout(300)
PARAMS = (ROOT / "params.yaml").read_text()


def test_overrides_change_values_and_nothing_else() -> None:
    text = worktree.overridden(PARAMS, {"metatrain.lr": 5e-5, "evaluate.shots": [1, 3], "pretrain.flip": True})
    changed = [(old, new) for old, new in zip(PARAMS.splitlines(), text.splitlines(), strict=True) if old.split() != new.split()]
    assert [new.split("#")[0].split() for _, new in changed] == [
        ["flip:", "true"],
        ["lr:", "5e-05"],
        ["shots:", "[1,", "3]"],
    ]


def test_every_wrong_override_is_named_at_once() -> None:
    wrong = {"metatrain.lrr": 1.0, "evaluate.draws": "many", "pretran.lr": 1, "shared": 3, "prepare.min_images": 3}
    with pytest.raises(ParamsError) as caught:
        worktree.overridden(PARAMS, wrong)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("overrides: ") for line in lines)
    said = str(caught.value)
    for part in ("metatrain.lrr: unknown key; did you mean metatrain.lr?", "evaluate.draws: must be a whole number", "pretran"):
        assert part in said


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", "a..b", "end.", "x.lock"])
def test_names_that_are_no_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="experiment: not a name that git can have"), worktree.experiment(tmp_path, name, {}):
        raise AssertionError


def test_the_order_is_that_of_dvcs_graph(tiny: Repository) -> None:
    stages = ["prepare", "pretrain", "collect", "metatrain", "evaluate"]
    assert stage_order(tiny.root) == stages
    assert stage_order(tiny.root, ["metatrain"]) == stages[:4]
    with pytest.raises(ValueError, match="targets: Stage 'pretran' not found"):
        stage_order(tiny.root, ["pretran"])


STUDY = """
stages:
  never-run:
    cmd: echo > out
    outs: [out]
"""


@pytest.mark.slow
def test_a_worktree_is_kept_for_the_next_run_if_its_run_fails(copy: Repository) -> None:
    (copy.root / "studies/one").mkdir(parents=True)
    (copy.root / "studies/one/dvc.yaml").write_text(STUDY)
    (copy.root / "studies/one/.gitignore").write_text("/out\n")
    (copy.root / "data/external").mkdir()
    copy.run("git", "add", "-A")
    copy.run("git", "commit", "-qm", "a study that never ran")

    def place() -> Path:
        with worktree.experiment(copy.root, "one", {"evaluate.draws": 2}) as folder:
            assert "draws: 2" in (folder / "params.yaml").read_text()
            assert (folder / "data/generator/task.safetensors").is_file()
            assert (folder / "data/external").is_dir()
            (folder / "data/.work/kept").mkdir(parents=True, exist_ok=True)
            (folder / "data/generator/unsaved").touch()
            raise KeyError(folder)

    for _ in range(2):
        with pytest.raises(KeyError):
            place()
        copy.run("git", "commit", "-q", "--allow-empty", "-m", "something else")
    with worktree.experiment(copy.root, "one", {"evaluate.draws": 2}) as folder:
        assert (folder / "data/.work/kept").exists()
        with (
            pytest.raises(ValueError, match="another run works on one now"),
            worktree.experiment(copy.root, "one", {}),
        ):
            raise AssertionError
        copy.run("dvc", "--cd", str(folder), "repro")
        worktree.save(folder, "one", stage_order(folder), seconds=12.3)
    assert not folder.exists()
    assert copy.run("git", "status", "--porcelain").stdout == ""
    assert copy.run("dvc", "exp", "list", "--name-only").stdout.split()[-1] == "one"
    assert [(result.name, result.seconds) for result in results(copy.root)] == [("this checkout", ""), ("one", "12")]
    with (
        pytest.raises(ValueError, match="there is one named one; take another name, or first: dvc exp remove one"),
        worktree.experiment(copy.root, "one", {}),
    ):
        raise AssertionError


@pytest.mark.parametrize("damage", ["no git", "half made"])
def test_a_damaged_worktree_is_made_anew_and_the_checkout_is_left_alone(copy: Repository, damage: str) -> None:
    folder = copy.root / ".dvc/tmp/flows/one"
    if damage == "no git":
        folder.mkdir(parents=True)
    else:
        copy.run("git", "worktree", "add", "-q", "--detach", "--no-checkout", str(folder))
    with worktree.experiment(copy.root, "one", {}) as found:
        assert found == folder
        assert (folder / "dvc.yaml").is_file()
        assert (folder / ".dvc/config.local").is_file()
    assert not (copy.root / ".dvc/config.local").exists()
