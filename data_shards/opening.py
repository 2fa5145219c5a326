"""One door to studies, whoever wrote them: our shard sets (a folder or a URL), or published WebDataset tars."""

from __future__ import annotations

import os
from pathlib import Path

from data_shards.shard_set import ShardSet
from data_shards.shards import Shards
from data_shards.storage import is_url


def open_studies(where: str | os.PathLike[str]) -> Shards:
    """The shard set in a folder or at a URL, else the published tars of a folder, a file or a pattern.

    Raises: DataError as ShardSet.open and ForeignShards.open.
    """
    if is_url(where):
        return ShardSet.open(where)
    place = Path(where).expanduser()
    tars = place.suffix == ".tar" or (place.is_dir() and next(place.rglob("*.tar"), None) is not None)
    if tars and not any((place / name).exists() for name in ("manifest.json", "index.parquet")):
        from data_shards.foreign import ForeignShards

        return ForeignShards.open(place)
    return ShardSet.open(place)
