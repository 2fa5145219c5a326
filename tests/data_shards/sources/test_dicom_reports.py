"""Whose report, whose patient: what joins the studies of a PACS export to a table, and what must not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import DataError
from data_shards.deidentify import deidentify
from data_shards.sources.dicom_tree import read_dicom_tree
from data_shards.sources.report_table import ReportTable
from data_shards.sources.table import read_splits
from tests.data_shards.dicom_files import body, dataset, save, series, study

DOSE_SR = "1.2.840.10008.5.1.4.1.1.88.67"


def table(folder: Path, header: str, *rows: str, **how: Any) -> ReportTable:
    path = folder / "reports.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split("|"), *(row.split("|") for row in rows)])
    return ReportTable(path, {"report": "report"}, **how)


def put(root: Path, name: str, n: int = 1, slices: int = 9, **said: Any) -> None:
    save(series(body((slices, 24, 20)), **study(n, **said)), root / name)


def test_a_study_of_two_accession_numbers_gets_the_report_of_the_scan_that_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "export"
    put(root, "a", AccessionNumber="A1")
    put(root, "b", slices=30, AccessionNumber="A2", SeriesInstanceUID="1.2.1.2")
    both = table(tmp_path, "accession|report", "A1|Chest.", "A2|Abdomen.")
    (row,) = read_dicom_tree(root, both).rows
    assert row.texts.report == "Abdomen." and row.scans[0].path == str(root / "b")
    listing = read_dicom_tree(root, both, series="all")
    assert [r.reason for r in listing.refused] == ["its scans belong to 2 reports of the table"]
    same = table(tmp_path, "accession|report", "A1|Both.", "A2|Both.")
    (row,) = read_dicom_tree(root, same, series="all").rows
    assert row.texts.report == "Both." and len(row.scans) == 2
    with pytest.raises(DataError, match="none of the 1 studies has a report"):
        read_dicom_tree(root, table(tmp_path, "accession|report", "A1|Chest."))


@pytest.mark.parametrize(
    "day", ["2024-01-31", "2024-01-31 00:00:00", "2024-01-31T08:15:00.5Z", "31.01.2024", "31.1.2024", "20240131",
            "20240131.0", "2024/01/31"],
)  # fmt: skip
def test_dates_as_tables_write_them(tmp_path: Path, day: str) -> None:
    put(tmp_path / "export", "a", StudyDate="20240131")
    spec = table(tmp_path, "patient|date|report", f"PID-00000|{day}|Mass.", "|2024-01-31|x", by="patient_date")
    listing = read_dicom_tree(tmp_path / "export", spec)
    assert listing.rows[0].texts.report == "Mass."
    assert "1 rows of the table have nothing to join them by" in listing.notes


@pytest.mark.parametrize("day", ["31/01/2024", "2024-13-01", "yesterday", "2024-02-30", "1.2.24"])
def test_a_date_that_is_none_is_a_mistake_with_its_line(tmp_path: Path, day: str) -> None:
    put(tmp_path / "export", "a", StudyDate="20240131")
    spec = table(tmp_path, "patient|date|report", "PID-00000|2024-01-31|a", f"P2|{day}|b", by="patient_date")
    with pytest.raises(DataError, match=r"'date' is no date .*: line 3") as error:
        read_dicom_tree(tmp_path / "export", spec)
    assert day not in str(error.value).replace("31.1.2024", "")


def test_a_table_without_any_key_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "export", "a")
    with pytest.raises(DataError, match=r"table's 0 rows \(2 more have none\)"):
        read_dicom_tree(tmp_path / "export", table(tmp_path, "accession|report", "|a", "|b"))


def test_a_value_that_no_row_has_and_a_table_without_a_header(tmp_path: Path) -> None:
    put(tmp_path / "export", "a")
    labels = {"s": ("stage", "IIl")}
    spec = table(tmp_path, "accession|report|stage", "ACC0001|Mass.|III", labels=labels)
    with pytest.raises(DataError, match=r"stage=IIl: no row has this value"):
        read_dicom_tree(tmp_path / "export", spec)
    with pytest.raises(DataError, match="is its first line the header") as error:
        read_dicom_tree(tmp_path / "export", table(tmp_path, "ACC0001|Mass of Mr Doe"))
    assert "Doe" not in str(error.value) and "ACC0001" not in str(error.value)
    (tmp_path / "split.csv").write_text("PID-00000,train,x\n")
    with pytest.raises(DataError) as error:
        read_splits(str(tmp_path / "split.csv"))
    assert "PID" not in str(error.value)


def test_names_and_other_numbers_are_masked_and_words_are_not(tmp_path: Path) -> None:
    put(tmp_path, "a", PatientName="SMALL^WILL", OtherPatientIDs=["X998877", "Y112233"])
    (row,) = read_dicom_tree(tmp_path).rows
    text = "A small effusion; we will follow. Record X998877 and Y112233 of Will Small, Mr SMALL."
    said, _ = deidentify(text, row.known)
    assert said.startswith("A small effusion; we will follow. Record [ID] and [ID] of [ID]")
    assert "SMALL" not in said and "Will" not in said


def test_a_number_without_its_issuer_is_the_same_patient(tmp_path: Path) -> None:
    root = tmp_path / "export"
    put(root, "a", 2, PatientID="12345")
    put(root, "b", 3, PatientID="12345", IssuerOfPatientID="HOSP")
    put(root, "c", 4, PatientID="12345")
    report = dataset(np.zeros((2, 2)), **study(4, SOPClassUID=DOSE_SR, Modality="SR", PatientID=None))
    del report.PixelData, report.Rows, report.Columns
    save([report], root / "c")
    listing = read_dicom_tree(root, splits={"12345": "test"})
    assert {(row.patient, row.split) for row in listing.rows} == {("HOSP/12345", "test")}
    assert (len(listing.rows), listing.refused) == (3, ())
    put(root, "d", 5, PatientID="12345", IssuerOfPatientID="CLINIC")
    patients = [row.patient for row in read_dicom_tree(root).rows]
    assert patients == ["12345", "HOSP/12345", "12345", "CLINIC/12345"]
    with pytest.raises(DataError, match="2 studies are not in the split file"):
        read_dicom_tree(root, splits={"12345": "test"})  # of whom?


def test_studies_of_other_modalities_are_no_rejects(tmp_path: Path) -> None:
    put(tmp_path, "a", 1)
    put(tmp_path, "b", 2, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    listing = read_dicom_tree(tmp_path, modalities=("ct",))
    assert [row.id for row in listing.rows] == ["1.2.1"]
    assert listing.refused == () and "left out: 1 studies of other modalities" in listing.notes
