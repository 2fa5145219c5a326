"""One DICOM series from a folder: slices sorted by position, gaps and mixed series refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError

GAP = 0.05  # how much slice distances may differ, as a part of their median
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_series(folder: Path) -> tuple[Any, str]:
    """A folder of single-frame DICOM files -> (nibabel image in HU or stored units, modality).

    Raises: DataError for no image, several series, mixed sizes or directions, missing or doubled slices, or pixel data
    that no installed codec reads.
    """
    import nibabel

    slices = _read(folder)
    series = {str(s.get("SeriesInstanceUID", "")) for s in slices}
    if len(series) > 1:
        raise DataError(
            f"the folder holds {len(series)} DICOM series",
            "slices of two scans would be stacked",
            "one folder a series",
        )
    directions = np.array([np.asarray(s.ImageOrientationPatient, float) for s in slices])
    sizes = {(int(s.Rows), int(s.Columns), *(float(v) for v in s.PixelSpacing)) for s in slices}
    if len(sizes) > 1 or np.abs(directions - directions[0]).max() > 1e-3:
        raise DataError(
            "the slices differ in size, spacing or direction",
            "they do not form one volume",
            "take the localiser out of the folder, or convert the series to NIfTI",
        )
    row, column = directions[0][:3], directions[0][3:]
    normal = np.cross(row, column)
    positions = np.array([np.asarray(s.ImagePositionPatient, float) for s in slices])
    order = np.argsort(positions @ normal, kind="stable")
    gaps = np.diff((positions @ normal)[order])
    step = float(np.median(gaps)) if len(gaps) else 1.0
    if len(gaps) and (step <= 0 or np.abs(gaps - step).max() > GAP * step):
        raise DataError(
            f"slice distances run from {gaps.min():.2f} to {gaps.max():.2f} mm",
            "slices are missing or doubled, and anatomy would be stretched",
            "copy the whole series again, or convert it to NIfTI",
        )
    planes = [_values(slices[i]) for i in order]
    high, wide = (float(v) for v in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ np.stack([row * wide, column * high, normal * step], 1)
    affine[:3, 3] = LPS_TO_RAS @ positions[order[0]]
    image = nibabel.Nifti1Image(np.stack(planes).transpose(2, 1, 0), affine)
    return image, str(slices[0].get("Modality", "CT"))


def _read(folder: Path) -> list[Any]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    slices = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            item = pydicom.dcmread(path)
        except InvalidDicomError:
            continue
        if "PixelData" not in item:
            continue
        if int(item.get("NumberOfFrames", 1)) > 1:
            raise DataError(
                "multi-frame DICOM is not read yet", fix="convert the series to NIfTI, for instance with dcm2niix"
            )
        if any(name not in item for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")):
            raise DataError("a slice has no position, direction or spacing", "its place in the patient is unknown")
        slices.append(item)
    if not slices:
        raise DataError(
            "the folder holds no DICOM image",
            "a folder is read as the slices of one volume",
            "give a NIfTI, a .npy or the folder that directly holds one DICOM series; where volumes (CT) are read, "
            "PNG and JPEG are not",
        )
    return slices


def _values(item: Any) -> np.ndarray:
    try:
        stored = item.pixel_array
    except Exception as error:  # codecs raise whatever they like
        raise DataError(
            f"a slice's pixel data cannot be decoded ({type(error).__name__})",
            "the volume would have holes",
            "install the `dicom` extra (more codecs), or decompress the series first",
        ) from None
    slope, intercept = float(item.get("RescaleSlope", 1)), float(item.get("RescaleIntercept", 0))
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
