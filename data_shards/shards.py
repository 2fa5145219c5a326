"""What the stream needs of a set of studies, whoever wrote it: our shard sets, a union of them, other people's tars."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from data_shards.errors import DataError


def rows_of_split(split_N: np.ndarray, split: str | None, known: str) -> np.ndarray:
    """Where an array of splits says `split` (None: all rows), int64. `known` tells in the error which there are.

    Raises: DataError for a split with no sample.
    """
    if split is None:
        return np.arange(len(split_N), dtype=np.int64)
    found = np.flatnonzero(split_N == split).astype(np.int64)
    if not len(found):
        raise DataError(f"no sample in split {split!r}", "a run would train or be scored on nothing", known)
    return found


class Shards(Protocol):
    """Studies by row number, 0 to len - 1, the same numbers every time the same set is opened.

    Picklable, because workers read it. Reads raise `DamagedError` where stored bytes are not what was written, and
    `DataError` for everything else. `manifest` has at least "splits": {name: samples}. `manifest_hash` changes with the
    data. `patient` is equal for studies of one patient, and never by accident: where the patient is not known it is
    something of the sample itself.
    """

    label_names: tuple[str, ...]
    manifest: dict[str, Any]
    manifest_hash: str

    def __len__(self) -> int: ...

    def rows(self, split: str | None = None) -> np.ndarray:
        """Row numbers (int64) of a split, or of all samples. Raises DataError for a split with no sample."""
        ...

    def key(self, row: int) -> str: ...

    def patient(self, row: int) -> str: ...

    def shard(self, row: int) -> str:
        """Name of the file that holds the sample."""
        ...

    def modality(self, row: int) -> str:
        """As DICOM writes it: CT, MR, CR, ..."""
        ...

    def labels(self, names: tuple[str, ...] | None = None) -> np.ndarray:
        """float32 (rows, names): 1, 0, or NaN for unknown. Raises DataError for a name that is none of label_names."""
        ...

    def members(self, row: int) -> list[str]:
        """Names of a sample's members, scans first."""
        ...

    def member(self, row: int, name: str) -> bytes: ...

    def json(self, row: int) -> dict[str, Any]: ...

    def scan(self, row: int, i: int = 0, info: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """(source, meta) of scan i: an array (D,H,W) that decodes what is sliced, or an image's bytes."""
        ...
