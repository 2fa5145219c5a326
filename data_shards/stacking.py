"""Slices to a volume: order along the normal, distances, doubles, gantry tilt. numpy only.

K, J, I are a series' slices, rows and columns; columns of an affine are the steps of I, J and K in mm, RAS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.errors import DataError
from data_shards.quality import Note

UNEVEN, NEARLY = 0.05, 0.01  # how much distances may differ, as a part of their median: refused above, noted above
HOLE = 1.5  # a distance this many times the median is a missing slice
SAME_PLACE = 0.05  # part of the median distance below which two slices show the same place
LEAST_TILT_DEGREES = 0.2
_ROUNDED_MM = 0.01  # positions in headers are rounded


@dataclass(frozen=True)
class Grid:
    """A volume as it is stored: value = array * slope + intercept in `unit`. affine: of its axes I, J, K, in RAS mm."""

    array_KJI: np.ndarray
    affine: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    modality: str = "CT"
    unit: str = "HU"
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Order:
    """order: slices along the normal, each place once. step_mm: vector to the next slice. along: their places, mm."""

    order: tuple[int, ...]
    step_mm: np.ndarray
    along: np.ndarray
    notes: tuple[Note, ...]

    @property
    def even(self) -> bool:
        return not {"missing_slices", "uneven_spacing"} & {code for code, _ in self.notes}


def arrange(positions_N3: np.ndarray, normal: np.ndarray, same: Callable[[int, int], bool]) -> Order:
    """Sort slices by their place along the normal; `same(i, j)` says whether two slices hold equal pixels.

    Of several slices at one place the first is kept: noted as repeated where equal, as duplicate where not.
    """
    along = positions_N3 @ normal
    order = [int(i) for i in np.argsort(along, kind="stable")]
    gaps = np.diff(along[order])
    apart = gaps[gaps > _ROUNDED_MM]
    limit = max(_ROUNDED_MM, SAME_PLACE * float(np.median(apart))) if len(apart) else _ROUNDED_MM
    kept, repeated, differing = order[:1], 0, 0
    for i in order[1:]:
        if along[i] - along[kept[-1]] > limit:
            kept.append(i)
        elif same(kept[-1], i):
            repeated += 1
        else:
            differing += 1
    notes: list[Note] = []
    if repeated:
        notes.append(("repeated_slices", f"{repeated} slices were there twice, and are read once"))
    if differing:
        notes.append(("duplicate_slices", f"{differing} slices share a place with another one and differ from it"))
    gaps = np.diff(along[kept])
    if not len(gaps):
        return Order(tuple(kept), normal, along[kept], tuple(notes))
    step = float(np.median(gaps))
    distances = f"slice distances run from {gaps.min():.2f} to {gaps.max():.2f} mm"
    off = float(np.abs(gaps - step).max())
    if gaps.max() >= HOLE * step:
        holes = int((np.rint(gaps / step) - 1).clip(0).sum())
        notes.append(("missing_slices", f"{distances}: about {holes} of {len(kept) + holes} slices are missing"))
    elif off > UNEVEN * step and off > _ROUNDED_MM:
        notes.append(("uneven_spacing", distances))
    elif off > NEARLY * step and off > _ROUNDED_MM:
        notes.append(("nearly_even", f"{distances}: taken as {float(gaps.mean()):.2f}"))
    whole = positions_N3[kept[-1]] - positions_N3[kept[0]]
    even = not {"missing_slices", "uneven_spacing"} & {code for code, _ in notes}
    length = float(gaps.sum()) / (float(gaps.mean()) if even else step)
    return Order(tuple(kept), whole / length, along[kept] - along[kept[0]], tuple(notes))


def evened(array_KJI: np.ndarray, along: np.ndarray, step: float) -> np.ndarray:
    """Slices at `along` (mm, from 0) interpolated to even distances: linear, whole numbers stay whole."""
    count = int(np.floor(along[-1] / step + 1e-3)) + 1
    out = np.empty((count, *array_KJI.shape[1:]), array_KJI.dtype)
    for k, place in enumerate(np.minimum(np.arange(count) * step, along[-1])):
        after = int(np.clip(np.searchsorted(along, place), 1, len(along) - 1))
        weight = (place - along[after - 1]) / (along[after] - along[after - 1])
        out[k] = _blend(array_KJI[after - 1], array_KJI[after], float(weight))
    return out


def tilt_of(affine: np.ndarray) -> float:
    """Degrees between the direction in which slices follow each other and the normal of their planes."""
    i, j, k = affine[:3, :3].T
    normal = np.cross(i, j) / np.linalg.norm(np.cross(i, j))
    return float(np.degrees(np.arccos(np.clip(abs(k @ normal) / np.linalg.norm(k), 0, 1))))


def untilted(array_KJI: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Note]]:
    """Undo a gantry tilt: each slice is moved within its plane, so that the axes stand upright on each other.

    Linear interpolation; the canvas grows so that no voxel is lost, and is filled with the least value. Returns the
    arguments and no note where nothing is tilted. Raises: DataError for rows and columns that are not perpendicular.
    """
    i, j, k = affine[:3, :3].T
    if abs(i @ j) / (np.linalg.norm(i) * np.linalg.norm(j)) > 0.01:
        raise DataError(
            "rows and columns of the volume are not perpendicular",
            "anatomy would be sheared",
            "resample it to a rectangular grid first",
        )
    degrees = tilt_of(affine)
    if degrees < LEAST_TILT_DEGREES:
        return array_KJI, affine, []
    normal = np.cross(i, j) / np.linalg.norm(np.cross(i, j))
    upright = normal * (k @ normal)
    across = k - upright
    shifts = float(across @ j / (j @ j)), float(across @ i / (i @ i))  # voxels per slice, along J and I
    last = len(array_KJI) - 1
    starts = [int(np.floor(min(0.0, s * last))) for s in shifts]
    sizes = [n + int(np.ceil(abs(s) * last)) for n, s in zip(array_KJI.shape[1:], shifts)]
    fill = array_KJI.min()
    out = np.empty((last + 1, *sizes), array_KJI.dtype)
    for index, plane in enumerate(array_KJI):
        for axis in (0, 1):
            plane = _moved(plane, starts[axis] - shifts[axis] * index, axis, sizes[axis], fill)
        out[index] = plane
    straight = affine.copy()
    straight[:3, 2] = upright
    straight[:3, 3] += starts[0] * j + starts[1] * i
    return out, straight, [("gantry_tilt", f"slices are tilted by {degrees:.1f} degrees: set upright by interpolation")]


def _moved(plane: np.ndarray, start: float, axis: int, size: int, fill: np.generic) -> np.ndarray:
    """`size` samples along an axis at start, start + 1, ... in voxels of the plane; `fill` outside."""
    first = int(np.floor(start + 1e-9))
    weight = max(0.0, start - first)
    shape = list(plane.shape)
    shape[axis] = size + 1
    wide = np.full(shape, fill, plane.dtype)
    low, high = max(first, 0), min(first + size + 1, plane.shape[axis])
    target: list[slice] = [slice(None)] * 2
    source: list[slice] = [slice(None)] * 2
    target[axis], source[axis] = slice(low - first, high - first), slice(low, high)
    if high > low:
        wide[tuple(target)] = plane[tuple(source)]
    here, following = [slice(None)] * 2, [slice(None)] * 2
    here[axis], following[axis] = slice(0, size), slice(1, size + 1)
    return _blend(wide[tuple(here)], wide[tuple(following)], weight)


def _blend(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    if weight < 1e-6:
        return a
    mixed = a * (1.0 - weight) + b * weight
    return np.rint(mixed).astype(a.dtype) if a.dtype.kind in "iu" else mixed.astype(a.dtype)


def common(values: Sequence[float]) -> float | None:
    """The one value of all, None where they differ."""
    return values[0] if len(set(values)) == 1 else None
