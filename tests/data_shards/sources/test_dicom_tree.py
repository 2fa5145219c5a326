"""A PACS export without a table: what becomes of every file of it."""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid

from data_shards import DataError
from data_shards.make_study import StudyMaker
from data_shards.phantom import generate
from data_shards.phantom.pacs import write_pacs
from data_shards.reading import read_scan
from data_shards.shard_set import EncodedStudy
from data_shards.sources.base import Listing
from data_shards.sources.dicom_options import add_dicom_options, open_dicom_tree
from data_shards.sources.dicom_tree import read_dicom_tree
from data_shards.sources.options import add_choice_options, add_preset_options, add_table_options, open_known
from data_shards.sources.report_table import ReportTable
from tests.data_shards.dicom_files import body, dataset, enhanced, save, series, study

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DOSE_SR = "1.2.840.10008.5.1.4.1.1.88.67"


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def flat(root: Path, items: list[Any]) -> None:
    """All files in few folders with names that say nothing: series are scattered over folders."""
    for i, item in enumerate(items):
        save([item], root / f"{i % 3}" / "x")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Four studies of two patients, scattered, among files that are none."""
    root = tmp_path / "export"
    for number in range(4):
        flat(root, series(body(seed=number), **study(number)))
    (root / "DICOMDIR").write_bytes(b"\0" * 200)
    (root / "readme.txt").write_text("Janette Doe1 was here")
    return root


def report_rows(numbers: list[int]) -> list[dict[str, str]]:
    return [{"acc": f"ACC{n:04d}", "text": f"Report {n}.", "effusion": str(n % 2)} for n in numbers]


def reports(tmp_path: Path, numbers: list[int], **how: Any) -> ReportTable:
    path = table(tmp_path / "reports.csv", report_rows(numbers))
    said: dict[str, Any] = {"key_columns": ("acc",), "labels": {"effusion": ("effusion", None)}, **how}
    return ReportTable(path, {"report": "text"}, **said)


def test_series_scattered_over_folders_become_studies(export: Path, tmp_path: Path) -> None:
    listing = read_dicom_tree(export, reports(tmp_path, [0, 1, 2, 3]))
    assert [row.id for row in listing.rows] == [f"1.2.{n}" for n in range(4)]
    assert [row.patient for row in listing.rows] == ["PID-00000", "PID-00000", "PID-00001", "PID-00001"]
    assert [row.texts.report for row in listing.rows] == [f"Report {n}." for n in range(4)]
    assert [row.labels for row in listing.rows] == [{"effusion": n % 2} for n in range(4)]
    for number, row in enumerate(listing.rows):
        (file,) = row.scans
        scan = read_scan(file)
        assert scan.array is not None
        np.testing.assert_array_equal(scan.array[:, ::-1, ::-1], body(seed=number))
    assert listing.notes == ("1 files are not DICOM",)
    assert {"Doe1^Janette", "PID-00000", "ACC0001"} <= set(listing.rows[1].known)
    by_patient = {row.patient: row.split for row in listing.rows}
    assert all(by_patient[row.patient] == row.split for row in listing.rows)


@pytest.mark.full
def test_any_number_of_workers_gives_the_same_listing(export: Path) -> None:
    assert read_dicom_tree(export, workers=2) == read_dicom_tree(export)


def test_unmatched_reports_and_studies_without_one_are_counted(export: Path, tmp_path: Path) -> None:
    listing = read_dicom_tree(export, reports(tmp_path, [1, 2, 7, 8, 9]))
    assert [row.texts.report for row in listing.rows] == ["Report 1.", "Report 2."]
    assert [row.line for row in listing.rows] == [2, 3], "where their reports stand in the table"
    assert "left out: 2 studies without a report" in listing.notes
    assert "3 of 5 reports belong to no study of the tree (lines 4, 5, 6 of the table)" in listing.notes
    with pytest.raises(DataError, match=r"none of the 4 studies has a report: no accession(.|\n)*join by study"):
        read_dicom_tree(export, reports(tmp_path, [7, 8]))


def test_reports_join_by_study_or_by_patient_and_date(export: Path, tmp_path: Path) -> None:
    rows = [{"uid": f"1.2.{n}", "pid": f"PID-{n // 2:05d}", "day": f"2020-01-{n + 10}", "r": f"R{n}"} for n in range(4)]
    path = table(tmp_path / "r.csv", rows)
    for by, keys in (("study", ("uid",)), ("patient_date", ("pid", "day"))):
        listing = read_dicom_tree(export, ReportTable(path, {"report": "r"}, by, keys))
        assert [row.texts.report for row in listing.rows] == ["R0", "R1", "R2", "R3"]
    flat(
        export,
        series(body(seed=9), **study(9, IssuerOfPatientID="CLINIC", PatientID="PID-77777", StudyDate="20200220")),
    )
    table(
        path, [{"pid": "PID-77777", "day": "21.2.2020", "r": "x"}, {"pid": "PID-77777", "day": "2020/02/20", "r": "R9"}]
    )
    (row,) = read_dicom_tree(export, ReportTable(path, {"report": "r"}, "patient_date", ("pid", "day"))).rows
    assert (row.texts.report, row.patient) == ("R9", "CLINIC/PID-77777")


def test_mistakes_of_the_table_are_all_told(export: Path, tmp_path: Path) -> None:
    rows = report_rows([0, 1, 1])
    rows[0]["effusion"] = "maybe so"
    spec = ReportTable(table(tmp_path / "bad.csv", rows), {"report": "text"}, key_columns=("acc",))
    with pytest.raises(DataError, match="the acc was used on an earlier line: line 4"):
        read_dicom_tree(export, spec)
    spec = ReportTable(spec.path, {"report": "text"}, key_columns=("acc",), labels={"e": ("effusion", None)})
    with pytest.raises(DataError, match=r"'effusion' is neither 1, 0, -1 nor blank .*: line 2"):
        read_dicom_tree(export, spec)
    with pytest.raises(DataError, match=r"no column \['accession'\]"):
        read_dicom_tree(export, ReportTable(spec.path, {"report": "text"}))
    torn = [{**row, "split": "train" if i else "test"} for i, row in enumerate(report_rows([0, 1]))]
    spec = ReportTable(
        table(tmp_path / "torn.csv", torn), {"report": "text"}, key_columns=("acc",), split_column="split"
    )
    with pytest.raises(DataError, match="1 patients have studies in two splits"):
        read_dicom_tree(export, spec)


def test_what_is_no_volume_is_left_out_with_its_reason(tmp_path: Path) -> None:
    ct, root = body(), tmp_path / "export"
    one = study(1)
    flat(root, series(ct, **one))

    def other(n: int, items: list[Any]) -> None:
        for item in items:
            item.SeriesInstanceUID = f"1.2.1.{n}"
        flat(root, items)

    other(2, series(ct[:2], **study(1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])))
    other(3, series(ct, **study(1, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])))
    other(4, [dataset(ct[0], **study(1, SOPClassUID=SECONDARY_CAPTURE))])
    other(5, [dataset(ct[0], **study(1, SOPClassUID=SECONDARY_CAPTURE, SeriesDescription="Dose Report"))])
    report = dataset(ct[0], **study(1, SOPClassUID=DOSE_SR, Modality="SR"))
    del report.PixelData, report.Rows, report.Columns
    other(6, [report])
    other(7, series(ct, **study(1, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), step=(0, 2.5, 0)))
    other(8, series(ct[:2], **study(1)))
    other(9, [dataset(ct[0], **study(1, Modality="US", ImagePositionPatient=None))])
    flat(root, [dataset(ct[0], **study(5, SOPClassUID=SECONDARY_CAPTURE))])  # a study of a screenshot alone
    listing = read_dicom_tree(root)
    assert [len(row.scans) for row in listing.rows] == [1]
    assert listing.refused == ()
    assert set(listing.notes) == {
        "left out: 1 series (2 files): localizer",
        "left out: 1 series (9 files): reformatted or otherwise derived series",
        "left out: 2 series (2 files): secondary capture",
        "left out: 1 series (1 files): dose report",
        "left out: 1 series (1 files): no image (report, PDF, presentation state, structure set or the like)",
        "left out: 1 series (9 files): CT that is not axial (scout or reformatted)",
        "left out: 1 series (2 files): fewer than 3 slices of one size and direction",
        "left out: 1 series (1 files): image of modality US, which is not read from DICOM: convert it to PNG",
        "left out: 1 studies that hold no scan at all",
    }


def test_scouts_within_a_series_and_copies_of_files(tmp_path: Path) -> None:
    ct, root = body(), tmp_path / "export"
    items = series(ct, **study(1))
    flat(root, items)
    flat(root, series(ct[:2], **study(1, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])))  # same series UID
    shutil.copytree(root / "0", root / "copy")
    listing = read_dicom_tree(root)
    (row,) = listing.rows
    scan = read_scan(row.scans[0])
    assert scan.array is not None
    np.testing.assert_array_equal(scan.array[:, ::-1, ::-1], ct)
    assert any("files are copies of another one" in note for note in listing.notes)


def test_time_points_of_one_series_are_two_scans(tmp_path: Path) -> None:
    early, late = body(seed=1), body(seed=2)
    flat(tmp_path, series(early, **study(1, AcquisitionNumber=1)) + series(late, **study(1, AcquisitionNumber=2)))
    (row,) = read_dicom_tree(tmp_path, series="all").rows
    assert [file.role for file in row.scans] == ["primary", "secondary"]
    for file, want in zip(row.scans, (early, late)):
        scan = read_scan(file)
        assert scan.array is not None
        np.testing.assert_array_equal(scan.array[:, ::-1, ::-1], want)


def test_accession_numbers_as_ids(tmp_path: Path) -> None:
    for n, uid_ in enumerate(("1.2.1", "1.2.2")):  # one examination, archived as two studies
        said = study(1, StudyInstanceUID=uid_, SeriesInstanceUID=uid_ + ".1")
        save(series(body(seed=n), **said), tmp_path / str(n))
    save(series(body(), **study(5, AccessionNumber=None)), tmp_path / "none")
    listing = read_dicom_tree(tmp_path, study_id="accession", series="all")
    assert [(row.id, len(row.scans)) for row in listing.rows] == [("ACC0001", 2)]
    assert [r.reason for r in listing.refused] == ["no accession number"]


def test_enhanced_and_compressed_objects_in_a_tree(tmp_path: Path) -> None:
    ct = body() // 2 * 2
    save([enhanced(ct, **study(1))], tmp_path / "enhanced")
    save(series(ct, **study(2)), tmp_path / "rle", uid.RLELossless)
    listing = read_dicom_tree(tmp_path)
    assert [len(row.scans[0].files) for row in listing.rows] == [1, 9]
    for row in listing.rows:
        scan = read_scan(row.scans[0])
        assert scan.array is not None
        np.testing.assert_array_equal(scan.array[:, ::-1, ::-1], ct)


def test_phantoms_from_a_pacs(tmp_path: Path) -> None:
    """The export of data_shards.phantom: every study comes back with its voxels, words, labels and split."""
    root = write_pacs(tmp_path / "export", 4)
    labels = {name: (name, None) for name in generate(0, 0).labels}
    spec = ReportTable(
        root / "reports.csv", {"findings": "findings", "impression": "impression"}, labels=labels, split_column="split"
    )
    listing = read_dicom_tree(root, spec, study_id="accession")
    assert len(listing.rows) == 4
    assert "left out: 4 series (4 files): localizer" in listing.notes
    for index, row in enumerate(listing.rows):
        study = generate(index, 0)
        scan = read_scan(row.scans[0])
        np.testing.assert_array_equal(scan.array, study.scans[0].array)
        assert (row.texts.findings, row.labels) == (study.texts.findings, study.labels)
        assert row.split in ("train", "val", "test")


def opened(source: Path, *words: str) -> Listing:
    parser = argparse.ArgumentParser()
    for add in (add_preset_options, add_table_options, add_choice_options, add_dicom_options):
        add(parser)
    args = parser.parse_args(words)
    assert open_known(source, args) is None  # a folder without a preset is a DICOM tree
    return open_dicom_tree(source, args).listing


def test_from_the_command_line(export: Path, tmp_path: Path) -> None:
    rows = [{**row, "split": "test", "site": "a"} for row in report_rows([0, 1, 2, 3])]
    path = str(table(tmp_path / "r.csv", rows))
    words = ["--reports", path, "--join-columns", "acc", "--text-columns", "text", "--label-columns", "effusion"]
    listing = opened(export, *words, "--series", "all", "--meta-columns", "site")
    assert [row.split for row in listing.rows] == ["test"] * 4
    assert (listing.rows[1].texts.report, listing.rows[1].labels) == ("Report 1.", {"effusion": 1})
    assert listing.rows[0].meta == {"site": "a"}
    assert len(opened(export, *words, "--where", "effusion = 1").rows) == 2
    drawn = opened(export, *words, "--split-by", "patient", "--val-fraction", "0.99")
    assert {row.split for row in drawn.rows} == {"val"}
    (tmp_path / "ids.txt").write_text("PID-00000\nPID-00001\n")
    assert {r.split for r in opened(export, *words, "--split-file", f"val={tmp_path / 'ids.txt'}").rows} == {"val"}
    (tmp_path / "ids.txt").write_text("PID-00001\n")
    with pytest.raises(DataError, match="2 studies are not in the split file"):
        opened(export, *words, "--split-file", f"val={tmp_path / 'ids.txt'}")
    with pytest.raises(DataError, match="--group-column is for tables"):
        opened(export, *words, "--group-column", "site")


def test_nothing_of_a_header_reaches_a_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Identifiers in standard and private tags, descriptions and names of files; the report's are masked elsewhere."""
    planted = ("Zebedee", "MRN7654321", "19470303", "Private_Zed", "Dr_Quill", "ACC7777", "St_Elsewhere")
    said = study(
        1, PatientName="Zebedee^Zoe", PatientID="MRN7654321", PatientBirthDate="19470303", AccessionNumber="ACC7777",
        ReferringPhysicianName="Dr_Quill", InstitutionName="St_Elsewhere", SeriesDescription="Zebedee abdomen",
        ImageComments="Zebedee",
    )  # fmt: skip
    items = series(body(), **said)
    for item in items:
        item.private_block(0x0011, "Private_Zed", create=True).add_new(0x01, "LO", "Zebedee")
    save(items, tmp_path / "Zebedee_MRN7654321")
    save(items[:1], tmp_path / "Zebedee_MRN7654321" / "again")
    path = table(tmp_path / "r.csv", [{"accession": "ACC7777", "text": "No effusion."}])
    listing = read_dicom_tree(tmp_path / "Zebedee_MRN7654321", ReportTable(path, {"report": "text"}))
    (row,) = listing.rows
    assert {"Zebedee^Zoe", "MRN7654321", "ACC7777"} <= set(row.known)
    made = StudyMaker(salt="s")(row)
    assert isinstance(made, EncodedStudy)
    out = b"".join(data for _, data in made.members) + repr((made.members[-1], made.row, listing.notes)).encode()
    out += capsys.readouterr().err.encode()
    assert not [word for word in planted if word.encode() in out]
