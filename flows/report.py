"""What a finished run shows on its page: the result table, what changed, the curves, and where the numbers are from."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

CURVES = Path("plots/run.png")
HEAD = 2  # lines of a table without rows


def publish(root: Path, *, experiment: str | None) -> None:
    """By the commands that people have too."""
    title = f"experiment {experiment}" if experiment else "the checkout"
    create_markdown_artifact(_metadiff(root, "results", "--markdown"), key="results", description=f"Results of {title}")
    create_markdown_artifact(_changes(root), key="changes", description=f"What {title} changes against its commit")
    create_markdown_artifact(
        f"```\n{_metadiff(root, 'trace')}\n```", key="lineage", description=f"Where the results of {title} are from"
    )
    if (root / CURVES).is_file():
        picture = base64.b64encode((root / CURVES).read_bytes()).decode()
        create_markdown_artifact(f"![curves](data:image/png;base64,{picture})", key="curves", description=f"Curves of {title}")


def _changes(root: Path) -> str:
    tables = [_output(root, "-m", "dvc", what, "diff", "--md").strip() for what in ("params", "metrics")]
    changed = [table for table in tables if len(table.splitlines()) > HEAD]
    return "\n\n".join(changed) or "Nothing: params and metrics are those of the commit."


def _metadiff(root: Path, *arguments: str) -> str:
    return _output(root, "-m", "metadiff.cli", *arguments)


def _output(root: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else f"{' '.join(arguments)}: {done.stderr.strip()}"
