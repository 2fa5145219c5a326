"""Files to scans: NIfTI, DICOM folders, .npy and planar images, refused when they are not what they claim to be.

Every volume leaves here in one orientation: D,H,W growing toward the head, the front and the patient's right.
Messages name the problem, never the file.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.canonical import scan_of, scan_of_bare, turned
from data_shards.errors import DataError
from data_shards.planar import decode_image
from data_shards.quality import check_accept, of_forms, refuse
from data_shards.schema import Scan, modality_code
from data_shards.stacking import Grid

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".npy")
_DAMAGED = (OSError, EOFError, ValueError, zlib.error)
_FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "TIFF": "tif"}


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Whether `read_volume` is the reader for this path: a folder (DICOM), NIfTI or .npy."""
    return str(path).lower().endswith(VOLUME_SUFFIXES) or Path(path).is_dir()


def read_volume(
    path: str | os.PathLike[str],
    modality: str | None = None,
    spacing_mm: Sequence[float] | None = None,
    phase: str | None = None,
    files: Sequence[str] = (),
    slope: float | None = None,
    intercept: float | None = None,
    accept: Collection[str] = (),
    dtype: str = "int16",
) -> Scan:
    """A NIfTI file, a folder with one DICOM series, or a .npy (already D,H,W in the orientation above) -> Scan.

    Args:
        modality: "CT" (values are HU, kept as int16) or another DICOM modality (kept as int16 with slope and
            intercept). Default: what the DICOM says, else CT.
        spacing_mm: z, y, x; overrides the file's, and must be given for .npy.
        files: of a folder with several series, the names of this one's files.
        slope, intercept: stored value * slope + intercept is in the scan's unit, instead of what the header says.
        accept: codes of data_shards.quality.FATAL that do not refuse the volume.
        dtype: "int16", or "float16" for volumes that are not in HU.
    Raises: DataError for a missing or damaged file, a 4D or two-slice volume, NaN voxels, a bad affine, one constant
        value, and for every fatal note of data_shards.quality.
    """
    check_accept(accept)
    if str(path).lower().endswith(".npy"):
        return scan_of_bare(_npy(Path(path)), modality, spacing_mm, slope, intercept, phase, accept, dtype)
    return scan_of_grid(
        read_grid(path, files, accept), modality, spacing_mm, phase, slope, intercept, accept=accept, dtype=dtype
    )


def scan_of_grid(
    grid: Grid,
    modality: str | None = None,
    spacing_mm: Sequence[float] | None = None,
    phase: str | None = None,
    slope: float | None = None,
    intercept: float | None = None,
    accept: Collection[str] = (),
    dtype: str = "int16",
) -> Scan:
    """What `read_volume` makes of a grid that is read already; the same arguments and errors."""
    array, spacing, notes = turned(grid)
    unit = grid.unit
    if slope is not None or intercept is not None:
        grid = replace(grid, slope=1.0 if slope is None else slope, intercept=intercept or 0.0)
        unit = "arbitrary"
    modality = modality_code(modality) or grid.modality
    if modality == "CT":
        unit = "HU"
    elif unit == "HU":
        unit = "arbitrary"
    all_notes = (*grid.notes, *notes)
    spacing_mm = spacing_mm or spacing
    return scan_of(array, modality, unit, spacing_mm, grid.slope, grid.intercept, phase, all_notes, accept, dtype)


def read_grid(path: str | os.PathLike[str], files: Sequence[str] = (), accept: Collection[str] = ()) -> Grid:
    """A NIfTI or DICOM series as it is stored: axes, values and orientation. Arguments and errors as `read_volume`."""
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise DataError("the file is missing", "there is nothing to read", "check the path")
    try:
        if path.is_dir():
            from data_shards.dicom.series import read_series

            return read_series(path, files, accept)
        if name.endswith(VOLUME_SUFFIXES):
            return _nifti(path, accept)
    except DataError:
        raise
    except _DAMAGED as error:
        raise _unreadable(error) from None
    raise DataError("this is not a NIfTI, a DICOM folder or a .npy", fix=f"convert to one of {VOLUME_SUFFIXES}")


def read_image(path: str | os.PathLike[str], modality: str | None = None, at: tuple[int, int] | None = None) -> Scan:
    """A PNG, JPEG, WebP or TIFF (8 or 16 bits) -> Scan that keeps the original bytes and their true extension; a
    radiograph in DICOM -> PNG (data_shards.dicom.radiograph).

    at: (offset, bytes) of the image within the file, for a member of a tar.
    Raises: DataError for a file that is missing, does not decode whole, holds several frames or one constant value.
    """
    from PIL import Image

    modality = modality_code(modality)
    try:
        with Path(path).open("rb") as file:
            file.seek(at[0] if at else 0)
            data = file.read(at[1] if at else -1)
    except IsADirectoryError:
        raise DataError("a folder was given where one image is read", fix="give one image file") from None
    except OSError as error:
        raise DataError(f"the image file cannot be read ({error.strerror})", fix="check the path") from None
    if data[128:132] == b"DICM":
        from data_shards.dicom.radiograph import png_of

        data, found = png_of(data)
        modality = modality or found
    image = decode_image(data)  # refuses what does not decode whole
    with Image.open(io.BytesIO(data)) as opened:
        kind, frames = opened.format, getattr(opened, "n_frames", 1)
    if kind not in _FORMATS:
        raise DataError(f"images of format {kind} are not supported", fix=f"convert to one of {sorted(_FORMATS)}")
    if frames != 1:
        raise DataError(f"the image holds {frames} frames", "all but the first would be lost", "write one file a frame")
    extrema: Any = image.getextrema()
    if all(low == high for low, high in (extrema if isinstance(extrema[0], tuple) else [extrema])):
        raise DataError("every pixel of the image has the same value", "there is nothing to see", "export it again")
    return Scan(image=data, ext=_FORMATS[kind], modality=modality or "CR", unit="arbitrary")


def _unreadable(error: Exception) -> DataError:
    return DataError(
        f"the volume cannot be read ({type(error).__name__})",
        "a damaged file may decode to half a patient",
        "copy or export it again",
    )


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        raise _unreadable(error) from None


def _nifti(path: Path, accept: Collection[str]) -> Grid:
    import nibabel

    try:
        image: Any = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise DataError(
            "the file is not a readable NIfTI", "a damaged header misplaces every voxel", "export it again"
        ) from error
    shape = image.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise DataError(
            f"the NIfTI has {len(shape)} axes ({'x'.join(map(str, shape))}), not 3",
            "a time or channel axis would be read as slices",
            "write each time point or channel as a file of its own",
        )
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(
            "the NIfTI's affine is singular or not finite",
            "size, left and right of the patient are unknown",
            "repair the header or export the series again",
        )
    header, stored = image.header, image.dataobj
    codes = int(header["qform_code"]), int(header["sform_code"])
    notes = of_forms(*codes, _qform(header) if all(codes) else None, affine)  # the sform, where it has a code
    refuse(notes, accept)
    array = np.asanyarray(stored.get_unscaled()).reshape(shape[:3], order="F").transpose(2, 1, 0)
    return Grid(array, affine, float(stored.slope), float(stored.inter), notes=tuple(notes))


def _qform(header: Any) -> np.ndarray | None:
    """The affine of the quaternion; None where it is no rotation, or its voxels have no size."""
    import nibabel

    try:
        form = header.get_qform()
    except (ValueError, nibabel.spatialimages.HeaderDataError):
        return None
    return form if np.isfinite(form).all() and abs(np.linalg.det(form[:3, :3])) > 1e-9 else None
