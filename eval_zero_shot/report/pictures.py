"""A study as a reader knows it: 8-bit slices in named windows, upright, and as PNG or JPEG."""

from __future__ import annotations

import base64
import dataclasses
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from data_shards.geometry import View
    from encoders.loading import Loaded

WINDOWS = {"lung": (-1350.0, 150.0), "soft tissue": (-160.0, 240.0)}  # HU
THUMBNAIL = 128  # pixels, the longer side
PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Picture:
    """8-bit voxels [windows, D, H, W] as the model's view has them (D = 1 for images), and their names."""

    names: tuple[str, ...]
    grey: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


def one_view(loaded: Loaded) -> View:
    """The release's view, or the middle where it has several crops: a page shows one."""
    from data_shards.preprocess import SEVERAL

    return dataclasses.replace(loaded.view, kind="centre") if loaded.view.kind in SEVERAL else loaded.view


def model_input(shards: Any, row: int, loaded: Loaded) -> NDArray[np.float32]:
    """What the encoder is given of a study in `one_view`, of its first scan or of several together: [C, (D,) H, W]."""
    from data_shards.preprocess import apply_view
    from data_shards.study_images import study_view

    geometry: Any = loaded.geometry
    if getattr(geometry, "scans_per_study", 1) > 1:
        return study_view(shards, row, geometry, one_view(loaded))
    source, meta = shards.scan(row, 0)
    if geometry.kind != "volume":
        return _flat(source, meta, geometry, one_view(loaded))
    return apply_view(source, meta, geometry, one_view(loaded))


def _flat(source: Any, meta: Any, geometry: Any, view: View) -> NDArray[np.float32]:
    """An image, or one slice of a volume: [C, H, W]."""
    from data_shards.preprocess import apply_planar, apply_slice

    if geometry.kind == "slice":
        return apply_slice(source, meta, geometry, view)
    return apply_planar(source, geometry, view)


def picture(shards: Any, row: int, loaded: Loaded) -> Picture:
    """A study in lung and soft-tissue windows (CT), in the model's own first window (other volumes), or as it is."""
    from data_shards.preprocess import apply_view
    from data_shards.study_images import study_scans

    geometry: Any = loaded.geometry
    several = getattr(geometry, "scans_per_study", 1) > 1  # it reads volumes, wherever they stand among images
    source, meta = shards.scan(row, study_scans(shards, row, 1)[0] if several else 0)
    if geometry.kind != "volume":
        x = _flat(source, meta, geometry, one_view(loaded))
        x = x * np.reshape(geometry.std, (-1, 1, 1)) + np.reshape(geometry.mean, (-1, 1, 1))
        grey = np.clip(np.rint(255 * x.mean(0)), 0, 255).astype(np.uint8)
        # Volumes are drawn with both in-plane axes turned round (RAS); an image's first row is on top already.
        return Picture(("image",), np.ascontiguousarray(grey[None, None, ::-1, ::-1]), (1.0, 1.0, 1.0))
    names = tuple(WINDOWS)
    shown = dataclasses.replace(geometry, windows=tuple(WINDOWS.values()), windows_in="unit")
    if meta.get("unit") != "HU":
        names, shown = ("first window",), dataclasses.replace(geometry, windows=geometry.windows[:1])
    seen = apply_view(source, meta, shown, one_view(loaded))
    grey = np.clip(np.rint(127.5 * (seen + 1)), 0, 255).astype(np.uint8)
    spacing = geometry.spacing_mm or meta.get("spacing_mm") or (1.0, 1.0, 1.0)
    return Picture(names, grey, tuple(float(s) for s in spacing))  # type: ignore[arg-type]


def on_picture(grid: NDArray, loaded: Loaded) -> NDArray:
    """A map on the token grid turned as `Picture` has its voxels, [d, h, w].

    Of a tower that takes several volumes, those of the scan that is drawn, the first: their mean where every window is
    a volume.
    """
    trunk = getattr(getattr(getattr(loaded.model, "clip", None), "visual", None), "trunk", None)
    volumes = getattr(getattr(trunk, "tag", None), "volumes", 1)
    if volumes > 1:
        scans = getattr(loaded.geometry, "scans_per_study", 1)
        grid = grid.reshape(volumes, -1, *grid.shape[1:])[: volumes // scans].mean(0)
    return np.ascontiguousarray(grid[None, ::-1, ::-1]) if grid.ndim == 2 else grid


def slice_of(shown: Picture, window: int, plane: str, place: int) -> NDArray[np.uint8]:
    """One slice as radiologists see it: front or head above, the patient's right (or front) on the left.

    Raises IndexError where there is no such slice.
    """
    grey = shown.grey[window]
    axis = PLANES.index(plane)
    if not 0 <= place < grey.shape[axis]:
        raise IndexError(f"{plane} slice {place}")
    return np.ascontiguousarray(np.take(grey, place, axis)[::-1, ::-1])


def png_bytes(grey_HW: NDArray[np.uint8], optimize: bool = True) -> bytes:
    """A PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(grey_HW).save(out, "PNG", optimize=optimize)
    return out.getvalue()


def png(grey_HW: NDArray[np.uint8]) -> str:
    """A data URI."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(grey_HW)).decode()


def thumbnail(shown: Picture, window: int = -1) -> str:
    """The middle axial slice as a small JPEG data URI, in true proportions."""
    from PIL import Image

    grey = slice_of(shown, window, "axial", shown.grey.shape[1] // 2)
    high, wide = grey.shape[0] * shown.spacing_mm[1], grey.shape[1] * shown.spacing_mm[2]
    scale = THUMBNAIL / max(high, wide)
    out = io.BytesIO()
    small = Image.fromarray(grey).resize((max(1, round(wide * scale)), max(1, round(high * scale))))
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
