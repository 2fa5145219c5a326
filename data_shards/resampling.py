"""Stored voxels to values on a resampled grid, and values to windows: what volumes and slices of them share.

Shapes: D,H,W voxels, C windows, K taps, J outputs of an axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.geometry import Geometry, SliceGeometry

SLAB = 4  # slices windowed together
SAME_SPACING = 1e-4  # relative; closer than this an axis is not resampled


def spacing_of(meta: Mapping[str, Any]) -> list[float]:
    """The scan's voxel distances z, y, x in mm. Raises DataError where they are unknown."""
    spacing = meta.get("spacing_mm")
    if spacing is None:
        raise DataError(
            "the scan has no spacing_mm, and the geometry asks for one",
            "organs would appear at a size that depends on the scanner",
            'give --file-spacing when building, use view kind "resize", or set the geometry\'s spacing_mm to null',
        )
    return [float(s) for s in spacing]


def values_of(
    source: Any,
    meta: Mapping[str, Any],
    geometry: Geometry | SliceGeometry,
    ratios: tuple[float, ...],
    grid: tuple[int, ...],
    starts: tuple[int, ...],
    size: tuple[int, ...],
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """The part of a crop that lies within the resampled volume, in the scan's unit, and its place in the crop.
    float32, or as it is stored where that is the unit already."""
    region: list[slice] = []
    place: list[slice] = []
    taps: list[tuple[np.ndarray, np.ndarray] | None] = []
    for n, ratio, length, start, m in zip(source.shape, ratios, grid, starts, size):
        first, last = max(start, 0), min(start + m, length)
        place.append(slice(first - start, last - start))
        if ratio == 1.0:
            region.append(slice(first, last))
            taps.append(None)
            continue
        index_KJ, weight_KJ = _taps(n, ratio, length, first, last, geometry)
        low, high = int(index_KJ.min()), int(index_KJ.max()) + 1
        region.append(slice(low, high))
        taps.append((index_KJ - low, weight_KJ))
    x = np.asarray(source[tuple(region)])
    slope, intercept = float(meta.get("slope", 1.0)), float(meta.get("intercept", 0.0))
    scaled = (slope, intercept) != (1.0, 0.0)
    if not scaled and not any(taps):
        return x, tuple(place)
    x = x.astype(np.float32)
    if scaled:
        x *= np.float32(slope)
        x += np.float32(intercept)
    # The axis that shrinks most goes first: fewer voxels for the others. The order depends on the ratios alone, never
    # on the crop, or crop and whole would differ in the last bit.
    for axis in sorted(range(3), key=lambda a: -ratios[a]):
        if (tap := taps[axis]) is not None:
            x = _resample(x, axis, *tap)
    if geometry.rounding == "nearest":
        np.rint(x, out=x)
    return x, tuple(place)


def _taps(
    n: int, ratio: float, length: int, first: int, last: int, geometry: Geometry | SliceGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Stored indices and weights (K taps, J outputs) for outputs first..last-1 of an axis.

    A triangle filter around each output's position: half-width one stored voxel (linear interpolation), or one output
    voxel where the axis shrinks, so that what is averaged away cannot alias. Weights outside the volume are dropped and
    the rest renormalised, as PIL does.
    """
    x_J = (n - 1) / 2 + (np.arange(first, last) - (length - 1) / 2) * ratio
    if geometry.interpolation == "nearest":
        return np.clip(np.floor(x_J + 0.5), 0, n - 1).astype(np.intp)[None], np.ones((1, len(x_J)), np.float32)
    half = max(1.0, ratio) if geometry.antialias else 1.0
    index_KJ = (np.floor(x_J - half).astype(np.intp) + 1)[None] + np.arange(int(np.ceil(2 * half)))[:, None]
    weight_KJ = np.maximum(0.0, 1.0 - np.abs(index_KJ - x_J) / half)
    weight_KJ[(index_KJ < 0) | (index_KJ >= n)] = 0.0
    weight_KJ /= weight_KJ.sum(0)
    return np.clip(index_KJ, 0, n - 1), weight_KJ.astype(np.float32)


def _resample(x: np.ndarray, axis: int, index_KJ: np.ndarray, weight_KJ: np.ndarray) -> np.ndarray:
    shape = [1, 1, 1]
    shape[axis] = -1
    total = np.take(x, index_KJ[0], axis, mode="clip")
    total *= weight_KJ[0].reshape(shape)
    part = np.empty_like(total)
    for index_J, weight_J in zip(index_KJ[1:], weight_KJ[1:]):
        np.take(x, index_J, axis, out=part, mode="clip")
        part *= weight_J.reshape(shape)
        total += part
    return total


def windows_of(meta: Mapping[str, Any], geometry: Geometry | SliceGeometry) -> tuple[tuple[float, float], ...]:
    """The geometry's windows in the scan's unit."""
    if geometry.windows_in == "unit":
        return geometry.windows
    stored = meta.get("percentiles")
    if not stored:
        raise DataError(
            "the scan has no intensity percentiles, and the geometry's windows are percentiles",
            "a volume of arbitrary units has no window of its own",
            "build the shards again, or give windows in the scan's unit (windows_in: unit)",
        )
    pairs = ((float(stored[f"{low:g}"]), float(stored[f"{high:g}"])) for low, high in geometry.windows)
    return tuple((low, max(high, low + 1e-6 * max(1.0, abs(low)))) for low, high in pairs)  # equal: all but one value


def placed(
    x: np.ndarray, place: tuple[slice, ...], size: tuple[int, ...], pad: float, out: np.ndarray | None
) -> np.ndarray:
    """Values as they are, padded to size: 1,D,H,W float16. What is beyond its range is infinite: the end of any window
    that data_shards.windows makes of it."""
    if out is None:
        out = np.empty((1, *size), np.float16)
    with np.errstate(over="ignore"):
        if x.shape != tuple(size):
            out[...] = pad
        out[0][place] = x
    return out


def windowed(
    x: np.ndarray,
    place: tuple[slice, ...],
    size: tuple[int, ...],
    windows: tuple[tuple[float, float], ...],
    geometry: Geometry | SliceGeometry,
    out: np.ndarray | None,
) -> np.ndarray:
    """Pad to size and give each window a channel: clip((x - low) / (high - low), 0, 1) * 2 - 1, rounded to the
    geometry's levels where it has some."""
    if out is None:
        out = np.empty((len(windows), *size), np.float32)
    if x.shape != tuple(size):
        for channel, (low, high) in zip(out, windows):
            pad = geometry.pad_hu if geometry.windows_in == "unit" else low
            scale = np.float32(2.0 / (high - low))
            channel[...] = np.clip((np.float32(pad) - np.float32(low)) * scale - np.float32(1), -1, 1)
    for first in range(0, len(x), SLAB):  # a slab stays in the processor's cache while it is worked on
        slab = x[first : first + SLAB].astype(np.float32, copy=False)
        for channel, (low, high) in zip(out, windows):
            inner = channel[place][first : first + SLAB]
            np.subtract(slab, np.float32(low), out=inner)
            inner *= np.float32(2.0 / (high - low))
            inner -= np.float32(1)
            np.clip(inner, -1, 1, out=inner)
    if geometry.levels is not None:
        half = np.float32((geometry.levels - 1) / 2)
        out += np.float32(1)
        out *= half
        np.rint(out, out=out)
        out /= half
        out -= np.float32(1)
    return out
