"""Table files to records of text: CSV, TSV, JSON lines (each also .gz), Parquet and XLSX look alike from here on.

Every cell becomes text in one way, whatever the format: 1.0 is "1", a missing value or NaN is "", True is "1", a date
is 2024-05-31, a list is its items with ";" between them.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
import math
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from data_shards.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".xlsx")
SCANS = (".nii", ".npy", ".npz", ".dcm", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
LIST_SEPARATOR = ";"


@dataclass(frozen=True)
class Records:
    """A table read whole. rows: (line, one text per column). A CSV row may have more or fewer texts than columns.

    line: in CSV and JSON lines the line of the file it starts on, in a sheet its row, in Parquet its number from 1.
    counted: what the lines are, for messages.
    """

    columns: list[str]
    rows: list[tuple[int, list[str]]]
    counted: str


def read_records(path: Path, only: Iterable[str] | None = None, where: str = "") -> Records:
    """All rows of a table that are not blank. `only`: columns that will be looked at (Parquet reads no others).
    `where`: a condition that may look at others; of these, bytes that it does not name are not read.

    Raises: DataError for a file that is no table, a quote never closed, a column named twice, a sheet with errors in
    it, a JSON line that is no object.
    """
    suffix = table_suffix(path)
    if suffix == ".parquet":
        return _parquet(path, only, where)
    if suffix == ".xlsx":
        return _checked(_xlsx(path))
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl(path)
    (_, columns), *rows = _csv(path)
    return _checked(Records(columns, rows, "line numbers of the file; the header is line 1"))


def read_columns(path: Path) -> list[str]:
    """The names of a table's columns. Raises: DataError for a file that is no table."""
    suffix = table_suffix(path)
    if suffix == ".parquet":
        return list(_parquet_file(path).schema_arrow.names)
    if suffix in (".jsonl", ".ndjson", ".xlsx"):
        return read_records(path).columns
    return next(_csv(path))[1]


def table_suffix(path: Path) -> str:
    """The suffix that says how to read it, without .gz. Raises: DataError for known formats that are not read."""
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix in SCANS:
        raise DataError(
            f"a {suffix} file alone is no source",
            "its patient, split and report would be unknown",
            "write a table with the columns id, image, patient, report, a row a scan, and give that as --source",
        )
    if suffix in (".xls", ".ods", ".json", ".feather", ".sas7bdat", ".dta", ".pkl", ".pickle"):
        raise DataError(f"tables of type {suffix} are not read", fix=f"save it as one of {', '.join(TABLE_SUFFIXES)}")
    return suffix


def as_text(value: Any) -> str:
    """One cell as text, in the one way of this module. Raises: DataError for bytes, which are no text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, decimal.Decimal):
        return "" if value.is_nan() else f"{value.normalize():f}"
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time() and value.tzinfo is None
        return value.date().isoformat() if midnight else value.isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        raise DataError(
            "a column of the table holds bytes, not text",
            "an image inside a table has no name to look it up by",
            "write the images to files and name these in the column",
        )
    if isinstance(value, list | tuple):
        return LIST_SEPARATOR.join(as_text(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=as_text)
    return str(value)


def _checked(found: Records) -> Records:
    twice = [i for i, name in enumerate(found.columns, 1) if name and found.columns.count(name) > 1]
    if twice:  # by number: where the first line is a study and no header, its cells are a patient's
        raise DataError(
            f"the table has a name twice: of columns {', '.join(map(str, twice[:8]))}",
            "one of the two would be taken, in silence",
            "rename or delete one of them",
        )
    return found


def _open_text(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
    return path.open(newline="", encoding="utf-8-sig")


def _unreadable(error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("the table does not exist", fix="check --source")
    if isinstance(error, UnicodeDecodeError):
        return DataError("the table is not UTF-8", "names and reports would be garbled", "save it as UTF-8")
    if isinstance(error, IsADirectoryError):
        return DataError("a folder was given where a table is read", fix="give --source a table, or name a --preset")
    return DataError(
        f"the table cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})",
        "half a table would be taken for all of it",
        f"copy it again, or save it as one of {', '.join(TABLE_SUFFIXES)}",
    )


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line it starts on, fields) of the header and of every row that is not blank."""
    csv.field_size_limit(min(sys.maxsize, 1 << 27))  # a report may be longer than csv's default of 128 KB
    separator, start = "\t" if table_suffix(path) == ".tsv" else ",", 1
    try:
        with _open_text(path) as file:
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
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _unreadable(error) from None


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


def _jsonl(path: Path) -> Records:
    """Columns are the keys of all lines, in the order they first appear; a line that lacks one has it blank."""
    columns: dict[str, None] = {}
    read: list[tuple[int, dict[str, Any]]] = []
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    read.append((number, _json_object(number, line)))
                    columns.update(dict.fromkeys(read[-1][1]))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _unreadable(error) from None
    if not read:
        raise DataError("the table is empty", fix="write one JSON object a line, one line a study")
    rows = [(number, [as_text(found.get(name)) for name in columns]) for number, found in read]
    return Records(list(columns), rows, "line numbers of the file")


def _json_object(number: int, line: str) -> dict[str, Any]:
    def no_double(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise DataError(f"line {number} names a field twice", "one of the two would be taken, in silence")
        return found

    try:
        found = json.loads(line, object_pairs_hook=no_double)
    except (json.JSONDecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(
            f"line {number} is not a JSON object", "its study would be lost", "write one {...} a line, one line a study"
        )
    return found


def _parquet_file(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(error) from None


def _parquet(path: Path, only: Iterable[str] | None, where: str) -> Records:
    import pyarrow as pa

    file = _parquet_file(path)
    _checked(Records(list(file.schema_arrow.names), [], ""))
    wanted = set(file.schema_arrow.names if only is None else only)
    if where:
        wanted |= {f.name for f in file.schema_arrow if f.name.lower() in where.lower() or not _holds_bytes(f.type)}
    columns = [name for name in file.schema_arrow.names if name in wanted]
    rows: list[tuple[int, list[str]]] = []
    try:
        for batch in file.iter_batches(columns=columns, use_threads=False):
            texts = [_column_texts(batch.column(i)) for i in range(len(columns))]
            for i in range(batch.num_rows):
                rows.append((len(rows) + 1, [column[i] for column in texts]))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(error) from None
    # Names of columns that were not asked for still count: a message lists what the table has.
    missing = [name for name in file.schema_arrow.names if name not in columns]
    blank = [""] * len(missing)
    return Records([*columns, *missing], [(n, [*cells, *blank]) for n, cells in rows], "rows of the table, from 1")


def _holds_bytes(kind: Any) -> bool:
    """Whether an arrow type is bytes, or a list or record with bytes in it (an image beside its path)."""
    import pyarrow as pa

    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return "binary" in str(kind)


def _column_texts(column: Any) -> list[str]:
    import numpy as np
    import pyarrow as pa

    if pa.types.is_float16(column.type) or pa.types.is_float32(column.type):
        # Python would write 0.1 of 32 bits as 0.10000000149011612.
        return [as_text(None if v is None else float(str(np.float32(v)))) for v in column.to_pylist()]
    return [as_text(v) for v in column.to_pylist()]


def _xlsx(path: Path) -> Records:
    """The first sheet of a workbook; its first row names the columns. Formulas count with their last saved value."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            "reading .xlsx needs the package openpyxl, which is not installed",
            fix="pip install 'voxclip[xlsx]', or save the sheet as .csv in UTF-8",
        ) from None
    try:
        with path.open("rb") as values, path.open("rb") as formulas:
            shown = openpyxl.load_workbook(values, read_only=True, data_only=True)
            written = openpyxl.load_workbook(formulas, read_only=True, data_only=False)
            rows = list(_sheet_rows(shown.worksheets[0], written.worksheets[0]))
    except DataError:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, IndexError, EOFError) as error:
        raise _unreadable(error) from None
    if not rows:
        raise DataError("the first sheet is empty", fix="name the columns in its first row")
    (_, header), *rest = rows
    while header and not header[-1]:
        header.pop()
    width = len(header)
    if long := [number for number, cells in rest if any(cells[width:])]:
        raise DataError(
            f"row {long[0]} of the sheet has cells beyond the columns that its first row names",
            "these cells would be lost",
            "name their columns, or delete the cells",
        )
    cut = [(number, (cells + [""] * width)[:width]) for number, cells in rest]
    return Records(header, cut, "rows of the first sheet; the header is row 1")


def _sheet_rows(shown: Any, written: Any) -> Iterator[tuple[int, list[str]]]:
    for number, (values, formulas) in enumerate(zip(shown.iter_rows(), written.iter_rows(), strict=True), 1):
        if any(cell.data_type == "e" for cell in values):
            raise DataError(
                f"row {number} of the sheet has an error value, such as #N/A or #REF!",
                "it would be taken for text",
                "repair its formula",
            )
        if any(v.value is None and f.data_type == "f" for v, f in zip(values, formulas, strict=False)):
            raise DataError(
                f"row {number} of the sheet has a formula whose value was never saved",
                "the cell would be read as blank",
                "open the workbook in a spreadsheet program and save it",
            )
        cells = [as_text(cell.value) for cell in values]
        if any(cells):
            yield number, cells
