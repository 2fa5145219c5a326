"""What is wrong, or unusual, with a scan: notes of (code, words), and which of them refuse it.

Notes travel with the scan in the sample's json. Words name numbers, never a file or a patient.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from data_shards.errors import DataError

Note = tuple[str, str]  # code, words

# Every code, and whether it refuses the scan. A refusal is lifted by naming its code in `accept`.
FATAL: dict[str, bool] = {
    "missing_slices": True,  # accepted: the holes are filled by interpolation
    "uneven_spacing": True,  # distances differ by more than 5 %; accepted: interpolated to even distances
    "nearly_even": False,  # distances differ by 1 to 5 %
    "duplicate_slices": True,  # two pictures of one place that differ; accepted: the first by instance number is kept
    "repeated_slices": False,  # the same slice twice: read once
    "gantry_tilt": False,  # corrected
    "eight_bit": True,
    "not_hu": True,
    "no_air": False,
    "saturated": False,
    "localizer": True,
    "several_series": False,
    "no_orientation": True,
    "forms_contradict": True,
    "forms_differ": False,
    "left_handed": False,
    "oblique": False,
    "implausible_spacing": True,
    "lossy": False,
    "no_suv": False,
}
_WHY_FIX: dict[str, tuple[str, str]] = {
    "missing_slices": (
        "slices are missing or doubled, and anatomy would be stretched",
        "copy the whole series again; or accept missing_slices: the holes are then interpolated",
    ),
    "uneven_spacing": (
        "anatomy would be stretched where slices lie closer",
        "copy the whole series again; or accept uneven_spacing: the series is then interpolated to even distances",
    ),
    "duplicate_slices": (
        "two time points, echoes or reconstructions would be shuffled into one volume",
        "split the series (by acquisition number, echo or time), one folder each",
    ),
    "eight_bit": (
        "windows in HU would show nothing that is there",
        "export the original 12- or 16-bit DICOM or a NIfTI in HU, or give another modality than CT (arbitrary units)",
    ),
    "not_hu": (
        "windows in HU would show nothing that is there",
        "give the true slope and intercept (columns of the table), or convert again with the rescale applied",
    ),
    "localizer": ("a scout is a projection, not slices of a volume", "give the folder of the series itself"),
    "no_orientation": (
        "left and right of the patient would be a guess, and reports speak of both",
        "convert again with orientation (dcm2niix writes it), or accept no_orientation if the voxel order is known "
        "to be the default one (right to left, back to front, feet to head)",
    ),
    "forms_contradict": (
        "left and right, or head and feet, may be swapped",
        "convert again, or set the wrong one of the two to code 0",
    ),
    "implausible_spacing": (
        "organs would appear at a wrong size",
        "give the true spacing: --spacing-columns of data_shards.build (for files that say none, --file-spacing), "
        "spacing_mm in Python",
    ),
}

PLAUSIBLE_MM = (0.05, 20.0)  # of a voxel
LARGEST_MM = 2600.0  # of a whole volume
_SATURATED = 0.002  # part of the voxels brighter than air that share the greatest value
_TISSUE_HU, _LEAST_TISSUE = (-30.0, 90.0), 1e-3
_AIR_HU, _LEAST_AIR = (-1100.0, -850.0), 1e-4
_OBLIQUE_DEGREES = 1.0


def refuse(notes: Iterable[Note], accept: Collection[str] = ()) -> None:
    """Raise the first fatal note as a DataError, unless its code is accepted."""
    for code, words in notes:
        if FATAL[code] and code not in accept:
            raise DataError(words, *_WHY_FIX[code])


def check_accept(accept: Collection[str]) -> None:
    """Raise DataError for a code that no note has, or one that refuses nothing."""
    known = sorted(code for code, fatal in FATAL.items() if fatal)
    if strange := sorted(set(accept) - set(known)):
        raise DataError(f"nothing to accept is called {strange}", fix=f"use some of {known}")


def of_values(values: np.ndarray, counts: np.ndarray, unit: str) -> list[Note]:
    """Notes on a histogram (see data_shards.intensity.histogram)."""
    notes: list[Note] = []
    total = counts.sum()

    def part(ends: tuple[float, float]) -> float:
        return float(counts[(values >= ends[0]) & (values <= ends[1])].sum() / total)

    low, high = float(values[0]), float(values[-1])
    if unit == "HU":
        if low >= 0 and high <= 255:
            notes.append(("eight_bit", f"a CT with values from {low:g} to {high:g} is an 8-bit picture, not HU"))
        elif low >= 0:
            notes.append(("not_hu", f"a CT with values from {low:g} to {high:g} has no air: its intercept is missing"))
        elif part(_TISSUE_HU) < _LEAST_TISSUE:
            notes.append(("not_hu", f"a CT (from {low:g} to {high:g}) without voxels near 0 to 60 is not in HU"))
        if low < 0 and part(_AIR_HU) < _LEAST_AIR:
            notes.append(("no_air", "no voxel is near -1000 HU: cropped to tissue, or not in HU"))
    bright = values > (-900.0 if unit == "HU" else low)
    if bright.any():
        at_top = float(counts[-1] / max(counts[bright].sum(), 1))
        beside = np.median(counts[-21:-1]) if len(counts) > 1 else 0  # where values merely end, the last is not a peak
        if at_top > _SATURATED and counts[-1] > 4 * beside:
            notes.append(("saturated", f"{at_top:.1%} of the voxels that are not air have the greatest value {high:g}"))
    return notes


def of_spacing(shape: Sequence[int], spacing_mm: Sequence[float] | None) -> list[Note]:
    """Notes on voxel and volume sizes (D,H,W; z,y,x in mm)."""
    if spacing_mm is None:
        return []
    told = " x ".join(f"{s:.3g}" for s in spacing_mm)
    if not all(PLAUSIBLE_MM[0] <= s <= PLAUSIBLE_MM[1] for s in spacing_mm):
        return [("implausible_spacing", f"voxels of {told} mm (z, y, x) are not those of a patient's scan")]
    size = [n * s for n, s in zip(shape, spacing_mm)]
    if max(size) > LARGEST_MM:
        return [("implausible_spacing", f"voxels of {told} mm make a scan of {max(size) / 1000:.1f} m")]
    return []


def of_affine(affine: np.ndarray) -> list[Note]:
    """Notes on how the stored axes lie in the patient (columns: steps of the three stored axes in RAS mm)."""
    notes: list[Note] = []
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    degrees = float(np.degrees(np.arccos(np.clip(np.abs(directions).max(0), 0, 1))).max())
    if degrees > _OBLIQUE_DEGREES:
        notes.append(("oblique", f"its axes lie {degrees:.1f} degrees off the patient's: kept on its own grid"))
    if np.linalg.det(directions) < 0:
        notes.append(("left_handed", "stored with left-handed axes: turned, nothing is mirrored"))
    return notes


def of_forms(qform_code: int, sform_code: int, qform: np.ndarray | None, sform: np.ndarray) -> list[Note]:
    """Notes on the two orientations of a NIfTI header (nifti1.h: code 0 means "not known", and its form is not looked
    at). qform: None where it is no orientation at all."""
    if not qform_code and not sform_code:
        return [("no_orientation", "the NIfTI says nothing about orientation (qform and sform codes are 0)")]
    if not qform_code or not sform_code:
        return []
    if qform is None:
        return [("forms_contradict", "the NIfTI's qform is no rotation with sizes, and its code says that it is one")]
    q, s = (form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (qform, sform))
    degrees = float(np.degrees(np.arccos(np.clip((q * s).sum(0), -1, 1))).max())
    sizes = np.linalg.norm(qform[:3, :3], axis=0) / np.linalg.norm(sform[:3, :3], axis=0)
    stretch = float(np.abs(sizes - 1).max())
    if degrees > 45:
        return [("forms_contradict", f"qform and sform of the NIfTI point {degrees:.0f} degrees apart")]
    if degrees > 1 or stretch > 0.01:
        differ = f"qform and sform differ by {degrees:.1f} degrees and {stretch:.1%} in size: the sform is used"
        return [("forms_differ", differ)]
    return []
