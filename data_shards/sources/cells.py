"""What the cells of a table's row say of a study, and what is told of a table that has mistakes."""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Mapping, Sequence

from data_shards.errors import DataError
from data_shards.schema import Caption, Texts
from data_shards.sources.records import Records
from data_shards.sources.values import UNKNOWN, label_value

NO_TEXT = {"nan", "null", "n/a", "na", "<na>"}  # what programs write for a cell that holds nothing
SHOWN = 8  # line numbers named per mistake
Mistakes = dict[str, list[int]]
Labels = Mapping[str, tuple[str, str | None]]  # label -> (column, value that means present, or None for 0/1)
_TIME = r"(?:[T ]\s*\d{1,2}(?::?\d\d){0,2}(?:\.\d+)?\s*(?:Z|[+-]\d\d:?\d\d)?)?"
_DATES = (
    re.compile(rf"(?P<y>\d{{4}})([-./])(?P<m>\d{{1,2}})\2(?P<d>\d{{1,2}}){_TIME}"),
    re.compile(rf"(?P<y>\d{{4}})(?P<m>\d\d)(?P<d>\d\d)(?:\.0|{_TIME})"),  # .0: a column of floats
    re.compile(rf"(?P<d>\d{{1,2}})\.(?P<m>\d{{1,2}})\.(?P<y>\d{{4}}){_TIME}"),
)


def date_of(text: str) -> str:
    """2024-01-31 (-, . or /), 20240131, both with or without a time, and 31.1.2024 -> "20240131"; "" for what is no
    date, or may be two: 1/2/2024."""
    for pattern in _DATES:
        if found := pattern.fullmatch(text.strip()):
            try:
                date = datetime.date(int(found["y"]), int(found["m"]), int(found["d"]))
            except ValueError:
                return ""
            return f"{date:%Y%m%d}" if 1900 <= date.year < 2100 else ""
    return ""


def labels_of(cells: Mapping[str, str], labels: Labels, mistakes: Mistakes, line: int) -> dict[str, int | None]:
    """The labels of a row; a cell that is neither 1, 0 nor unknown is a mistake."""
    found: dict[str, int | None] = {}
    for label, (column, wanted) in labels.items():
        value = cells[column].lower()
        if wanted is not None:
            found[label] = None if value in UNKNOWN - {"none", "-1"} else int(value == wanted.lower())
            continue
        try:
            found[label] = label_value(value)
        except ValueError:
            what = f"label column {column!r} is neither 1, 0, -1 nor blank (for categories say {column}=VALUE)"
            mistakes.setdefault(what, []).append(line)
    return found


def texts_of(cells: Mapping[str, str], columns: Mapping[str, str]) -> Texts:
    """columns: text field of a study -> its column. A cell that is one of NO_TEXT alone is blank."""
    text = {name: "" if (cell := cells[column]).lower() in NO_TEXT else cell for name, column in columns.items()}
    caption = text.pop("caption", "")
    return Texts(**text, captions=(Caption(caption),) if caption else ())


def require_values(records: Records, labels: Labels, private: Collection[str]) -> None:
    """Of COL=VALUE, refuse a value that no row has: every study would be stored without the finding. private: columns
    whose values no message repeats."""
    for column, wanted in labels.values():
        at = records.columns.index(column)
        values = {fields[at].strip().lower() for _, fields in records.rows if at < len(fields)}
        if wanted is not None and wanted.lower() not in values:
            few = sorted(values - {""})
            shown = len(few) <= SHOWN and column not in private
            raise DataError(
                f"--label-columns {column}={wanted}: no row has this value in column {column!r}",
                "every study would be stored as one without the finding",
                f"it has {few}" if shown else f"it has {len(few)} other values: check the spelling",
            )


def told_columns(columns: Sequence[str], wanted: Collection[str]) -> str:
    """The columns of a table that lacks some. Where not one name is right, its first line may be a study and no
    header: it is not repeated."""
    return f"it has {list(columns)}" if set(wanted) & set(columns) else "is its first line the header?"


def told_mistakes(mistakes: Mistakes) -> str:
    """One line a mistake, with the lines it is on."""
    return "\n".join(f"    {what}: {told_lines(lines)}" for what, lines in mistakes.items())


def told_lines(lines: Sequence[int]) -> str:
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"line {', '.join(map(str, lines[:SHOWN]))}{more}"
