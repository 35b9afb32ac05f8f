"""The import graph of the project: which of its files a module really runs. A stage is stale when one of them changes."""

import ast
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("metadiff", "stages", "flows")
# These say which parameters are allowed. What a stage gets of them are values, which are tracked as such: a new parameter of one
# stage is no reason to run another again.
CHECKERS = {Path("metadiff", f"{name}.py") for name in ("params", "conflicts", "problems", "yamlfile")}


def closure(module: str, root: Path = ROOT) -> list[Path]:
    """All files of the project that importing ``module`` can execute, but for the checkers; sorted, relative to the root.

    A JSON file beside a module, under its name, is a part of it.
    """
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        for path in _files(waiting.pop(), root) - found:
            found.add(path)
            waiting += imported(root / path)
    tables = {path.with_suffix(".json") for path in found if (root / path.with_suffix(".json")).is_file()}
    return sorted((found | tables) - CHECKERS)


def imported(path: Path) -> list[str]:
    """The names that a file imports, lazily or not, but for what only type checkers see, or who asks a package for a name."""
    names = []
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}:{node.lineno}: relative import; write the full name")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _running(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _running(other)
        elif not (isinstance(node, ast.Module) and isinstance(child, ast.FunctionDef) and child.name == "__getattr__"):
            yield from _running(child)


def _files(name: str, root: Path) -> set[Path]:
    """The files behind a dotted name: each package on the way, then the module; a trailing attribute is no file."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return set()
    candidates = [Path(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    both = [path for part in candidates for path in (part / "__init__.py", part.with_suffix(".py"))]
    return {path for path in both if (root / path).is_file()}


def write_dependencies(graph: Path = ROOT / "dvc.yaml") -> None:
    """Put each stage's import graph into the deps of dvc.yaml; everything else in that file stays as it is."""
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 1000
    content = yaml.load(graph)
    for name, stage in content["stages"].items():
        others = [dep for dep in stage["deps"] if Path(dep).parts[0] not in PACKAGES]
        stage["deps"] = [*others, *(path.as_posix() for path in closure(f"stages.{name}"))]
    yaml.dump(content, graph)


if __name__ == "__main__":
    write_dependencies()
