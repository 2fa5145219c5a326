"""The order of training samples as pure arithmetic: any batch of any rank from its number, with no state.

Rows lie in cells: all rows of a run, the rows of a source, or those of one modality of a source. Draw k of a cell is
row perm(seed, cell, k // n)[k % n], so that a cell's n rows all come before any comes again. Which cell a position
draws from is settled block by block: a block is as long as the rarest member needs to come up once, holds every member
at its share (largest remainders of the running total, so nothing drifts), and is shuffled by Philox(seed, block).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from data_shards.errors import DataError
from data_shards.mixture import Batches, Mixture, largest_remainder, refuse_rare, whole_numbers

# Last word of a Philox key: what the numbers are for. 0 and 1 are pixels and words of a sample.
SHUFFLE_CELL, SHUFFLE_BLOCK, REPLACE, SHUFFLE_BATCH, TEMPLATES, ALTERNATE, SCANS = 2, 3, 4, 5, 6, 7, 8


class Draw(NamedTuple):
    """One sample: its row, (seed, epoch) of its random choices (None: none), and the rows that may stand in for it."""

    row: int
    seed: tuple[int, int] | None = None
    pool: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """Rows in cells, cells in groups; `shares` are whole-number weights of the cells. `label` says it in words."""

    cells: tuple[np.ndarray, ...]
    shares: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    batches: Batches = "mixed"
    label: str | None = None

    @classmethod
    def plain(cls, rows: np.ndarray) -> Layout:
        return cls((rows,), (1,), ((0,),), ("all",))

    @classmethod
    def of(
        cls,
        mixture: Mixture,
        rows: np.ndarray,
        names: Sequence[str],
        source_R: np.ndarray,
        kinds: Sequence[str],
        kind_R: np.ndarray,
    ) -> Layout:
        """Lay out `rows`, given the sources and the kinds (modalities) there are and which one every row is of.

        With groups by modality a source's weight goes to its modalities in the proportions it has them.
        Raises DataError as Mixture.shares does.
        """
        inside = [rows[source_R[rows] == i] for i in range(len(names))]
        shares = mixture.shares(names, [len(r) for r in inside])
        if mixture.by == "source":
            cells, labels, weights = inside, list(names), list(shares)
        else:
            cells, labels, fractions = [], [], []
            for share, all_rows in zip(shares, inside, strict=True):
                for j, kind in enumerate(kinds):
                    cell = all_rows[kind_R[all_rows] == j]
                    if len(cell):
                        cells.append(cell)
                        labels.append(kind)
                        fractions.append(Fraction(share * len(cell), len(all_rows)))
            weights = list(whole_numbers(fractions))
            refuse_rare(labels, weights)
        found = list(dict.fromkeys(labels))
        groups = tuple(tuple(c for c, label in enumerate(labels) if label == name) for name in found)
        if mixture.batches == "mixed":
            groups, found = (tuple(range(len(cells))),), ["all"]
        told = ", ".join(f"{name} {share / sum(shares):.12g}" for name, share in zip(names, shares, strict=True))
        how = mixture.batches if mixture.batches == "mixed" else f"{mixture.batches} by {mixture.by}"
        return cls(tuple(cells), tuple(weights), groups, tuple(found), mixture.batches, f"{how}: {told}")


class Order:
    """step -> this rank's draws.

    Step s of rank r takes the positions r*B ... r*B + B - 1 of global batch s (B samples a rank, G = B * world).
    Raises DataError where batches are stratified and too small to hold every group.
    """

    def __init__(self, layout: Layout, seed: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.layout, self.seed, self.rank, self.world = layout, seed, rank, world
        self.batch, self.size = batch_size, batch_size * world
        several = len(layout.cells) > 1
        self.cells = [_Cell(rows, (seed,), (i, SHUFFLE_CELL) if several else ()) for i, rows in enumerate(layout.cells)]
        weights = [sum(layout.shares[c] for c in group) for group in layout.groups]
        self.outer = _Turns(weights, seed, len(weights))
        self.inner = [_Turns([layout.shares[c] for c in group], seed, i) for i, group in enumerate(layout.groups)]
        self.quota: list[int] | None = None
        if layout.batches == "stratified":
            self.quota = largest_remainder(weights, self.size)
            if 0 in self.quota:
                absent = ", ".join(n for n, q in zip(layout.names, self.quota, strict=True) if not q)
                raise DataError(
                    f"a global batch of {self.size} cannot hold all {len(weights)} groups at their shares: "
                    f"none of {absent}",
                    "batches would not be stratified",
                    f"use a global batch (batch size x ranks) of {-(-sum(weights) // min(weights))}, or other weights",
                )

    def __call__(self, step: int) -> list[Draw]:
        draws = []
        for group, k in self._places(step):
            member, turn = self.inner[group].at(k)
            cell = self.cells[self.layout.groups[group][member]]
            row, epoch = cell.draw(turn)
            draws.append(Draw(row, (self.seed, epoch), cell.rows))
        return draws

    def _places(self, step: int) -> list[tuple[int, int]]:
        """(group, number of the draw within the group) of this rank's samples."""
        mine = range(self.rank * self.batch, (self.rank + 1) * self.batch)
        if self.quota is None:
            group, before = self.outer.at(step) if self.layout.batches == "homogeneous" else (0, step)
            return [(group, before * self.size + i) for i in mine]
        group_G, turn_G = _shuffled(self.quota, (self.seed, step, 0, SHUFFLE_BATCH))
        return [(int(group_G[i]), step * self.quota[group_G[i]] + int(turn_G[i])) for i in mine]

    def count(self, steps: int, class_R: np.ndarray, classes: int) -> np.ndarray:
        """How many samples of the first `steps` global batches are of each class, given the class of every row."""
        if self.quota is not None:
            per_group = [steps * q for q in self.quota]
        elif self.layout.batches == "homogeneous":
            per_group = [self.size * n for n in self.outer.before(steps)]
        else:
            per_group = [self.size * steps]
        total = np.zeros(classes, np.int64)
        for turns, group, drawn in zip(self.inner, self.layout.groups, per_group, strict=True):
            for cell, n in zip(group, turns.before(drawn), strict=True):
                total += self.cells[cell].count(n, class_R, classes)
        return total


class _Cell:
    """Rows that are drawn without replacement, pass after pass."""

    def __init__(self, rows: np.ndarray, head: tuple[int, ...], tail: tuple[int, ...]) -> None:
        self.rows, self._head, self._tail = rows, head, tail
        self._orders: dict[int, np.ndarray] = {}  # of two passes: a batch may end one and begin the next

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}

    def draw(self, k: int) -> tuple[int, int]:
        """(row, pass)"""
        epoch, place = divmod(k, len(self.rows))
        return int(self.rows[self._order(epoch)[place]]), epoch

    def count(self, draws: int, class_R: np.ndarray, classes: int) -> np.ndarray:
        passes, rest = divmod(draws, len(self.rows))
        begun = self.rows[self._order(passes)[:rest]] if rest else self.rows[:0]
        all_rows = np.bincount(class_R[self.rows], minlength=classes)
        return passes * all_rows + np.bincount(class_R[begun], minlength=classes)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.pop(min(self._orders))
            self._orders[epoch] = _generator(*self._head, epoch, *self._tail).permutation(len(self.rows))
        return self._orders[epoch]


class _Turns:
    """Whose turn it is at every position of an endless sequence, and how often it was before."""

    def __init__(self, weights: Sequence[int], seed: int, number: int) -> None:
        self.weights, self.seed, self.number = tuple(weights), seed, number
        # So long that everybody's running total grows by 1 or more: rounding up before never has to be taken back.
        self.length = -(-sum(weights) // min(weights))

    def at(self, position: int) -> tuple[int, int]:
        """(member, number of its earlier turns)"""
        if len(self.weights) == 1:
            return 0, position
        block, place = divmod(position, self.length)
        start, member_L, turn_L = _block(self.weights, self.length, self.seed, self.number, block)
        member = int(member_L[place])
        return member, start[member] + int(turn_L[place])

    def before(self, position: int) -> list[int]:
        """Turns of every member before a position."""
        if len(self.weights) == 1:
            return [position]
        block, place = divmod(position, self.length)
        start, member_L, _ = _block(self.weights, self.length, self.seed, self.number, block)
        return [s + int(n) for s, n in zip(start, np.bincount(member_L[:place], minlength=len(start)), strict=True)]


@lru_cache(maxsize=16)
def _block(
    weights: tuple[int, ...], length: int, seed: int, number: int, block: int
) -> tuple[list[int], np.ndarray, np.ndarray]:
    start, end = (largest_remainder(weights, b * length) for b in (block, block + 1))
    counts = [e - s for s, e in zip(start, end, strict=True)]
    return start, *_shuffled(counts, (seed, block, number, SHUFFLE_BLOCK))


def _shuffled(counts: Sequence[int], key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Members as often as counted, in a random order, and the how-manieth of its member each one is."""
    members = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    place = _generator(*key).permutation(len(members))
    turns = np.concatenate([np.arange(c, dtype=np.int32) for c in counts])
    # Turns of one member come in their order: sort each member's places.
    shuffled = members[place]
    by_member = np.argsort(shuffled, kind="stable")
    ordered = np.empty_like(turns)
    ordered[by_member] = turns
    return shuffled, ordered


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(list(key)))


def replacement_generator(seed: tuple[int, int], row: int) -> np.random.Generator:
    """Draws of the rows that stand in for a damaged one, the same in every worker and after every restart."""
    return _generator(*seed, row, REPLACE)
