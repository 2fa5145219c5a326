"""A tree of DICOM files, as a PACS exports it: studies and series by their UIDs, reports joined from a table."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_shards.errors import DataError
from data_shards.schema import Texts
from data_shards.sources.base import Listing, Refused, ScanFile, StudyRow
from data_shards.sources.dicom_choice import Rule, Series, parse_rule, series_of
from data_shards.sources.dicom_index import Header, read_headers
from data_shards.sources.report_table import JOINS, ReportTable, Words, normal_key, read_reports
from data_shards.sources.values import drawn_split, identifiers

STUDY_IDS = ("study", "accession")


def read_dicom_tree(
    root: str | os.PathLike[str],
    reports: ReportTable | None = None,
    series: str = "primary",
    study_id: str = "study",
    modalities: Sequence[str] = (),
    splits: Mapping[str, str] | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    workers: int = 0,
) -> Listing:
    """The studies below a folder, whatever its files are called and however deep they lie.

    Args:
        reports: where reports, labels and splits are; studies without one are left out and counted. None: no texts yet.
        series: which series of a study are kept: "primary" (the best by `dicom_choice.rank`), "all", "largest",
            "thinnest", or "regex:PATTERN" of descriptions. The best is the scan of role "primary", others "secondary".
        study_id: "study" (StudyInstanceUID), or "accession": studies of one accession number are then one.
        modalities: keep only these (CT, MR, PT, ...); empty: all.
        splits: id of a study, or PatientID -> its split, where the table has no split column.
        val_fraction, test_fraction: otherwise drawn by a hash of the patient.
        workers: processes that read headers; the listing is the same for any number.
    The line of a row is the number of its study in the order of ids. Patients are PatientID, with its issuer where
    there is one. Raises: DataError for a folder without DICOM, a table with mistakes, reports none of which is for
    any study, a study that `splits` does not name, and a patient in two splits.
    """
    rule = parse_rule(series)
    if study_id not in STUDY_IDS:
        raise DataError(f"studies cannot be named by {study_id!r}", fix=f"use one of {STUDY_IDS}")
    words = read_reports(reports) if reports else {}
    headers, strangers = read_headers(Path(root), workers)
    headers, copies = _once(headers)
    studies: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        studies[header.study if study_id == "study" else header.accession].append(header)
    told = _Told(strangers, copies)
    rows: list[StudyRow] = []
    refused: list[Refused] = []
    used: Counter[tuple[str, ...]] = Counter()
    for line, (name, members) in enumerate(sorted(studies.items()), 1):
        kept, left_out = series_of(h for h in members if not modalities or h.modality in modalities or h.why_not)
        told.add(left_out)
        if problem := _problem(name, members, kept, rule, study_id):
            if problem == _NOTHING and all(h.why_not and not h.broken for h in members):
                told.empty += 1  # a dose report alone: nothing that could have been a scan
            else:
                refused.append(Refused(line, name or f"unnamed/{line}", problem))
            continue
        row = _row(line, name, members, kept, rule, Path(root))
        if reports:
            key = next((k for k in _keys(members, reports.by) if k in words), None)
            if key is None:
                told.without_report += 1
                continue
            used[key] += 1
            row = _joined(row, words[key])
        if splits is not None and not row.split:
            row = replace(row, split=splits.get(row.id) or splits.get(row.patient) or "")
        elif not row.split:
            row = replace(row, split=drawn_split(row.patient, val_fraction, test_fraction))
        rows.append(row)
    if reports:
        told.reports(len(words), used)
        if words and not used and told.without_report:
            raise DataError(
                f"none of the {told.without_report} studies has a report: no {' and '.join(JOINS[reports.by])} of the "
                f"images is in the table's {len(words)} rows",
                "there would be nothing to train on",
                "check the column; or join by " + " or ".join(n for n in JOINS if n != reports.by),
            )
    _one_split(rows)
    return Listing(rows, tuple(refused), told.notes())


_NOTHING = "no series of it is a volume or a radiograph"


def _problem(name: str, members: Sequence[Header], kept: Sequence[Series], rule: Rule, study_id: str) -> str:
    """Why a study cannot be used, "" where it can."""
    if not name and all(h.broken for h in members):
        return f"{len(members)} damaged DICOM files, of which nobody knows the study"
    if not name:
        return "no StudyInstanceUID" if study_id == "study" else "no accession number"
    patients = {h.patient for h in members}
    if len(patients) > 1:
        return f"images of {len(patients)} patients in one study"
    if patients == {""}:
        return "no PatientID: whether it shares its patient with another study is unknown"
    if not kept:
        return _NOTHING
    return "" if rule.choose(kept) else "no series of it is chosen by the rule"


def _row(line: int, name: str, members: Sequence[Header], kept: list[Series], rule: Rule, root: Path) -> StudyRow:
    chosen = rule.choose(kept)
    scans = [_scan(series, root, "secondary" if i else "primary") for i, series in enumerate(chosen)]
    if len(kept) > 1:
        note = ("several_series", f"{len(kept)} series, {len(chosen)} kept ({rule.name})")
        scans[0] = replace(scans[0], notes=(note,))
    known = identifiers(word for h in members for word in h.known)
    return StudyRow(line, name, tuple(scans), members[0].patient, "", Texts(), known=known)


def _scan(series: Series, root: Path, role: str) -> ScanFile:
    """The common folder of its files, and their names below it; of a radiograph the file."""
    if not series.slices:
        return ScanFile(str(root / series.files[0]), modality=series.modality, role=role)
    folder = os.path.dirname(series.files[0])
    if len({os.path.dirname(file) for file in series.files}) > 1:
        folder = os.path.commonpath(series.files)
    names = tuple(os.path.relpath(file, folder or ".") for file in series.files)
    return ScanFile(str(root / folder), files=names, modality=series.modality, role=role)


def _joined(row: StudyRow, words: Words) -> StudyRow:
    known = tuple(dict.fromkeys((*row.known, *words.known)))
    return replace(row, texts=words.texts, labels=words.labels, split=words.split, meta=words.meta, known=known)


def _keys(members: Sequence[Header], by: str) -> list[tuple[str, ...]]:
    """What a study may be called in the table of reports. A patient's number is tried with its issuer and without."""
    keys = []
    for h in members:
        said = {"accession": h.accession, "study": h.study, "patient": h.patient, "date": h.date}
        keys.append(tuple(normal_key(name, said[name]) for name in JOINS[by]))
        if by == "patient_date":
            keys.append((h.patient.rpartition("/")[2], keys[-1][1]))
    return [key for key in dict.fromkeys(keys) if all(key)]


def _once(headers: Sequence[Header]) -> tuple[list[Header], int]:
    """Each SOP instance once: exports often hold the same file in several folders."""
    found: dict[tuple[str, str], Header] = {}
    for header in headers:
        found.setdefault((header.series, header.instance), header)
    return list(found.values()), len(headers) - len(found)


def _one_split(rows: Sequence[StudyRow]) -> None:
    if homeless := sum(not row.split for row in rows):
        raise DataError(f"{homeless} studies are not in the split file, nor their patients", fix="add them to it")
    split_of: dict[str, str] = {}
    torn = {row.patient for row in rows if split_of.setdefault(row.patient, row.split) != row.split}
    if torn:
        raise DataError(
            f"{len(torn)} patients have studies in two splits",
            "results would be measured on patients seen in training",
            "split by patient in the table, or leave the split column out",
        )


class _Told:
    """What was left out, counted, for the notes of the listing."""

    def __init__(self, strangers: int, copies: int) -> None:
        self.strangers, self.copies, self.without_report, self.empty = strangers, copies, 0, 0
        self._left_out: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._reports: list[str] = []

    def add(self, left_out: Sequence[tuple[str, int]]) -> None:
        for reason, files in left_out:
            self._left_out[reason][0] += 1
            self._left_out[reason][1] += files

    def reports(self, total: int, used: Counter[tuple[str, ...]]) -> None:
        if unmatched := total - len(used):
            self._reports.append(f"{unmatched} of {total} reports belong to no study of the tree")
        if shared := sum(count for count in used.values() if count > 1):
            self._reports.append(f"{shared} studies share their report with another study")

    def notes(self) -> tuple[str, ...]:
        lines = []
        if self.strangers:
            lines.append(f"{self.strangers} files are not DICOM")
        if self.copies:
            lines.append(f"{self.copies} files are copies of another one")
        for reason, (series, files) in sorted(self._left_out.items()):
            lines.append(f"left out: {series} series ({files} files): {reason}")
        if self.empty:
            lines.append(f"left out: {self.empty} studies that hold no scan at all")
        if self.without_report:
            lines.append(f"left out: {self.without_report} studies without a report")
        return (*lines, *self._reports)
