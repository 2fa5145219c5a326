"""k nearest neighbours by cosine: what features say with nothing to tune.

Legend: N scored studies, M known ones, D features, L labels or classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.classify import unit

Array = NDArray[np.float64]
_BLOCK = 1024


def nearest_share(known_MD: ArrayLike, labels_ML: ArrayLike, scored_ND: ArrayLike, k: int = 20) -> Array:
    """Share of positives [N, L] among the k nearest studies whose label is known, each neighbour with one vote (fewer
    than k where fewer are known; nan where none is). Equal distances: the earlier study.

    Raises EvalError on features that are zero or not finite.
    """
    known, scored = unit(known_MD, "training studies"), unit(scored_ND, "studies")
    labels_ML = np.asarray(labels_ML, dtype=np.float64)
    out = np.full((len(scored), labels_ML.shape[1]), np.nan)
    patterns, group_L = np.unique(~np.isnan(labels_ML), axis=1, return_inverse=True)
    for g, mask_M in enumerate(patterns.T):  # labels known in the same studies share their neighbours
        columns, rows = np.flatnonzero(group_L == g), np.flatnonzero(mask_M)
        if not len(rows):
            continue
        for start in range(0, len(scored), _BLOCK):
            block = slice(start, start + _BLOCK)
            order = np.argsort(-(scored[block] @ known[rows].T), axis=1, kind="stable")[:, :k]
            out[block, columns] = labels_ML[rows[order]][:, :, columns].mean(1)
    return out
