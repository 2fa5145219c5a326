"""A table of studies: read whole, checked whole, and every mistake told before any work begins."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from data_shards.errors import DataError
from data_shards.sources.base import Listing, ScanFile, StudyRow
from data_shards.sources.cells import (
    Mistakes,
    labels_of,
    require_values,
    texts_of,
    told_columns,
    told_mistakes,
)
from data_shards.sources.records import LIST_SEPARATOR, Records, read_records
from data_shards.sources.records import read_columns as read_header
from data_shards.sources.table_spec import ImageColumn, TableSpec, parse_images, parse_labels, parse_texts, read_splits
from data_shards.sources.values import (
    ABSENT,
    PRESENT,
    SPLIT_NAMES,
    UNKNOWN,
    drawn_split,
    identifiers,
    numbers,
    split_name,
)

__all__ = [
    "ABSENT",
    "PRESENT",
    "SPLIT_NAMES",
    "UNKNOWN",
    "ImageColumn",
    "TableSpec",
    "parse_images",
    "parse_labels",
    "parse_texts",
    "read_header",
    "read_splits",
    "read_table",
]


def read_table(path: Path, spec: TableSpec) -> Listing:
    """The studies of a table (CSV, TSV, JSON lines, Parquet, XLSX). Raises one DataError that lists everything wrong
    with it: missing columns, files that do not exist, double ids, empty patients, unreadable labels or numbers, a
    patient in two splits. A quote that is never closed is refused before all that: nothing after it can be
    told apart."""
    spec.check()
    records = read_records(path, spec.needed, spec.where)
    if missing := sorted(spec.needed - set(records.columns)):
        known = told_columns(records.columns, spec.needed)
        raise DataError(f"the table has no column {missing}; {known}", fix=_naming(missing, spec))
    if not records.rows:
        raise DataError("the table has a header and no rows", fix="write one line a study below the header")
    mistakes: Mistakes = {}
    records, notes = _filtered(records, spec, mistakes)
    unnamed = _unnamed(path, spec)
    rows = [_row(line, records.columns, fields, spec, unnamed, mistakes) for line, fields in records.rows]
    require_values(records, spec.labels, spec.private)
    _refuse_copies(rows, spec)
    seen: dict[str, int] = {}
    split_of: dict[str, str] = {}
    for row in rows:
        if seen.setdefault(row.id, row.line) != row.line:
            mistakes.setdefault("the id was used on an earlier line", []).append(row.line)
        if split_of.setdefault(row.patient, row.split) != row.split:
            mistakes.setdefault("the patient is in another split on an earlier line", []).append(row.line)
    if mistakes:
        raise DataError(
            f"the table has mistakes ({records.counted})\n{told_mistakes(mistakes)}",
            "studies would be lost, mixed up, or tested on patients seen in training",
            "correct these lines",
        )
    return Listing(rows, notes=notes)


def _refuse_copies(rows: Sequence[StudyRow], spec: TableSpec) -> None:
    """Raise DataError for a kept column that is the id or the patient under another name."""
    for column in spec.meta_columns:
        kept = [(row.meta[column].lower(), row) for row in rows if column in row.meta]
        ids, patients = all(v == r.id.lower() for v, r in kept), all(v == r.patient.lower() for v, r in kept)
        if len(kept) > 1 and (ids or patients):
            raise DataError(
                f"the kept column {column!r} repeats the {'id' if ids else 'patient'} in every row",
                "it would reach whoever gets the shards",
                "leave it out of --meta-columns",
            )


def _filtered(records: Records, spec: TableSpec, mistakes: Mistakes) -> tuple[Records, tuple[str, ...]]:
    """The rows that meet spec.where. A row that cannot be compared, for it has no cell in each column, is a mistake."""
    if not spec.where:
        return records, ()
    from data_shards.conditions import meets, typed_table

    width = len(records.columns)
    for line, fields in records.rows:
        if len(fields) != width:
            mistakes.setdefault("more or fewer fields than the header has", []).append(line)
    whole = [(line, fields) for line, fields in records.rows if len(fields) == width]
    table = typed_table(records.columns, [fields for _, fields in whole])
    answer = meets(table, spec.where)
    kept = [row for row, yes in zip(whole, answer, strict=True) if yes]
    unknown = sum(yes is None for yes in answer)
    if not kept:
        raise DataError(
            f"no row of the table meets --where ({unknown} are unknown)", fix="check the values it compares with"
        )
    note = f"--where keeps {len(kept)} of {len(whole)} rows" + (f"; unknown for {unknown}, left out" if unknown else "")
    return replace(records, rows=kept), (note,)


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
    if set(missing) & set(spec.image_columns):
        ways.append("the image's with --image-column COL (default: image) or --image-template")
    return "name " + ("; ".join(ways) or "the columns that the table has in the options that ask for these")


def _unnamed(path: Path, spec: TableSpec) -> dict[ImageColumn, str]:
    """What is said of a row whose file does not exist, in the options that were given."""
    below = " names no file " + ("below the table's folder" if spec.root == path.parent else "below --root")
    said = {}
    for image in spec.images:
        alone = next(iter(image.columns), "")
        plain = image.template == f"{{{alone}}}"
        said[image] = (f"column {alone!r}" if plain else f"--image-template {image.template!r}") + below
    return said


def _row(
    line: int,
    columns: list[str],
    fields: list[str],
    spec: TableSpec,
    unnamed: dict[ImageColumn, str],
    mistakes: Mistakes,
) -> StudyRow:
    def wrong(what: str) -> None:
        mistakes.setdefault(what, []).append(line)

    if len(fields) != len(columns):
        wrong("more or fewer fields than the header has")
    cells = {column: field.strip() for column, field in zip_longest(columns, fields[: len(columns)], fillvalue="")}
    scans, place = _scans(cells, spec, unnamed, mistakes, line)
    patient = cells[spec.patient_column]
    if not patient:
        wrong("no patient")
    name = cells[spec.id_column] if spec.id_column else place
    if not name:
        wrong("no id")
    split = _split(cells, name, patient, spec, mistakes, line)
    labels = labels_of(cells, spec.labels, mistakes, line)
    texts = texts_of(cells, spec.texts)
    meta = {c: cells[c] for c in spec.meta_columns if cells[c]}
    told = [spec.id_column or "", spec.patient_column, *spec.known_columns]
    known = identifiers(cells[column] for column in told if column)
    return StudyRow(line, name, scans, patient, split, texts, labels, meta, known)


def _scans(
    cells: dict[str, str], spec: TableSpec, unnamed: dict[ImageColumn, str], mistakes: Mistakes, line: int
) -> tuple[tuple[ScanFile, ...], str]:
    """The scans of a row, and the text that names its first image. All but the first column may be blank."""

    def number(column: str | None) -> float | None:
        found = _numbers(cells, (column,) if column else (), 1, mistakes, line)
        return found[0] if found else None

    spacing = _numbers(cells, spec.spacing_columns, 3, mistakes, line)
    if spacing and min(spacing) <= 0:
        mistakes.setdefault(f"column {spec.spacing_columns[0]!r} is not a spacing above 0", []).append(line)
    blank = ScanFile(
        "",
        modality=(cells[spec.modality_column] or None) if spec.modality_column else None,
        spacing_mm=(spacing[0], spacing[1], spacing[2]) if spacing else None,
        slope=number(spec.slope_column),
        intercept=number(spec.intercept_column),
    )
    told = cells[spec.phase_column] if spec.phase_column else ""
    scans: list[ScanFile] = []
    first = ""
    for image in spec.images:
        empty = not any(cells[c] for c in image.columns)  # of a blank cell, the root folder would be named: it exists
        if empty and image is not spec.images[0]:
            continue
        place = image.place(cells)
        first = first or place
        for part in _paths(spec.root, place):
            path = spec.root / part
            if empty or not part or not _exists(path):
                mistakes.setdefault(unnamed[image], []).append(line)
            role = "further" if image.role == "primary" and scans else image.role
            scans.append(replace(blank, path=str(path), role=role, phase=told or image.phase))
    return tuple(scans), first


def _paths(root: Path, place: str) -> list[str]:
    """ "a.png;b.png" is two images, unless a file has just this name."""
    if LIST_SEPARATOR not in place or _exists(root / place):
        return [place]
    return [part for part in (p.strip() for p in place.split(LIST_SEPARATOR)) if part]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a report where a path should be: no file has such a name
            return False
        raise


def _numbers(
    cells: dict[str, str], columns: Sequence[str], wanted: int, mistakes: Mistakes, line: int
) -> list[float] | None:
    """The numbers of some columns, None where all are blank."""
    if not any(cells[column] for column in columns):
        return None
    try:
        found = [n for column in columns for n in numbers(cells[column])]
    except ValueError:
        found = []
    if len(found) != wanted:
        words = "a number" if wanted == 1 else f"{wanted} numbers (z, y, x in mm)"
        mistakes.setdefault(f"column {', '.join(map(repr, columns))} is not {words}", []).append(line)
        return None
    return found


def _split(cells: dict[str, str], name: str, patient: str, spec: TableSpec, mistakes: Mistakes, line: int) -> str:
    if spec.split_column:
        split = split_name(cells[spec.split_column])
        if not split:
            mistakes.setdefault("no split", []).append(line)
        return split
    if spec.splits is not None:
        found = spec.splits.get(name) or spec.splits.get(patient)
        if not found:
            mistakes.setdefault("neither id nor patient is in the split file", []).append(line)
        return found or ""
    group = cells[spec.group_column] if spec.group_column else patient
    if not group and spec.group_column:
        mistakes.setdefault(f"no group (column {spec.group_column!r})", []).append(line)
    return drawn_split(group, spec.val_fraction, spec.test_fraction)
