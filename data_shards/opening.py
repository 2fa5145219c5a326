"""One door to studies, whoever wrote them: our shard sets (a folder or a URL), or published WebDataset tars."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.shard_set import ShardSet
from data_shards.shards import Shards
from data_shards.storage import is_url

LOOSE = (".nii", ".nii.gz", ".npy", ".dcm", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def add_tar_options(parser: argparse.ArgumentParser) -> None:
    """How published tars are read; as a recipe says it in `data.source`, or its selections and scores do not fit."""
    add = parser.add_argument_group("published tars, as the recipe has them").add_argument
    add("--layout", default="auto", metavar="NAME", help="how they were written (default: auto)")
    add("--patient-field", metavar="NAME", help="field of their json that must not be in two splits")
    add("--val-fraction", type=float, default=0.0, metavar="F", help="share drawn for split val (default: 0)")
    add("--test-fraction", type=float, default=0.0, metavar="F", help="share drawn for split test (default: 0)")
    add("--max-damaged", type=int, default=0, metavar="N", help="samples that may be left out (default: 0)")


def holds_studies(where: str | os.PathLike[str]) -> bool:
    """Whether `open_studies` is for this place: a URL, a shard set, a tar, or a folder with tars and no loose scans (a
    folder of scans may hold a backup)."""
    place = Path(where).expanduser()
    if is_url(where) or (place / "manifest.json").is_file() or place.suffix == ".tar":
        return True
    loose = place.is_dir() and any(f.name.lower().endswith(LOOSE) for f in place.iterdir())
    return _holds_tars(place) and not loose


def open_studies(where: str | os.PathLike[str], asked: argparse.Namespace | None = None) -> Shards:
    """The shard set in a folder or at a URL, else the published tars of a folder, or one tar.

    asked: parsed options of `add_tar_options`. Raises: DataError as ShardSet.open and ForeignShards.open.
    """
    if is_url(where) or str(where).startswith("file://"):
        return ShardSet.open(where)
    place = Path(where).expanduser()
    if not place.exists():
        raise DataError(
            f"there is no folder or file '{place.name}'", "there are no studies to read",
            "check the path; shard sets are made by data_shards.build or data_shards.phantom",
        )  # fmt: skip
    if not _holds_tars(place):
        return ShardSet.open(place)
    from data_shards.foreign import ForeignShards

    names = ("layout", "patient_field", "val_fraction", "test_fraction", "max_damaged")
    shards = ForeignShards.open(place, **{name: getattr(asked, name) for name in names} if asked else {})
    tell_lost(shards)
    return shards


def tell_lost(shards: Shards, name: str = "") -> None:
    """Say on stderr how many samples of published tars the scan left out, and why, and how many have no text."""
    import sys

    lost, where = getattr(shards, "lost", 0), f"source {name}: " if name else ""
    if lost:
        reasons = "; ".join(list(getattr(shards, "problems", ()))[:3])
        print(f"warning: {where}{lost} samples of the tars are left out: {reasons}", file=sys.stderr)
    if textless := len(getattr(shards, "textless", ())):
        said = "samples have labels of which none is present, so no text: not trained on without data.units.templates"
        print(f"warning: {where}{textless} {said}", file=sys.stderr)


def with_text(shards: Shards, rows: np.ndarray) -> np.ndarray:
    """The rows, without samples that have no text: nothing could be paired with them. They are there in sets that were
    built with --allow-no-text, and in published tars with labels of which none is present."""
    first, without = 0, []
    for part in getattr(shards, "parts", (shards,)):
        without += [int(row) + first for row in getattr(part, "textless", ())]
        first += len(part)
    return rows[~np.isin(rows, without)]


def _holds_tars(place: Path) -> bool:
    """Of somebody else: tars in the folder, or in one below it, with neither manifest nor index beside them (a broken
    set of ours has one of the two)."""
    if any((place / name).exists() for name in ("manifest.json", "index.parquet")):
        return False
    return place.suffix == ".tar" or any(next(place.glob(pattern), None) for pattern in ("*.tar", "*/*.tar"))
