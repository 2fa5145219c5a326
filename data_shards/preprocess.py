"""From a stored scan to the numbers an encoder sees. numpy (and PIL for images) only: `encoders` imports this too.

Volumes: the view says which voxels of the resampled grid it wants; only the stored voxels those depend on are read,
then each axis is resampled by explicit taps (index and weight), so a crop holds exactly the bits of the same part of
the whole. The resampled grid shares its centre with the volume; a crop starts at a whole voxel of that grid.
Shapes: D,H,W voxels, C windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.geometry import SEVERAL, Geometry, PlanarGeometry, View, geometry_from_dict
from data_shards.intensity import percentiles_of
from data_shards.planar import apply_planar, planar_crops

__all__ = [
    "SEVERAL",
    "Geometry",
    "PlanarGeometry",
    "View",
    "apply_planar",
    "apply_view",
    "crop_starts",
    "crops_of",
    "geometry_from_dict",
    "percentiles_of",
    "planar_crops",
    "resampled_shape",
    "resampled_values",
    "stacked",
    "view_crops",
]
SLAB = 4  # slices windowed together
ABSENT = -1.0  # what a scan that a study lacks is in every window; an encoder leaves it out (encoders.study_tokens)
SAME_SPACING = 1e-4  # relative; closer than this an axis is not resampled


def apply_view(
    source: Any,
    scan_meta: Mapping[str, Any],
    geometry: Geometry,
    view: View,
    rng: np.random.Generator | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """One view of a volume: C,D,H,W float32 in [-1, 1].

    Args:
        source: D,H,W int16 or float16, anything with `.shape` and slicing (an ndarray, or a blosc2 NDArray that decodes
            only the blocks a crop touches).
        scan_meta: the scan's json: `spacing_mm` (z,y,x), `slope`, `intercept`; `percentiles` for windows in these.
        view: "random" (needs `rng`), "centre" or "resize" with a size D,H,W.
        out: where to put the result (C,D,H,W float32), to save a copy.
    Raises: DataError for a view that does not fit, a spacing that is needed and missing, or non-finite voxels.
    """
    if len(view.size) != 3:
        raise DataError(f"view size {view.size} is not D,H,W", fix="a volume needs three numbers")
    if view.kind in SEVERAL:
        raise DataError(f"a {view.kind} view gives several crops", fix="use data_shards.preprocess.view_crops")
    ratios, grid = _grid(source.shape, scan_meta, geometry, view)
    if view.kind == "random":
        if rng is None:
            raise DataError("a random view needs rng", fix="pass a numpy Generator seeded by the sample")
        starts = tuple(_random_start(n, m, view.jitter, rng) for n, m in zip(grid, view.size))
    else:
        starts = tuple((n - m) // 2 for n, m in zip(grid, view.size))
    return _crop(source, scan_meta, geometry, ratios, grid, starts, view.size, out)


def stacked(
    scans: Iterable[tuple[Any, Mapping[str, Any]]],
    geometry: Geometry,
    view: View,
    rng: Callable[[], np.random.Generator | None] = lambda: None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """One view of all scans of a study, [scans_per_study * windows, D, H, W] float32, -1 for those it lacks.

    Args:
        scans: (source, meta) of one scan after another, as `apply_view` takes them.
        rng: makes the generator of a random view, the same for every scan: scans on one grid show one region.
        out: where to put the result.

    Raises DataError as `apply_view`, for no scan, for more than the geometry has room for, and for views of several
    crops: those of one scan lie elsewhere than those of another.
    """
    if view.kind in SEVERAL:
        raise DataError(
            f"a {view.kind} view of a study of several scans",
            "crops of one scan lie elsewhere than those of another",
            'use view kind "centre" or "resize"',
        )
    if out is None:
        out = np.empty((geometry.channels, *view.size), np.float32)
    each, count = len(geometry.windows), 0
    for source, meta in scans:
        if count == geometry.scans_per_study:
            raise DataError(f"a study of more than {count} scans", "the encoder has no room for them", "leave some out")
        apply_view(source, meta, geometry, view, rng(), out[count * each : (count + 1) * each])
        count += 1
    if not count:
        raise DataError("a study without a scan", "there is nothing to see")
    out[count * each :] = ABSENT
    return out


def resampled_shape(shape: tuple[int, ...], scan_meta: Mapping[str, Any], geometry: Geometry) -> tuple[int, ...]:
    """D,H,W of the whole volume at the geometry's spacing."""
    return _grid(shape, scan_meta, geometry, View("centre", (1, 1, 1)))[1]


def resampled_values(source: Any, scan_meta: Mapping[str, Any], geometry: Geometry) -> np.ndarray:
    """The whole volume at the geometry's spacing, before any window: D,H,W float32 in the scan's unit."""
    ratios, grid = _grid(source.shape, scan_meta, geometry, View("centre", (1, 1, 1)))
    return _values(source, scan_meta, geometry, ratios, grid, (0, 0, 0), grid)[0].astype(np.float32, copy=False)


def crop_starts(
    shape: tuple[int, ...], scan_meta: Mapping[str, Any], geometry: Geometry, view: View
) -> list[tuple[int, int, int]]:
    """Where the crops of a view of several begin on the resampled grid.

    "sliding": evenly spread, with at least `view.overlap` shared by neighbours. "multi": the corners, then the middle,
    each place once. An axis shorter than the crop is centred in it (its start is then zero or negative).
    """
    _, grid = _grid(shape, scan_meta, geometry, view)
    if view.kind == "multi":
        ends = [(0, n - m) if n > m else ((n - m) // 2,) for n, m in zip(grid, view.size)]
        middle = tuple((n - m) // 2 for n, m in zip(grid, view.size))
        return list(dict.fromkeys([*itertools.product(*ends), middle]))  # type: ignore[list-item]
    axes = []
    for n, m in zip(grid, view.size):
        if n <= m:
            axes.append([(n - m) // 2])
            continue
        step = max(1, int(m * (1 - view.overlap)))
        count = -(-(n - m) // step) + 1
        axes.append([round(i * (n - m) / (count - 1)) for i in range(count)])
    return list(itertools.product(*axes))  # type: ignore[arg-type]


def view_crops(
    source: Any, scan_meta: Mapping[str, Any], geometry: Geometry, view: View
) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    """(start D,H,W on the resampled grid, crop C,D,H,W) for every crop of a view of kind "sliding" or "multi"."""
    ratios, grid = _grid(source.shape, scan_meta, geometry, view)
    for start in crop_starts(source.shape, scan_meta, geometry, view):
        yield start, _crop(source, scan_meta, geometry, ratios, grid, start, view.size, None)


def crops_of(source: Any, scan_meta: Mapping[str, Any], geometry: Geometry | PlanarGeometry, view: View) -> np.ndarray:
    """What a view shows of one scan, [crops, C, (D,) H, W]: one crop, or several for kinds "sliding" and "multi".

    `source` as a ShardSet gives it: D,H,W voxels, or the bytes of an image (`scan_meta` is not read then).
    Raises DataError as `apply_view` and `apply_planar`, and for sliding crops of an image.
    """
    if isinstance(geometry, PlanarGeometry):
        if view.kind == "sliding":
            raise DataError("sliding crops are for volumes", "images are resized whole", "use a multi view")
        several = view.kind in SEVERAL
        return np.stack([*planar_crops(source, geometry)] if several else [apply_planar(source, geometry, view)])
    if view.kind not in SEVERAL:
        return apply_view(source, scan_meta, geometry, view)[None]
    return np.stack([crop for _, crop in view_crops(source, scan_meta, geometry, view)])


def _grid(
    shape: tuple[int, ...], meta: Mapping[str, Any], geometry: Geometry, view: View
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Per axis: stored voxels per resampled voxel, and the resampled length. A ratio of exactly 1 means untouched."""
    if view.kind == "resize":
        return tuple(n / m for n, m in zip(shape, view.size)), view.size
    if geometry.spacing_mm is None:
        return (1.0, 1.0, 1.0), tuple(shape)
    spacing = meta.get("spacing_mm")
    if spacing is None:
        raise DataError(
            "the scan has no spacing_mm, and the geometry asks for one",
            "organs would appear at a size that depends on the scanner",
            'give --file-spacing when building, use view kind "resize", or set the geometry\'s spacing_mm to null',
        )
    ratios = [want / have for want, have in zip(geometry.spacing_mm, spacing)]
    ratios = [1.0 if abs(r - 1) < SAME_SPACING else r for r in ratios]
    return tuple(ratios), tuple(n if r == 1.0 else max(1, round(n / r)) for n, r in zip(shape, ratios))


def _random_start(n: int, m: int, jitter: int, rng: np.random.Generator) -> int:
    if n > m:
        return int(rng.integers(0, n - m + 1))
    centre = (n - m) // 2
    return int(rng.integers(max(n - m, centre - jitter), min(0, centre + jitter) + 1))


def _crop(
    source: Any,
    meta: Mapping[str, Any],
    geometry: Geometry,
    ratios: tuple[float, ...],
    grid: tuple[int, ...],
    starts: tuple[int, ...],
    size: tuple[int, ...],
    out: np.ndarray | None,
) -> np.ndarray:
    x, place = _values(source, meta, geometry, ratios, grid, starts, size)
    return _window(x, place, size, _windows_of(meta, geometry), geometry, out)


def _values(
    source: Any,
    meta: Mapping[str, Any],
    geometry: Geometry,
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
    n: int, ratio: float, length: int, first: int, last: int, geometry: Geometry
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


def _windows_of(meta: Mapping[str, Any], geometry: Geometry) -> tuple[tuple[float, float], ...]:
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


def _window(
    x: np.ndarray,
    place: tuple[slice, ...],
    size: tuple[int, ...],
    windows: tuple[tuple[float, float], ...],
    geometry: Geometry,
    out: np.ndarray | None,
) -> np.ndarray:
    """Pad to size and give each window a channel: clip((x - low) / (high - low), 0, 1) * 2 - 1."""
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
    return out
