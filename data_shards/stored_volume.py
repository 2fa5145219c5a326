"""A volume of a shard, of which only the blocks that a crop needs are decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from data_shards.errors import DataError


class StoredVolume:
    """int16 or float16 (D,H,W) behind a blosc2 NDArray, in memory or read from its file as it is sliced.

    The file may go bad, or away, between two slices; blosc2 then raises RuntimeError. The volume is read again whole,
    which names the damage or gives the right bytes.

    Args:
        array: the blosc2 NDArray.
        held: kept while this object lives: a cache does not remove the file meanwhile.
        again: reads the volume whole and checks it; an NDArray in memory. Raises DataError.
    """

    def __init__(self, array: Any, held: Any, again: Callable[[], Any]) -> None:
        self._array, self._held, self._again = array, held, again
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.ndim, self.dtype, self.chunks = len(self.shape), array.dtype, tuple(array.chunks)

    def __getitem__(self, region: Any) -> np.ndarray:
        """Raises DamagedError for bytes that are not what was written, DataError where those do not decode."""
        try:
            return self._array[region]
        except (RuntimeError, OSError):
            self._held = None
            self._array = self._again()
        try:
            return self._array[region]
        except RuntimeError:
            raise undecodable() from None

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def undecodable() -> DataError:
    return DataError(
        "a volume is stored as it was written, and does not decode",
        "whoever wrote it has a fault, and there may be more of them",
        "`python -m data_shards.check --deep` lists them all; build the shard set again",
    )
