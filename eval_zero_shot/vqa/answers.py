"""Right or wrong per item, what needs no image, and intervals over patients: arithmetic on arrays.

Shapes: N items, M options of all items one after another, P groups, R resamples, K metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.vqa.items import Item

Array = NDArray[np.float64]
FEW = 10  # a category with fewer items has no majority answer of its own: it would be known from a handful


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
