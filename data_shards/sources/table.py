"""A CSV (or TSV) of studies: read whole, checked whole, and every mistake told before any work begins."""

from __future__ import annotations

import csv
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from data_shards.errors import DataError
from data_shards.schema import Caption, Texts
from data_shards.sources.base import Listing, ScanFile, StudyRow

SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
TEXT_FIELDS = ("report", "findings", "impression", "caption")
PRESENT = {"1", "1.0", "true", "yes", "y", "present", "positive", "pos"}
ABSENT = {"0", "0.0", "false", "no", "n", "absent", "negative", "neg"}
UNKNOWN = {"", "-1", "-1.0", "nan", "na", "n/a", "null", "none", "unknown", "uncertain"}
SHOWN = 8  # line numbers named per mistake
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


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
            column, _, wanted = (side.strip() for side in part.partition("="))
            labels["_".join(part.replace("=", " ").split())] = (column, wanted or None)
    return labels


def read_table(path: Path, spec: TableSpec) -> Listing:
    """The studies of a table. Raises one DataError that lists everything wrong with it: missing columns, files that do
    not exist, double ids, empty patients, unreadable labels, a patient in two splits. A quote that is never closed is
    refused before all that: nothing after it can be told apart."""
    (_, columns), *records = _records(path)
    needed = _needed(spec)
    if missing := sorted(needed - set(columns)):
        # Where not one name is right, the first line may be a study and not a header: it is not repeated.
        known = f"it has {columns}" if needed & set(columns) else "is its first line the header?"
        raise DataError(f"the table has no column {missing}; {known}", fix=_naming(missing, spec))
    if not records:
        raise DataError("the table has a header and no rows", fix="write one line a study below the header")
    mistakes: dict[str, list[int]] = {}
    unnamed = _unnamed(path, spec)
    rows = [_row(line, columns, fields, spec, unnamed, mistakes) for line, fields in records]
    _require_values(columns, [fields for _, fields in records], spec)
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
    return Listing(rows)


def read_header(path: Path) -> list[str]:
    """The names of a table's columns. Raises DataError for a file that is no table."""
    return next(_records(path))[1]


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line it starts on, fields) of the header and of every row that is not blank."""
    csv.field_size_limit(min(sys.maxsize, 1 << 27))  # a report may be longer than csv's default of 128 KB
    separator, start = "\t" if path.suffix == ".tsv" else ",", 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            _check_first_line(file.readline(), separator)
            file.seek(0)
            # Not strict, csv takes an open quote to the end of the file for one long report of one patient.
            reader = csv.reader(file, delimiter=separator, strict=True)
            for fields in reader:
                if fields:
                    yield start, fields
                start = reader.line_num + 1
    except csv.Error as error:
        open_to_the_end = "unexpected end" in str(error)
        raise DataError(
            f"the row that starts on line {start} has a quote that is "
            + ("never closed" if open_to_the_end else "not closed, or stands alone within quoted text"),
            "the rows after it would be read as part of its text: one patient's report under another's image",
            'put one " before and one " after the text, next to the separators, and write a " inside it twice: ""',
        ) from None
    except FileNotFoundError:
        raise DataError("the table does not exist", fix="check --source") from None
    except OSError as error:
        raise DataError(f"the table cannot be read ({error.strerror})", fix="give --source a CSV file") from None
    except UnicodeDecodeError:
        raise DataError("the table is not UTF-8", "names and reports would be garbled", "save it as UTF-8") from None


def _check_first_line(line: str, separator: str) -> None:
    if not line.strip():
        raise DataError("the table is empty, or begins with an empty line", fix="name the columns on the first line")
    others = [other for other in SEPARATORS if other in line]
    if separator not in line and others:
        raise DataError(
            f"the table is separated by {SEPARATORS[others[0]]}, not by {SEPARATORS[separator]}",
            "all of its columns would be one",
            "save it with commas, as .csv" + (" (or with tabs, as .tsv)" if separator == "\t" else ""),
        )


def _naming(missing: list[str], spec: TableSpec) -> str:
    """How to name the columns that were not found."""
    ways = []
    if set(missing) & set(spec.texts.values()):
        ways.append("the report's with --text-columns COL (default: report), or FINDINGS,IMPRESSION")
    if spec.patient_column in missing:
        alone = spec.id_column or "COLUMN_OF_STUDIES"
        ways.append(
            f"the patient's with --patient-column COL (default: patient; --patient-column {alone} where every study "
            "is another patient)"
        )
    if set(missing) & _template_columns(spec):
        ways.append("the image's with --image-column COL (default: image) or --image-template")
    return "name " + ("; ".join(ways) or "the columns that the table has in the options that ask for these")


def _unnamed(path: Path, spec: TableSpec) -> str:
    """What is said of a row whose file does not exist, in the options that were given."""
    columns = _template_columns(spec)
    alone = next(iter(columns), "")
    template = spec.image_template
    source = f"column {alone!r}" if template == f"{{{alone}}}" else f"--image-template {template!r}"
    return f"{source} names no file " + ("below the table's folder" if spec.root == path.parent else "below --root")


def _template_columns(spec: TableSpec) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(spec.image_template) if name}


def _needed(spec: TableSpec) -> set[str]:
    optional = {c for c in (spec.id_column, spec.split_column) if c}
    labels = {column for column, _ in spec.labels.values()}
    named = {spec.patient_column, *spec.texts.values(), *spec.meta_columns}
    return named | _template_columns(spec) | optional | labels


def _row(
    line: int, columns: list[str], fields: list[str], spec: TableSpec, unnamed: str, mistakes: dict[str, list[int]]
) -> StudyRow:
    def wrong(what: str) -> None:
        mistakes.setdefault(what, []).append(line)

    if len(fields) != len(columns):
        wrong("more or fewer fields than the header has")
    cells = {column: field.strip() for column, field in zip_longest(columns, fields[: len(columns)], fillvalue="")}
    place = spec.image_template.format_map(cells)
    image = spec.root / place
    if not place or not image.exists():  # a blank cell would name the root folder, which exists
        wrong(unnamed)
    patient = cells[spec.patient_column]
    if not patient:
        wrong("no patient")
    name = cells[spec.id_column] if spec.id_column else place
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
    return StudyRow(line, name, (ScanFile(str(image)),), patient, split, texts, labels, meta)


def _split_of(patient: str, val: float, test: float) -> str:
    """By a hash of the patient: the same patient in the same split in every table, whatever else the table holds."""
    import hashlib

    place = int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest(), "big") / 2**64
    return "val" if place < val else "test" if place < val + test else "train"


def _require_values(columns: list[str], records: list[list[str]], spec: TableSpec) -> None:
    """Of COL=VALUE, refuse a value that no row has: every study would be stored without the finding."""
    for column, wanted in spec.labels.values():
        at = columns.index(column)
        values = {fields[at].strip().lower() for fields in records if at < len(fields)}
        if wanted is not None and wanted.lower() not in values:
            few = sorted(values - {""})
            private = {spec.patient_column, spec.id_column, *spec.texts.values(), *_template_columns(spec)}
            shown = len(few) <= SHOWN and column not in private
            raise DataError(
                f"--label-columns {column}={wanted}: no row has this value in column {column!r}",
                "every study would be stored as one without the finding",
                f"it has {few}" if shown else f"it has {len(few)} other values: check the spelling",
            )


def _lines(lines: list[int]) -> str:
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"line {', '.join(map(str, lines[:SHOWN]))}{more}"
