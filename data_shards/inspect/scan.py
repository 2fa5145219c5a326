"""What a file became, in words: rows of (what, value), from its stored grid to what a geometry makes of the scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.geometry import AnyGeometry, Geometry, SliceGeometry, View, geometry_from_dict
from data_shards.quality import FATAL, Note
from data_shards.stacking import Grid

Row = tuple[str, str]
ALL_FATAL = tuple(code for code, fatal in FATAL.items() if fatal)


def rows_of_grid(grid: Grid) -> list[Row]:
    """How the file stores the volume."""
    from nibabel.orientations import aff2axcodes

    k, j, i = (str(n) for n in grid.array_KJI.shape)
    return [
        ("stored as", f"{i} x {j} x {k} voxels of {grid.array_KJI.dtype}"),
        ("stored axes grow to", " ".join(_DIRECTIONS[code] for code in aff2axcodes(grid.affine))),
        ("slope, intercept of the file", f"{grid.slope:g}, {grid.intercept:g}"),
    ]


_DIRECTIONS = {"L": "left", "R": "right", "P": "back", "A": "front", "I": "feet", "S": "head"}


def rows_of_scan(meta: Mapping[str, Any]) -> list[Row]:
    """What a scan's json entry says; its notes are told by `rows_of_notes`."""
    if meta.get("shape") is None:
        return [("kind", f"image ({meta['modality']}, .{meta['ext']})"), ("unit", meta["unit"]), ("role", meta["role"])]
    shape, spacing = meta["shape"], meta["spacing_mm"]
    rows = [
        ("kind", f"volume ({meta['modality']})"),
        ("shape (head, front, right)", _times(shape)),
        ("spacing", f"{_times(f'{s:.4g}' for s in spacing)} mm"),
        ("extent", f"{_times(f'{n * s:.0f}' for n, s in zip(shape, spacing))} mm"),
        ("unit", "Hounsfield units" if meta["unit"] == "HU" else meta["unit"]),
        ("kept as", f"{meta['dtype']}, slope {meta['slope']:g}, intercept {meta['intercept']:g}"),
        ("role", meta["role"] + (f", phase {meta['phase']}" if meta.get("phase") else "")),
    ]
    if found := meta.get("percentiles"):
        rows.append(("without air", ", ".join(f"p{p} {found[p]:.4g}" for p in ("0.5", "5", "50", "95", "99.5"))))
    return rows


def rows_of_notes(notes: Sequence[Note | Sequence[str]]) -> list[Row]:
    """Notes in words, refusals first. A code that is no longer known is told as it is."""
    told = [(FATAL.get(code, False), code, words) for code, words in notes]
    return [("REFUSED" if fatal else "note", f"{words} ({code})") for fatal, code, words in sorted(told, key=_fatal)]


def _fatal(note: tuple[bool, str, str]) -> bool:
    return not note[0]


def rows_of_geometry(shape: Sequence[int] | None, meta: Mapping[str, Any], path: Path) -> list[Row]:
    """What the geometry of a recipe, a release's config or a JSON file makes of the scan."""
    geometry, view = read_geometry(path)
    if (geometry.source == "image") != (shape is None):
        found = "an image" if shape is None else "a volume"
        return [("geometry", f"it is for {geometry.source}s, and this is {found}")]
    if not isinstance(geometry, Geometry) or shape is None:
        of = f"{geometry.plane} slices, " if isinstance(geometry, SliceGeometry) else ""
        return [("geometry", f"{of}{_times(geometry.size)} pixels, {geometry.channels} channels")]  # type: ignore[union-attr]
    from data_shards.preprocess import resampled_shape

    grid = resampled_shape(tuple(shape), meta, geometry)
    spacing = geometry.spacing_mm or meta["spacing_mm"]
    rows = [("at the geometry's spacing", f"{_times(grid)} voxels of {_times(f'{s:g}' for s in spacing)} mm")]
    if view is not None and len(view.size) == 3 and view.kind != "resize":
        seen = np.prod([min(n, m) / n for n, m in zip(grid, view.size)])
        filled = np.prod([min(n, m) / m for n, m in zip(grid, view.size)])
        rows.append(
            (f"{view.kind} view of {_times(view.size)}", f"shows {seen:.0%} of it, {1 - filled:.0%} is padding")
        )
    kinds = "percentiles" if geometry.windows_in == "percentile" else meta["unit"]
    rows.append(("windows", ", ".join(f"{low:g} to {high:g}" for low, high in geometry.windows) + f" ({kinds})"))
    return rows


def read_geometry(path: Path) -> tuple[AnyGeometry, View | None]:
    """Geometry and evaluation view of a recipe (YAML), a release's config or plain JSON. Raises: DataError for none."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"--geometry cannot be read ({type(error).__name__})", fix="give a recipe or JSON") from None
    itself = isinstance(data, dict) and data.get("kind") in ("volume", "image", "slice")
    found = data if itself else _within(data, "geometry")
    if not isinstance(found, dict):
        raise DataError("the file holds no geometry", fix="give a recipe, a release's config, or a geometry's JSON")
    view = _within(data, "eval_view") or _within(data, "view")
    return geometry_from_dict(found), View.from_dict(view) if isinstance(view, dict) else None


def _within(data: Any, name: str) -> Any:
    """The first value of this name, at any depth."""
    if isinstance(data, dict):
        if isinstance(data.get(name), dict):
            return data[name]
        return next((found for value in data.values() if (found := _within(value, name))), None)
    return None


def _times(numbers: Any) -> str:
    return " x ".join(str(n) for n in numbers)
