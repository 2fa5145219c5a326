"""Right or wrong per item, what needs no image, and intervals over patients: arithmetic on arrays.

Shapes: N items, M options of all items one after another, P groups, R resamples, K metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.statistics import Interval, percentile_interval
from eval_zero_shot.vqa.items import Item

Array = NDArray[np.float64]
FEW = 10  # a category with fewer items has no majority answer of its own: it would be known from a handful
_CHUNK = 4_000_000


def hits(scores_M: Array, starts_N: NDArray[np.int64], right_N: NDArray[np.int64]) -> Array:
    """1 where the right option scores highest, 1 / (number tied) where it shares the first place, else 0.

    starts_N: where each item's options begin; right_N: the place of the right one in scores_M.
    """
    best_N = np.maximum.reduceat(scores_M, starts_N)
    sizes_N = np.diff(np.r_[starts_N, len(scores_M)])
    tied_N = np.add.reduceat((scores_M == np.repeat(best_N, sizes_N)).astype(np.float64), starts_N)
    return np.where(scores_M[right_N] == best_N, 1 / tied_N, 0.0)


def majority_hits(items: Sequence[Item]) -> Array:
    """What always giving the most frequent right answer of the item's category earns; 1 / options where an item does
    not offer it. Of equally frequent answers the first in the alphabet. Categories under FEW items are pooled."""
    sizes = Counter(item.category for item in items)
    group = [item.category if sizes[item.category] >= FEW else "" for item in items]
    right = [item.options[item.answer].casefold() for item in items]
    first: dict[str, str] = {}
    for name in set(group):
        said = Counter(text for text, of in zip(right, group, strict=True) if of == name)
        first[name] = min(said, key=lambda text: (-said[text], text))
    offered = [first[g] in {o.casefold() for o in item.options} for g, item in zip(group, items, strict=True)]
    return np.array(
        [
            float(text == first[g]) if there else 1 / len(item.options)
            for text, g, there, item in zip(right, group, offered, items, strict=True)
        ]
    )


def position_hits(items: Sequence[Item]) -> Array:
    """What always naming the most frequent place of the right answer earns, among items with as many options."""
    best: dict[int, int] = {}
    for size in {len(item.options) for item in items}:
        said = Counter(item.answer for item in items if len(item.options) == size)
        best[size] = min(said, key=lambda place: (-said[place], place))
    return np.array([float(item.answer == best[len(item.options)]) for item in items])


def mean_intervals(
    values_NK: Array, groups_N: Sequence[str], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> list[Interval]:
    """Mean of each column over its known values, with percentiles over resampled groups (patients or images): all items
    of a group come and go together. No interval for one group, or where all resamples agree."""
    known_NK = ~np.isnan(values_NK)
    names, group_N = np.unique(np.asarray(groups_N, dtype=str), return_inverse=True)
    sums_PK, counts_PK = (np.zeros((len(names), values_NK.shape[1])) for _ in range(2))
    np.add.at(sums_PK, group_N, np.where(known_NK, values_NK, 0.0))
    np.add.at(counts_PK, group_N, known_NK)
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = [np.empty((0, values_NK.shape[1]))]
    block = max(1, _CHUNK // len(names))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        weights_RP = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append((weights_RP @ sums_PK) / (weights_RP @ counts_PK))
    drawn_RK = np.concatenate(drawn)
    found = []
    for k in range(values_NK.shape[1]):
        groups = int((counts_PK[:, k] > 0).sum())
        value = float(sums_PK[:, k].sum() / counts_PK[:, k].sum())
        interval = percentile_interval(value, drawn_RK[:, k], level=level, patients=groups)
        if groups < 2:
            interval = replace(interval, low=None, high=None, reason="a single patient or image")
        elif interval.low is not None and interval.low == interval.high:
            interval = replace(interval, low=None, high=None, reason="all resamples agree")
        found.append(interval)
    return found
