"""Bare arrays to scans: .npy and .npz files carry no header, so modality, spacing and axes come from outside."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

import numpy as np

from data_shards.canonical import scan_of_bare
from data_shards.errors import DataError
from data_shards.schema import Scan, modality_code

CANONICAL = "SAR"
_OPPOSITE = {"S": "I", "A": "P", "R": "L", "I": "S", "P": "A", "L": "R"}


def scan_of_array(
    array: np.ndarray,
    modality: str | None = None,
    spacing_mm: Sequence[float] | None = None,
    axes: str | None = None,
    phase: str | None = None,
    slope: float | None = None,
    intercept: float | None = None,
    accept: Collection[str] = (),
    dtype: str = "int16",
) -> Scan:
    """An array (H,W) or (H,W,3) -> image scan, PNG without loss; (D,H,W) -> volume scan.

    Args:
        modality: default CT for volumes, CR for images. 8-bit values are no Hounsfield units: their unit is arbitrary.
        spacing_mm: along the array's own axes; a volume needs it.
        axes: where the axes of a volume grow, see `ScanFile.axes`.
        slope, intercept: value * slope + intercept is in the scan's unit (volumes).
        accept, dtype: of volumes, as in `data_shards.volume.read_volume`.
    Raises: DataError for any other shape or dtype, NaN, one constant value, missing spacing, HU out of range.
    """
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8):
        return _image(array, modality_code(modality))
    if array.ndim != 3:
        raise DataError(
            f"the array has the shape {'x'.join(map(str, array.shape))}: neither an image nor a volume",
            "a time or channel axis would be read as slices",
            "write each time point or channel as a scan of its own",
        )
    if axes is not None and axes.upper() != CANONICAL:
        array, spacing_mm = _turned(array, spacing_mm, axes.upper())
    return scan_of_bare(array, modality, spacing_mm, slope, intercept, phase, accept, dtype)


def _turned(array: np.ndarray, spacing: Sequence[float] | None, axes: str) -> tuple[np.ndarray, Sequence[float] | None]:
    """Axes moved and flipped so that they grow toward the head, the front and the patient's right."""
    grown = [letter if letter in CANONICAL else _OPPOSITE.get(letter, "?") for letter in axes]
    if sorted(grown) != sorted(CANONICAL):
        raise DataError(
            f"axes {axes!r} are not three of S/I, A/P and R/L",
            "left and right, or head and feet, of the patient would be swapped",
            'say where each axis grows, as in "IPL"',
        )
    order = [grown.index(letter) for letter in CANONICAL]
    flipped = tuple(i for i, at in enumerate(order) if axes[at] not in CANONICAL)
    turned = np.ascontiguousarray(np.flip(array.transpose(order), flipped))
    return turned, None if spacing is None else [spacing[at] for at in order]


def _image(array: np.ndarray, modality: str | None) -> Scan:
    from PIL import Image

    if array.dtype not in (np.uint8, np.uint16) or (array.ndim == 3 and array.dtype != np.uint8):
        raise DataError(
            f"an image array of type {array.dtype} is not read",
            "its brightness would be anybody's guess",
            "save uint8 or uint16",
        )
    if array.size == 0 or array.min() == array.max():
        raise DataError("every pixel of the image has the same value", "there is nothing to see", "export it again")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, "PNG")
    return Scan(image=file.getvalue(), ext="png", modality=modality or "CR", unit="arbitrary")
