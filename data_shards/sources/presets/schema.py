"""What a preset YAML may say. Strict: an unknown key is an error, told with its place."""

from __future__ import annotations

import re
import string
from dataclasses import fields
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_shards.schema import Texts

Paths = Annotated[str | list[str], "a path below the root, or several of which the first that exists is read"]
TEXTS = tuple(f.name for f in fields(Texts) if f.name != "captions")
PART = "part"  # column of every row: the name of the part (folder, file) that it comes from


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Table(Strict):
    """files: one for all, or one per part of the collection. key: its column to join on; on: the column of the rows so
    far that it is compared with (default: the same name)."""

    files: Paths | dict[str, Paths]
    key: str | None = None
    on: str | None = None
    optional: bool = False

    def of_part(self, part: str) -> list[str]:
        """Paths to try for a part."""
        found = self.files.get(part, []) if isinstance(self.files, dict) else self.files
        return [found] if isinstance(found, str) else list(found)


class Rule(Strict):
    """A new column: the cell of `from` (or a template of columns), cut by `match` (group 1, blank where it does not
    match), translated by `words`."""

    source: str | None = Field(None, alias="from")
    template: str | None = None
    match: str | None = None
    words: dict[str, str] = {}

    @field_validator("match")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value is not None and re.compile(value).groups < 1:
            raise ValueError("needs a group: (…)")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Rule:
        if (self.source is None) == (self.template is None):
            raise ValueError("say either from or template")
        return self


class Exclude(Strict):
    """Rows to leave out: those whose `column` is named in a list file, one a line, cut by `match`."""

    files: Paths | dict[str, Paths]
    column: str
    match: str | None = None
    why: str


class Carve(Strict):
    """Take a fraction of one split's patients, drawn by hash, for another split."""

    source: str = Field(alias="from")
    to: str
    fraction: float = Field(gt=0, lt=1)


class Split(Strict):
    column: str
    words: dict[str, str] = {}
    carve: Carve | None = None


class Image(Strict):
    """Where a scan lies, and the columns that say what its file does not. Of several, the first there is taken."""

    path: str
    slope: str | None = None
    intercept: str | None = None
    spacing: list[str] = []
    axes: str | None = None
    role: str | None = None
    phase: str | None = None


class Order(Strict):
    """Which scan of a study comes first, and is its primary one: by the place of a column's value in `first`."""

    column: str
    first: list[str]


class Labels(Strict):
    """columns: their names, or "*" for all but the key and `but`. places: what parts FINDING from PLACE in a name."""

    table: str
    columns: str | list[str] = "*"
    but: list[str] = []
    places: str | None = None


class Captions(Strict):
    """Sentences made of the labels that are present. phrase: {finding} and, of labels with places, {place}."""

    templates: list[str]
    phrase: str = "{finding}"
    none: str
    words: dict[str, str] = {}


class Preset(Strict):
    name: str
    title: str
    source: str
    licence: str
    modality: str
    roots: list[str] = [""]
    parts: list[str] = ["all"]
    base: str
    tables: dict[str, Table]
    columns: dict[str, Rule | list[Rule]] = {}
    exclude: list[Exclude] = []
    study: str
    patient: str
    split: Split
    images: list[Image]
    scans: str = Field("all", pattern="^(all|first)$")
    order: Order | None = None
    texts: dict[str, str] = {}
    text_files: dict[str, list[str]] = {}
    labels: Labels | None = None
    captions: Captions | None = None
    meta: dict[str, str] = {}
    notes: list[str] = []

    @model_validator(mode="after")
    def _names(self) -> Preset:
        named = [self.base, *([self.labels.table] if self.labels else [])]
        if strange := [name for name in named if name not in self.tables]:
            raise ValueError(f"no table {strange}; there are {list(self.tables)}")
        if strange := sorted({*self.texts, *self.text_files} - set(TEXTS)):
            raise ValueError(f"no text {strange}; there are {list(TEXTS)}")
        if self.captions and not self.labels:
            raise ValueError("captions are made of labels, and there are none")
        if not (self.texts or self.text_files or self.captions):
            raise ValueError("a study needs words: texts, text_files or captions")
        return self

    @property
    def used(self) -> set[str]:
        """All columns that are looked at; a table may have thousands of others."""
        rules = [r for several in self.columns.values() for r in (several if isinstance(several, list) else [several])]
        templates = [r.template for r in rules if r.template] + [image.path for image in self.images]
        templates += [path for paths in self.text_files.values() for path in paths]
        names = {name for template in templates for name in names_in(template)} | {r.source for r in rules if r.source}
        names |= {n for i in self.images for n in (i.slope, i.intercept, *i.spacing, i.role, i.phase) if n}
        names |= {n for t in self.tables.values() for n in (t.key, t.on) if n} | {e.column for e in self.exclude}
        names |= {self.study, self.patient, self.split.column, *self.texts.values(), *self.meta.values()}
        return names | ({self.order.column} if self.order else set())


def names_in(template: str) -> list[str]:
    """The columns that a template is made of."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]
