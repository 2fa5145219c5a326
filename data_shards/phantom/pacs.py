"""Phantom studies in the form a hospital's archive hands out: a tree of DICOM files, and a table of reports.

Names, numbers and dates in the headers are invented, so that one can see that none of them reaches a shard.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.schema import Study

from .parameters import sample_parameters
from .study import generate

SPLITS = ("train", "val", "test", "train", "train", "train")  # by patient, in turn: few patients fill every split
COLUMNS = ("accession", "patient", "split", "findings", "impression")


def write_pacs(out: str | os.PathLike[str], studies: int, seed: int = 0) -> Path:
    """Write studies 0..N-1 of `seed` as OUT/PATIENT/STUDY/SERIES/*.dcm (axial CT slices behind a localizer) and
    OUT/reports.csv: accession, patient, split, findings, impression and a column a finding (1, 0, or blank: not told).

    Raises: DataError where OUT holds files.
    """
    from data_shards.progress import track

    root = Path(out)
    if root.exists() and any(root.iterdir()):
        raise DataError("the output folder already holds files", "two exports would be mixed", "name a new folder")
    root.mkdir(parents=True, exist_ok=True)
    rows, numbers = [], dict[Any, int]()
    for index in track(range(studies), studies, "exporting"):
        study = generate(index, seed)
        number = numbers.setdefault(sample_parameters(index, seed).patient, len(numbers))
        accession = f"ACC{seed:02d}{index:05d}"
        _write_study(root, study, number, accession)
        split = SPLITS[number % len(SPLITS)]
        words = {"findings": study.texts.findings, "impression": study.texts.impression}
        labels = {name: "" if value is None else value for name, value in study.labels.items()}
        rows.append({"accession": accession, "patient": f"PID{number:06d}", "split": split, **words, **labels})
    aside = root / ".reports.csv.tmp"
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *study.labels])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, root / "reports.csv")
    return root


def _write_study(root: Path, study: Study, patient: int, accession: str) -> None:
    (scan,) = study.scans
    array_DHW, spacing = scan.array, scan.spacing_mm
    assert array_DHW is not None and spacing is not None
    uid = f"2.25.{int(accession[3:]) + 1}"
    folder = root / f"PID{patient:06d}" / accession
    header: dict[str, Any] = {
        "PatientName": f"Phantom^Number{patient}",
        "PatientID": f"PID{patient:06d}",
        "PatientBirthDate": f"19{40 + patient % 50}0101",
        "AccessionNumber": accession,
        "StudyInstanceUID": uid,
        "StudyDate": "20200101",
        "Modality": "CT",
    }
    scout = np.ascontiguousarray(array_DHW[::-1].mean(1).astype(np.int16)[:, ::-1])
    scout_header = {**header, "SeriesInstanceUID": f"{uid}.1", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    _write_slice(
        folder / "scout" / "I0001.dcm", scout, scout_header, 1, [0, 0, 0], [1, 0, 0, 0, 0, -1], spacing[:1] * 2
    )
    header |= {"SeriesInstanceUID": f"{uid}.2", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}
    header |= {"SeriesDescription": "Body 3.0 Br40", "SliceThickness": f"{spacing[0]:g}"}
    depth = len(array_DHW)
    for d, plane in enumerate(array_DHW):
        # Rows run to the back and columns to the patient's left on disk; scanners number slices from the head down.
        number = depth - d
        stored = np.ascontiguousarray(plane[::-1, ::-1])
        position = [0.0, 0.0, round(d * spacing[0], 4)]
        _write_slice(
            folder / "body" / f"I{number:04d}.dcm", stored, header, number, position, [1, 0, 0, 0, 1, 0], spacing[1:]
        )


def _write_slice(
    path: Path,
    hu_HW: np.ndarray,
    header: dict[str, Any],
    number: int,
    position: list[float],
    directions: list[float],
    spacing: tuple[float, ...],
) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = UID(f"{header['SeriesInstanceUID']}.{number}")
    item = Dataset()
    item.file_meta, item.SOPClassUID, item.SOPInstanceUID = meta, CTImageStorage, meta.MediaStorageSOPInstanceUID
    for name, value in header.items():
        setattr(item, name, value)
    item.InstanceNumber, item.ImagePositionPatient, item.ImageOrientationPatient = number, position, directions
    item.PixelSpacing = [f"{s:g}" for s in spacing]
    item.Rows, item.Columns = hu_HW.shape
    item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = 1, -1024, "HU"
    item.PixelData = (hu_HW.astype(np.int32) + 1024).astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    item.save_as(path, enforce_file_format=True)
