"""One door to studies, whoever wrote them: our shard sets (a folder or a URL), or published WebDataset tars."""

from __future__ import annotations

import os
from pathlib import Path

from data_shards.shard_set import ShardSet
from data_shards.shards import Shards
from data_shards.storage import is_url


def holds_studies(where: str | os.PathLike[str]) -> bool:
    """Whether `open_studies` is for this place: a URL, a shard set, a tar, or a folder with tars."""
    return is_url(where) or (Path(where) / "manifest.json").is_file() or _holds_tars(Path(where).expanduser())


def open_studies(where: str | os.PathLike[str]) -> Shards:
    """The shard set in a folder or at a URL, else the published tars of a folder, or one tar.

    Raises: DataError as ShardSet.open and ForeignShards.open.
    """
    place = Path(where).expanduser()
    if not is_url(where) and _holds_tars(place):
        from data_shards.foreign import ForeignShards

        return ForeignShards.open(place)
    return ShardSet.open(where if is_url(where) else place)


def _holds_tars(place: Path) -> bool:
    """Of somebody else: tars with neither manifest nor index beside them (a broken set of ours has one of these)."""
    if any((place / name).exists() for name in ("manifest.json", "index.parquet")):
        return False
    return place.suffix == ".tar" or (place.is_dir() and next(place.rglob("*.tar"), None) is not None)
