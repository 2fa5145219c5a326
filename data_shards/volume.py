"""Files to scans: NIfTI, DICOM folders, .npy and planar images, refused when they are not what they claim to be.

Every volume leaves here in one orientation: D,H,W growing toward the head, the front and the patient's right.
Messages name the problem, never the file.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.planar import decode_image
from data_shards.schema import Scan

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".npy")
_FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "TIFF": "tif"}
INT16 = np.iinfo(np.int16)


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Whether `read_volume` is the reader for this path: a folder (DICOM), NIfTI or .npy."""
    return str(path).lower().endswith(VOLUME_SUFFIXES) or Path(path).is_dir()


def read_volume(
    path: str | os.PathLike[str],
    modality: str | None = None,
    spacing_mm: Sequence[float] | None = None,
    phase: str | None = None,
) -> Scan:
    """A NIfTI file, a folder with one DICOM series, or a .npy (already D,H,W in the orientation above) -> Scan.

    Args:
        modality: "CT" (values are HU, kept as int16) or another DICOM modality (kept as int16 with slope and
            intercept). Default: what the DICOM says, else CT.
        spacing_mm: z, y, x; overrides the file's, and must be given for .npy.
    Raises: DataError for a missing or damaged file, a 4D or two-slice volume, NaN voxels, a bad affine, irregular
        slices, or one constant value.
    """
    path, name = Path(path), str(path).lower()
    if not path.exists():
        raise DataError("the file is missing", "there is nothing to read", "check the path")
    try:
        if path.is_dir():
            from data_shards.dicom import read_series

            image, found = read_series(path)
            modality = modality or found
            array, spacing = _canonical(image)
        elif name.endswith(".npy"):
            array, spacing = np.load(path, allow_pickle=False), None
        elif name.endswith(VOLUME_SUFFIXES):
            array, spacing = _canonical(_nifti(path))
        else:
            raise DataError("this is not a NIfTI, a DICOM folder or a .npy", fix=f"convert to one of {VOLUME_SUFFIXES}")
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"the volume cannot be read ({type(error).__name__})",
            "a damaged file may decode to half a patient",
            "copy or export it again",
        ) from None
    modality = modality or "CT"
    if spacing_mm is not None:
        spacing = tuple(float(s) for s in spacing_mm)  # type: ignore[assignment]
    stored, slope, intercept = _to_int16(array, modality)
    scan = Scan(
        array=stored,
        ext="b2nd",
        modality=modality,
        spacing_mm=spacing,
        unit="HU" if modality == "CT" else "arbitrary",
        slope=slope,
        intercept=intercept,
        phase=phase,
    )
    scan.check()
    return scan


def read_image(path: str | os.PathLike[str], modality: str | None = None, at: tuple[int, int] | None = None) -> Scan:
    """A PNG, JPEG, WebP or TIFF (8 or 16 bits) -> Scan that keeps the original bytes and their true extension.

    at: (offset, bytes) of the image within the file, for a member of a tar.
    Raises: DataError for a file that is missing, does not decode whole, holds several frames or one constant value.
    """
    from PIL import Image

    try:
        with Path(path).open("rb") as file:
            file.seek(at[0] if at else 0)
            data = file.read(at[1] if at else -1)
    except IsADirectoryError:
        raise DataError("a folder was given where one image is read", fix="give one image file") from None
    except OSError as error:
        raise DataError(f"the image file cannot be read ({error.strerror})", fix="check the path") from None
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


def _nifti(path: Path) -> Any:
    import nibabel

    try:
        image = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise DataError(
            "the file is not a readable NIfTI", "a damaged header misplaces every voxel", "export it again"
        ) from error
    shape = image.shape  # type: ignore[attr-defined]
    if len(shape) > 3 and all(n == 1 for n in shape[3:]):
        image = image.slicer[tuple([slice(None)] * 3 + [0] * (len(shape) - 3))]  # type: ignore[attr-defined]
    elif len(shape) != 3:
        raise DataError(
            f"the NIfTI has {len(shape)} axes ({'x'.join(map(str, shape))}), not 3",
            "a time or channel axis would be read as slices",
            "write each time point or channel as a file of its own",
        )
    affine = image.affine  # type: ignore[attr-defined]
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(
            "the NIfTI's affine is singular or not finite",
            "size, left and right of the patient are unknown",
            "repair the header or export the series again",
        )
    return image


def _canonical(image: Any) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A nibabel image -> (D,H,W array growing S,A,R; spacing z,y,x in mm)."""
    import nibabel

    turned = nibabel.as_closest_canonical(image)
    x, y, z = (float(s) for s in nibabel.affines.voxel_sizes(turned.affine))
    return np.asanyarray(turned.dataobj).transpose(2, 1, 0), (z, y, x)


def _to_int16(array: np.ndarray, modality: str) -> tuple[np.ndarray, float, float]:
    """Values -> (int16, slope, intercept). HU are rounded to whole HU; other modalities keep 16 bits of their range."""
    if array.dtype.kind not in "iufb":
        raise DataError(f"voxels of type {array.dtype} are not numbers", fix="export scalar values")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise DataError(
            f"{bad} of {array.size} voxels are NaN or infinite",
            "one of them turns the loss, and then the weights, into NaN",
            "find out what wrote them; fill what lies outside the scan with air (-1024 HU)",
        )
    if array.size == 0 or (low := float(array.min())) == (high := float(array.max())):
        raise DataError("every voxel of the volume has the same value", "there is nothing to see", "export it again")
    fits = INT16.min <= low and high <= INT16.max
    if modality == "CT" and not fits:
        raise DataError(
            f"a CT with values from {low:g} to {high:g} is not in HU",
            "windows would show nothing",
            "apply the rescale slope and intercept when converting",
        )
    if modality == "CT" or (fits and array.dtype.kind != "f"):
        rounded = np.rint(array) if array.dtype.kind == "f" else array
        return np.ascontiguousarray(rounded.astype(np.int16)), 1.0, 0.0
    slope = (high - low) / (INT16.max - INT16.min)
    intercept = low - INT16.min * slope
    return np.ascontiguousarray(np.rint((array - intercept) / slope).astype(np.int16)), slope, intercept
