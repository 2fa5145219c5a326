"""Each preset on a small folder of its collection's true layout, made here: listing, then studies."""

from __future__ import annotations

import csv
import gzip
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import openpyxl
import pytest
from PIL import Image

from data_shards.errors import DataError
from data_shards.make_study import StudyMaker
from data_shards.reading import read_scans
from data_shards.shard_set import EncodedStudy
from data_shards.sources.__main__ import main
from data_shards.sources.base import Listing, StudyRow
from data_shards.sources.presets import layout, load_preset, preset_names, read_preset

CT_RATE_LABELS = load_preset("ct-rate").labels.columns  # type: ignore[union-attr]


def write(path: Path, rows: list[dict[str, Any]], zipped: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") if zipped else path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def nifti(path: Path, seed: int, low: int = -900, high: int = 900) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(low, high, (6, 5, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.8, 0.8, 2.0, 1.0])), path)
    return array.transpose(2, 1, 0)


def studies(listing: Listing) -> list[EncodedStudy]:
    made = [StudyMaker(salt="s")(row) for row in listing.rows]
    assert all(isinstance(study, EncodedStudy) for study in made), made
    return made  # type: ignore[return-value]


def by_id(listing: Listing) -> dict[str, StudyRow]:
    return {row.id: row for row in listing.rows}


def ct_rate(root: Path, fixed: bool = False, patients: int = 3) -> None:
    for part, stem in (("train", "train"), ("valid", "validation")):
        names = [f"{part}_{p}_a_{r}.nii.gz" for p in range(1, patients + 1) for r in (1, 2)]
        text = {"ClinicalInformation_EN": "Not given.", "Technique_EN": "Non-contrast."}
        reports = [
            {"VolumeName": n, **text, "Findings_EN": f"Finding of {n.rsplit('_', 1)[0]}.", "Impressions_EN": "Nodule."}
            for n in names
        ]
        write(root / f"dataset/radiology_text_reports/{stem}_reports.csv", reports)
        about = {"Manufacturer": "Philips", "PatientSex": "M", "XYSpacing": "[0.75, 0.75]", "ZSpacing": "1.5"}
        metadata = [{"VolumeName": n, **about, "RescaleIntercept": "-8192", "RescaleSlope": "1"} for n in names]
        write(root / f"dataset/metadata/{stem}_metadata.csv", metadata)
        labels = [{"VolumeName": n, **{c: int(i == 9) for i, c in enumerate(CT_RATE_LABELS)}} for n in names]
        write(root / f"dataset/multi_abnormality_labels/{part}_predicted_labels.csv", labels)
        for i, name in enumerate(names):
            patient, scan = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
            folder = f"{part}_fixed" if fixed else part
            low = -900 if fixed else 7000
            nifti(root / "dataset" / folder / patient / scan / name, i, low, low + 2000)


@pytest.mark.parametrize("at", ["", "dataset"])
def test_ct_rate_first_release(tmp_path: Path, at: str) -> None:
    ct_rate(tmp_path)
    (tmp_path / "dataset/metadata/no_chest_train.txt").write_text(
        "train/train_3/train_3_a/train_3_a_1.nii.gz\ntrain_3_a_2.nii.gz\n"
    )
    listing = read_preset("ct-rate", tmp_path / at)
    rows = by_id(listing)
    assert sorted(rows) == ["train_1_a", "train_2_a", "valid_1_a", "valid_2_a", "valid_3_a"]
    row = rows["valid_2_a"]
    assert (row.patient, row.split) == ("valid_2", "test")
    assert {rows["train_1_a"].split, rows["train_2_a"].split} <= {"train", "val"}
    assert (row.texts.findings, row.texts.impression, row.texts.report) == ("Finding of valid_2_a.", "Nodule.", "")
    assert sum(v or 0 for v in row.labels.values()) == 1 and row.labels["lung_nodule"] == 1 and len(row.labels) == 18
    first, second = row.scans
    assert first.path.endswith("valid_2_a_1.nii.gz") and second.path.endswith("valid_2_a_2.nii.gz")
    assert (first.role, second.role) == ("primary", "further")
    for scan in row.scans:
        assert (scan.slope, scan.intercept, scan.spacing_mm) == (1.0, -8192.0, (1.5, 0.75, 0.75))
        assert scan.modality == "CT"
    assert "train: 2 scans are left out: the publishers list them as no chest CT" in listing.notes


def test_ct_rate_corrected_release_is_in_hounsfield_units_already(tmp_path: Path) -> None:
    ct_rate(tmp_path, fixed=True)
    listing = read_preset("ct-rate", tmp_path)
    for row in listing.rows:
        assert all(s.slope is None and s.intercept is None and s.spacing_mm is None for s in row.scans)
    made = studies(listing)
    assert [name.split(".", 1)[1] for name, _ in made[0].members] == ["00.vol.b2nd", "01.vol.b2nd", "json"]
    (scan, _) = read_scans(listing.rows[0])
    assert scan.array is not None and scan.unit == "HU" and scan.spacing_mm == pytest.approx((2.0, 0.8, 0.8))
    assert scan.array.min() >= -900 and scan.array.max() < 1100  # as stored: -8192 was not taken off again


def test_ct_rate_first_release_becomes_hounsfield_units(tmp_path: Path) -> None:
    ct_rate(tmp_path)
    row = by_id(read_preset("ct-rate", tmp_path))["train_1_a"]
    stored = np.asarray(nibabel.load(row.scans[0].path).dataobj).transpose(2, 1, 0)  # type: ignore[attr-defined]
    (scan, _) = read_scans(row)
    assert scan.array is not None and scan.unit == "HU" and scan.spacing_mm == (1.5, 0.75, 0.75)
    np.testing.assert_array_equal(scan.array, stored.astype(int) - 8192)


def test_a_folder_in_part_is_read_in_part_and_said(tmp_path: Path) -> None:
    ct_rate(tmp_path, fixed=True)
    for path in (tmp_path / "dataset/train_fixed/train_2").rglob("*.nii.gz"):
        path.unlink()
    listing = read_preset("ct-rate", tmp_path)
    assert "train_2_a" not in by_id(listing)
    assert "2 of 12 scans that the tables name are not on disk: they are left out" in listing.notes
    assert any("leave out is not here" in note for note in listing.notes)
    (tmp_path / "dataset/multi_abnormality_labels/train_predicted_labels.csv").unlink()
    listing = read_preset("ct-rate", tmp_path)
    assert any("table labels is not here" in note for note in listing.notes)
    assert by_id(listing)["train_1_a"].labels == {} and by_id(listing)["valid_1_a"].labels["lung_nodule"] == 1
    (tmp_path / "dataset/radiology_text_reports/train_reports.csv").unlink()
    assert "part 'train' is not here: it is left out" in read_preset("ct-rate", tmp_path).notes


def test_what_is_missing_is_named_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError) as told:
        read_preset("ct-rate", tmp_path)
    assert "radiology_text_reports/train_reports.csv" in str(told.value)
    ct_rate(tmp_path, fixed=True)
    (tmp_path / "dataset/metadata/validation_metadata.csv").unlink()
    with pytest.raises(DataError) as told:
        read_preset("ct-rate", tmp_path)
    assert "metadata/validation_metadata.csv" in str(told.value) and "train_reports.csv" not in str(told.value)
    ct_rate(tmp_path)
    for path in (tmp_path / "dataset").rglob("*.nii.gz"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 12 scans") as told:
        read_preset("ct-rate", tmp_path)
    assert "{part}_fixed/{patient}/{scan}/{VolumeName}" in str(told.value)


def test_scans_of_one_study_must_agree(tmp_path: Path) -> None:
    ct_rate(tmp_path, fixed=True)
    path = tmp_path / "dataset/radiology_text_reports/train_reports.csv"
    path.write_text(path.read_text().replace("Nodule.", "Effusion.", 1))
    listing = read_preset("ct-rate", tmp_path)
    assert [(r.id, r.reason) for r in listing.refused] == [("train_1_a", "its scans have different texts")]
    ct_rate(tmp_path)
    metadata = tmp_path / "dataset/metadata/train_metadata.csv"
    metadata.write_text(metadata.read_text().replace("-8192", ""))
    for path in (tmp_path / "dataset").glob("*_fixed"):
        path.rename(path.with_name(path.name + "_away"))
    listing = read_preset("ct-rate", tmp_path)
    assert len(listing.refused) == 6 and all("RescaleIntercept" in r.reason for r in listing.refused)


@pytest.mark.parametrize("which", ["metadata/train_metadata", "multi_abnormality_labels/train_predicted_labels"])
def test_a_table_without_its_header_is_not_repeated(tmp_path: Path, which: str) -> None:
    ct_rate(tmp_path)
    path = tmp_path / f"dataset/{which}.csv"
    header, _, rows = path.read_text().partition("\n")
    path.write_text(",".join(["train_1_a_1.nii.gz", *(f"Nodule {i}" for i in range(header.count(",")))]) + "\n" + rows)
    with pytest.raises(DataError, match=r"no column(.|\n)*is its first line the header") as told:
        read_preset("ct-rate", tmp_path)
    assert "train_1" not in str(told.value) and "Nodule" not in str(told.value)


def merlin(root: Path) -> list[str]:
    ids = [f"AC421{i}" for i in range(4)]
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["study id", "Findings", "Split", "Few Shot"])
    for i, name in enumerate(ids):
        impression = "\nIMPRESSION: Renal cyst." if i % 2 else ""
        sheet.append([name, f"Liver: normal {i}.{impression}", ("train", "val", "test", "train")[i], i % 2])
    book.save(root / "reports_final.xlsx")
    labels = [{"study id": n, "renal_cyst": (1, 0, -1, 1)[i], "ascites": -1} for i, n in enumerate(ids)]
    write(root / "zero_shot_findings_disease_cls.csv", labels)
    for i, name in enumerate(ids):
        nifti(root / "merlin_data" / f"{name}.nii.gz", i)
    return ids


def test_merlin(tmp_path: Path) -> None:
    (root := tmp_path / "merlinabdominalctdataset").mkdir()
    ids = merlin(root)
    listing = read_preset("merlin", tmp_path)
    rows = by_id(listing)
    assert sorted(rows) == ids
    assert [rows[n].split for n in ids] == ["train", "val", "test", "train"]
    assert [rows[n].labels["renal_cyst"] for n in ids] == [1, 0, None, 1]
    assert rows[ids[0]].labels["ascites"] is None
    assert (rows[ids[1]].texts.findings, rows[ids[1]].texts.impression) == ("Liver: normal 1.", "Renal cyst.")
    assert (rows[ids[0]].texts.findings, rows[ids[0]].texts.impression) == ("Liver: normal 0.", "")
    assert len(studies(listing)) == 4
    assert any("no patients" in note for note in listing.notes)


def rad_chestct(root: Path) -> dict[str, np.ndarray]:
    volumes, metadata = {}, []
    findings = ["nodule*right_upper", "nodule*left_lower", "groundglass*lung", "nodulegr1cm*other_location"]
    present = {"trn00001": [1, 1, 0, 0], "trn00002": [0, 0, 0, 0], "val00001": [0, 0, 1, 0], "tst00001": [0, 0, 0, 1]}
    for part, prefix in (("imgtrain", "trn"), ("imgvalid", "val"), ("imgtest", "tst")):
        rows = [
            {"NoteAcc_DEID": n, **dict(zip(findings, values))} for n, values in present.items() if n.startswith(prefix)
        ]
        write(root / f"{part}_Abnormality_and_Location_Labels.csv", rows)
    for i, name in enumerate([*present, "trn99999"]):
        metadata.append({"VolumeAcc_DEID": f"{name}.npz", "NoteAcc_DEID": name, "MRN_DEID": f"mrn{i}"})
        metadata[-1] |= {"final_spacing": "0.8", "orig_slope": "1.0", "orig_inter": "-1024.0"}
        if name in present:
            volumes[name] = np.random.default_rng(i).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
            np.savez_compressed(root / f"{name}.npz", ct=volumes[name])
    write(root / "CT_Scan_Metadata_Complete_35747.csv", metadata)
    return volumes


def test_rad_chestct(tmp_path: Path) -> None:
    volumes = rad_chestct(tmp_path)
    listing = read_preset("rad-chestct", tmp_path)
    rows = by_id(listing)
    assert {name: row.split for name, row in rows.items()} == {
        "trn00001": "train",
        "trn00002": "train",
        "val00001": "val",
        "tst00001": "test",
    }
    row = rows["trn00001"]
    assert row.labels == {"nodule": 1, "groundglass": 0, "nodulegr1cm": 0} and row.patient == "mrn0"
    assert row.texts.captions[0].text == "Chest CT with nodule (right upper lobe, left lower lobe)."
    assert rows["trn00002"].texts.captions[0].text == "Chest CT with no abnormality that the reader mentions."
    assert rows["tst00001"].texts.captions[0].text == "Chest CT with nodule larger than 1 cm."
    (scan,) = read_scans(row)
    # Stored from head to feet, front to back, right to left of the patient; ours grows up, forward and to the right.
    assert scan.array is not None
    np.testing.assert_array_equal(scan.array, volumes["trn00001"][::-1, ::-1, ::-1])
    assert scan.unit == "HU" and scan.spacing_mm == pytest.approx((0.8, 0.8, 0.8))
    assert len(studies(listing)) == 4


def mimic(root: Path, in_zip: bool) -> None:
    views = [("10000032", "50414267", "aa-1", "LATERAL"), ("10000032", "50414267", "aa-2", "PA")]
    views += [("10000032", "53189527", "bb-1", "AP"), ("11000999", "57000001", "cc-1", "")]
    split = {"10000032": "train", "11000999": "validate"}
    write(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        [{"dicom_id": d, "study_id": s, "subject_id": p, "split": split[p]} for p, s, d, _ in views],
        zipped=True,
    )
    write(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        [{"dicom_id": d, "subject_id": p, "study_id": s, "ViewPosition": v, "Rows": 9} for p, s, d, v in views],
        zipped=True,
    )
    chexpert = [("10000032", "50414267", "1.0", "-1.0"), ("10000032", "53189527", "", "0.0")]
    write(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        [{"subject_id": p, "study_id": s, "Edema": e, "Pleural Effusion": f} for p, s, e, f in chexpert],
        zipped=True,
    )
    reports: dict[str, str] = {}
    for i, (p, s, d, _) in enumerate(views):
        folder = f"files/p{p[:2]}/p{p}/s{s}"
        (root / folder).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (16, 12)).astype(np.uint8)
        Image.fromarray(noise).save(root / folder / f"{d}.jpg")
        reports[f"{folder}.txt"] = f"FINAL REPORT\n FINDINGS: study {s}.\n IMPRESSION: ___."
    if in_zip:
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
            for name, text in reports.items():
                archive.writestr(name, text)
    else:
        for name, text in reports.items():
            (path := root / "mimic-cxr-reports" / name).parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.mark.parametrize("in_zip", [True, False])
def test_mimic_cxr(tmp_path: Path, in_zip: bool) -> None:
    mimic(tmp_path, in_zip)
    listing = read_preset("mimic-cxr", tmp_path)
    rows = by_id(listing)
    assert {name: row.split for name, row in rows.items()} == {
        "50414267": "train",
        "53189527": "train",
        "57000001": "val",
    }
    row = rows["50414267"]
    assert [(Path(s.path).stem, s.role) for s in row.scans] == [("aa-2", "primary"), ("aa-1", "LATERAL")]
    assert row.patient == "10000032" and row.meta == {"view": "PA"} and row.known == ("50414267", "10000032")
    assert row.labels == {"edema": 1, "pleural_effusion": None}
    assert rows["53189527"].labels == {"edema": None, "pleural_effusion": 0}
    assert rows["57000001"].labels == {}
    assert row.texts.report.startswith("FINAL REPORT\n FINDINGS: study 50414267.")
    assert "1 studies have no row in table labels: their labels are unknown" in listing.notes
    assert len(studies(listing)) == 3


def test_a_label_that_is_none_and_a_key_twice(tmp_path: Path) -> None:
    merlin(tmp_path)
    path = tmp_path / "zero_shot_findings_disease_cls.csv"
    text = path.read_text()
    path.write_text(text.replace("AC4211,0", "AC4211,2"))
    with pytest.raises(DataError, match="line 3"):
        read_preset("merlin", tmp_path)
    path.write_text(text.replace("AC4211", "AC4210"))
    with pytest.raises(DataError, match="twice: line 3"):
        read_preset("merlin", tmp_path)


def test_the_list_and_a_preset_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preset_names() == ["ct-rate", "merlin", "mimic-cxr", "rad-chestct"]
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(layout(load_preset(name)) in told for name in preset_names())
    assert main(["merlin", "--yaml"]) == 0
    own = tmp_path / "own.yaml"
    own.write_text(
        capsys.readouterr().out.replace("name: merlin", "name: mine").replace("column: Split", "column: Part")
    )
    merlin(tmp_path)
    with pytest.raises(DataError, match=r"no column \['Part'\]"):
        read_preset(str(own), tmp_path)
    own.write_text(own.read_text().replace("column: Part", "column: Split\n  colour: red"))
    assert main([str(own)]) == 1
    assert main(["no-such"]) == 1
    assert "there are ct-rate, merlin" in capsys.readouterr().err
