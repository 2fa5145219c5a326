"""One DICOM series from files: slices sorted by position, checked, decoded, in one grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.dicom.header import Frame, frames_of, is_image, not_a_scan, open_dicom
from data_shards.dicom.pixels import decode, lossy_words
from data_shards.dicom.suv import suv_factor
from data_shards.errors import DataError
from data_shards.quality import refuse
from data_shards.stacking import Grid, arrange, common, evened

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_series(folder: Path, files: Sequence[str] = (), accept: Collection[str] = ()) -> Grid:
    """A folder with one DICOM series, or the named files of it -> Grid.

    Single-frame and enhanced multi-frame objects, every transfer syntax that an installed codec reads. PET is turned to
    SUV (body weight) where the header allows it. `accept`: codes of data_shards.quality that do not refuse it.
    Raises: DataError for no image, several series, stacks or time points, mixed sizes or directions, missing,
    unevenly spaced or contradicting slices, localizers, and pixel data that cannot be decoded.
    """
    items, copies = _items(folder, files)
    frames = [frame for item in items for frame in frames_of(item)]
    _one_volume(items, frames, accept)
    planes = _Planes(frames)
    normal = frames[0].normal
    order = arrange(np.stack([f.position for f in frames]), normal, planes.same)
    notes = list(order.notes)
    if copies:
        notes.append(("repeated_slices", f"{copies} files hold a slice that another file holds too"))
    if lossy := lossy_words(items[0]):
        notes.append(("lossy", lossy))
    refuse(notes, accept)
    array, slope, intercept = planes.stacked(order.order)
    step = float(order.step_mm @ normal)
    if not order.even:
        array = evened(array, order.along, step)
    first = frames[order.order[0]]
    affine = np.eye(4)
    high, wide = first.spacing
    affine[:3, :3] = LPS_TO_RAS @ np.stack([first.row * wide, first.column * high, order.step_mm], 1)
    affine[:3, 3] = LPS_TO_RAS @ first.position
    modality = str(items[0].get("Modality") or "CT")
    unit = "HU" if modality == "CT" else "arbitrary"
    if modality == "PT":
        factor, why_not = suv_factor(items[0])
        if factor is None:
            notes.append(("no_suv", f"no SUV: {why_not}"))
        else:
            slope, intercept, unit = slope * factor, intercept * factor, "SUV"
    return Grid(array, affine, slope, intercept, modality, unit, tuple(notes))


def _items(folder: Path, files: Sequence[str]) -> tuple[list[Any], int]:
    """The image objects, each once, and how many files were copies of another."""
    names = [folder / name for name in files] if files else sorted(p for p in folder.iterdir() if p.is_file())
    found: dict[str, Any] = {}
    copies = 0
    for path in names:
        item = open_dicom(path)
        if item is not None and "PixelData" not in item and (files or is_image(item)):
            raise DataError("an image of the series has no pixels", "the volume would have holes", "copy it again")
        if item is None and files:
            raise DataError("a file of the series is no DICOM any more", "the volume would have holes", "copy it again")
        if item is None or "PixelData" not in item:
            continue
        uid = str(item.get("SOPInstanceUID") or path.name)
        copies += uid in found
        found.setdefault(uid, item)
    if not found:
        raise DataError(
            "the folder holds no DICOM image",
            "a folder is read as the slices of one volume",
            "give a NIfTI, a .npy or the folder that directly holds one DICOM series; where volumes (CT) are read, "
            "PNG and JPEG are not",
        )
    # By number, so that what comes first does not depend on file names.
    return sorted(found.values(), key=_number), copies


def _one_volume(items: list[Any], frames: list[Frame], accept: Collection[str]) -> None:
    series = {str(item.get("SeriesInstanceUID", "")) for item in items}
    if len(series) > 1:
        raise DataError(
            f"the folder holds {len(series)} DICOM series",
            "slices of two scans would be stacked",
            "one folder a series, or build from the tree of folders (it sorts series by their UID)",
        )
    kinds = {not_a_scan(item) for item in items}
    if kinds == {"localizer"}:
        refuse([("localizer", "the series is a localizer")], accept)
    if colour := {"colour image"} & kinds:
        raise DataError(f"the series holds a {colour.pop()}", "a screenshot is not a scan", "give the original series")
    stacks = {frame.stack for frame in frames}
    if len(stacks) > 1:
        raise DataError(
            f"the series holds {len(stacks)} stacks or time points",
            "they would be shuffled into one volume",
            "split them into series, for instance with dcm2niix",
        )
    sizes = {(int(f.item.Rows), int(f.item.Columns), *f.spacing) for f in frames}
    turned = max(np.abs([f.row - frames[0].row, f.column - frames[0].column]).max() for f in frames)
    if len(sizes) > 1 or turned > 1e-3:
        raise DataError(
            "the slices differ in size, spacing or direction",
            "they do not form one volume",
            "take the localiser out of the folder, or convert the series to NIfTI",
        )


class _Planes:
    """Decodes frames when they are asked for, each once."""

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames
        self._kept: dict[int, np.ndarray] = {}

    def same(self, i: int, j: int) -> bool:
        for n in (i, j):
            self._kept.setdefault(n, self._decoded(n))
        a, b = self.frames[i], self.frames[j]
        equal = (a.slope, a.intercept) == (b.slope, b.intercept)
        return equal and np.array_equal(self._kept[i], self._kept[j])

    def stacked(self, order: Sequence[int]) -> tuple[np.ndarray, float, float]:
        """(K,J,I values, slope, intercept). Frames of different slopes, as in PET, become float32 in their unit."""
        slope, intercept = (common([getattr(self.frames[i], n) for i in order]) for n in ("slope", "intercept"))
        alike = slope is not None and intercept is not None
        out: np.ndarray | None = None
        for k, i in enumerate(order):
            plane = self._kept.pop(i) if i in self._kept else self._decoded(i)
            frame = self.frames[i]
            if not alike:
                plane = (plane.astype(np.float64) * frame.slope + frame.intercept).astype(np.float32)
            if out is None:
                out = np.empty((len(order), *plane.shape), plane.dtype)
            if out.dtype != plane.dtype:
                raise DataError("the slices differ in how they store numbers", "they do not form one volume")
            out[k] = plane
        assert out is not None
        return (out, float(slope), float(intercept)) if slope is not None and intercept is not None else (out, 1.0, 0.0)

    def _decoded(self, i: int) -> np.ndarray:
        item = self.frames[i].item
        plane = decode(item, self.frames[i].index)
        if int(item.get("NumberOfFrames") or 1) == 1:
            del item.PixelData  # a series is not held twice
        return plane


def _number(item: Any) -> tuple[int, str]:
    return int(item.get("InstanceNumber") or 0), str(item.get("SOPInstanceUID") or "")
