"""What a suite asks of every model: a YAML file of entries, each one protocol on some studies. Never imports torch.

    name: chest
    data: shards/chest                  # of every entry that names none
    entries:
      - {protocol: classification, task: ct_rate_18}
      - {protocol: retrieval, texts: [findings, impression], pools: [64, full]}
      - {protocol: probe, labels: "effusion,nodule", shots: [1, 4, 16]}
      - {protocol: vqa, items: slake.jsonl, images: slake/imgs, mapping: slake}
      - {protocol: audit, task: ct_rate_18, train: [shards/chest]}
      - {protocol: interpolation, base: releases/base, tasks: [ct_rate_18]}

Relative paths start at the file's folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, model_validator

from eval_zero_shot.cases import Scans
from eval_zero_shot.errors import EvalError
from eval_zero_shot.interpolation import ALPHAS
from eval_zero_shot.retrieval import KS, POOLS, Pool
from eval_zero_shot.tasks import load_task, read_yaml


class Entry(BaseModel):
    """What every protocol has. name: how tables call it, where two entries would have one name. resamples: draws of
    patients; 0, no intervals."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: StrictStr | None = None
    data: StrictStr | None = None
    split: StrictStr = "test"
    max_studies: int | None = Field(None, ge=2)
    seed: int = 0
    resamples: int = Field(1000, ge=0)


class Scored(Entry):
    """scans: which scans of a study with several are scored, and as what (eval_zero_shot.cases); none: the model's
    own choice."""

    scans: Scans | None = None


class Classification(Scored):
    """prompt_set: the one that stands for the task (none: its first). threshold_split: where thresholds are fitted and
    prompt sets scored for choosing (none: neither; a set that the data has not is no mistake)."""

    protocol: Literal["classification"]
    task: StrictStr
    prompt_set: StrictStr | None = None
    threshold_split: StrictStr | None = "val"


class Retrieval(Scored):
    """volumes: also volume to volume, by the labels of the shards. short_pool: as eval_zero_shot.retrieve."""

    protocol: Literal["retrieval"]
    texts: tuple[Literal["report", "findings", "impression", "captions"], ...] = Field(("report",), min_length=1)
    pools: tuple[Pool, ...] = Field(POOLS, min_length=1)
    ks: tuple[int, ...] = KS
    repeats: int = Field(100, ge=1)
    short_pool: bool = False
    volumes: bool = False


class Probe(Scored):
    """labels: as `eval_zero_shot.probe --labels` ("a,b", or "organ=liver|spleen"); none: the task's, else all."""

    protocol: Literal["probe"]
    labels: StrictStr | None = None
    task: StrictStr | None = None
    train_split: StrictStr = "train"
    validation_split: StrictStr = "val"
    fractions: tuple[float, ...] = ()
    shots: tuple[int, ...] = ()
    draws: StrictStr | None = None
    draws_count: int = Field(5, ge=1)
    knn: int = Field(20, ge=0)


class Vqa(Entry):
    """images: a folder (none: keys of the studies of `data`, else the items' own folder)."""

    protocol: Literal["vqa"]
    items: StrictStr
    images: StrictStr | None = None
    mapping: StrictStr = "own"
    template: StrictStr | None = None
    max_missing: int = Field(0, ge=0)


class Audit(Entry):
    protocol: Literal["audit"]
    task: StrictStr
    train: tuple[StrictStr, ...] = ()
    train_split: StrictStr = "train"
    max_train: int | None = Field(None, ge=2)


class Interpolation(Entry):
    """base: the release that models were tuned from, a folder or the name of a model of the run. alphas: 0 and 1 are
    always among them; one is chosen on the validation split, by the mean over the tasks."""

    protocol: Literal["interpolation"]
    base: StrictStr
    tasks: tuple[StrictStr, ...] = Field(min_length=1)
    validation_split: StrictStr = "val"
    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(ALPHAS, min_length=1)

    @model_validator(mode="after")
    def _apart(self) -> Interpolation:
        if self.validation_split == self.split:
            raise ValueError(f"validation_split and split are both '{self.split}': name two splits")
        return self


AnyEntry = Annotated[Classification | Retrieval | Probe | Vqa | Audit | Interpolation, Field(discriminator="protocol")]
PATHS = ("data", "draws", "items", "images")


class Suite(BaseModel):
    """Entries in the order of the file. reference: the model that the others are compared with (none: the first)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: StrictStr = Field(min_length=1)
    about: StrictStr = ""
    data: StrictStr | None = None
    reference: StrictStr | None = None
    entries: tuple[AnyEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _placed(self) -> Suite:
        for i, entry in enumerate(self.entries):
            if entry.data is None and self.data is None and not isinstance(entry, Vqa):
                raise ValueError(f"entries.{i}: no data is named, neither here nor for the whole suite")
        return self

    def data_of(self, entry: Entry) -> str | None:
        return entry.data or self.data


def load_suite(path: str | Path) -> Suite:
    """Read a suite, its relative paths made to start at its folder.

    Raises EvalError where there is no such file, or listing every mistake in it with its key.
    """
    path = Path(path)
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = str(error) if isinstance(error, yaml.YAMLError) else type(error).__name__
        raise EvalError(
            f"suite {path.name} cannot be read: {why}", why="nothing can be scored", fix="correct it"
        ) from None
    try:
        found = Suite.model_validate(raw)
    except ValidationError as error:
        told = "\n    ".join(f"{_key(e['loc'])}: {_said(e)}" for e in error.errors())
        raise EvalError(
            f"suite {path.name} has {len(error.errors())} mistake(s):\n    {told}",
            why="an entry that is not understood would be left out in silence",
            fix="correct the keys named above; docs/suite.md has the form",
        ) from None
    return found.model_copy(
        update={
            "data": found.data and _from(path.parent, found.data),
            "entries": tuple(_entry_from(path.parent, entry) for entry in found.entries),
        }
    )


def require_names(suite: Suite) -> None:
    """Raise EvalError where two entries would be one row of a table, or a task cannot be read."""
    seen: set[tuple[str, str]] = set()
    for entry in suite.entries:
        tasks = [load_task(name).name for name in tasks_of(entry)]
        task = tasks[0] if tasks else ""
        labels = getattr(entry, "labels", None) or ""
        asked = labels.partition("=")[0].strip() if "=" in labels else "labels" if entry.protocol == "probe" else ""
        of = entry.name or (asked if labels else task or asked) or Path(getattr(entry, "items", "")).stem
        several = {"retrieval": getattr(entry, "texts", ()), "interpolation": tasks}.get(entry.protocol, (of,))
        for name in (of,) if entry.name else several:
            if (entry.protocol, name) in seen:
                raise EvalError(
                    f"two entries give {entry.protocol} of {name or 'the same'}",
                    why="their rows would be one",
                    fix="give one of them a name: in the suite, or change `name:` in a task file",
                )
            seen.add((entry.protocol, name))


def with_bases(suite: Suite, models: Mapping[str, str]) -> Suite:
    """The suite with every base a folder. models: name -> how the command line names it.

    Raises EvalError where a base is neither a folder (from the suite's own) nor the name of a model.
    """
    entries = []
    for entry in suite.entries:
        if isinstance(entry, Interpolation) and not (Path(entry.base).is_absolute() and Path(entry.base).is_dir()):
            if entry.base not in models or not Path(models[entry.base]).is_dir():
                raise EvalError(
                    f"{entry_name(entry)}: the base is neither a release folder nor a model here",
                    why="there is nothing to interpolate with",
                    fix=f"name a folder, from the suite's own, or one of: {', '.join(models)}",
                )
            entry = entry.model_copy(update={"base": models[entry.base]})
        entries.append(entry)
    return suite.model_copy(update={"entries": tuple(entries)})


def images_of(entry: Entry, inputs: Any) -> Path | None:
    """The folder that an entry's images are in: named, else that of its items where they are no studies of shards."""
    if isinstance(entry, Vqa) and entry.images is None:
        return Path(entry.items).parent if inputs.shards is None else None
    images = getattr(entry, "images", None)
    return Path(images) if images else None


def entry_name(entry: Entry) -> str:
    """How progress and errors call an entry."""
    what = tasks_of(entry) or tuple(filter(None, (getattr(entry, "items", None),)))
    named = [entry.name] if entry.name else [Path(one).stem for one in what]
    return " ".join((str(getattr(entry, "protocol", "")), *named))


def tasks_of(entry: Entry) -> tuple[str, ...]:
    """The tasks that an entry names."""
    one = getattr(entry, "task", None)
    return (one,) if one else tuple(getattr(entry, "tasks", ()))


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


PROTOCOLS: dict[str, type[Entry]] = {
    "classification": Classification, "retrieval": Retrieval, "probe": Probe, "vqa": Vqa, "audit": Audit,
    "interpolation": Interpolation,
}  # fmt: skip


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
