"""Values of voxels: whole Hounsfield units or 16 bits of any other range, their histogram, and robust percentiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_shards.errors import DataError
from data_shards.geometry import PERCENTILES

INT16 = np.iinfo(np.int16)
AIR_BELOW_HU = -950.0  # darker voxels are air or padding; lung is brighter
_CODES = INT16.max - INT16.min


def to_stored(
    raw_DHW: np.ndarray, slope: float = 1.0, intercept: float = 0.0, unit: str = "HU", dtype: str = "int16"
) -> tuple[np.ndarray, float, float]:
    """raw * slope + intercept, in `unit` -> (stored D,H,W, slope, intercept) with the same meaning.

    "HU": int16 whole HU, slope 1, intercept 0; fractions are rounded to the nearest, halves to even.
    Other units, int16: integers of at most 16 bits are kept as they are, with slope and intercept; wider integers and
    floats are rounded to 65536 equal steps of their range. float16: values themselves, about three digits.
    Raises: DataError for voxels that are no numbers, NaN, one constant value, or out of range.
    """
    if raw_DHW.dtype.kind not in "iufb":
        raise DataError(f"voxels of type {raw_DHW.dtype} are not numbers", fix="export scalar values")
    low, high = _limits(raw_DHW)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    if unit == "HU":
        if ends[0] < INT16.min or ends[1] > INT16.max:
            raise DataError(
                f"a CT with values from {ends[0]:g} to {ends[1]:g} is not in HU",
                "windows would show nothing",
                "apply the rescale slope and intercept when converting",
            )
        return _whole(raw_DHW, slope, intercept), 1.0, 0.0
    if dtype == "float16":
        if max(abs(ends[0]), abs(ends[1])) > float(np.finfo(np.float16).max):
            raise DataError(f"values from {ends[0]:g} to {ends[1]:g} do not fit float16", fix="store them as int16")
        return _planes(raw_DHW, np.float16, lambda x: x.astype(np.float64) * slope + intercept), 1.0, 0.0
    if raw_DHW.dtype.kind != "f" and high - low <= _CODES:
        shift = 0 if INT16.min <= low and high <= INT16.max else int(low) - INT16.min
        stored = _planes(raw_DHW, np.int16, lambda x: x.astype(np.int64) - shift if shift else x)
        return stored, float(slope), float(intercept + shift * slope)
    step = (high - low) / _CODES
    zero = low - INT16.min * step
    stored = _planes(raw_DHW, np.int16, lambda x: np.rint((x.astype(np.float64) - zero) / step))
    return stored, float(slope * step), float(intercept + slope * zero)


def counts_of(stored: np.ndarray) -> np.ndarray:
    """How often each int16 value occurs, 65536 counts from -32768 on."""
    total = np.zeros(_CODES + 1, np.int64)
    for plane in stored:
        total += np.bincount(plane.ravel().astype(np.int32) - INT16.min, minlength=_CODES + 1)
    return total


def histogram(stored: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, rising, in the scan's unit, and how often each does."""
    if stored.dtype == np.int16:
        counts = counts_of(stored)
        codes = np.flatnonzero(counts)
        values, counts = (codes + INT16.min) * slope + intercept, counts[codes]
    else:
        values, counts = np.unique(stored, return_counts=True)
        values = values.astype(np.float64) * slope + intercept
    return (values, counts) if slope > 0 else (values[::-1], counts[::-1])


def percentiles(values: np.ndarray, counts: np.ndarray, unit: str) -> dict[str, float]:
    """Robust percentiles of what is not air, from a histogram: {"0.5": value, ..., "99.5": value}.

    Not air: above -950 HU; in other units above p2 + 0.1 (p98 - p2) of all voxels, the threshold of Smith's brain
    extraction (Human Brain Mapping 17, 2002), so that the share of air around the patient does not move the window.
    """
    if unit == "HU":
        tissue = values > AIR_BELOW_HU
    else:
        dark, bright = _at(values, counts, (2.0, 98.0))
        tissue = values > dark + 0.1 * (bright - dark)
    if not tissue.any():
        tissue = np.ones(len(values), bool)
    found = _at(values[tissue], counts[tissue], PERCENTILES)
    return {f"{p:g}": float(value) for p, value in zip(PERCENTILES, found)}


def percentiles_of(array: np.ndarray, unit: str = "HU") -> dict[str, float]:
    """`percentiles` of an array of values."""
    return percentiles(*histogram(array), unit)


def _at(values: np.ndarray, counts: np.ndarray, wanted: Sequence[float]) -> list[float]:
    """Nearest-rank percentiles: always a value that occurs."""
    below = np.cumsum(counts)
    ranks = np.maximum(np.ceil(np.asarray(wanted) / 100 * below[-1]), 1)
    return [float(values[at]) for at in np.searchsorted(below, ranks)]


def _limits(raw: np.ndarray) -> tuple[float, float]:
    """Least and greatest value. Raises DataError for NaN or infinite voxels, and for one constant value."""
    if raw.dtype.kind == "f" and (bad := sum(int(plane.size - np.isfinite(plane).sum()) for plane in raw)):
        raise DataError(
            f"{bad} of {raw.size} voxels are NaN or infinite",
            "one of them turns the loss, and then the weights, into NaN",
            "find out what wrote them; fill what lies outside the scan with air (-1024 HU)",
        )
    if raw.size == 0 or (low := float(raw.min())) == (high := float(raw.max())):
        raise DataError("every voxel of the volume has the same value", "there is nothing to see", "export it again")
    return low, high


def _whole(raw: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if raw.dtype.kind != "f" and slope == 1 and intercept == int(intercept):
        # The sum fits int16, so it is right modulo 2**16, and needs no wider copy of the volume.
        offset = np.int64(intercept).astype(np.int16)
        out = _planes(raw, np.int16, lambda x: x)
        out += offset
        return out
    return _planes(raw, np.int16, lambda x: np.rint(x.astype(np.float64) * slope + intercept))


def _planes(raw: np.ndarray, dtype: type, values: object) -> np.ndarray:
    """A C-ordered copy made slice by slice: no second volume of float64 is held."""
    out: np.ndarray = np.empty(raw.shape, dtype)
    for target, plane in zip(out, raw):
        target[...] = values(plane).astype(dtype)  # type: ignore[operator]
    return out
