"""Validation errors in words: key path, place, what is wrong, what to do, and a suggestion where one is close."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel

from pretrain.checks import closest
from pretrain.schema import Origin
from pretrain.schema_base import Path
from pretrain.yaml_lines import Problem, dotted

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "model": "a section of keys",
    "dict": "a section of keys",
    "tuple": "a list",
    "list": "a list",
}
_EMPTY = "an empty list"
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def locate(data: Any, path: Sequence[str | int]) -> Any:
    """The value at a path of keys and indices, or None."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def sections(annotation: Any, value: Any = None) -> Iterator[type[BaseModel]]:
    """Models an annotation allows; of a union, only the one whose `kind` the value has (all, without a value)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        chosen = value.get("kind") if isinstance(value, dict) else None
        if kind is None or chosen is None or chosen in get_args(kind.annotation):
            yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, tuple) or hasattr(annotation, "__metadata__"):
        for argument in get_args(annotation):
            yield from sections(argument, value)


def every_key(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys below a model."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in sections(field.annotation):
            yield from every_key(
                section, f"{prefix}{name}.0." if "tuple" in str(field.annotation) else f"{prefix}{name}."
            )


def describe(error: pydantic.ValidationError, data: Any, model: type[BaseModel]) -> list[Problem]:
    """Every mistake of a validation as a Problem; `data` is what was validated, as plain values."""
    problems = [_describe(e, data, model) for e in error.errors(include_url=False)]
    paths = {p.path for p in problems}
    # A list whose only item is refused counts as empty for pydantic; the item's own problem says it all.
    return [p for p in problems if p.what != _EMPTY or not any(q[:-1] == p.path for q in paths)]


def _describe(error: Mapping[str, Any], data: Any, model: type[BaseModel]) -> Problem:
    path = _real_path(error["loc"], data)
    kind, value, context = str(error["type"]), error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(path, "unknown key; the run would silently use the default instead", _suggest(path, data, model))
    if kind in ("missing", "too_short") and isinstance(locate(data, path if kind == "too_short" else path[:-1]), list):
        path = path if kind == "too_short" else path[:-1]
        what = _EMPTY if context.get("min_length") == 1 else f"a list of {len(locate(data, path))} is too short"
        return Problem(path, what, key=_meaning(path, data, model))
    if kind == "missing":
        return Problem(path, "required, but not given", key=_meaning(path, data, model))
    if kind == "union_tag_not_found":
        return Problem((*path, "kind"), "required, but not given", "write one of " + _kinds(path, data, model))
    if kind == "union_tag_invalid":
        options = _words(context["expected_tags"])
        found = Problem((*path, "kind"), f"{_show(context['tag'])} is not one of {', '.join(options)}")
        return replace(found, fix=closest(str(context["tag"]), options))
    if kind == "literal_error":
        options = _words(str(context["expected"]).replace(" or ", ", "))
        found = Problem(path, f"{_show(value)} is not one of {', '.join(options)}", closest(str(value), options))
        return replace(found, key=_meaning(path, data, model))
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        what = f"must be {words} {context[key]:g}, got {_show(value)}"
    elif kind == "too_long":
        what = (
            f"a list of {context['actual_length']} is too long, by {context['actual_length'] - context['max_length']}"
        )
    elif kind == "string_too_short":
        what = "is empty"
    elif kind == "string_pattern_mismatch":
        what = f"{_show(value)} has other characters"
    elif kind.endswith("_type"):
        what = f"expected {_WANTED.get(kind.removesuffix('_type'), kind.removesuffix('_type'))}, got {_show(value)}"
    else:
        what = f"{error['msg'][0].lower()}{error['msg'][1:]}, got {_show(value)}"
    whole = kind == "int_type" and isinstance(value, float) and value.is_integer()
    return Problem(path, what, f"write {value:.0f}" if whole else "", _meaning(path, data, model))


def _words(listed: str) -> list[str]:
    return [word.strip().strip("'") for word in listed.split(",")]


def _real_path(location: Sequence[str | int], data: Any) -> Path:
    """Pydantic puts the `kind` of a union into the location; it is no key of the file."""
    path: list[str | int] = []
    for part in location:
        at = locate(data, path)
        if isinstance(at, dict) and part not in at and part == at.get("kind"):
            continue
        path.append(part)
    return tuple(path)


def _model_at(path: Path, data: Any, model: type[BaseModel]) -> type[BaseModel] | None:
    for i, part in enumerate(path):
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        value = locate(data, path[: i + 1])
        if isinstance(value, list):
            value = locate(value, path[i + 1 : i + 2])
        below = list(sections(field.annotation, value)) if field else []
        if not below:
            return None
        model = below[0]
    return model


def _meaning(path: Path, data: Any, model: type[BaseModel]) -> str:
    while path and isinstance(path[-1], int):
        path = path[:-1]
    around = _model_at(path[:-1], data, model) if path else None
    field = around.model_fields.get(str(path[-1])) if around else None
    return field.description or "" if field else ""


def _kinds(path: Path, data: Any, model: type[BaseModel]) -> str:
    around = _model_at(path[:-1], data, model)
    field = around.model_fields[str(path[-1])] if around else None
    found = [s.model_fields["kind"] for s in sections(field.annotation)] if field else []
    return ", ".join(str(option) for f in found for option in get_args(f.annotation))


def _suggest(path: Path, data: Any, model: type[BaseModel]) -> str:
    """A key of the same section, the same word elsewhere, or a flag."""
    around, word = _model_at(path[:-1], data, model), str(path[-1])
    siblings = list(around.model_fields) if around else []
    near = closest(word, siblings)
    if near and closest(word.replace("-", "_"), siblings):
        return near.replace("mean ", f"mean {dotted(path[:-1])}." if path[:-1] else "mean ")
    everywhere = list(every_key(model))
    same = [key for key in everywhere if key.rpartition(".")[2] == word]
    if same:
        return f"did you mean {' or '.join(same)}?"
    flag = closest(word, ["config", "smoke", "print-config", "resume", "help"]) if len(path) == 1 else ""
    if flag:
        return flag.replace("mean ", "mean --")
    by_ending = {key.rpartition(".")[2]: key for key in everywhere}
    ending = closest(word, by_ending)
    if ending:
        return f"did you mean {by_ending[ending.removeprefix('did you mean ').removesuffix('?')]}?"
    return f"keys here are {', '.join(siblings)}" if siblings else ""


def _show(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{value}'" if len(value) <= 60 else "a long text"
    if isinstance(value, dict):
        return "a section of keys"
    return "a list" if isinstance(value, list) else f"{value!r}"


def report(problems: Sequence[Problem], origin: Origin, label: str) -> str:
    """All problems as one message, in the order of their lines."""
    seen = list(dict.fromkeys(problems))
    count = "1 problem" if len(seen) == 1 else f"{len(seen)} problems"
    blocks = [f"{count} in {label}"]
    for problem in sorted(seen, key=lambda p: _order(origin.where(p.path))):
        blocks.append(f"{dotted(problem.path) or 'recipe'}  ({origin.where(problem.path)})\n  {problem.what}")
        blocks[-1] += f"\n  key: {problem.key}" if problem.key else ""
        blocks[-1] += f"\n  fix: {problem.fix}" if problem.fix else ""
    return "\n\n".join(blocks)


def _order(place: str) -> tuple[int, int]:
    line = place.rpartition(":")[2]
    return (0, int(line)) if line.isdigit() else (1, 0)
