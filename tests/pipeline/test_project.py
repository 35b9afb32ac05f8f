"""What the project says of itself is true: README's numbers, the lock files, the workflows, the commands in CONTRIBUTING."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from metadiff.lineage import LINEAGE
from metadiff.resultscreens import results_table
from metadiff.screens import WIDTH
from metadiff.verifying import verify_chain
from stages.imports import ROOT
from stages.runner import Exit

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
README = (ROOT / "README.md").read_text()


def test_readme_shows_the_results_of_the_committed_run() -> None:
    metrics = json.loads((ROOT / "data/results/metrics.json").read_text())
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(results_table(metrics, split="test"))
    assert console.file.getvalue().rstrip() in README  # type: ignore[attr-defined]


def test_readme_lists_every_exit_code() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert listed == {int(code) for code in Exit}


def test_every_make_command_that_is_named_exists() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        named = set(re.findall(r"(?:`|    )make ([a-z-]+)", (ROOT / page).read_text()))
        assert named <= TARGETS, page
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # as if no make had started us
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, env=alone).stdout
    assert {line.split()[1] for line in printed.splitlines()} == TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_commands_of_the_makefile(path: Path) -> None:
    """So that whatever runs there can be run, and is tested, here."""
    jobs: dict[str, Any] = YAML(typ="safe").load(path)["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for command in commands:
        assert re.fullmatch(r'make [a-z-]+( [A-Z]+=("[^"]*"|\S+))*', command) or "gh pr comment" in command
    assert {command.split()[1] for command in commands if command.startswith("make")} <= TARGETS


def test_workflows_pass_their_linters() -> None:
    tools = Path(sys.executable).parent
    files = [str(path) for path in WORKFLOWS]
    subprocess.run([tools / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files], check=True)
    subprocess.run([tools / "zizmor", "--offline", "--quiet", *files], check=True)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in README
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", ".ci/uv.lock"])
def test_locks_pin_every_package_by_hash_and_name_no_index(lock: str) -> None:
    text = (ROOT / lock).read_text()
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert len(blocks) >= 1
    for block in blocks:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]
    assert not re.search(r"https?://|index", text)


def test_the_dev_lock_extends_the_lock_of_a_run() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
        return dict(lines)

    run, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert run.items() <= dev.items()
    assert "pytest" in dev.keys() - run.keys()


def test_committed_results_belong_to_the_committed_lock() -> None:
    """metrics.json is the file whose hash dvc.lock records: nobody edited a number."""
    import hashlib

    outs = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]["evaluate"]["outs"]
    recorded = {out["path"]: out["md5"] for out in outs}
    content = (ROOT / "data/results/metrics.json").read_bytes()
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == recorded["data/results/metrics.json"]


def test_the_committed_result_is_what_its_records_say() -> None:
    """But for what is not committed."""
    if not (ROOT / LINEAGE).is_file():
        pytest.skip("a bare clone has no artifacts; after `make repro` or `dvc pull` it has")
    assert [link for link in verify_chain(ROOT) if link.state == "broken" and link.name != "commit"] == []
