"""The command line of `pretrain.fit`, and its help: flags, and every key of a recipe with default and meaning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pretrain.errors import ConfigError
from pretrain.schema import Recipe
from pretrain.schema_objectives import OBJECTIVE_OPTIONS
from pretrain.wording import sections

USAGE = """\
usage: python -m pretrain.fit --config RECIPE [--key.sub VALUE ...] [--smoke] [--print-config]
       python -m pretrain.fit --resume RUN

  --config RECIPE   a YAML file, or the name of a packaged recipe such as ct3d.yaml
  --key.sub VALUE   any key below, for instance --optim.lr 1e-4 or --objectives.0.weight 2
  --smoke           two steps on a handful of studies, on the CPU: does everything work?
  --print-config    print the resolved recipe and stop
  --resume RUN      go on with a stopped run, bit for bit as if it had never stopped
"""


@dataclass(frozen=True)
class Arguments:
    """What was asked for. `overrides` are `key.sub=value`."""

    config: str | None = None
    overrides: tuple[str, ...] = ()
    smoke: bool = False
    print_config: bool = False
    resume: str | None = None
    help: bool = False


def split_argv(argv: Sequence[str]) -> Arguments:
    """Sort a command line into flags and overrides; key names are judged later, against the schema.

    Raises:
        ConfigError: a value without a key, a key without a value, a flag given twice.
    """
    values: dict[str, str] = {}
    switches: set[str] = set()
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            switches.add("help")
        elif word in ("--smoke", "--print-config"):
            switches.add(word.removeprefix("--").replace("-", "_"))
        elif not word.startswith("--") or word == "--":
            raise ConfigError(f"'{word}' stands alone", fix=f"--config {word}" if "." in word else "write --key value")
        else:
            key, equals, value = word.removeprefix("--").partition("=")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise ConfigError(f"--{key} has no value", fix=f"--{key} VALUE (for a switch: --{key} true)")
                value = rest.pop(0)
            if key not in ("config", "resume"):
                overrides.append(f"{key}={value}")
            elif key in values:
                raise ConfigError(f"--{key} is given twice", fix="keep one")
            else:
                values[key] = value
    return Arguments(
        values.get("config"),
        tuple(overrides),
        "smoke" in switches,
        "print_config" in switches,
        values.get("resume"),
        "help" in switches,
    )


def schema_help() -> str:
    """Usage and a table of every key, default, choices and meaning."""
    rows = [("key", "default", "meaning"), *_rows(Recipe, "")]
    for name, options in OBJECTIVE_OPTIONS.items():
        rows.append((f"  with name: {name}", "", _first_line(options)))
        rows += _rows(options, "objectives.0.")
    return (
        USAGE + "\n" + "\n".join(f"{key:<31} {default:<19} {meaning}".rstrip() for key, default, meaning in rows) + "\n"
    )


def _rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        below = list(sections(field.annotation))
        rows.append((prefix + name, _default(field, bool(below)), (field.description or "") + _choices(field)))
        inner = prefix + name + (".0." if str(field.annotation).startswith("tuple") else ".")
        for section in below:
            if len(below) > 1:
                kind = get_args(section.model_fields["kind"].annotation)[0]
                rows.append((f"  with kind: {kind}", "", _first_line(section)))
            rows += [row for row in _rows(section, inner) if len(below) == 1 or row[0] != f"{inner}kind"]
    return rows


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _choices(field: FieldInfo) -> str:
    options = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f" ({' | '.join(options)})" if len(options) > 1 else ""


def _default(field: FieldInfo, section: bool) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        return json.dumps([round(v, 4) for v in value])
    return "" if section else value if isinstance(value, str) else json.dumps(value)
