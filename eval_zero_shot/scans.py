"""Scans in a user's folder, and what a release sees of each: one view, or sliding crops that cover all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.errors import EvalError

if TYPE_CHECKING:
    from encoders.loading import Loaded

VOLUMES = (".nii", ".nii.gz", ".npy")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def find_scans(root: Path, planar: bool) -> list[Path]:
    """Files a release can read, in the order of their names: images, or NIfTI, .npy and folders of DICOM files.

    `root` may be one scan itself.

    Raises:
        EvalError: there is nothing there, or no scan of the kind asked for.
    """
    if not root.exists():
        raise EvalError("the input does not exist", why="there is nothing to read", fix="check --input")
    found = list(_images(root) if planar else _volumes(root))
    if not found:
        wanted = ", ".join(IMAGES) if planar else ", ".join((*VOLUMES, "folders of DICOM files"))
        what = f"the input holds no {'images' if planar else 'volumes'} ({wanted})"
        raise EvalError(what, why="this release reads nothing else", fix="check --input")
    return found


def _images(root: Path) -> Iterator[Path]:
    files = [root] if root.is_file() else sorted(root.rglob("*"))
    yield from (f for f in files if f.is_file() and f.name.lower().endswith(IMAGES))


def _volumes(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield from [root] if root.name.lower().endswith(VOLUMES) else []
        return
    files = sorted(f for f in root.rglob("*") if f.is_file())
    series = {f.parent for f in files if not f.name.lower().endswith((*VOLUMES, *IMAGES)) and _is_dicom(f)}
    yield from sorted([*(f for f in files if f.name.lower().endswith(VOLUMES)), *series])


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"


def views(loaded: Loaded, scan: Any, sliding: bool = False, overlap: float = 0.25) -> NDArray[np.float32]:
    """What the release sees of one scan (a path or anything `loaded.preprocess` takes): [windows, C, (D,) H, W].

    One window as the release's own view has it, or `sliding` crops of the same size that overlap by a share of it and
    cover the whole scan.

    Raises:
        DataError: the scan cannot be read.
        EvalError: sliding crops asked of an image.
    """
    if not sliding:
        return np.asarray(loaded.preprocess(scan))[None]
    if loaded.geometry.kind != "volume":
        raise EvalError("sliding crops are for volumes", why="images are resized whole", fix="leave --view out")
    from data_shards.preprocess import sliding_crops
    from data_shards.volume import read_volume

    volume = read_volume(scan) if isinstance(scan, str | Path) else scan
    view = replace(loaded.view, kind="sliding", overlap=overlap)
    crops = sliding_crops(volume.array, volume.to_json(), loaded.geometry, view)  # type: ignore[arg-type]
    return np.stack([crop for _, crop in crops])
