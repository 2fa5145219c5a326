"""Fields of a tag: `key-value` joined by `_` after the dot of a tower's name. Pure Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

Size3 = tuple[int, int, int]


class Field(NamedTuple):
    """What one key stands for. attribute: of the tag. pattern: what a value looks like. expected: how an error says so.
    read: the value out of its text."""

    attribute: str
    pattern: str
    expected: str
    read: Callable[[str], object]


def join(size: Size3) -> str:
    """`8x16x16`"""
    return "x".join(map(str, size))


def size_field(attribute: str, example: str) -> Field:
    """Three positive integers, depth x height x width."""
    return Field(
        attribute, r"[1-9]\d*x[1-9]\d*x[1-9]\d*", f"three positive integers as in '{example}'",
        lambda value: tuple(int(v) for v in value.split("x")),
    )  # fmt: skip


def count_field(attribute: str, least: int = 1) -> Field:
    """An integer up to 99."""
    pattern = r"[1-9]\d?" if least else r"0|[1-9]\d?"
    return Field(attribute, pattern, f"an integer from {least} to 99", int)


def choice_field(attribute: str, choices: Collection[str], read: Callable[[str], object] = str) -> Field:
    """One of some words."""
    return Field(attribute, "|".join(map(re.escape, choices)), f"one of {', '.join(choices)}", read)


def read_name(
    name: str, prefix: str, sizes: Collection[str], fields: Mapping[str, Field]
) -> tuple[str, dict[str, object]]:
    """(size, attribute -> value) of `PREFIX_SIZE[.TAG]`.

    Raises:
        ValueError: unknown size, unknown or repeated field, or a value that its field does not take.
    """
    base, _, text = name.partition(".")
    size = base.removeprefix(prefix)
    if not base.startswith(prefix) or size not in sizes:
        raise ValueError(f"'{base}' is no {prefix.rstrip('_')}; known: {', '.join(prefix + s for s in sizes)}")
    values: dict[str, object] = {}
    for part in text.split("_") if text else []:
        key, dash, value = part.partition("-")
        if not dash or key not in fields:
            raise ValueError(f"field '{part}' is unknown; fields are {', '.join(k + '-…' for k in fields)}")
        field = fields[key]
        if field.attribute in values:
            raise ValueError(f"field '{key}-' is given twice")
        if not re.fullmatch(field.pattern, value):
            raise ValueError(f"field '{part}': expected {field.expected}")
        values[field.attribute] = field.read(value)
    return size, values
