"""A stored grid of any orientation to a scan: axes turned to head, front, right; values in their unit; checked."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from data_shards.intensity import histogram, percentiles, to_stored
from data_shards.quality import Note, of_affine, of_spacing, of_values, refuse
from data_shards.schema import Scan, modality_code
from data_shards.stacking import Grid, untilted


def turned(grid: Grid) -> tuple[np.ndarray, tuple[float, float, float], list[Note]]:
    """Grid -> (view D,H,W growing S,A,R; spacing z,y,x in mm; notes on orientation). A tilted gantry is set upright.

    Axes are exchanged and flipped, never interpolated: an oblique scan stays on its own grid.
    """
    from nibabel.orientations import apply_orientation, io_orientation

    array, affine, notes = untilted(grid.array_KJI, grid.affine)
    notes = notes + of_affine(affine)
    axes = io_orientation(affine)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = (float(sizes[axes[:, 0] == world][0]) for world in range(3))
    return apply_orientation(array.transpose(2, 1, 0), axes).transpose(2, 1, 0), (z, y, x), notes


def scan_of(
    array_DHW: np.ndarray,
    modality: str,
    unit: str,
    spacing_mm: Sequence[float] | None,
    slope: float = 1.0,
    intercept: float = 0.0,
    phase: str | None = None,
    notes: Sequence[Note] = (),
    accept: Collection[str] = (),
    dtype: str = "int16",
) -> Scan:
    """Values * slope + intercept in `unit`, in canonical axes -> Scan, checked, with its percentiles and notes.

    Raises: DataError for voxels that must not be trained on, and for every fatal note that is not accepted.
    """
    stored, slope, intercept = to_stored(array_DHW, slope, intercept, unit, dtype)
    values, counts = histogram(stored, slope, intercept)
    spacing = None if spacing_mm is None else tuple(float(s) for s in spacing_mm)
    all_notes = [*notes, *of_values(values, counts, unit), *of_spacing(stored.shape, spacing)]
    scan = Scan(
        array=stored,
        ext="b2nd",
        modality=modality,
        spacing_mm=spacing,  # type: ignore[arg-type]
        unit=unit,
        slope=slope,
        intercept=intercept,
        phase=phase,
        percentiles=percentiles(values, counts, unit),
        notes=tuple(all_notes),
    )
    scan.check()
    refuse(all_notes, accept)
    return scan


def scan_of_bare(
    array_DHW: np.ndarray,
    modality: str | None,
    spacing_mm: Sequence[float] | None,
    slope: float | None = None,
    intercept: float | None = None,
    phase: str | None = None,
    accept: Collection[str] = (),
    dtype: str = "int16",
) -> Scan:
    """A volume without a header, in canonical axes -> Scan; CT where no modality is told. 8-bit values that nothing
    scales are no Hounsfield units: their unit is arbitrary. Raises: DataError as `scan_of`."""
    modality = modality_code(modality) or "CT"
    scaled = slope is not None or intercept is not None
    unit = "HU" if modality == "CT" and (scaled or array_DHW.dtype != np.uint8) else "arbitrary"
    slope = 1.0 if slope is None else slope
    return scan_of(array_DHW, modality, unit, spacing_mm, slope, intercept or 0.0, phase, (), accept, dtype)
