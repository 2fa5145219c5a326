"""A suite from its file, and everything that is wrong with it told at once. Never imports torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data_shards.errors import DataError
from data_shards.unique_yaml import read_yaml
from eval_zero_shot.errors import EvalError, gathered, unreadable
from eval_zero_shot.suite_file import (
    PATHS,
    PROTOCOLS,
    Audit,
    Entry,
    Interpolation,
    Probe,
    Suite,
    entry_name,
    tasks_of,
)
from eval_zero_shot.tasks import load_task

FILES = ("draws", "items")  # of an entry
LISTS = ("task", "tasks")


def load_suite(path: str | Path) -> Suite:
    """Read a suite, its relative paths made to start at its folder.

    Raises EvalError where there is no such file, or listing every mistake in it with its key: of form, of tasks and
    files that are not there or no tasks, of two entries under one name.
    """
    path = Path(path)
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise EvalError(
            f"suite {path.name} is not readable YAML: {error}", why="nothing can be scored", fix="correct it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("suite", path, error, why="nothing can be scored", fix="check --suite") from None
    told: list[str] = []
    found: Suite | None = None
    try:
        found = Suite.model_validate(raw)
    except ValidationError as error:
        told += [f"{_key(e['loc'])}: {_said(e)}" for e in error.errors()]
    told += _of_entries(raw, path.parent)
    if found is not None:
        placed = {"entries": tuple(_entry_from(path.parent, entry) for entry in found.entries)}
        found = found.model_copy(update={"data": found.data and _from(path.parent, found.data), **placed})
        told += [f"entries.{i}: {said}" for i, said in _doubles(found)]
    if found is None or told:
        raise EvalError(
            f"suite {path.name} has {len(told)} mistake(s):\n    " + "\n    ".join(told),
            why="an entry that is not understood would be left out in silence",
            fix="correct the keys named above; docs/suite.md has the form",
        )
    return found


def require_names(suite: Suite) -> None:
    """Raise EvalError where entries would be one row of a table, or tasks cannot be read: all of them."""
    wrong = [error for entry in suite.entries for task in tasks_of(entry) if (error := _unread(task)) is not None]
    wrong += [
        EvalError(
            said, why="their rows would be one",
            fix="give one of them a name: in the suite, or change `name:` in a task file",
        )
        for _, said in _doubles(suite)
    ]  # fmt: skip
    if wrong:
        raise gathered(wrong)


def with_bases(suite: Suite, models: Mapping[str, str]) -> Suite:
    """The suite with every base a folder. models: name -> how the command line names it.

    Raises EvalError where bases are neither a folder (from the suite's own) nor the name of a model.
    """
    entries, wrong = [], []
    for entry in suite.entries:
        if isinstance(entry, Interpolation) and not (Path(entry.base).is_absolute() and Path(entry.base).is_dir()):
            if entry.base not in models or not Path(models[entry.base]).is_dir():
                wrong.append(
                    EvalError(
                        f"{entry_name(entry)}: the base is neither a release folder nor a model here",
                        why="there is nothing to interpolate with",
                        fix=f"name a folder, from the suite's own, or one of: {', '.join(models)}",
                    )
                )
                continue
            entry = entry.model_copy(update={"base": models[entry.base]})
        entries.append(entry)
    if wrong:
        raise gathered(wrong)
    return suite.model_copy(update={"entries": tuple(entries)})


def require_places(
    suite: Suite, names: list[str], reference: str | None, splits: Callable[[str], Mapping[str, Any]]
) -> None:
    """Raise EvalError where the reference is no model, or entries name studies or splits that are not there: all of
    them. names: of the models. splits: of the studies at a place; raises what is wrong with the place."""
    wrong: list[Exception] = []
    if reference is not None and reference not in names:
        wrong.append(EvalError(f"the reference {reference!r} is no model here", why="nothing could be compared with it",
                               fix=f"name one of: {', '.join(names)}"))  # fmt: skip
    lost: set[str] = set()
    for entry in suite.entries:
        for where, split in _wanted(entry, suite.data_of(entry)):
            if where in lost:
                continue
            try:
                there = splits(where)
            except DataError as error:
                lost.add(where)
                wrong.append(error)
                continue
            if not there.get(split):
                wrong.append(
                    EvalError(
                        f"{entry_name(entry)}: no study in split '{split}'",
                        why="hours of scoring would end without it",
                        fix=f"name one of: {', '.join(there)}",
                    )
                )
    if wrong:
        raise gathered(wrong)


def _wanted(entry: Entry, data: str | None) -> Iterator[tuple[str, str]]:
    """(place, split) of everything that an entry reads."""
    if data:
        yield data, entry.split
        if isinstance(entry, Probe):
            yield data, entry.train_split
        if isinstance(entry, Interpolation):
            yield data, entry.validation_split
    if isinstance(entry, Audit):
        yield from ((where, entry.train_split) for where in entry.train)


def _of_entries(raw: Any, folder: Path) -> list[str]:
    """Mistakes that a form alone does not show, of every entry that can be read, be the others right or wrong."""
    told = []
    entries = raw.get("entries") if isinstance(raw, dict) else None
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict) or str(entry.get("protocol")) not in PROTOCOLS:
            continue
        form = PROTOCOLS[entry["protocol"]].model_fields
        if not entry.get("data") and not raw.get("data") and entry["protocol"] != "vqa":
            told.append(f"entries.{i}: no data is named, neither here nor for the whole suite")
        both = [entry.get(name, form[name].default) for name in ("validation_split", "split") if name in form]
        if entry["protocol"] == "interpolation" and both[0] == both[1]:
            told.append(f"entries.{i}: validation_split and split are both '{both[0]}': name two splits")
        for name in (name for name in LISTS if name in form):
            named = entry.get(name) if name == "tasks" else [entry.get(name)]
            for task in named if isinstance(named, list) else []:
                wrong = _unread(_task_from(folder, task)) if isinstance(task, str) else None
                if wrong is not None:
                    told.append(f"entries.{i}.{name}: {wrong.what}")
        for name in (name for name in FILES if name in form and isinstance(entry.get(name), str)):
            if "://" not in entry[name] and not Path(_from(folder, entry[name])).expanduser().is_file():
                told.append(f"entries.{i}.{name}: there is no file '{Path(entry[name]).name}'")
    return told


def _unread(task: str) -> EvalError | None:
    try:
        load_task(task)
    except EvalError as error:
        return error
    return None


def _doubles(suite: Suite) -> Iterator[tuple[int, str]]:
    """(number of an entry, what it is the second of); entries of tasks that cannot be read have no name yet."""
    seen: set[tuple[str, str]] = set()
    for i, entry in enumerate(suite.entries):
        if any(_unread(name) is not None for name in tasks_of(entry)):
            continue
        tasks = [load_task(name).name for name in tasks_of(entry)]
        task = tasks[0] if tasks else ""
        labels = getattr(entry, "labels", None) or ""
        asked = labels.partition("=")[0].strip() if "=" in labels else "labels" if isinstance(entry, Probe) else ""
        of = entry.name or (asked if labels else task or asked) or Path(getattr(entry, "items", "")).stem
        protocol = str(getattr(entry, "protocol", ""))
        several = {"retrieval": getattr(entry, "texts", ()), "interpolation": tasks}.get(protocol, (of,))
        for name in (of,) if entry.name else several:
            if (protocol, name) in seen:
                yield i, f"two entries give {protocol} of {name or 'the same'}"
            seen.add((protocol, name))


def _entry_from(folder: Path, entry: Entry) -> Entry:
    update: dict[str, Any] = {
        name: _from(folder, value) for name in PATHS if (value := getattr(entry, name, None)) is not None
    }
    if isinstance(entry, Audit):
        update["train"] = tuple(_from(folder, where) for where in entry.train)
    if isinstance(entry, Interpolation):
        update["tasks"] = tuple(_task_from(folder, task) for task in entry.tasks)
        base = Path(_from(folder, entry.base)).expanduser()
        if base.is_dir():  # else it may be the name of a model
            update["base"] = str(base.resolve())
    elif tasks_of(entry):
        update["task"] = _task_from(folder, tasks_of(entry)[0])
    return entry.model_copy(update=update)


def _task_from(folder: Path, task: str) -> str:
    return _from(folder, task) if task.endswith((".yaml", ".yml")) else task


def _from(folder: Path, where: str) -> str:
    return where if "://" in where or Path(where).expanduser().is_absolute() else str(folder / where)


def _said(mistake: Any) -> str:
    """A mistake in the words of a suite file, with the keys or protocols there are."""
    kind, where = mistake["type"], mistake["loc"]
    if kind == "extra_forbidden":
        protocol = next((PROTOCOLS[part] for part in where if part in PROTOCOLS), None)
        known = sorted((protocol or Suite).model_fields)
        near = difflib.get_close_matches(str(where[-1]), known, n=1)
        return "is no key here" + (f"; did you mean {near[0]}?" if near else "") + f" There are: {', '.join(known)}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return f"needs protocol: one of {', '.join(PROTOCOLS)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "should hold keys with values, such as {protocol: classification, task: NAME}"
    if kind == "tuple_type":
        return "should be a list, in brackets"
    if kind == "too_short":
        return "is empty"
    if kind == "missing":
        return "is missing"
    return str(mistake["msg"]).removeprefix("Value error, ")


def _key(where: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in where if part not in PROTOCOLS) or "the file"
