"""What ties are worth: a query's hit and rank as expected over all orders of the items that tie.

Legend: Q queries, K values of k. For a query, `above` items score strictly higher than its best relevant item, `tied`
score the same (itself included), `relevant` of these are relevant. A model with constant features scores chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
TIE = 1e-12  # cosines in float64 nearer than this are one value: sums of the same products in another order


@dataclass(frozen=True)
class Ranks:
    """Where the best relevant item of each query stands among `items`. copies_Q: relevant items in all."""

    above_Q: NDArray[np.int64]
    tied_Q: NDArray[np.int64]
    relevant_Q: NDArray[np.int64]
    copies_Q: NDArray[np.int64]
    items: int

    def hits(self, ks: Sequence[int]) -> Array:
        """Probability of a relevant item among the k best, [Q, K]."""
        places = [np.minimum(k - self.above_Q, self.tied_Q) for k in ks]
        return np.stack([hit_probability(self.tied_Q, self.relevant_Q, p) for p in places], axis=-1)

    def chance(self, ks: Sequence[int]) -> Array:
        """The same for items in random order, [Q, K]."""
        items = np.full_like(self.copies_Q, self.items)
        return np.stack(
            [hit_probability(items, self.copies_Q, np.full_like(items, min(k, self.items))) for k in ks], axis=-1
        )

    def rank(self) -> Array:
        """Expected rank of the first relevant item, from 1, [Q]."""
        return self.above_Q + (self.tied_Q + 1) / (self.relevant_Q + 1)

    def reciprocal_rank(self) -> Array:
        """Expected 1 / rank of the first relevant item, [Q]."""
        same, inverse = np.unique(
            np.stack([self.above_Q, self.tied_Q, self.relevant_Q], axis=1), axis=0, return_inverse=True
        )
        harmonic = np.r_[0.0, np.cumsum(1 / np.arange(1, self.items + 1))]
        out = np.empty(len(same))
        single = same[:, 2] == 1  # the one relevant item is at every place among the tied alike
        above, tied = same[single, 0], same[single, 1]
        out[single] = (harmonic[above + tied] - harmonic[above]) / tied
        for i in np.flatnonzero(~single):
            above_, tied_, relevant = (int(v) for v in same[i])
            place = np.arange(tied_ - relevant + 1)  # irrelevant items drawn before the first relevant one
            none = np.r_[1.0, np.cumprod((tied_ - relevant - place[:-1]) / (tied_ - place[:-1]))]
            out[i] = float((none * relevant / (tied_ - place) / (above_ + place + 1)).sum())
        return out[inverse.reshape(-1)]


def expected_hits(scores: ArrayLike, relevant: NDArray[np.bool_], ks: Sequence[int]) -> Array:
    """Probability of a hit@k for each query and k [..., query, k], ties broken at random.

    `scores` and `relevant` are [..., query, item]; every query has a relevant item. With g items strictly above the
    best relevant one, t tied with it, r of those relevant and s = k - g places left, a miss is s draws out of t that
    all avoid r.
    """
    scores = np.asarray(scores, dtype=np.float64)
    best = np.where(relevant, scores, -np.inf).max(axis=-1, keepdims=True)
    tied = np.abs(scores - best) <= TIE
    above, ties, right = (scores > best + TIE).sum(axis=-1), tied.sum(axis=-1), (tied & relevant).sum(axis=-1)
    return np.stack([hit_probability(ties, right, np.minimum(k - above, ties)) for k in ks], axis=-1)


def hit_probability(items: NDArray, relevant: NDArray, draws: NDArray) -> Array:
    """1 - C(items - relevant, draws) / C(items, draws): at least one relevant among `draws` without replacement."""
    miss = np.ones(items.shape)
    for i in range(int(draws.max(initial=0))):
        left = np.maximum(items - i, 1)
        miss = np.where(i < draws, miss * np.clip(items - relevant - i, 0, None) / left, miss)
    return 1.0 - miss
