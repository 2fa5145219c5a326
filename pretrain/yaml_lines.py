"""YAML with places: plain data, and for every key the file and line it was written on.

Scalars follow YAML 1.2: `1e-4` is a number (PyYAML's 1.1 rules read it as text), `no` and `on` are text, `010` is ten.
A key given twice is an error, not a silent overwrite.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from pretrain.schema_base import Path

COMMAND_LINE = "command line"
_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", re.compile(r"~|null|Null|NULL|"), [*"~nN", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    ("float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), list("-+.0123456789")),
    ("float", re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), list("-+.")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - PyYAML's own attribute


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern.pattern})$"), _first)


@dataclass(frozen=True)
class Problem:
    """One mistake: the key it belongs to, what is wrong, what to do, and what the key means."""

    path: Path
    what: str
    fix: str = ""
    key: str = ""


@dataclass
class Document:
    """Plain data, the place of every key, and the mistakes found while reading."""

    data: Any = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def dotted(path: Path) -> str:
    """`("objectives", 0, "weight")` -> `objectives.0.weight`."""
    return ".".join(str(part) for part in path)


def read(text: str, label: str) -> Document:
    """Parse a whole file; `label` names it in places.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    document = Document(places={(): label})
    node = yaml.compose(text, Loader=_Loader)
    document.data = {} if node is None else _plain(node, (), label, document, ())
    return document


def parse_value(text: str) -> Any:
    """Value of one command-line override, read as YAML; text that is not YAML is taken as it stands."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
    scratch = Document()
    value = None if node is None else _plain(node, (), "", scratch, ())
    return text if scratch.problems else value


def _plain(node: yaml.Node, path: Path, label: str, document: Document, open_nodes: tuple[int, ...]) -> Any:
    if id(node) in open_nodes:
        document.problems.append(Problem(path, "an alias refers to the section it stands in", "write the values out"))
        return None
    inside = (*open_nodes, id(node))
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            document.places[(*path, i)] = f"{label}:{item.start_mark.line + 1}"
        return [_plain(item, (*path, i), label, document, inside) for i, item in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(path, f"line {line}: a key must be a plain word"))
            continue
        below = (*path, key_node.value)
        if key_node.value in mapping:
            fix = f"keep one; the other is at {document.places[below]}"
            document.problems.append(
                Problem(below, f"given again at line {line}: one of the two would be ignored", fix)
            )
            continue
        document.places[below] = f"{label}:{line}"
        mapping[key_node.value] = _plain(value_node, below, label, document, inside)
    return mapping


def _scalar(node: yaml.ScalarNode, path: Path, document: Document) -> Any:
    kind, value = node.tag.removeprefix(_TAG), node.value
    try:
        if kind == "str":
            return value
        if kind == "null":
            return None
        if kind == "bool":
            return value.lower() == "true"
        if kind == "int":
            return int(value, 16) if value.startswith("0x") else int(value)
        if kind == "float":
            special = value.lower().lstrip("+-") in (".inf", ".nan")
            return float(value.replace(".", "") if special else value)
    except ValueError:
        document.problems.append(Problem(path, f"'{value}' does not fit its YAML tag !!{kind}", "write a plain value"))
        return None
    document.problems.append(Problem(path, f"the YAML tag {node.tag} is not allowed", "write a plain value"))
    return None


def apply_override(document: Document, text: str) -> None:
    """Set one `key.sub=value` in place; sections are created, list items are addressed by number.

    Changing `kind` starts that section anew: keys of the old kind, which the new one would refuse, go.
    """
    key, equals, value_text = text.removeprefix("--").partition("=")
    path: Path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    if not equals:
        document.problems.append(Problem(path, "has no value", f"write --{key} VALUE"))
        return
    at: Any = document.data
    for i, part in enumerate(path):
        last = i == len(path) - 1
        if isinstance(at, list) and isinstance(part, int):
            if part > len(at):
                fix = f"items are 0 to {len(at) - 1}; {len(at)} appends one"
                document.problems.append(Problem(path[: i + 1], "there is no such list item", fix))
                return
            if part == len(at):
                at.append({})
        elif not isinstance(at, dict):
            what = (
                f"{dotted(path[:i]) or 'the recipe'} is a {'list' if isinstance(at, list) else 'value'}, not a section"
            )
            document.problems.append(Problem(path, what))
            return
        slot: Any = part if isinstance(at, list) else str(part)
        if not last:
            if isinstance(at, dict) and at.get(slot) is None:
                at[slot] = {}
            at = at[slot]
            continue
        value = parse_value(value_text)
        if slot == "kind" and isinstance(at, dict) and at.get("kind") not in (None, value):
            for old in [k for k in at if document.places.get((*path[:i], k)) != COMMAND_LINE]:
                del at[old]
        at[slot] = value
        for below in [p for p in document.places if p[: len(path)] == path]:
            del document.places[below]
        document.places[path] = COMMAND_LINE
