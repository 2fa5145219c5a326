"""The tables of a preset: which are there, and how they join into one row of cells a scan."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from data_shards.errors import DataError
from data_shards.sources.cells import told_columns
from data_shards.sources.presets.schema import PART, Exclude, Preset, Rule, Table
from data_shards.sources.records import Records, read_records

Cells = dict[str, str]


def find_root(preset: Preset, folder: Path) -> tuple[Path, list[str]]:
    """The folder that paths start from, and the parts whose tables are all there."""
    if not folder.is_dir():
        raise DataError("the folder of the collection does not exist", fix="check --source")
    best: list[str] = []
    for root in (folder / name for name in preset.roots):
        parts, lacking = [], []
        for part in preset.parts:
            needed = [(name, t.of_part(part)) for name, t in preset.tables.items() if not t.optional]
            absent = [" or ".join(paths) for _, paths in needed if paths and first_file(root, paths) is None]
            base_there = first_file(root, preset.tables[preset.base].of_part(part)) is not None
            if not absent:
                parts.append(part)
            elif base_there or len(preset.parts) == 1:
                lacking += absent
        if lacking:
            best = lacking  # where something is there, its gaps are what the user wants to hear of
        elif parts:
            return root, parts
    wanted = best or [" or ".join(preset.tables[preset.base].of_part(part)) for part in preset.parts]
    raise DataError(
        f"this folder is not {preset.title} as it is published: it lacks\n    " + "\n    ".join(dict.fromkeys(wanted)),
        "without its tables nobody can tell which words belong to which scan",
        f"give the folder that holds these paths; python -m data_shards.sources {preset.name} lists them all",
    )


def first_file(root: Path, paths: list[str]) -> Path | None:
    return next((root / path for path in paths if (root / path).is_file()), None)


def as_table(exclude: Exclude) -> Table:
    return Table(files=exclude.files)


def scan_rows(preset: Preset, root: Path, parts: list[str], notes: list[str]) -> list[Cells]:
    """One row a scan: the base table, new columns, and the columns of the tables joined to it."""
    joined = {name: t for name, t in preset.tables.items() if name != preset.base and not _only_labels(preset, name)}
    rows: list[Cells] = []
    used = preset.used
    for part in parts:
        base = _read_part(preset.tables[preset.base], root, part)
        assert base is not None, "find_root looked for it"
        others = {name: _by_key(name, table, root, part, used) for name, table in joined.items()}
        left_out = [(e, _listed(e, root, part)) for e in preset.exclude]
        counts: Counter[str] = Counter()
        places = [i for i, name in enumerate(base.columns) if name in used]
        for line, fields in base.rows:
            if len(fields) != len(base.columns):
                raise DataError(
                    f"table {preset.base} ({part}) has more or fewer fields than columns on line {line}",
                    "text would be taken for another column",
                    "download it again",
                )
            cells = {base.columns[i]: fields[i].strip() for i in places} | {PART: part}
            _derive(preset.columns, cells)
            for name, table in joined.items():
                found = (others[name] or {}).get(cells.get(table.on or table.key or "", ""))
                if found is None and others[name] is not None:
                    counts[f"{{}} rows have no line in table {name}"] += 1
                for column, cell in (found or {}).items():
                    cells.setdefault(column, cell)
            _derive(preset.columns, cells)
            out = next((e for e, listed in left_out if cells.get(e.column, "") in listed), None)
            if out is not None:
                counts[f"{{}} scans are left out: {out.why}"] += 1
            else:
                rows.append(cells)
        notes += [f"{part}: " + what.format(n) if len(parts) > 1 else what.format(n) for what, n in counts.items()]
    if not rows:
        raise DataError(f"table {preset.base} has no row that is not left out", fix="download it again")
    needed = {preset.study, preset.patient, preset.split.column, *preset.texts.values(), *preset.meta.values()}
    if absent := sorted(needed - {name for cells in rows for name in cells}):
        raise DataError(
            f"the tables have no column {absent}; they have {sorted(rows[0])}",
            "the collection may have been published anew with other names",
            f"copy the preset and name them: python -m data_shards.sources {preset.name} --yaml",
        )
    return rows


def _only_labels(preset: Preset, name: str) -> bool:
    return preset.labels is not None and name == preset.labels.table


def _read_part(table: Table, root: Path, part: str) -> Records | None:
    path = first_file(root, table.of_part(part))
    return None if path is None else read_records(path)


def _by_key(name: str, table: Table, root: Path, part: str, used: set[str]) -> dict[str, Cells] | None:
    records = _read_part(table, root, part)
    if records is None:
        return None
    if table.key not in records.columns:
        raise DataError(
            f"table {name} has no column {table.key!r}; {told_columns(records.columns[:12], used)}",
            "its rows could not be joined to their scans",
            "copy the preset and name the column that holds the scan's name",
        )
    at = records.columns.index(table.key)
    places = [i for i, column in enumerate(records.columns) if column in used]
    found: dict[str, Cells] = {}
    for line, fields in records.rows:
        key = fields[at].strip() if at < len(fields) else ""
        if key in found:
            raise DataError(
                f"table {name} has the same {table.key} on line {line} and before",
                "one of the two rows would be taken, in silence",
                "download it again, or delete one of them",
            )
        found[key] = {records.columns[i]: fields[i].strip() for i in places if i < len(fields)}
    return found


def _listed(exclude: Exclude, root: Path, part: str) -> set[str]:
    path = first_file(root, as_table(exclude).of_part(part))
    if path is None:
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    return {found for line in lines if (found := _cut(line.strip(), exclude.match))}


def _cut(text: str, match: str | None) -> str:
    if match is None:
        return text
    found = re.search(match, text)
    return (found[1] or "").strip() if found else ""


def _derive(rules: dict[str, Rule | list[Rule]], cells: Cells) -> None:
    """Add the columns that rules make; those whose columns are not there yet wait for the next call."""
    for name, several in rules.items():
        for rule in several if isinstance(several, list) else [several]:
            if cells.get(name):
                break
            try:
                text = rule.template.format_map(cells) if rule.template is not None else cells[rule.source or ""]
            except KeyError:
                continue
            cut = _cut(text, rule.match)
            cells[name] = rule.words.get(cut, cut)
