"""A scan at another spacing, before it is stored: the arithmetic of `data_shards.preprocess`, so that shards at the
spacing of a geometry hold what the geometry would have computed, rounded once to the stored type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_shards.errors import DataError
from data_shards.preprocess import Geometry, resampled_values
from data_shards.schema import Scan

ORDERS = {0: "nearest", 1: "linear"}


def resampled(scan: Scan, spacing_mm: Sequence[float], order: int = 1) -> Scan:
    """The scan at `spacing_mm` (z, y, x). An image is returned as it is.

    order 1: linear, anti-aliased where an axis shrinks (a triangle as wide as the new voxel); order 0: nearest. The new
    grid shares its centre with the old one. int16 HU are rounded to whole HU, halves to even; other int16 keep slope
    and intercept, and are rounded to their steps. Percentiles and notes are those of the original.
    Raises: DataError for an unknown order, a spacing that is not three positive numbers, or a scan without one.
    """
    if order not in ORDERS:
        raise DataError(f"order {order} is not {sorted(ORDERS)}", fix="1 is linear, 0 nearest")
    if scan.array is None:
        return scan
    if len(spacing_mm) != 3:
        raise DataError(f"spacing {tuple(spacing_mm)} is not three numbers", fix="give z, y, x in mm")
    wanted = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    geometry = Geometry(spacing_mm=wanted, interpolation=ORDERS[order], windows=((0.0, 1.0),))
    # In stored units: rounding is then to the steps of the original, and no range grows.
    values = resampled_values(scan.array, {"spacing_mm": scan.spacing_mm}, geometry)
    stored = np.rint(values).astype(np.int16) if scan.array.dtype == np.int16 else values.astype(scan.array.dtype)
    return replace(scan, array=stored, spacing_mm=wanted)
