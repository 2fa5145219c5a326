"""What samples share: images, reports, patients; within a split it is worth knowing, between splits it leaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from data_shards.shard_set import ShardSet
from data_shards.verify import Fingerprint


@dataclass(frozen=True, order=True)
class Place:
    """A sample: the number of its set (1 is the first named), its split and its hashed key."""

    set: int
    split: str
    key: str


@dataclass(frozen=True)
class Group:
    """Samples that share something."""

    samples: tuple[Place, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(sorted({place.split for place in self.samples}))

    @property
    def sets(self) -> tuple[int, ...]:
        return tuple(sorted({place.set for place in self.samples}))

    def to_json(self) -> dict[str, Any]:
        return {"between_splits": len(self.splits) > 1, "samples": [asdict(place) for place in self.samples]}


@dataclass(frozen=True)
class Overlap:
    """`images`, `reports`: groups of two samples or more. `patients`: those in several splits or several sets."""

    images: list[Group]
    reports: list[Group]
    patients: list[Group]

    def leaks(self) -> bool:
        """The same image or the same patient in two splits. (The same report is not: normal reports repeat.)"""
        return any(len(group.splits) > 1 for group in [*self.images, *self.patients])


def overlap(sets: list[tuple[int, ShardSet, list[Fingerprint]]]) -> Overlap:
    """Compares all samples of all sets, given with their numbers. Patients are compared by their salted hashes, so
    only sets built with one salt can be seen to share a patient."""
    images: list[tuple[str, Place]] = []
    reports: list[tuple[str, Place]] = []
    patients: list[tuple[str, Place]] = []
    for number, shards, prints in sets:
        splits = shards.index["split"].to_pylist()
        places = [Place(number, split, shards.key(row)) for row, split in enumerate(splits)]
        patients += [(shards.patient(row), place) for row, place in enumerate(places)]
        for found in prints:
            images += [(image, places[found.row]) for image in set(found.images)]
            reports += [(found.report, places[found.row])] if found.report else []
    several = [group for group in _groups(patients) if len(group.splits) > 1 or len(group.sets) > 1]
    return Overlap(_groups(images), _groups(reports), several)


def _groups(pairs: Iterable[tuple[str, Place]]) -> list[Group]:
    by_hash: dict[str, set[Place]] = defaultdict(set)
    for digest, place in pairs:
        by_hash[digest].add(place)
    return sorted((Group(tuple(sorted(p))) for p in by_hash.values() if len(p) > 1), key=lambda group: group.samples)
