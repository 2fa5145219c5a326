"""The k nearest items of each query, found by blocks.

Legend: Q queries, M items, K items found.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.retrieval.blocks import COLUMNS, ROWS, NumpyBlocks, Vectors, spans

SPARE = 16  # more candidates than asked for: float32 may swap the last ones


def top_k(
    query_QD: ArrayLike,
    item_MD: ArrayLike,
    k: int,
    *,
    group_Q: ArrayLike | None = None,
    group_M: ArrayLike | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(indices [Q, k], cosines [Q, k]), best first, the lower index first among equals; index -1 and cosine -inf where
    a query has fewer than k items. Items with the query's own group are left out, where groups are given.

    Candidates are found in float32 and put in order in float64.
    """
    if k < 1:
        raise EvalError(f"k is {k}", why="nothing would be found", fix="give 1 or more")
    queries, items = Vectors(query_QD, "queries"), Vectors(item_MD, "items")
    grouped = group_Q is not None and group_M is not None
    of_query, of_item = np.asarray(group_Q), np.asarray(group_M)
    kernel, n, wide = NumpyBlocks(), len(items), min(k + SPARE, len(items))
    index_QK = np.full((len(queries), k), -1, dtype=np.int64)
    cosine_QK = np.full((len(queries), k), -np.inf)
    for rows in spans(len(queries), ROWS):
        mine = queries.take(rows)
        best = np.empty((len(mine), 0), dtype=np.float32)
        best_index = np.empty((len(mine), 0), dtype=np.int64)
        for columns in spans(n, COLUMNS):
            block = kernel.similarities(mine, items.take(columns))
            if grouped:
                block[of_query[rows][:, None] == of_item[columns][None, :]] = -np.inf
            index = np.broadcast_to(np.arange(columns.start, columns.stop), block.shape)
            block, index = np.concatenate([best, block], axis=1), np.concatenate([best_index, index], axis=1)
            keep = np.argpartition(-block, min(wide, block.shape[1]) - 1, axis=1)[:, :wide]
            best, best_index = np.take_along_axis(block, keep, axis=1), np.take_along_axis(index, keep, axis=1)
        q, place = np.nonzero(np.isfinite(best))
        exact = np.full(best.shape, -np.inf)
        exact[q, place] = np.round(queries.dots(items, q + rows.start, best_index[q, place]), 12)
        order = np.lexsort((best_index, -exact), axis=1)[:, :k]
        found = np.take_along_axis(exact, order, axis=1)
        cosine_QK[rows, : found.shape[1]] = found
        index_QK[rows, : found.shape[1]] = np.where(
            np.isfinite(found), np.take_along_axis(best_index, order, axis=1), -1
        )
    return index_QK, cosine_QK
