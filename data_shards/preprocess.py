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
from data_shards.geometry import SEVERAL, AnyGeometry, Geometry, PlanarGeometry, SliceGeometry, View, geometry_from_dict
from data_shards.intensity import percentiles_of
from data_shards.planar import apply_planar, planar_crops
from data_shards.resampling import SAME_SPACING, placed, spacing_of, values_of, windowed, windows_of
from data_shards.slices import apply_slice, slice_crops

__all__ = [
    "SEVERAL",
    "AnyGeometry",
    "Geometry",
    "PlanarGeometry",
    "SliceGeometry",
    "View",
    "apply_planar",
    "apply_slice",
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
ABSENT = -1.0  # what a scan that a study lacks is in every window; an encoder leaves it out (encoders.study_tokens)


def apply_view(
    source: Any,
    scan_meta: Mapping[str, Any],
    geometry: Geometry,
    view: View,
    rng: np.random.Generator | None = None,
    out: np.ndarray | None = None,
    raw: bool = False,
) -> np.ndarray:
    """One view of a volume: C,D,H,W float32 in [-1, 1], or `raw` 1,D,H,W float16 in the scan's unit.

    Args:
        source: D,H,W int16 or float16, anything with `.shape` and slicing (an ndarray, or a blosc2 NDArray that decodes
            only the blocks a crop touches).
        scan_meta: the scan's json: `spacing_mm` (z,y,x), `slope`, `intercept`; `percentiles` for windows in these.
        view: "random" (needs `rng`), "centre" or "resize" with a size D,H,W.
        out: where to put the result, to save a copy.
        raw: the values before any window (data_shards.windows makes them); padding is the geometry's `pad_hu`.
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
    return _crop(source, scan_meta, geometry, ratios, grid, starts, view.size, out, raw)


def stacked(
    scans: Iterable[tuple[Any, Mapping[str, Any]]],
    geometry: Geometry,
    view: View,
    rng: Callable[[], np.random.Generator | None] = lambda: None,
    out: np.ndarray | None = None,
    raw: bool = False,
) -> np.ndarray:
    """One view of all scans of a study, [scans_per_study * windows, D, H, W] float32, -1 for those it lacks; or `raw`
    [scans_per_study, D, H, W] float16 in the scans' unit, -inf for those.

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
        channels = geometry.scans_per_study if raw else geometry.channels
        out = np.empty((channels, *view.size), np.float16 if raw else np.float32)
    each, count = 1 if raw else len(geometry.windows), 0
    for source, meta in scans:
        if count == geometry.scans_per_study:
            raise DataError(f"a study of more than {count} scans", "the encoder has no room for them", "leave some out")
        apply_view(source, meta, geometry, view, rng(), out[count * each : (count + 1) * each], raw)
        count += 1
    if not count:
        raise DataError("a study without a scan", "there is nothing to see")
    out[count * each :] = -np.inf if raw else ABSENT
    return out


def resampled_shape(shape: tuple[int, ...], scan_meta: Mapping[str, Any], geometry: Geometry) -> tuple[int, ...]:
    """D,H,W of the whole volume at the geometry's spacing."""
    return _grid(shape, scan_meta, geometry, View("centre", (1, 1, 1)))[1]


def resampled_values(source: Any, scan_meta: Mapping[str, Any], geometry: Geometry) -> np.ndarray:
    """The whole volume at the geometry's spacing, before any window: D,H,W float32 in the scan's unit."""
    ratios, grid = _grid(source.shape, scan_meta, geometry, View("centre", (1, 1, 1)))
    return values_of(source, scan_meta, geometry, ratios, grid, (0, 0, 0), grid)[0].astype(np.float32, copy=False)


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


def crops_of(source: Any, scan_meta: Mapping[str, Any], geometry: AnyGeometry, view: View) -> np.ndarray:
    """What a view shows of one scan, [crops, C, (D,) H, W]: one crop, or several for the kinds SEVERAL.

    `source` as a ShardSet gives it: D,H,W voxels, or the bytes of an image (`scan_meta` is not read then).
    Raises DataError as `apply_view` and `apply_planar`, and for sliding crops of an image.
    """
    if isinstance(geometry, PlanarGeometry):
        if view.kind == "sliding":
            raise DataError("sliding crops are for volumes", "images are resized whole", "use a multi view")
        several = view.kind in SEVERAL
        return np.stack([*planar_crops(source, geometry)] if several else [apply_planar(source, geometry, view)])
    if isinstance(geometry, SliceGeometry):
        return np.stack([*slice_crops(source, scan_meta, geometry, view)])
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
    ratios = [want / have for want, have in zip(geometry.spacing_mm, spacing_of(meta))]
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
    raw: bool = False,
) -> np.ndarray:
    x, place = values_of(source, meta, geometry, ratios, grid, starts, size)
    if raw:
        return placed(x, place, size, geometry.pad_hu, out)
    return windowed(x, place, size, windows_of(meta, geometry), geometry, out)
