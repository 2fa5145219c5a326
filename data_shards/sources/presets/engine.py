"""Reads any preset: tables joined into one row a scan, scans grouped into studies, words and labels added."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.progress import track
from data_shards.schema import Caption, Texts
from data_shards.sources.base import Listing, Refused, ScanFile, StudyRow
from data_shards.sources.presets.labels import LabelReader
from data_shards.sources.presets.schema import PART, Image, Preset
from data_shards.sources.presets.tables import Cells, as_table, find_root, first_file, scan_rows
from data_shards.sources.values import drawn_split, identifiers, numbers, split_name

SLOW = 2000  # reports in files of their own, of which reading more takes seconds
FURTHER = "further"  # role of the scans after a study's first, where no column says better


@dataclass(frozen=True)
class _Scan:
    cells: Cells
    file: ScanFile


def expected(preset: Preset) -> Iterator[tuple[str, str]]:
    """(path below the root, what it is) of all that a preset looks for."""
    for name, table in preset.tables.items():
        for part in preset.parts:
            if paths := table.of_part(part):
                yield " or ".join(paths), f"table {name}" + (", optional" if table.optional else "")
            if not isinstance(table.files, dict):
                break
    for exclude in preset.exclude:
        for part in preset.parts:
            yield " or ".join(as_table(exclude).of_part(part)), f"left out: {exclude.why}, optional"
    for image in preset.images:
        yield image.path, "scans" if image is preset.images[0] else "or scans"
    for name, paths in preset.text_files.items():
        for path in paths:
            yield path, name if path == paths[0] else f"or {name}"


def read(preset: Preset, folder: Path) -> Listing:
    """All studies of a collection that have a scan on disk; what is left out is counted in the notes.

    Raises: DataError where files of the layout are missing (naming the paths wanted), no scan is there, a key is in a
    table twice, or a label is no label.
    """
    _file_text.cache_clear()
    _archive.cache_clear()
    root, parts = find_root(preset, folder)
    notes = [f"part {part!r} is not here: it is left out" for part in preset.parts if part not in parts]
    notes += _absent(preset, root, parts)
    rows = scan_rows(preset, root, parts, notes)
    scans, refused, missing = [], [], 0
    for number, cells in enumerate(rows, 1):
        found = _scan(preset, root, cells)
        if found is None:
            missing += 1
        elif isinstance(found, str):
            refused.append(Refused(number, cells[preset.study], f"one of its scans: {found}"))
        else:
            scans.append(_Scan(cells, found))
    if not scans and not refused:
        raise DataError(
            f"none of the {len(rows)} scans that the tables name is in this folder",
            "there would be nothing to train on",
            "put them, from this folder on, at\n    " + "\n    or ".join(image.path for image in preset.images),
        )
    if missing:
        notes.append(f"{missing} of {len(rows)} scans that the tables name are not on disk: they are left out")
    studies = _studies(preset, root, scans, refused, notes)
    return Listing(studies, tuple(refused), (*preset.notes, *notes))


def _absent(preset: Preset, root: Path, parts: list[str]) -> Iterator[str]:
    """What may be missing and is, for the user to know."""
    for name, table in preset.tables.items():
        if table.optional and any(first_file(root, table.of_part(part)) is None for part in parts):
            yield f"table {name} is not here, or not for every part: it is done without"
    for exclude in preset.exclude:
        if any(first_file(root, as_table(exclude).of_part(part)) is None for part in parts):
            yield f"a list of scans to leave out is not here ({exclude.why}): they stay in"


def _scan(preset: Preset, root: Path, cells: Cells) -> ScanFile | str | None:
    """The scan of a row: its file, why it cannot be used, or None where it is not on disk."""
    for image in preset.images:
        try:
            path = root / image.path.format_map(cells)
        except KeyError as error:
            raise DataError(
                f"the tables have no column {error} for the path {image.path}", fix="copy and mend the preset"
            ) from None
        if path.is_file():
            return _scan_file(preset, image, path, cells)
    return None


def _scan_file(preset: Preset, image: Image, path: Path, cells: Cells) -> ScanFile | str:
    told: dict[str, float] = {}
    spacing: list[float] = []
    try:
        for field, column in (("slope", image.slope), ("intercept", image.intercept)):
            if column:
                (told[field],) = numbers(cells[column])
        for column in image.spacing:
            spacing += numbers(cells[column])
    except (KeyError, ValueError):
        columns = [c for c in (image.slope, image.intercept, *image.spacing) if c]
        return f"its tables have no number in one of the columns {columns}"
    if len(spacing) == 1:
        spacing *= 3
    if image.spacing and (len(spacing) != 3 or min(spacing) <= 0):
        return f"the columns {image.spacing} are not three spacings above 0"
    return ScanFile(
        str(path),
        axes=image.axes,
        modality=preset.modality,
        spacing_mm=(spacing[0], spacing[1], spacing[2]) if spacing else None,
        slope=told.get("slope"),
        intercept=told.get("intercept"),
        phase=(cells.get(image.phase) or None) if image.phase else None,
        role=(cells.get(image.role) or FURTHER) if image.role else FURTHER,
    )


def _studies(
    preset: Preset, root: Path, scans: list[_Scan], refused: list[Refused], notes: list[str]
) -> list[StudyRow]:
    groups: dict[str, list[_Scan]] = {}
    for scan in scans:
        groups.setdefault(scan.cells[preset.study], []).append(scan)
    labels = LabelReader.open(preset, root, sorted({scan.cells[PART] for scan in scans}))
    studies: list[StudyRow] = []
    items: Iterable[tuple[str, list[_Scan]]] = groups.items()
    if preset.text_files and len(groups) > SLOW:
        items = track(items, len(groups), "reading reports")
    for number, (name, group) in enumerate(items, 1):
        if preset.order:
            place = {value: i for i, value in enumerate(preset.order.first)}
            column = preset.order.column
            group = sorted(group, key=lambda scan: place.get(scan.cells.get(column, ""), len(place)))
        files = [replace(group[0].file, role="primary"), *(scan.file for scan in group[1:])]
        cells = group[0].cells
        texts = [_texts(preset, root, scan.cells) for scan in group]
        if not name or not cells[preset.patient]:
            refused.append(Refused(number, name, "its tables name no study or no patient"))
        elif any(other != texts[0] for other in texts[1:]):
            refused.append(Refused(number, name, "its scans have different texts"))
        else:
            found = labels.read(cells) if labels else {}
            captions = labels.captions(cells) if labels else ()
            studies.append(
                StudyRow(
                    number,
                    name,
                    tuple(files[:1] if preset.scans == "first" else files),
                    cells[preset.patient],
                    _split(preset, cells),
                    replace(texts[0], captions=tuple(Caption(text) for text in captions)),
                    found,
                    {key: cells[column] for key, column in preset.meta.items() if cells.get(column)},
                    identifiers([name, cells[preset.patient]]),
                )
            )
    if labels and labels.without:
        notes.append(f"{labels.without} studies have no row in table {labels.table}: their labels are unknown")
    return studies


def _split(preset: Preset, cells: Cells) -> str:
    word = cells[preset.split.column]
    split = preset.split.words.get(word.lower()) or split_name(word)
    carve = preset.split.carve
    if carve and split == carve.source and drawn_split(cells[preset.patient], carve.fraction, 0.0) == "val":
        return carve.to
    return split


def _texts(preset: Preset, root: Path, cells: Cells) -> Texts:
    told: dict[str, Any] = {field: cells.get(column, "") for field, column in preset.texts.items()}
    for field, paths in preset.text_files.items():
        places = (path.format_map(cells) for path in paths)
        told[field] = next((text for place in places if (text := _file_text(root, place)) is not None), "")
    return Texts(**told)


@lru_cache(maxsize=64)  # the views of a study share a report
def _file_text(root: Path, place: str) -> str | None:
    """The text of a file, or of "ARCHIVE.zip!MEMBER"; None where it is not there."""
    archive, _, member = place.rpartition("!")
    try:
        if not archive:
            return (root / member).read_text(encoding="utf-8", errors="replace")
        opened = _archive(str(root / archive))
        return None if opened is None else opened.read(member).decode("utf-8", errors="replace")
    except (KeyError, FileNotFoundError):
        return None
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"a report cannot be read ({type(error).__name__})", fix="download the reports again") from None


@lru_cache(maxsize=2)
def _archive(path: str) -> zipfile.ZipFile | None:
    return zipfile.ZipFile(path) if Path(path).is_file() else None
