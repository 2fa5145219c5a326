"""Every entry of a suite for every model, each kept as soon as it is there: a run that was stopped goes on.

    OUT/cells/NAME-HASH/     one entry, one model: results.json, scores.parquet, and what the protocol leaves beside
                             them (pairs.csv of an audit, release/ of an interpolation)
    OUT/results.json, scores.parquet, results.csv, comparisons/MODEL/, report.html

The hash is of what determines a cell: entry, weights, data, task, and the code of this package. A cell that is there is
not scored again, and one that no longer fits is not found.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval_zero_shot.cases import Scans
from eval_zero_shot.errors import EvalError, LeftOut, unreadable
from eval_zero_shot.feature_cache import code_sha256
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.outcome import Outcome, read_results, write_results
from eval_zero_shot.release import model_name
from eval_zero_shot.suite_file import Entry, Suite, entry_name, images_of, tasks_of

Opener = Callable[[str, str | None, Scans | None], Inputs]  # model, data (None: the protocol needs no shards), cases


# Keys of an entry that name a place of this machine: what is there determines a cell, and the place itself does not.
PLACES = {"data", "draws", "items", "images", "train", "base", "task", "tasks"}


@dataclass(frozen=True)
class Cell:
    """Where an entry of a model is kept. model: as the command line names it.

    folder: a protocol may leave files there, each written aside and renamed (nothing is there before); they count once
    results.json is there too, which is written last.
    """

    model: str
    folder: Path

    def place(self, name: str) -> str:
        """Where a file of it lies, relative to the folder of the run."""
        return f"cells/{self.folder.name}/{name}"


Protocols = Mapping[str, Callable[[Inputs, Any, Cell], Sequence[Outcome]]]


@dataclass(frozen=True)
class Failed:
    """An entry that could not be scored for a model, and why."""

    model: str
    entry: str
    reason: str


def run_suite(
    suite: Suite,
    models: Sequence[str],
    out: Path,
    open_inputs: Opener,
    protocols: Protocols,
    tell: Callable[[str], None],
) -> tuple[list[Outcome], list[Failed]]:
    """Outcomes in the order of models and entries, and what could not be scored; the rest goes on. What a protocol has
    nothing to ask of is told and is no failure."""
    outcomes: list[Outcome] = []
    failed: list[Failed] = []
    total, number = len(models) * len(suite.entries), 0
    for model in models:
        for entry in suite.entries:
            number += 1
            name = entry_name(entry)
            try:
                inputs = open_inputs(model, suite.data_of(entry), getattr(entry, "scans", None))
                folder = out / "cells" / cell_name(entry, inputs)
                known = _readable(folder)
                tell(f"[{number}/{total}] {inputs.name}: {name}{' (kept)' if known else ''}")
                if not known:
                    shutil.rmtree(folder, ignore_errors=True)  # of one that is damaged, or was never finished
                    found = _named(protocols[_protocol(entry)](inputs, entry, Cell(model, folder)), entry.name)
                    about = {"entry": entry.model_dump(mode="json", exclude=PLACES), "files": _files(folder)}
                    write_results(folder, found, about)
                outcomes += [replace(one, model=inputs.name) for one in read_results(folder)]
            except LeftOut as reason:
                tell(f"[{number}/{total}] {model_name(model)}: {name} left out: {reason}")
            except ValueError as error:  # EvalError, DataError, ReleaseError: told, and the other entries go on
                tell(f"[{number}/{total}] {model_name(model)}: {name} FAILED")
                failed.append(Failed(model_name(model), name, str(error)))
    _require_names(outcomes)
    return outcomes, failed


def _readable(folder: Path) -> bool:
    """Whether a cell is whole; one that a full disk or a power cut damaged is scored again."""
    try:
        found = read_results(folder)
        about = json.loads((folder / "results.json").read_text(encoding="utf-8"))["about"]
        return bool(found) and all((folder / name).is_file() for name in about["files"])
    except (EvalError, TypeError, KeyError):
        return False


def _files(folder: Path) -> list[str]:
    """What a protocol left in its cell."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _named(found: Sequence[Outcome], name: str | None) -> list[Outcome]:
    """With the entry's own name as the task's, where it has one."""
    if name is None:
        return list(found)
    return [replace(one, task=name if len(found) == 1 else f"{name} {one.task}") for one in found]


def _protocol(entry: Entry) -> str:
    return str(entry.protocol)  # type: ignore[attr-defined]


def cell_name(entry: Entry, inputs: Inputs) -> str:
    """A folder's name: readable, and another one where anything that determines the scores is another."""
    from encoders.folder import inspect
    from eval_zero_shot.tasks import load_task

    tasks = [load_task(task) for task in tasks_of(entry)]
    base = getattr(entry, "base", None)
    files = [getattr(entry, name, None) for name in ("draws", "items")]
    whole = {
        "entry": entry.model_dump(mode="json", exclude=PLACES),
        "model": inputs.loaded.sha256,
        "geometry": inputs.loaded.geometry.identity,
        "view": inputs.loaded.view.identity,
        "data": None if inputs.shards is None else inputs.shards.manifest_hash,
        "train": [inputs.open_shards(where).manifest_hash for where in getattr(entry, "train", ())],
        "images": _listing(str(images) if (images := images_of(entry, inputs)) else None),
        "tasks": [[task.identity, task.groups, task.about] for task in tasks],
        "base": inspect(base, verify=False).sha256 if base else None,
        "files": [_sha256(file) if file else None for file in files],
        "precision": inputs.arithmetic,
        "code": [code_sha256(), own_code_sha256()],
    }
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{inputs.name}-{entry_name(entry)}")[:60]
    return f"{readable}-{digest[:12]}"


def _sha256(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        why, fix = "there is nothing to ask", "check items: or draws:"
        raise unreadable("file", Path(file), error, why=why, fix=fix) from None


def _listing(folder: str | None) -> str | None:
    """Of names, sizes and times of the files below a folder: what tells that an image is another one."""
    if folder is None:
        return None
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    told = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@lru_cache(maxsize=1)
def own_code_sha256() -> str:
    """Of this package's source: a protocol that was changed is run again."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(here.rglob("*.py")):
        digest.update(f"{file.relative_to(here)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _require_names(outcomes: Sequence[Outcome]) -> None:
    """Two models of one name would be one row of a table."""
    seen: dict[tuple[str, str, str], str] = {}
    for o in outcomes:
        before = seen.setdefault((o.protocol, o.task, o.model), o.model_sha256)
        if before != o.model_sha256:
            raise EvalError(f"two models are called {o.model}", why="their rows would be one", fix="rename a folder")
