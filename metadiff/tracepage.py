"""The chain of a result as a tree for the terminal and as a page of its own, with the plots inside."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from rich.tree import Tree

from metadiff.lineage import METRICS, Chain

PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td { padding: .1rem 1rem .1rem 0; vertical-align: top }
td:first-child { white-space: nowrap }
code, td { font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
details { border-left: 3px solid #cbd5e1; padding-left: 1rem; margin: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
img { max-width: 100% } .warn { color: #b45309 }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } img { background: #fff } .warn { color: #fbbf24 }
}
</style>
<h1>$title</h1>
$numbers
<h2>Where it is from</h2>
$commit
$stages
$plots
</html>
""")


def tree(chain: Chain, result: str, numbers: Mapping[str, object]) -> Tree:
    """From the numbers down to the images: under each stage those whose artifacts it read."""
    root = Tree(f"[bold]{result or METRICS}[/bold]  {chain.metrics['dataset']}")
    for name, value in numbers.items():
        root.add(f"{name} = {value}", highlight=True)
    root.add(commit_line(chain))
    _grow(root, chain, list(chain.stages)[-1], seen=set())
    return root


def _grow(parent: Tree, chain: Chain, stage: str, seen: set[str]) -> None:
    if stage in seen:
        parent.add(f"[bold]{stage}[/bold]  (as above)")
        return
    seen.add(stage)
    branch = parent.add(f"[bold]{stage}[/bold]  {chain.stages[stage]['command']}")
    for what, line in facts(chain, stage):
        branch.add(f"[dim]{what:9}[/dim] {line}", highlight=False)
    for before in parents(chain, stage):
        _grow(branch, chain, before, seen)


def parents(chain: Chain, stage: str) -> list[str]:
    """The stages whose artifacts this one read, the nearest one first."""
    made = {out["path"]: name for name in chain.stages for out in chain.lock[name]["outs"]}
    return [made[folder] for folder in reversed(chain.stages[stage]["inputs"]) if folder in made]


def facts(chain: Chain, stage: str) -> Iterator[tuple[str, str]]:
    told, lock = chain.stages[stage], chain.lock[stage]
    yield "params", ", ".join(f"{key} {_plain(value)}" for key, value in told["params"].items())
    for name, section in told.get("methods", {}).items():
        yield name, ", ".join(f"{key} {_plain(value)}" for key, value in section.items())
    if told["shared"]:
        yield "shared", ", ".join(f"{key} {_plain(value)}" for key, value in told["shared"].items())
    yield "with", ", ".join(f"{key} {_plain(value)}" for key, value in told["made_with"].items())
    own = set(told["code"]) | {"constraints.txt"}
    yield (
        "code",
        f"{len(told['code'])} files, {'all' if not own & set(chain.strange) else 'not all'} as in commit {chain.commit[:7]}",
    )
    for dep in lock["deps"]:
        if dep["path"] not in own:
            yield "in", f"{dep['path']}  {_identity(dep)}"
    for out in lock["outs"]:
        yield "out", f"{out['path']}  {_identity(out)}"


def commit_line(chain: Chain) -> str:
    changed = f", but for {', '.join(chain.strange)}" if chain.strange else ""
    return f"{chain.title}, commit {chain.commit[:12]}{changed}"


def page(chain: Chain, result: str, numbers: Mapping[str, object], plots: Sequence[Path]) -> str:
    """One file that needs no other."""
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(str(value))}" for name, value in numbers.items())
    stages = "".join(
        f"<details{' open' if stage == list(chain.stages)[-1] else ''}><summary>{stage}</summary>{_table(chain, stage)}</details>"
        for stage in reversed([*chain.stages])
    )
    pictures = "<h2>Plots</h2>" * bool(plots) + "".join(
        f'<img alt="{escape(path.stem)}" src="{_inline(path)}">' for path in plots
    )
    title = f"{result or METRICS} on {chain.metrics['dataset']}"
    style = ' class="warn"' if chain.strange else ""
    commit = f"<p{style}>{escape(commit_line(chain))}</p>"
    return PAGE.substitute(title=escape(title), numbers=f"<table>{rows}</table>", commit=commit, stages=stages, plots=pictures)


def _table(chain: Chain, stage: str) -> str:
    told = chain.stages[stage]
    files = [(name, about["sha256"]) for name, about in told["files"].items()]
    parts = [_rows([("command", told["command"]), *facts(chain, stage)])]
    for what, rows in (("sha256 of its files", files), ("sha256 of its code", [*told["code"].items()])):
        parts.append(f"<details><summary>{what}</summary>{_rows(rows)}</details>")
    return "".join(parts)


def _rows(rows: list[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><td>{escape(what)}<td>{escape(line)}" for what, line in rows) + "</table>"


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _identity(entry: Mapping[str, Any]) -> str:
    return f"md5 {entry['md5'][:12]}, {entry['size']:,} bytes"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
