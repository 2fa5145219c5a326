"""Fixtures of all tests. Real data is used where it lies beside the repository; its absence is stated, not hidden."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# Before torch is imported anywhere: tiny tensors, and float sums that do not depend on the number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared" / "data"


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real scans; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("no real data in ../shared/data")
    return SHARED


def write_series(folder: Path, array_DHW: np.ndarray, skip: int | None = None, uid: str = "1.2.3") -> Path:
    """Axial slices, columns toward the patient's left, rows toward the back, as scanners write them."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(exist_ok=True)
    for i, plane in enumerate(array_DHW):
        if i == skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        item = pydicom.Dataset()
        item.file_meta, item.Modality, item.SeriesInstanceUID = meta, "CT", uid
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        item.Rows, item.Columns = plane.shape
        item.PixelSpacing, item.ImageOrientationPatient = [0.8, 0.7], [1, 0, 0, 0, 1, 0]
        item.ImagePositionPatient = [-10, -20, 2.5 * i]
        item.BitsAllocated = item.BitsStored = 16
        item.HighBit, item.PixelRepresentation, item.SamplesPerPixel = 15, 0, 1
        item.PhotometricInterpretation = "MONOCHROME2"
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
        item.PixelData = (plane + 1024).astype(np.uint16).tobytes()
        # Names in another order than positions: sorting by name would shuffle the patient.
        item.save_as(folder / f"{uid}-{(i * 7) % 11:02d}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="session")
def series() -> Callable[..., Path]:
    """`series(folder, array_DHW)` writes a DICOM series and returns its folder."""
    return write_series
