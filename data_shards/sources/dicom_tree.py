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

LINES = 8  # of a table, named in a note
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
        modalities: keep only these (CT, MR, PT, ...); empty: all. Studies that hold none of them are left out.
        splits: id of a study, or PatientID (with its issuer where two patients share the number) -> its split, where
            the table has no split column.
        val_fraction, test_fraction: otherwise drawn by a hash of the patient.
        workers: processes that read headers; the listing is the same for any number.
    The line of a row is that of its report in the table; without one, the number of its study in the order of ids.
    Patients are PatientID, with its issuer where
    any file of the export tells one. A report is found by the numbers in the headers of the kept scans.
    Raises: DataError for a folder without DICOM, a table with mistakes, reports none of which is for any study, a study
    that `splits` does not name, and a patient in two splits.
    """
    rule = parse_rule(series)
    if study_id not in STUDY_IDS:
        raise DataError(f"studies cannot be named by {study_id!r}", fix=f"use one of {STUDY_IDS}")
    words, blank = read_reports(reports) if reports else ({}, 0)
    headers, strangers = read_headers(Path(root), workers)
    headers, copies = _once(headers)
    headers = _with_issuers(headers)
    modalities = [modality.upper() for modality in modalities]
    studies: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        studies[header.study if study_id == "study" else header.accession].append(header)
    told = _Told(strangers, copies)
    rows: list[StudyRow] = []
    refused: list[Refused] = []
    used: Counter[tuple[str, ...]] = Counter()
    for number, (name, members) in enumerate(sorted(studies.items()), 1):
        own = [words[key].line for key in _keys(members, reports.by) if key in words] if reports else []
        line = min(own, default=number)
        if _is_other(members, modalities):
            told.other_modality += 1
            continue
        kept, left_out = series_of(h for h in members if not modalities or h.modality in modalities or h.why_not)
        told.add(left_out)
        if problem := _problem(name, members, kept, rule, study_id):
            if problem == _NOTHING and all(h.why_not and not h.broken for h in members):
                told.empty += 1  # a dose report alone: nothing that could have been a scan
            else:
                refused.append(Refused(line, name or f"unnamed/{line}", problem))
            continue
        chosen = _headers_of(members, rule.choose(kept))
        row = _row(line, name, members, kept, rule, Path(root))
        if reports:
            keys = [key for key in _keys(chosen, reports.by) if key in words]
            if not keys:
                told.without_report += 1
                continue
            if any(not words[key].same_as(words[keys[0]]) for key in keys):
                refused.append(Refused(line, name, f"its scans belong to {len(keys)} reports of the table"))
                continue
            used.update(keys)
            row = _joined(row, words[keys[0]])
        if splits is not None and not row.split:
            row = replace(
                row, split=next((splits[n] for n in (row.id, row.patient, chosen[0].patient_id) if n in splits), "")
            )
        elif not row.split:
            row = replace(row, split=drawn_split(row.patient, val_fraction, test_fraction))
        rows.append(row)
    if reports:
        told.reports(words, used, blank)
        if not used and told.without_report:
            raise DataError(
                f"none of the {told.without_report} studies has a report: no {' and '.join(JOINS[reports.by])} of the "
                f"images is in the table's {len(words)} rows" + (f" ({blank} more have none)" if blank else ""),
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
    patients = {h.patient for h in members if h.image}  # dose reports and the like often lack the number
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
    patient = next(h.patient for h in members if h.image)
    return StudyRow(line, name, tuple(scans), patient, "", Texts(), known=known)


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
    row = replace(row, line=words.line, known=known, texts=words.texts)
    return replace(row, labels=words.labels, split=words.split, meta=words.meta)


def _is_other(members: Sequence[Header], modalities: Sequence[str]) -> bool:
    """Whether all that could be a scan of a study is of modalities that were not asked for."""
    possible = [h for h in members if h.broken or not h.why_not]
    return bool(modalities and possible) and all(h.modality and h.modality not in modalities for h in possible)


def _headers_of(members: Sequence[Header], chosen: Sequence[Series]) -> list[Header]:
    """The headers of some series, in their order. One study may hold images of several accession numbers."""
    by_file = {h.file: h for h in members}
    return [by_file[file] for series in chosen for file in series.files]


def _keys(headers: Sequence[Header], by: str) -> list[tuple[str, ...]]:
    """What a study may be called in the table of reports. A patient's number is tried with its issuer and without."""
    keys = []
    for h in headers:
        said = {"accession": h.accession, "study": h.study, "patient": h.patient, "date": h.date}
        keys.append(tuple(normal_key(name, said[name]) for name in JOINS[by]))
        if by == "patient_date":
            keys.append((h.patient_id, keys[-1][1]))
    return [key for key in dict.fromkeys(keys) if all(key)]


def _with_issuers(headers: Sequence[Header]) -> list[Header]:
    """Scanners leave out the issuer that the archive adds: a number without one is the patient of the only issuer it
    has elsewhere. A number that two patients have names neither of them alone."""
    issuers: dict[str, set[str]] = defaultdict(set)
    for h in headers:
        issuers[h.patient_id] |= {h.patient} - {h.patient_id}
    out = []
    for h in headers:
        known = issuers[h.patient_id] if h.patient_id else set()
        if len(known) > 1:
            h = replace(h, patient_id="" if h.patient != h.patient_id else h.patient_id)
        elif known:
            h = replace(h, patient=next(iter(known)))
        out.append(h)
    return out


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
        self.strangers, self.copies = strangers, copies
        self.without_report = self.empty = self.other_modality = 0
        self._left_out: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._reports: list[str] = []

    def add(self, left_out: Sequence[tuple[str, int]]) -> None:
        for reason, files in left_out:
            self._left_out[reason][0] += 1
            self._left_out[reason][1] += files

    def reports(self, words: dict[tuple[str, ...], Words], used: Counter[tuple[str, ...]], blank: int) -> None:
        if blank:
            self._reports.append(f"{blank} rows of the table have nothing to join them by")
        if unmatched := sorted(one.line for key, one in words.items() if key not in used):
            lines = ", ".join(map(str, unmatched[:LINES])) + (", ..." if len(unmatched) > LINES else "")
            state = f"{len(unmatched)} of {len(words)} reports belong to no study of the tree"
            self._reports.append(f"{state} (lines {lines} of the table)")
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
        if self.other_modality:
            lines.append(f"left out: {self.other_modality} studies of other modalities")
        if self.without_report:
            lines.append(f"left out: {self.without_report} studies without a report")
        return (*lines, *self._reports)
