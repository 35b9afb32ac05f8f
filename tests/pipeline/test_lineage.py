"""Where a number is from, and that nobody can change anything on the way without being found out."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from metadiff import cli, verifying
from metadiff.errors import DataError
from metadiff.lineage import read_chain
from metadiff.verifying import dvc_md5, verify_chain
from tests.repository import Repository

pytestmark = pytest.mark.timeout(300)


def broken(repository: Repository) -> dict[str, str]:
    return {link.name: "\n".join(link.details) for link in verify_chain(repository.root) if link.state == "broken"}


def test_every_link_of_a_committed_result_holds(finished: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    links = list(verify_chain(finished.root))
    assert {link.state for link in links} == {"holds"}
    assert len(links) == 5 * 4 + 4 + 12 + 2  # record, params, code and inputs of each stage; outs; the numbers and the commit


def test_dvc_names_files_and_folders_as_dvc_does(finished: Repository) -> None:
    locked = read_chain(finished.root).lock
    outs = {out["path"]: out["md5"] for stage in locked.values() for out in stage["outs"]}
    assert {path: dvc_md5(finished.root / path) for path in outs} == outs
    assert sum(md5.endswith(".dir") for md5 in outs.values()) == 4


def flip(path: Path) -> None:
    flip_at(path, path.stat().st_size // 2)


def flip_at(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.unlink()  # a hard link may share it
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("artifact", "link"),
    [
        ("data/prepared/images.h5", "prepare: data/prepared"),
        ("data/backbone/features.h5", "pretrain: data/backbone"),
        ("data/trajectories/checks.json", "collect: data/trajectories"),
        ("data/generator/task.safetensors", "metatrain: data/generator"),
        ("data/results/sampling.csv", "evaluate: data/results/sampling.csv"),
    ],
)
def test_a_flipped_byte_in_any_artifact_is_named(copy: Repository, artifact: str, link: str) -> None:
    flip(copy.root / artifact)
    assert broken(copy) == {link: f"{artifact}: not the file that was made (sha256 differs)"}


def test_a_swapped_checkpoint_is_named(copy: Repository) -> None:
    """With a manifest of its own, so that the folder is whole in itself."""
    folder = copy.root / "data/generator"
    one, other = folder / "task.safetensors", folder / "regression.safetensors"
    told = json.loads((folder / "manifest.json").read_text())
    told["files"][one.name], told["files"][other.name] = told["files"][other.name], told["files"][one.name]
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(told, indent=1))
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)
    found = broken(copy)
    assert found.keys() == {"metatrain: data/generator", "metatrain: record", "evaluate: inputs"}
    assert "task.safetensors: not the file that was made" in found["metatrain: data/generator"]


def test_edited_numbers_are_named(copy: Repository) -> None:
    path = copy.root / "data/results/metrics.json"
    metrics = json.loads(path.read_text())
    true = metrics["test"]["shot1"]["metadiff"]["accuracy"]
    metrics["test"]["shot1"]["metadiff"]["accuracy"] = 99.0
    path.unlink()
    path.write_text(json.dumps(metrics, indent=1))
    found = broken(copy)
    assert found.keys() == {
        "evaluate: data/results/metrics.json",
        "data/results/metrics.json: computed again from its episodes",
        "commit",
    }
    told = found["data/results/metrics.json: computed again from its episodes"]
    assert told == f"test.shot1.metadiff.accuracy is 99.0, the episodes give {true}"


def test_edited_episodes_do_not_help(copy: Repository) -> None:
    path = copy.root / "data/results/episodes.csv"
    text = path.read_text()
    path.unlink()
    path.write_text(re.sub(r"^(test,1,metadiff,\d+),\d+", r"\1,8", text, flags=re.MULTILINE))
    assert "evaluate: data/results/episodes.csv" in broken(copy)


@pytest.mark.parametrize("commit", [False, True])
def test_edited_params_are_named(copy: Repository, commit: bool) -> None:
    copy.edit("params.yaml", "steps: 6", "steps: 7")
    if commit:
        copy.run("git", "commit", "-qam", "as if it had been run")
    found = broken(copy)
    assert found.pop("commit", None) == (None if commit else f"params.yaml: not as in commit {head(copy)}; commit or undo it")
    assert found == {"metatrain: parameters": "params.yaml: metatrain.steps is 7, the result is of 6"}


def head(repository: Repository) -> str:
    return repository.run("git", "rev-parse", "--short=7", "HEAD").stdout.strip()


@pytest.mark.parametrize("commit", [False, True])
def test_code_that_is_not_the_one_of_the_result_is_named(copy: Repository, commit: bool) -> None:
    with (copy.root / "metadiff/conditioning.py").open("a") as file:
        file.write("# changed\n")
    if commit:
        copy.run("git", "commit", "-qam", "as if it had been run")
    found = broken(copy)
    assert ("commit" in found) is not commit
    changed = "metadiff/conditioning.py: changed since the result was made"
    assert {name: told for name, told in found.items() if name != "commit"} == {
        "metatrain: code": changed,
        "evaluate: code": changed,
    }


def rewrite(repository: Repository, change: Callable[[dict[str, Any]], object]) -> None:
    """lineage.json, and its md5 in dvc.lock with it: by someone who knows the trade."""
    path = repository.root / "data/results/lineage.json"
    md5, told = dvc_md5(path), json.loads(path.read_text())
    change(told["stages"])
    path.unlink()
    path.write_text(json.dumps(told, indent=1))
    lock = repository.root / "dvc.lock"
    lock.write_text(lock.read_text().replace(md5, dvc_md5(path)))
    repository.run("git", "commit", "-qam", "forged")


def test_a_forged_record_is_named(copy: Repository) -> None:
    rewrite(copy, lambda stages: stages["metatrain"]["made_with"].update(device="cuda"))
    found = broken(copy)
    assert found["metatrain: record"] == "data/generator/manifest.json: tells otherwise than data/results/lineage.json"
    assert found.keys() == {"metatrain: record", "evaluate: record"}


def test_a_chain_that_was_cut_is_named(copy: Repository) -> None:
    rewrite(copy, lambda stages: [stages.pop(name) for name in ("prepare", "collect", "metatrain")])
    found = broken(copy)
    assert "tells nothing of what made data/generator" in found["evaluate: record"]
    assert "tells nothing of what made data/prepared" in found["pretrain: record"]


def test_an_output_that_the_lock_leaves_out_is_named(copy: Repository) -> None:
    lock = YAML()
    content = lock.load(copy.root / "dvc.lock")
    content["stages"]["evaluate"]["outs"] = content["stages"]["evaluate"]["outs"][1:]
    lock.dump(content, copy.root / "dvc.lock")
    assert broken(copy)["evaluate: record"] == "dvc.lock: data/results/calibration.csv is no output"


def test_a_file_that_is_no_code_is_named_too(copy: Repository) -> None:
    with (copy.root / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    copy.run("git", "commit", "-qam", "other packages")
    assert {name for name, told in broken(copy).items() if "constraints.txt: " in told} == {
        f"{stage}: code" for stage in read_chain(copy.root).stages
    }


@pytest.mark.parametrize("name", ["data/results/metrics.json", "data/results/lineage.json", "dvc.lock"])
def test_a_record_that_cannot_be_read_is_named(
    copy: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = copy.root / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:40] + b"\xff" + content[41:])
    monkeypatch.chdir(copy.root)
    assert cli.main(["verify"]) == os.EX_DATAERR
    assert f"{name}: cannot be read as what it should be" in capsys.readouterr().err


def test_a_table_that_is_none_is_named(copy: Repository) -> None:
    flip_at(copy.root / "data/results/episodes.csv", 2)
    assert "no such tables" in broken(copy)["data/results/metrics.json: computed again from its episodes"]


def test_a_lock_of_two_states_is_named(copy: Repository) -> None:
    lock = (copy.root / "dvc.lock").read_text()
    (md5,) = {out["md5"] for out in read_chain(copy.root).lock["pretrain"]["outs"]}
    before, _, after = lock.rpartition(md5)
    (copy.root / "dvc.lock").write_text(f"{before}{'0' * 32}.dir{after}")
    assert "dvc.lock: evaluate used data/backbone 000000000000" in broken(copy)["evaluate: inputs"]


def test_a_clone_that_pulled_only_the_results_says_what_it_cannot_see(
    finished: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished.run("git", "clone", "-q", str(finished.root), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    assert cli.main(["verify"]) == os.EX_DATAERR
    assert "data/results/lineage.json: not here; where it was made before `dvc pull` brings it" in capsys.readouterr().err
    for name in ("lineage.json", "episodes.csv"):
        shutil.copy(finished.root / "data/results" / name, tmp_path / "clone/data/results")
    assert cli.main(["verify"]) == 0
    said = capsys.readouterr().out
    assert "absent  prepare: data/prepared\n        not here; `dvc pull` brings it\n" in said
    assert "absent  data/results/metrics.json: computed again" in said
    assert said.splitlines()[-1] == "20 links hold, 18 could not be looked at"
    assert cli.main(["trace", "test.shot1.ncm.accuracy"]) == 0
    assert "prepare  python -m stages.prepare" in capsys.readouterr().out


def test_verify_fails_with_what_does_not_hold(
    copy: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(copy.root / "data/backbone/features.h5")
    monkeypatch.chdir(copy.root)
    assert cli.main(["verify"]) == os.EX_DATAERR
    said = capsys.readouterr().out
    assert "BROKEN  pretrain: data/backbone\n        data/backbone/features.h5: not the file that was made" in said
    assert said.splitlines()[-1] == "1 of 38 links do not hold"


def test_trace_leads_from_a_number_to_the_images(
    copy: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy.root)
    assert cli.main(["trace", "test.shot1.metadiff.accuracy"]) == 0
    said = capsys.readouterr().out
    value = json.loads(Path("data/results/metrics.json").read_text())["test"]["shot1"]["metadiff"]["accuracy"]
    assert f"test.shot1.metadiff.accuracy = {value}" in said
    order = [said.index(f"── {stage}  python") for stage in ("evaluate", "metatrain", "collect", "pretrain", "prepare")]
    assert order == sorted(order)
    (pictures,) = [dep for dep in read_chain(Path()).lock["prepare"]["deps"] if dep["path"] == "pictures"]
    assert f"pictures  md5 {pictures['md5'][:12]}" in said
    assert f"all as in commit {head(copy)}" in said
    page = Path("plots/trace.html").read_text()
    assert 'src="data:image/png;base64,' in page
    assert pictures["md5"][:12] in page
    assert not re.search(r"(src|href)=[\"']?http", page)  # it needs nothing else


def test_a_result_that_there_is_not_is_refused_with_the_nearest(
    finished: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.root)
    assert cli.main(["trace", "test.shot1.metadif.accuracy"]) == os.EX_DATAERR
    assert "no result test.shot1.metadif.accuracy; did you mean test.shot1.metadiff.accuracy?" in capsys.readouterr().err


@pytest.mark.parametrize("what", [lambda root: read_chain(root, "nope"), read_chain])
def test_what_is_not_there_is_said(finished: Repository, tmp_path: Path, what: Callable[[Path], object]) -> None:
    shutil.copytree(finished.root / ".git", tmp_path / ".git")
    with pytest.raises(DataError, match=r"no experiment nope; there are: none|dvc\.lock: not here"):
        what(tmp_path)


@pytest.mark.slow
def test_an_experiment_is_compared_and_traced(
    copy: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.run("dvc", "exp", "run", "--name", "fewer-draws", "-S", "evaluate.draws=2")
    copy.run("git", "checkout", "-q", ".")
    copy.run("dvc", "checkout", "-q")
    monkeypatch.chdir(copy.root)
    assert cli.main(["compare", "--classifier", "metadiff", "--classifier", "ncm"]) == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["this checkout", "", "", "", "fewer-draws", "evaluate.draws 2", "", ""]
    assert [row[3:5] for row in rows[:4]] == [["1", "metadiff"], ["1", "ncm"], ["2", "metadiff"], ["2", "ncm"]]
    assert cli.main(["trace", "--experiment", "fewer-draws", "test.shot1.ncm"]) == 0
    assert "draws 2," in " ".join(re.sub("[│├└─]", " ", capsys.readouterr().out).split())
    assert "fewer-draws" in copy.run("dvc", "exp", "show", "--csv").stdout
    assert "evaluate.draws" in copy.run("dvc", "exp", "diff", "fewer-draws", "--md").stdout


@pytest.mark.slow
def test_a_queued_grid_of_experiments_leaves_the_checkout_alone(copy: Repository) -> None:
    copy.run("dvc", "exp", "run", "--queue", "-S", "evaluate.draws=2,3")
    copy.run("dvc", "exp", "run", "--run-all")
    names = copy.run("dvc", "exp", "list", "--name-only").stdout.split()
    drawn = {read_chain(copy.root, name).stages["evaluate"]["params"]["draws"] for name in names if name != "main:"}
    assert drawn == {2, 3}
    assert copy.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.parametrize(("now", "state"), [(b"weights", "holds"), (b"others", "broken"), (None, "absent")])
def test_a_raw_file_of_which_dvc_knows_nothing_is_looked_at(tmp_path: Path, now: bytes | None, state: str) -> None:
    facts = {"inputs": {}, "raw": {"w.safetensors": hashlib.sha256(b"weights").hexdigest()}}
    if now is not None:
        (tmp_path / "w.safetensors").write_bytes(now)
    chain: Any = SimpleNamespace(stages={}, lock={"pretrain": {"deps": []}})
    assert verifying._inputs(tmp_path, "pretrain", facts, chain).state == state
