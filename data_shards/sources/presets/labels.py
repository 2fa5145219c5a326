"""Labels of a preset's studies, and sentences made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError
from data_shards.sources.cells import told_columns
from data_shards.sources.presets.schema import Preset
from data_shards.sources.presets.tables import first_file
from data_shards.sources.records import read_records
from data_shards.sources.values import label_value

SHOWN = 8
# Of each key: the names of the columns, one list for all rows, and a value for each. A row may have thousands.
Rows = dict[str, tuple[list[str], tuple[int | None, ...]]]


@dataclass
class LabelReader:
    """Rows of the labels' table by key. `without` counts the studies that had none."""

    preset: Preset
    table: str
    rows: Rows
    without: int = 0

    @classmethod
    def open(cls, preset: Preset, root: Path, parts: list[str]) -> LabelReader | None:
        """Read the table of every part. None where the preset has no labels, or they are optional and not there.

        Raises: DataError for a label that is neither 1, 0, -1 nor blank, with its lines.
        """
        if preset.labels is None:
            return None
        table = preset.tables[preset.labels.table]
        rows: Rows = {}
        for path in dict.fromkeys(first_file(root, table.of_part(part)) for part in parts):
            if path is not None:
                _read(preset, path, rows)
        return cls(preset, preset.labels.table, rows) if rows else None

    def read(self, cells: dict[str, str]) -> dict[str, int | None]:
        """A study's labels; with places, a finding is present where any of its places is."""
        found = self.rows.get(self._key(cells))
        if found is None:
            self.without += 1
            return {}
        separator = self.preset.labels.places if self.preset.labels else None
        merged: dict[str, int | None] = {}
        for column, value in zip(*found):
            name = label_name(column.split(separator)[0] if separator else column)
            merged[name] = value if name not in merged else _either(merged[name], value)
        return merged

    def captions(self, cells: dict[str, str]) -> tuple[str, ...]:
        """Sentences that say which findings are present."""
        said, found = self.preset.captions, self.rows.get(self._key(cells))
        if said is None or found is None:
            return ()
        separator = self.preset.labels.places if self.preset.labels else None
        places: dict[str, list[str]] = {}
        for column, value in zip(*found):
            if value == 1:
                finding, _, place = column.partition(separator) if separator else (column, "", "")
                places.setdefault(_words(finding, said.words), []).append(_words(place, said.words))
        phrases = []
        for finding, where in places.items():
            listed = ", ".join(place for place in where if place)
            phrases.append(said.phrase.format(finding=finding, place=listed) if listed else finding)
        words = ", ".join(phrases) or said.none
        return tuple(template.format(words=words) for template in said.templates)

    def _key(self, cells: dict[str, str]) -> str:
        table = self.preset.tables[self.table]
        return cells.get(table.on or table.key or "", "")


def label_name(column: str) -> str:
    """ "Lung nodule" -> "lung_nodule"."""
    return "_".join(column.lower().split())


def _either(one: int | None, other: int | None) -> int | None:
    return 1 if 1 in (one, other) else None if None in (one, other) else 0


def _words(name: str, known: dict[str, str]) -> str:
    return known.get(name, name.replace("_", " "))


def _read(preset: Preset, path: Path, rows: Rows) -> None:
    assert preset.labels is not None
    labels, table = preset.labels, preset.tables[preset.labels.table]
    records = read_records(path)
    key = table.key or ""
    wanted = labels.columns if isinstance(labels.columns, list) else None
    columns = [c for c in records.columns if c != key and c not in labels.but] if wanted is None else wanted
    if absent := sorted({key, *columns} - set(records.columns)):
        raise DataError(
            f"table {labels.table} has no column {absent}; "
            + told_columns(records.columns[:12], {key, *(wanted or labels.but)}),
            "studies would have no labels, or another's",
            f"copy the preset and name them: python -m data_shards.sources {preset.name} --yaml",
        )
    at = records.columns.index(key)
    number = {column: i for i, column in enumerate(records.columns)}
    places = [number[column] for column in columns]
    wrong: list[int] = []
    for line, fields in records.rows:
        try:
            values = tuple(label_value(fields[i]) for i in places)
            if fields[at].strip() in rows:
                raise ValueError
            rows[fields[at].strip()] = (columns, values)
        except (ValueError, IndexError):
            wrong.append(line)
    if wrong:
        raise DataError(
            f"table {labels.table} has labels that are neither 1, 0, -1 nor blank, or a {key} twice: line "
            f"{', '.join(map(str, wrong[:SHOWN]))}" + (f" and {len(wrong) - SHOWN} more" if wrong[SHOWN:] else ""),
            "unknown findings would be taught as absent",
            "download it again",
        )
