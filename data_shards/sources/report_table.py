"""Reports and labels of studies whose images come from elsewhere: a table, joined by a number that both know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.schema import Texts
from data_shards.sources.cells import (
    Mistakes,
    date_of,
    labels_of,
    require_values,
    texts_of,
    told_columns,
    told_mistakes,
)
from data_shards.sources.records import read_records
from data_shards.sources.values import identifiers, split_name

JOINS = {"accession": ("accession",), "study": ("study",), "patient_date": ("patient", "date")}


@dataclass(frozen=True)
class ReportTable:
    """A table of reports. by: how a row finds its study, a key of JOINS.

    key_columns: its columns: the accession number, the StudyInstanceUID, or patient and study date.
    texts, labels: as in data_shards.sources.table.TableSpec. known_columns: identifiers to mask in the texts.
    """

    path: str | Path
    texts: dict[str, str]
    by: str = "accession"
    key_columns: tuple[str, ...] = ()
    labels: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    split_column: str | None = None
    meta_columns: tuple[str, ...] = ()
    known_columns: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns by which a row finds its study."""
        return self.key_columns or JOINS[self.by]

    @property
    def needed(self) -> set[str]:
        """The columns that the table must have."""
        labels = (column for column, _ in self.labels.values())
        split = (self.split_column,) if self.split_column else ()
        return {*self.keys, *self.texts.values(), *labels, *self.meta_columns, *self.known_columns, *split}


@dataclass(frozen=True)
class Words:
    """What a row says about a study."""

    line: int
    texts: Texts
    labels: dict[str, int | None]
    split: str
    meta: dict[str, Any]
    known: tuple[str, ...]

    def same_as(self, other: Words) -> bool:
        """Whether a study means the same with either: one report is often filed under two accession numbers."""
        return (self.texts, self.labels, self.split) == (other.texts, other.labels, other.split)


def read_reports(table: ReportTable) -> tuple[dict[tuple[str, ...], Words], int]:
    """(key -> what its row says, number of rows with a blank key, which are left out). Raises one DataError that lists
    every mistake: missing columns, a key on two lines, dates that are none, labels that are neither 1, 0 nor unknown;
    and for a label's value that no row has."""
    if table.by not in JOINS:
        raise DataError(f"studies cannot be joined by {table.by!r}", fix=f"use one of {tuple(JOINS)}")
    keys, needed = table.keys, table.needed
    if len(keys) != len(JOINS[table.by]):
        raise DataError(f"joining by {table.by} needs {len(JOINS[table.by])} columns", fix="name them, in this order")
    records = read_records(Path(table.path), needed)
    if missing := sorted(needed - set(records.columns)):
        raise DataError(f"the table of reports has no column {missing}", fix=told_columns(records.columns, needed))
    found: dict[tuple[str, ...], Words] = {}
    blank = 0
    mistakes: Mistakes = {}
    for line, fields in records.rows:
        if len(fields) != len(records.columns):
            mistakes.setdefault("more or fewer fields than the header has", []).append(line)
            continue
        cells = {column: cell.strip() for column, cell in zip(records.columns, fields)}
        key = tuple(normal_key(name, cells[column]) for name, column in zip(JOINS[table.by], keys))
        if not all(cells[column] for column in keys):
            blank += 1
            continue
        if not all(key):
            what = f"{keys[-1]!r} is no date (write 2024-01-31, 20240131 or 31.1.2024)"
            mistakes.setdefault(what, []).append(line)
            continue
        if key in found:
            mistakes.setdefault(f"the {' and '.join(keys)} was used on an earlier line", []).append(line)
        found[key] = Words(
            line,
            texts_of(cells, table.texts),
            labels_of(cells, table.labels, mistakes, line),
            split_name(cells[table.split_column]) if table.split_column else "",
            {column: cells[column] for column in table.meta_columns if cells[column]},
            identifiers(cells[column] for column in (*keys, *table.known_columns)),
        )
        if table.split_column and not found[key].split:
            mistakes.setdefault("no split", []).append(line)
    if mistakes:
        raise DataError(
            f"the table of reports has mistakes ({records.counted})\n{told_mistakes(mistakes)}",
            "studies would get another's report, or none",
            "correct these lines",
        )
    require_values(records, table.labels, {*keys, *table.texts.values(), *table.known_columns})
    return found, blank


def normal_key(name: str, value: str) -> str:
    """The form in which header and table are compared: dates as 20240131, all else without surrounding blanks."""
    return date_of(value) if name == "date" else value.strip()
