"""Reads a YAML 1.2 file of sections to the values that DVC would see, and remembers the line of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from metadiff.errors import ParamsError

Place = tuple[str | int, ...]  # ("evaluate", "shots", 1) is the second item of evaluate.shots
Problem = tuple[int, str]  # line, text

TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = {TAG + name for name in ("str", "int", "float", "bool", "null")}
MAX_DEPTH = 3  # a section, its keys, the items of a list: nothing below is read, so aliases cannot multiply or go in circles


@dataclass(frozen=True)
class Odd:
    """A value that no parameter can have, in words."""

    words: str


@dataclass(frozen=True)
class Document:
    """The sections as plain values (lists are tuples), the lines they stand in, and what is wrong with the keys themselves."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=lambda: {(): 1})
    problems: list[Problem] = field(default_factory=list)

    def line(self, place: Place) -> int:
        """The line of the key or item or, if it is missing, of what lacks it."""
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]


def read(path: Path) -> Document:
    text = _text(path)
    yaml = YAML(typ="safe", pure=True)  # the parser in C dies of deep nesting
    document = Document()
    try:
        root = yaml.compose(text)
        if isinstance(root, MappingNode) and root.tag == TAG + "map":
            document.data.update(_section(root, (), yaml=yaml, document=document))
            return document
    except (YAMLError, ValueError, ArithmeticError, RecursionError) as error:  # the parser leaks all of these
        raise ParamsError(_syntax_problem(error, path, text)) from error
    found = "is empty" if root is None else "does not consist of sections"
    raise ParamsError(f"{path}:1: the file {found}; it must have named sections with a `key: value` a line")


def report(path: Path, problems: list[Problem]) -> str:
    """One line a problem, in the order of the file."""
    return "\n".join(_one_line(f"{path}:{line}: {text}") for line, text in sorted(problems, key=lambda problem: problem[0]))


def dotted(place: Place) -> str:
    """The key as people write it; an item of a list goes by its key."""
    names = [part for part in place if isinstance(part, str)]
    return ".".join(name if re.fullmatch(r"[\w-]{1,60}", name) else short(name) for name in names)


def short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ParamsError(f"{path}:{line}: not UTF-8: byte 0x{error.object[error.start]:02x}; save the file as UTF-8") from error
    for line, content in enumerate(text.split("\n"), start=1):
        if content.startswith("%"):  # %YAML 1.1 would turn 010 into 8 here, but not for DVC
            raise ParamsError(f"{path}:{line}: a line must not begin with %: the file is always read as YAML 1.2")
    return text


def _syntax_problem(error: Exception, path: Path, text: str) -> str:
    if isinstance(error, RecursionError):
        return f"{path}:1: not YAML for parameters: nested too deeply"
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        start = f" ({error.context} from line {error.context_mark.line + 1})" if error.context_mark else ""
        hint = "; indent with spaces, not tabs" if "\\t" in error.problem else ""
        return _one_line(f"{path}:{error.problem_mark.line + 1}: not YAML: {error.problem}{start}{hint}")
    line = text.count("\n", 0, getattr(error, "position", 0)) + 1  # ReaderError has a position and no mark
    reason = f"a control character, code {error.character}" if hasattr(error, "character") else str(error)
    return _one_line(f"{path}:{line}: not YAML: {reason}")


def _section(node: MappingNode, place: Place, *, yaml: YAML, document: Document) -> dict[str, Any]:
    yaml.constructor.flatten_mapping(node)  # puts what `<<` brings in, which is also node.merge, before the section's own keys
    values: dict[str, Any] = {}
    own: dict[str, int] = {}
    merged = getattr(node, "merge", None) or []
    for position, (key_node, value_node) in enumerate(node.value):
        line = key_node.start_mark.line + 1
        name = dotted((*place, str(key_node.value))) if isinstance(key_node, ScalarNode) else dotted(place) or "the file"
        key = key_node.value
        if key_node.tag != TAG + "str":
            document.problems.append((line, f"{name}: a key must be a text, got one of the YAML type {_kind(key_node)}"))
        elif key in own:
            document.problems.append((line, f"{name}: given twice, first in line {own[key]}; keep one"))
        else:
            if position >= len(merged):
                own[key] = line
            document.lines[(*place, key)] = line
            values[key] = _value(value_node, (*place, key), yaml=yaml, document=document)
    return values


def _value(node: Node, place: Place, *, yaml: YAML, document: Document) -> object:
    if isinstance(node, ScalarNode):
        return _scalar(node, yaml)
    if node.tag not in (TAG + "map", TAG + "seq"):
        return Odd(f"a value of the YAML type {_kind(node)}")
    if len(place) >= MAX_DEPTH:
        return Odd("a list" if isinstance(node, SequenceNode) else "a section")
    if isinstance(node, MappingNode):
        return _section(node, place, yaml=yaml, document=document)
    document.lines.update({(*place, index): item.start_mark.line + 1 for index, item in enumerate(node.value)})
    return tuple(_value(item, (*place, index), yaml=yaml, document=document) for index, item in enumerate(node.value))


def _scalar(node: ScalarNode, yaml: YAML) -> object:
    if node.tag not in PLAIN_TAGS:
        return Odd(f"{short(node.value)} of the YAML type {_kind(node)}")
    try:
        value = yaml.constructor.construct_object(node)
        str(value)  # fails for a hexadecimal number of thousands of digits
    except (ValueError, LookupError):
        return Odd(f"{short(node.value)}, which is no YAML {_kind(node)}")
    return value


def _kind(node: Node) -> str:
    return short(str(node.tag).removeprefix(TAG))[1:-1]
