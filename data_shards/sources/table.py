"""A CSV (or TSV) of studies: read whole, checked whole, and every mistake told before any work begins."""

from __future__ import annotations

import csv
import string
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.schema import Caption, Texts

SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
TEXT_FIELDS = ("report", "findings", "impression", "caption")
PRESENT = {"1", "1.0", "true", "yes", "y", "present", "positive", "pos"}
ABSENT = {"0", "0.0", "false", "no", "n", "absent", "negative", "neg"}
UNKNOWN = {"", "-1", "-1.0", "nan", "na", "n/a", "null", "none", "unknown", "uncertain"}
SHOWN = 8  # line numbers named per mistake


@dataclass(frozen=True)
class TableSpec:
    """Where the columns are. `texts`: field of the study -> column. `labels`: label -> (column, value that means
    present, or None for a 0/1 column)."""

    root: Path
    image_template: str
    patient_column: str
    texts: dict[str, str]
    id_column: str | None = None
    split_column: str | None = None
    labels: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    meta_columns: tuple[str, ...] = ()
    val_fraction: float = 0.1
    test_fraction: float = 0.0


@dataclass(frozen=True)
class TableRow:
    """One study as the table tells it; nothing is hashed yet, so it never leaves the building process."""

    line: int
    id: str
    image: str
    patient: str
    split: str
    texts: Texts
    labels: dict[str, int | None]
    meta: dict[str, Any]


def parse_texts(value: str) -> dict[str, str]:
    """ "col" -> report; "a,b" -> findings, impression; "findings=a,impression=b,caption=c" as said."""
    parts = [p.strip() for p in value.split(",") if p.strip()]
    if parts and all("=" in p for p in parts):
        named = dict(p.split("=", 1) for p in parts)
    elif len(parts) in (1, 2) and not any("=" in p for p in parts):
        named = dict(zip(("report",) if len(parts) == 1 else ("findings", "impression"), parts))
    else:
        raise DataError(
            f"--text-columns {value!r} is not understood", fix="say REPORT, FINDINGS,IMPRESSION or report=COLUMN,…"
        )
    if strange := sorted(set(named) - set(TEXT_FIELDS)):
        raise DataError(f"--text-columns has no text field {strange}", fix=f"use {TEXT_FIELDS}")
    return named


def parse_labels(value: str) -> dict[str, tuple[str, str | None]]:
    """ "effusion,fat=moderate" -> {"effusion": ("effusion", None), "fat_moderate": ("fat", "moderate")}."""
    labels: dict[str, tuple[str, str | None]] = {}
    for part in (p.strip() for p in value.split(",")):
        if part:
            column, _, wanted = part.partition("=")
            labels["_".join(part.replace("=", "_").split())] = (column, wanted or None)
    return labels


def read_table(path: Path, spec: TableSpec) -> list[TableRow]:
    """The studies of a table. Raises one DataError that lists everything wrong with it: missing columns, files that do
    not exist, double ids, empty patients, unreadable labels, a patient in two splits."""
    csv.field_size_limit(min(sys.maxsize, 1 << 27))  # a report may be longer than csv's default of 128 KB
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            columns, records = list(reader.fieldnames or []), list(reader)
    except FileNotFoundError:
        raise DataError("the table does not exist", fix="check --source") from None
    except UnicodeDecodeError:
        raise DataError("the table is not UTF-8", "names and reports would be garbled", "save it as UTF-8") from None
    if missing := sorted(_needed(spec) - set(columns)):
        raise DataError(
            f"the table has no column {missing}; it has {columns}",
            fix="name the right ones: --patient-column, --image-column or --image-template, --text-columns, …",
        )
    if not records:
        raise DataError("the table has no rows")
    mistakes: dict[str, list[int]] = {}
    rows = [_row(i, record, spec, mistakes) for i, record in enumerate(records, 2)]
    seen: dict[str, int] = {}
    split_of: dict[str, str] = {}
    for row in rows:
        if seen.setdefault(row.id, row.line) != row.line:
            mistakes.setdefault("the id was used on an earlier line", []).append(row.line)
        if split_of.setdefault(row.patient, row.split) != row.split:
            mistakes.setdefault("the patient is in another split on an earlier line", []).append(row.line)
    if mistakes:
        told = "\n".join(f"    {what}: {_lines(lines)}" for what, lines in mistakes.items())
        raise DataError(
            f"the table has mistakes (line numbers of the file; the header is line 1)\n{told}",
            "studies would be lost, mixed up, or tested on patients seen in training",
            "correct these lines",
        )
    return rows


def _needed(spec: TableSpec) -> set[str]:
    named = {name for _, name, _, _ in string.Formatter().parse(spec.image_template) if name}
    optional = {c for c in (spec.id_column, spec.split_column) if c}
    labels = {column for column, _ in spec.labels.values()}
    return named | optional | labels | {spec.patient_column} | set(spec.texts.values()) | set(spec.meta_columns)


def _row(line: int, record: dict[str, Any], spec: TableSpec, mistakes: dict[str, list[int]]) -> TableRow:
    def wrong(what: str) -> None:
        mistakes.setdefault(what, []).append(line)

    if None in record or None in record.values():
        wrong("more or fewer fields than the header has")
    cells = {k: (v or "").strip() for k, v in record.items() if isinstance(k, str)}
    image = spec.root / spec.image_template.format_map(cells)
    if not image.exists():
        wrong(f"no file at --image-template {spec.image_template!r} under --root")
    patient = cells[spec.patient_column]
    if not patient:
        wrong("no patient")
    name = cells[spec.id_column] if spec.id_column else spec.image_template.format_map(cells)
    if not name:
        wrong("no id")
    if spec.split_column:
        split = cells[spec.split_column].lower()
        split = SPLIT_NAMES.get(split, split)
        if not split:
            wrong("no split")
    else:
        split = _split_of(patient, spec.val_fraction, spec.test_fraction)
    labels: dict[str, int | None] = {}
    for label, (column, wanted) in spec.labels.items():
        value = cells[column].lower()
        if wanted is not None:
            labels[label] = None if value in UNKNOWN - {"none", "-1"} else int(value == wanted.lower())
        elif value in PRESENT | ABSENT | UNKNOWN:
            labels[label] = None if value in UNKNOWN else int(value in PRESENT)
        else:
            wrong(f"label column {column!r} is neither 1, 0, -1 nor blank (for categories say {column}=VALUE)")
    text = {name: cells[column] for name, column in spec.texts.items()}
    caption = text.pop("caption", "")
    texts = Texts(**text, captions=(Caption(caption),) if caption else ())
    meta = {c: cells[c] for c in spec.meta_columns if cells[c]}
    return TableRow(line, name, str(image), patient, split, texts, labels, meta)


def _split_of(patient: str, val: float, test: float) -> str:
    """By a hash of the patient: the same patient in the same split in every table, whatever else the table holds."""
    import hashlib

    place = int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest(), "big") / 2**64
    return "val" if place < val else "test" if place < val + test else "train"


def _lines(lines: list[int]) -> str:
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"line {', '.join(map(str, lines[:SHOWN]))}{more}"
