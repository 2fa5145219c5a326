"""Scans in a user's folder, and the view that a command line asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval_zero_shot.errors import EvalError

if TYPE_CHECKING:
    from encoders.loading import Loaded

VOLUMES = (".nii", ".nii.gz", ".npy")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def find_scans(root: Path, planar: bool) -> tuple[list[Path], int]:
    """Files a release can read, in the order of their names: images, or NIfTI, .npy and folders of DICOM files; and how
    many folders of DICOM files were left out, since they hold localizers, reports or the like.

    `root` may be one scan itself.

    Raises:
        EvalError: there is nothing there, or no scan of the kind asked for.
    """
    if not root.exists():
        raise EvalError("the input does not exist", why="there is nothing to read", fix="check --input")
    found = list(_images(root) if planar else _volumes(root))
    scans = [scan for scan in found if not (scan.is_dir() and _no_scan(scan))]
    if not scans:
        wanted = ", ".join(IMAGES) if planar else ", ".join((*VOLUMES, "folders of DICOM files"))
        what = f"the input holds no {'images' if planar else 'volumes'} ({wanted})"
        raise EvalError(what, why="this release reads nothing else", fix="check --input")
    return scans, len(found) - len(scans)


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


def _no_scan(folder: Path) -> bool:
    """Whether the DICOM files of a folder are known to be no volume: a localizer, a dose report, a capture."""
    from data_shards.dicom.header import not_a_scan, open_dicom
    from data_shards.errors import DataError

    try:
        items = (open_dicom(f) for f in sorted(folder.iterdir()) if f.is_file() and _is_dicom(f))
        first = next((item for item in items if item is not None), None)
    except DataError:
        return False  # told with the scan's number when it is read
    kind = "" if first is None else not_a_scan(first)
    return kind in ("localizer", "dose report", "secondary capture") or kind.startswith("no image")


VIEWS = ("own", "sliding", "multi")
VIEW_HELP = "the release's own view, sliding crops over all of a volume, or multi: corners and middle"


def with_view(loaded: Loaded, kind: str, overlap: float = 0.25) -> Loaded:
    """A release that looks at scans through another kind of view, one of VIEWS."""
    if kind == "own":
        return loaded
    if getattr(loaded.geometry, "scans_per_study", 1) > 1:
        raise EvalError(
            f"--view {kind}: this release reads several scans of a study together",
            why="crops of one scan lie elsewhere than those of another",
            fix="leave --view out",
        )
    if loaded.view.kind == "resize":
        raise EvalError(
            f"--view {kind}: this release was trained on whole scans resized to one size",
            why="crops would show it another scale, which turns good scores into chance",
            fix="leave --view out",
        )
    if loaded.geometry.kind == "slice":
        raise EvalError(
            f"--view {kind}: this release reads single slices of volumes",
            why="crops of a volume are no slices",
            fix="leave --view out; how many slices it looks at is told in the recipe (data.eval_view.slices)",
        )
    if kind == "sliding" and loaded.geometry.kind == "image":
        raise EvalError(
            "--view sliding: this release reads images, which are resized whole",
            why="sliding crops are defined for volumes",
            fix="use --view multi (four corners and the middle), or leave --view out",
        )
    view = replace(loaded.view, kind=kind, overlap=overlap)
    return replace(loaded, view=view, preprocess=replace(loaded.preprocess, view=view))
