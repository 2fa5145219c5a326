"""Which scans of a study are seen together, and what they look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data_shards.errors import DataError
from data_shards.geometry import Geometry, View
from data_shards.preprocess import stacked
from data_shards.schema import VOLUME_EXT

if TYPE_CHECKING:
    from data_shards.shards import Shards


def study_scans(shards: Shards, row: int, most: int, rng: np.random.Generator | None = None) -> list[int]:
    """Numbers of the volumes of a study, in the order they are stored, `most` at most: the first, or with `rng` any.

    Raises DataError for a study without a volume.
    """
    volumes = [i for i, name in enumerate(shards.members(row)[:-1]) if name.endswith(VOLUME_EXT)]  # the last: json
    if not volumes:
        raise DataError(
            "it has images alone, the geometry is for volumes",
            "no encoder reads both",
            'set data.geometry.kind to "volume" or "image"',
        )
    if len(volumes) <= most:
        return volumes
    return volumes[:most] if rng is None else sorted(rng.choice(volumes, most, replace=False).tolist())


def study_view(shards: Shards, row: int, geometry: Geometry, view: View) -> np.ndarray:
    """A study's first scans together as evaluation sees them: `stacked`, and raises as that and `study_scans`."""
    numbers = study_scans(shards, row, geometry.scans_per_study)
    return stacked((shards.scan(row, i) for i in numbers), geometry, view)
