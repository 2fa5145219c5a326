"""Several sets of studies as one: rows numbered through, label names united, splits united."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from data_shards.errors import DamagedError, DataError
from data_shards.shards import Shards

T = TypeVar("T")


class ShardUnion:
    """Shard sets by name, in order. A `Shards` itself: keys are `name/key`, so that one key in two sets is two studies.

    A label that a set does not have is unknown (NaN) for its studies. One patient in two sets is one patient where both
    sets were built with the same salt; with different salts nobody can know.

    Raises DataError: no set, or a patient who is in one split of a set and in another split of another set.
    """

    def __init__(self, parts: Mapping[str, Shards]) -> None:
        if not parts:
            raise DataError("a union of no shard set", "there would be nothing to train on", "name one or more sources")
        self.names, self.parts = tuple(parts), tuple(parts.values())
        self._start = np.cumsum([0, *(len(p) for p in self.parts)])
        self.label_names: tuple[str, ...] = tuple(dict.fromkeys(n for p in self.parts for n in p.label_names))
        hashes = [p.manifest_hash for p in self.parts]
        self.manifest_hash: str = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
        splits: dict[str, int] = {}
        for part in self.parts:
            for name, samples in part.manifest["splits"].items():
                splits[name] = splits.get(name, 0) + samples
        self.manifest: dict[str, Any] = {
            "samples": len(self),
            "splits": splits,
            "label_names": list(self.label_names),
            "sources": dict(zip(self.names, hashes, strict=True)),
        }
        self._refuse_shared_patients()

    def _refuse_shared_patients(self) -> None:
        split_of: dict[str, tuple[int, str]] = {}
        both: dict[tuple[str, ...], int] = {}
        for i, part in enumerate(self.parts):
            for split in part.manifest["splits"]:
                for row in part.rows(split):
                    patient = part.patient(int(row))
                    first, other = split_of.setdefault(patient, (i, split))
                    if first != i and other != split:
                        where = (self.names[first], other, self.names[i], split)
                        both[where] = both.get(where, 0) + 1
        if both:
            told = "; ".join(f"{n} studies in {b}/{t} of patients in {a}/{s}" for (a, s, b, t), n in both.items())
            raise DataError(
                f"patients stand in different splits of the sources: {told}",
                "held-out results would be measured on patients seen in training",
                "build the sources again with one split of the patients for all (the same seed and fractions, or a "
                "split column)",
            )

    def __len__(self) -> int:
        return int(self._start[-1])

    @property
    def source_R(self) -> np.ndarray:
        """Number of each row's source, an index into `names`."""
        return np.repeat(np.arange(len(self.parts)), np.diff(self._start))

    def source(self, row: int) -> str:
        """Name of the source of a row."""
        return self.names[self._find(row)[0]]

    def rows(self, split: str | None = None) -> np.ndarray:
        """Row numbers (int64) of a split in every source that has it. Raises DataError where none has."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        found = [
            part.rows(split) + start
            for part, start in zip(self.parts, self._start, strict=False)
            if part.manifest["splits"].get(split)
        ]
        if not found:
            raise DataError(
                f"no sample in split {split!r} in any of {', '.join(self.names)}",
                "a run would train or be scored on nothing",
                f"they have the splits {self.manifest['splits']}",
            )
        return np.concatenate(found)

    def key(self, row: int) -> str:
        i, own = self._find(row)
        return f"{self.names[i]}/{self.parts[i].key(own)}"

    def patient(self, row: int) -> str:
        i, own = self._find(row)
        return self.parts[i].patient(own)

    def shard(self, row: int) -> str:
        i, own = self._find(row)
        return f"{self.names[i]}/{self.parts[i].shard(own)}"

    def modality(self, row: int) -> str:
        i, own = self._find(row)
        return self.parts[i].modality(own)

    def labels(self, names: tuple[str, ...] | None = None) -> np.ndarray:
        """float32 (rows, names); NaN also where a source does not have the label. DataError where none has it."""
        chosen = self.label_names if names is None else tuple(names)
        strange = [n for n in chosen if n not in self.label_names]
        if strange:
            raise DataError(f"no label {strange} in any source", fix=f"they have {list(self.label_names)}")
        out = np.full((len(self), len(chosen)), np.nan, np.float32)
        for part, start in zip(self.parts, self._start, strict=False):
            known = [j for j, name in enumerate(chosen) if name in part.label_names]
            if known:
                out[start : start + len(part), known] = part.labels(tuple(chosen[j] for j in known))
        return out

    def members(self, row: int) -> list[str]:
        i, own = self._find(row)
        return self.parts[i].members(own)

    def member(self, row: int, name: str) -> bytes:
        return self._read(row, lambda part, own: part.member(own, name))

    def json(self, row: int) -> dict[str, Any]:
        return self._read(row, lambda part, own: part.json(own))

    def scan(self, row: int, i: int = 0, info: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._read(row, lambda part, own: part.scan(own, i, info))

    def _find(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        i = int(np.searchsorted(self._start, row, "right")) - 1
        return i, row - int(self._start[i])

    def _read(self, row: int, read: Callable[[Shards, int], T]) -> T:
        i, own = self._find(row)
        try:
            return read(self.parts[i], own)
        except DamagedError as error:  # every set has a shard-000000.tar
            name = self.names[i]
            where = f"{name}/{error.shard}", f"{name}/{error.key}"
            raise DamagedError(f"source {name}: {error.what}", error.why, error.fix, *where) from None
