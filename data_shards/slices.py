"""2D slices of stored volumes, in any plane, so that an encoder of images sees CT and MR.

A slice lies as radiologists see it: head or front above, the patient's right (sagittal: the front) on the left. It is a
stored one, never interpolated between two; within the plane it is resampled as volumes are, and read from the blocks
of the shard that it touches.

Shapes: D,H,W voxels, C channels, h,w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.geometry import PLANES, SliceGeometry, View
from data_shards.resampling import SAME_SPACING, spacing_of, values_of, windowed, windows_of


def apply_slice(
    source: Any,
    scan_meta: Mapping[str, Any],
    geometry: SliceGeometry,
    view: View,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """One view of a volume's slices: C,h,w float32, normalised by mean and std.

    Views: "centre" is the middle slice of the span, centred and padded; "resize" the middle one stretched to the size;
    "random" any slice of the span, of which a part of `view.scale` of the area is shown, all drawn from `rng`.
    Raises DataError for another view, and as `data_shards.preprocess.apply_view`.
    """
    n = source.shape[PLANES.index(geometry.plane)]
    if view.kind == "random":
        if rng is None:
            raise DataError("a random view needs rng", fix="pass a numpy Generator seeded by the sample")
        first, last = min(n - 1, math.floor(geometry.span[0] * n)), math.ceil(geometry.span[1] * n)
        place = int(rng.integers(first, max(first + 1, last)))
        return _slice(source, scan_meta, geometry, view, place, rng)
    if view.kind not in ("centre", "resize"):
        raise DataError(f"a {view.kind!r} view does not give one slice", fix="use centre, resize or random")
    return _slice(source, scan_meta, geometry, view, places(n, geometry, 1)[0], None)


def slice_crops(source: Any, scan_meta: Mapping[str, Any], geometry: SliceGeometry, view: View) -> Iterator[np.ndarray]:
    """What evaluation sees: the slices of a "slices" view one after another, or the one of `apply_slice`."""
    if view.kind != "slices":
        yield apply_slice(source, scan_meta, geometry, view)
        return
    for place in places(source.shape[PLANES.index(geometry.plane)], geometry, view.slices):
        yield _slice(source, scan_meta, geometry, view, place, None)


def places(n: int, geometry: SliceGeometry, count: int) -> list[int]:
    """Numbers of `count` evenly spaced slices of n, in the middle of equal parts of the span; each once."""
    first, last = geometry.span
    shares = (first + (last - first) * (i + 0.5) / count for i in range(count))
    return list(dict.fromkeys(min(n - 1, math.floor(share * n)) for share in shares))


def _slice(
    source: Any, meta: Mapping[str, Any], geometry: SliceGeometry, view: View, place: int,
    rng: np.random.Generator | None,
) -> np.ndarray:  # fmt: skip
    if view.size and tuple(view.size) != geometry.size:
        raise DataError(
            f"the view's size {view.size} is not the geometry's size {geometry.size}",
            "the encoder would see another scale than the release says",
            "leave the view's size empty for slices",
        )
    across = PLANES.index(geometry.plane)
    inside = [axis for axis in range(3) if axis != across]
    ratios, grid = _in_plane(source.shape, meta, geometry, view, inside, rng)
    starts, size = [0, 0, 0], [1, 1, 1]
    starts[across] = place
    for axis, m in zip(inside, geometry.size):
        size[axis], spare = m, grid[axis] - m
        drawn = rng is not None and spare > 0
        starts[axis] = int(rng.integers(0, spare + 1)) if drawn else spare // 2  # type: ignore[union-attr]
    x, where = values_of(source, meta, geometry, tuple(ratios), tuple(grid), tuple(starts), tuple(size))
    shown = windowed(x, where, tuple(size), windows_of(meta, geometry), geometry, None).squeeze(1 + across)
    out = np.ascontiguousarray(np.broadcast_to(shown, (3, *geometry.size))[:, ::-1, ::-1])
    out *= np.float32(0.5)
    out += np.float32(0.5) - np.array(geometry.mean, np.float32)[:, None, None]
    out /= np.array(geometry.std, np.float32)[:, None, None]
    return out


def _in_plane(
    shape: tuple[int, ...], meta: Mapping[str, Any], geometry: SliceGeometry, view: View, inside: list[int],
    rng: np.random.Generator | None,
) -> tuple[list[float], list[int]]:  # fmt: skip
    """Per axis of the volume: stored voxels per pixel, and the length of the resampled grid. Untouched across."""
    ratios, grid = [1.0, 1.0, 1.0], [int(n) for n in shape]
    if view.kind == "resize":
        for axis, m in zip(inside, geometry.size):
            ratios[axis], grid[axis] = shape[axis] / m, m
        return ratios, grid
    spacing = spacing_of(meta)
    pixel = geometry.spacing_mm or max(shape[a] * spacing[a] / m for a, m in zip(inside, geometry.size))
    zoom = 1.0 if rng is None else math.sqrt(rng.uniform(*view.scale))
    for axis in inside:
        ratio = pixel * zoom / spacing[axis]
        ratios[axis] = 1.0 if abs(ratio - 1) < SAME_SPACING else ratio
        grid[axis] = max(1, round(shape[axis] / ratios[axis]))
    return ratios, grid
