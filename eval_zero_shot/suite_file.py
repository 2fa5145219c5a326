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

Relative paths start at the file's folder. `suite_read.load_suite` reads one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from eval_zero_shot.cases import Scans
from eval_zero_shot.interpolation import ALPHAS
from eval_zero_shot.retrieval import KS, POOLS, Pool


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
    prompt sets scored for choosing (none: neither; a set that the data has not is no mistake). attended: of models that
    were released with this head, also scores by it."""

    protocol: Literal["classification"]
    task: StrictStr
    prompt_set: StrictStr | None = None
    threshold_split: StrictStr | None = "val"
    attended: bool = False


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
    features: Literal["projected", "trunk"] = "projected"
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

    def data_of(self, entry: Entry) -> str | None:
        return entry.data or self.data


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


PROTOCOLS: dict[str, type[Entry]] = {
    "classification": Classification, "retrieval": Retrieval, "probe": Probe, "vqa": Vqa, "audit": Audit,
    "interpolation": Interpolation,
}  # fmt: skip
