"""Reports and labels of studies whose images come from elsewhere: a table, joined by a number that both know."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.schema import Caption, Texts
from data_shards.sources.records import read_records
from data_shards.sources.values import UNKNOWN, identifiers, label_value, split_name

JOINS = {"accession": ("accession",), "study": ("study",), "patient_date": ("patient", "date")}
_SHOWN = 8


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


@dataclass(frozen=True)
class Words:
    """What a row says about a study."""

    line: int
    texts: Texts
    labels: dict[str, int | None]
    split: str
    meta: dict[str, Any]
    known: tuple[str, ...]


def read_reports(table: ReportTable) -> dict[tuple[str, ...], Words]:
    """Key -> what its row says; rows with a blank key are left out. Raises one DataError that lists every mistake:
    missing columns, a key on two lines, labels that are neither 1, 0 nor unknown."""
    if table.by not in JOINS:
        raise DataError(f"studies cannot be joined by {table.by!r}", fix=f"use one of {tuple(JOINS)}")
    keys = table.key_columns or JOINS[table.by]
    if len(keys) != len(JOINS[table.by]):
        raise DataError(f"joining by {table.by} needs {len(JOINS[table.by])} columns", fix="name them, in this order")
    labels = {column for column, _ in table.labels.values()}
    split = (table.split_column,) if table.split_column else ()
    needed = {*keys, *table.texts.values(), *labels, *table.meta_columns, *table.known_columns, *split}
    records = read_records(Path(table.path), needed)
    if missing := sorted(needed - set(records.columns)):
        raise DataError(f"the table of reports has no column {missing}", fix=f"it has {records.columns}")
    found: dict[tuple[str, ...], Words] = {}
    mistakes: dict[str, list[int]] = {}
    for line, fields in records.rows:
        if len(fields) != len(records.columns):
            mistakes.setdefault("more or fewer fields than the header has", []).append(line)
            continue
        cells = {column: cell.strip() for column, cell in zip(records.columns, fields)}
        key = tuple(normal_key(name, cells[column]) for name, column in zip(JOINS[table.by], keys))
        if not all(key):
            continue
        if key in found:
            mistakes.setdefault(f"the {' and '.join(keys)} was used on an earlier line", []).append(line)
        text = {name: cells[column] for name, column in table.texts.items()}
        caption = text.pop("caption", "")
        found[key] = Words(
            line,
            Texts(**text, captions=(Caption(caption),) if caption else ()),
            _labels(cells, table, mistakes, line),
            split_name(cells[table.split_column]) if table.split_column else "",
            {column: cells[column] for column in table.meta_columns if cells[column]},
            identifiers(cells[column] for column in (*keys, *table.known_columns)),
        )
        if table.split_column and not found[key].split:
            mistakes.setdefault("no split", []).append(line)
    if mistakes:
        told = "\n".join(f"    {what}: {_lines(lines)}" for what, lines in mistakes.items())
        raise DataError(
            f"the table of reports has mistakes ({records.counted})\n{told}",
            "studies would get another's report, or none",
            "correct these lines",
        )
    return found


def normal_key(name: str, value: str) -> str:
    """The form in which header and table are compared: dates as 20240131, all else without surrounding blanks."""
    if name != "date":
        return value.strip()
    digits = re.sub(r"\D", "", value.split("T")[0])
    return digits if re.fullmatch(r"(19|20)\d{6}", digits) else ""


def _labels(
    cells: dict[str, str], table: ReportTable, mistakes: dict[str, list[int]], line: int
) -> dict[str, int | None]:
    labels: dict[str, int | None] = {}
    for label, (column, wanted) in table.labels.items():
        value = cells[column].lower()
        if wanted is not None:
            labels[label] = None if value in UNKNOWN - {"none", "-1"} else int(value == wanted.lower())
            continue
        try:
            labels[label] = label_value(value)
        except ValueError:
            mistakes.setdefault(f"label column {column!r} is neither 1, 0, -1 nor blank", []).append(line)
    return labels


def _lines(lines: list[int]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"line {', '.join(map(str, lines[:_SHOWN]))}{more}"
