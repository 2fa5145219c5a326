"""Pictures of scans: three planes as radiologists see them (the patient's right on the left), windows, histogram."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.geometry import LUNG, SOFT_TISSUE

PLANES = ("axial", "coronal", "sagittal")
_EDGES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}


def windows_of(meta: Mapping[str, Any]) -> list[tuple[str, tuple[float, float]]]:
    """Two windows with their names: lung and soft tissue for CT, wide and narrow percentiles for the rest."""
    if meta["unit"] == "HU":
        return [("lung", LUNG), ("soft tissue", SOFT_TISSUE)]
    found = meta.get("percentiles") or {}
    pairs = (("0.5", "99.5"), ("5", "95"))
    return [(f"p{a} to p{b}", (found[a], found[b])) for a, b in pairs if a in found and b in found]


def plane_of(array_DHW: Any, spacing_mm: Sequence[float], plane: str) -> tuple[np.ndarray, tuple[float, float]]:
    """The middle slice as it hangs on a light box, and its width and height in mm. Axial: the front above; coronal and
    sagittal: the head above; the patient's right (sagittal: front) on the left."""
    d, h, w = array_DHW.shape
    z, y, x = spacing_mm
    if plane == "axial":
        return np.asarray(array_DHW[d // 2 : d // 2 + 1])[0, ::-1, ::-1], (w * x, h * y)
    if plane == "coronal":
        return np.asarray(array_DHW[:, h // 2 : h // 2 + 1])[:, 0][::-1, ::-1], (w * x, d * z)
    return np.asarray(array_DHW[:, :, w // 2 : w // 2 + 1])[:, :, 0][::-1, ::-1], (h * y, d * z)


def draw_volume(array_DHW: np.ndarray, meta: Mapping[str, Any], out: Path, notes: Sequence[str] = ()) -> None:
    """Three planes in two windows over a histogram, as one PNG."""
    from matplotlib.figure import Figure

    windows = windows_of(meta) or [("whole range", _range(array_DHW, meta))]
    shown = {plane: plane_of(array_DHW, meta["spacing_mm"], plane) for plane in PLANES}
    widths = [shown[p][1][0] for p in PLANES]
    tallest = max(size[1] for _, size in shown.values())
    scale = 11.0 / sum(widths)  # inches per mm, the same for all planes
    row = min(max(tallest * scale, 2.0), 7.0)
    figure = Figure(figsize=(13.0, row * len(windows) + 4.0), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(len(windows) + 1, 3, width_ratios=widths, height_ratios=[row] * len(windows) + [2.4])
    for i, (name, window) in enumerate(windows):
        for j, plane in enumerate(PLANES):
            axes = figure.add_subplot(grid[i, j])
            _draw_plane(axes, *shown[plane], plane, meta, window)
            axes.set_title(f"{plane}, {name}", fontsize=12)
    _histogram(figure.add_subplot(grid[len(windows), :]), array_DHW, meta, windows)
    size = " x ".join(str(n) for n in array_DHW.shape)
    spacing = " x ".join(f"{s:.3g}" for s in meta["spacing_mm"])
    title = f"{meta['modality']}, {size} voxels of {spacing} mm (head, front, right)"
    figure.suptitle("\n".join([title, *notes]), fontsize=13, wrap=True)
    save(figure, out)


def draw_image(data: bytes, out: Path) -> None:
    """A planar image beside the histogram of its grey values."""
    from matplotlib.figure import Figure
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        pixels = np.asarray(opened if opened.mode.startswith("I") else opened.convert("RGB"))
    grey = pixels if pixels.ndim == 2 else pixels.mean(2)
    figure = Figure(figsize=(13.0, 6.5), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    low, high = np.percentile(grey, (0.5, 99.5))
    left.imshow(pixels if pixels.ndim == 3 else grey, cmap="gray", vmin=low, vmax=max(high, low + 1))
    left.set_axis_off()
    left.set_title(f"{pixels.shape[1]} x {pixels.shape[0]} pixels, as stored", fontsize=12)
    right.hist(grey.ravel(), bins=128, color="#3b6ea5")
    right.set_xlabel("grey value")
    right.set_ylabel("pixels")
    save(figure, out)


def draw_sheet(studies: Sequence[tuple[str, Any, Mapping[str, Any]]], out: Path) -> None:
    """A contact sheet: (title, source as a ShardSet gives it, the scan's json) of each study. Volumes: the middle
    axial and coronal slice side by side."""
    from matplotlib.figure import Figure
    from PIL import Image

    columns = min(4, len(studies))
    rows = -(-len(studies) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows + 0.4), layout="constrained", facecolor="white")
    places = figure.subplots(rows, columns, squeeze=False)
    for axes in places.ravel():
        axes.set_axis_off()
    for axes, (title, source, meta) in zip(places.ravel(), studies):
        axes.set_title(title, fontsize=10)
        if isinstance(source, bytes):
            with Image.open(io.BytesIO(source)) as opened:
                grey = np.asarray(opened.convert("F") if opened.mode.startswith("I") else opened.convert("L"))
            axes.imshow(grey, cmap="gray")
            continue
        low, high = (windows_of(meta) or [("", _range(source[:], meta))])[-1][1]
        left = 0.0
        for plane in ("axial", "coronal"):
            picture, (width, height) = plane_of(source, meta["spacing_mm"], plane)
            values = _values(picture, meta)
            axes.imshow(values, cmap="gray", vmin=low, vmax=high, extent=(left, left + width, -height / 2, height / 2))
            left += width * 1.04
        tallest = max(plane_of(source, meta["spacing_mm"], p)[1][1] for p in ("axial", "coronal"))
        axes.set_xlim(0, left)
        axes.set_ylim(-tallest / 2, tallest / 2)
    save(figure, out)


def save(figure: Any, out: Path) -> None:
    """Write aside, then rename."""
    aside = out.with_name(f".{out.name}.tmp")
    figure.savefig(aside, format="png", dpi=110, metadata={"Software": None})
    aside.replace(out)


def _draw_plane(
    axes: Any,
    picture: np.ndarray,
    size: tuple[float, float],
    plane: str,
    meta: Mapping[str, Any],
    window: tuple[float, float],
) -> None:
    axes.imshow(
        _values(picture, meta), cmap="gray", vmin=window[0], vmax=window[1], extent=(0, size[0], 0, size[1]),
        interpolation="nearest",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    from matplotlib.patheffects import withStroke

    left, right, top, bottom = _EDGES[plane]
    for text, x, y in ((left, 0.03, 0.5), (right, 0.97, 0.5), (top, 0.5, 0.97), (bottom, 0.5, 0.03)):
        axes.text(
            x, y, text, transform=axes.transAxes, color="#ffd24d", fontsize=13, fontweight="bold",
            path_effects=[withStroke(linewidth=2.5, foreground="black")],
            ha={0.03: "left", 0.97: "right"}.get(x, "center"), va={0.97: "top", 0.03: "bottom"}.get(y, "center"),
        )  # fmt: skip


def _histogram(axes: Any, array: np.ndarray, meta: Mapping[str, Any], windows: Sequence[tuple[str, Any]]) -> None:
    step = max(1, round((array.size / 4e6) ** (1 / 3)))  # a few million voxels show the shape
    values = _values(array[::step, ::step, ::step], meta).ravel()
    axes.hist(values, bins=256, color="#3b6ea5", log=True)
    for (name, (low, high)), colour in zip(windows, ("#c44e52", "#55a868")):
        axes.axvspan(low, high, color=colour, alpha=0.12, label=f"{name}: {low:.4g} to {high:.4g}")
    axes.legend(fontsize=11, frameon=False)
    axes.set_xlabel({"HU": "Hounsfield units", "SUV": "SUV (body weight)"}.get(meta["unit"], "value"), fontsize=12)
    axes.set_ylabel("voxels" if step == 1 else f"voxels (one of {step**3})", fontsize=12)
    axes.margins(x=0)


def _values(stored: np.ndarray, meta: Mapping[str, Any]) -> np.ndarray:
    return stored.astype(np.float32) * np.float32(meta["slope"]) + np.float32(meta["intercept"])


def _range(array: np.ndarray, meta: Mapping[str, Any]) -> tuple[float, float]:
    low, high = np.percentile(_values(np.asarray(array)[::4, ::4, ::4], meta), (0.5, 99.5))
    return float(low), max(float(high), float(low) + 1e-6)
