"""The nearest study of a pool for every query, block by block: never a matrix of all queries by all of the pool.

Legend: Q queries, M pool, W words of 64 bits, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.progress import track

QUERIES, POOL = 128, 8_192  # of a block: 4 MB of float32, which stays near the processor
LARGE = 50_000_000  # comparisons that take seconds
Distance = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Nearest:
    """distance_Q (inf where the pool has nobody else), index_Q into the pool (-1 then), within_Q: how many of the pool
    are at most `limit` away."""

    distance_Q: NDArray[np.float64]
    index_Q: NDArray[np.int64]
    within_Q: NDArray[np.int64]


def hamming(a_QW: NDArray[np.uint64], b_MW: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Bits that differ, [Q, M]."""
    total = np.zeros((len(a_QW), len(b_MW)), np.uint16)
    for word in range(a_QW.shape[1]):
        total += np.bitwise_count(a_QW[:, word, None] ^ b_MW[None, :, word])
    return total


def cosine_distance(a_QD: NDArray[np.float32], b_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - cosine of unit vectors, [Q, M]."""
    return 1 - a_QD @ b_MD.T


def nearest(
    queries: NDArray[Any],
    pool: NDArray[Any],
    distance: Distance,
    not_of: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    limit: float = -1.0,
) -> Nearest:
    """Nearest of the pool to each query, the first of equal ones.

    not_of: numbers of (the queries', the pool's) patients: a patient's own studies are passed over.
    """
    n = len(queries)
    best, index, within = np.full(n, np.inf), np.full(n, -1, np.int64), np.zeros(n, np.int64)
    blocks: Iterable[int] = range(0, n, QUERIES)
    if n * len(pool) >= LARGE:
        blocks = track(blocks, -(-n // QUERIES), "nearest neighbours", "blocks")
    for q in blocks:
        part = slice(q, q + QUERIES)
        for m in range(0, len(pool), POOL):
            block = distance(queries[part], pool[m : m + POOL])
            far = np.inf if block.dtype.kind == "f" else np.iinfo(block.dtype).max
            if not_of is not None:
                block[not_of[0][part, None] == not_of[1][None, m : m + POOL]] = far
            within[part] += (block <= limit).sum(axis=1)
            where = block.argmin(axis=1)
            value = block[np.arange(len(where)), where].astype(np.float64)
            value[value == far] = np.inf
            closer = value < best[part]
            best[part] = np.where(closer, value, best[part])
            index[part] = np.where(closer, where + m, index[part])
    return Nearest(best, index, within)


def unrelated(items: NDArray[Any], patients: NDArray[np.int64], distance: Distance, most: int, seed: int) -> NDArray:
    """Distances of (at most `most`, by chance) items of one set to the nearest item of another patient: what
    neighbours of unrelated studies look like. inf is left out."""
    chosen = np.arange(len(items))
    if len(items) > most:
        chosen = np.sort(np.random.Generator(np.random.Philox(seed)).permutation(len(items))[:most])
    found = nearest(items[chosen], items, distance, (patients[chosen], patients)).distance_Q
    return found[np.isfinite(found)]
