"""Recall in pools of a stated size, cut again and again, as Merlin does (arXiv 2406.06512).

Legend: N studies, M pool size, Q pools, R repeats, K values of k.
Studies are permuted with a fixed seed and cut into consecutive pools of exactly M. A last short pool is easier and is
dropped; `short` keeps it, as SPECTRE's evaluation does, for comparison with such numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.retrieval.ranks import DIRECTIONS, TIES, Direction, Ties
from eval_zero_shot.retrieval.ties import expected_hits, hit_probability

Array = NDArray[np.float64]
_HELD = 2_000_000  # similarities held at once: 16 MB in float64


@dataclass(frozen=True)
class PoolHits:
    """Of one direction and one way to count a hit. sum_NK: expected hits of each study as a query, over `times_N`
    repeats; mean_RK: of each repeat; chance_K: of items in random order; short_RK: with the short pool kept."""

    sum_NK: Array
    times_N: NDArray[np.int64]
    mean_RK: Array
    chance_K: Array
    short_RK: Array | None = None

    @property
    def mean_NK(self) -> Array:
        """Mean over the repeats that a study took part in; nan for one that never did."""
        with np.errstate(invalid="ignore"):
            return self.sum_NK / np.where(self.times_N, self.times_N, np.nan)[:, None]


def permutations(n: int, repeats: int, seed: int) -> list[NDArray[np.intp]]:
    """One order of the studies a repeat."""
    rng = np.random.Generator(np.random.Philox(seed))
    return [rng.permutation(n) for _ in range(repeats)]


def cut_pools(n: int, pool: int, repeats: int, seed: int) -> NDArray[np.intp]:
    """Row numbers [repeats, pools, pool]; no study twice within a repeat, the remainder left out."""
    per = n // pool
    cut = [order[: per * pool].reshape(per, pool) for order in permutations(n, repeats, seed)]
    return np.stack(cut) if cut else np.empty((0, per, pool), dtype=np.intp)


def pool_hits(
    image_ND: Array,
    text_ND: Array,
    text_N: NDArray,
    pool: int,
    ks: Sequence[int],
    repeats: int,
    seed: int,
    short: bool = False,
) -> dict[tuple[Direction, Ties], PoolHits]:
    """Hits in pools of `pool` studies (at most N). image_ND, text_ND: unit vectors; text_N: number of each text."""
    n, found = len(image_ND), {}
    whole = n - n % pool
    names = [(direction, ties) for direction in DIRECTIONS for ties in TIES]
    total = {name: np.zeros((n, len(ks))) for name in names}
    mean, chance, kept = ({name: np.zeros((repeats, len(ks))) for name in names} for _ in range(3))
    times_N = np.zeros(n, dtype=np.int64)
    for r, order in enumerate(permutations(n, repeats, seed)):
        times_N[order[:whole]] += 1
        cut = order[:whole].reshape(-1, pool)
        step = max(1, _HELD // pool**2)
        for start in range(0, len(cut), step):
            rows_QM = cut[start : start + step]
            for name, (hits, luck) in _hits(image_ND, text_ND, text_N, rows_QM, ks).items():
                total[name][rows_QM] += hits
                mean[name][r] += hits.sum(axis=(0, 1)) / whole
                chance[name][r] += luck.sum(axis=(0, 1)) / whole
        if short:
            for name in names:
                kept[name][r] = mean[name][r] * whole / n
            if whole < n:
                for name, (hits, _) in _hits(image_ND, text_ND, text_N, order[None, whole:], ks).items():
                    kept[name][r] += hits.sum(axis=(0, 1)) / n
    for name in names:
        found[name] = PoolHits(
            total[name], times_N, mean[name], chance[name].mean(axis=0), kept[name] if short else None
        )
    return found


def _hits(
    image_ND: Array, text_ND: Array, text_N: NDArray, rows_QM: NDArray, ks: Sequence[int]
) -> dict[tuple[Direction, Ties], tuple[Array, Array]]:
    """(hits, chance) [Q, M, K] of pools."""
    same_QMM = text_N[rows_QM][:, :, None] == text_N[rows_QM][:, None, :]
    own_QMM = np.broadcast_to(np.eye(rows_QM.shape[1], dtype=bool), same_QMM.shape)
    similarity_QMM = image_ND[rows_QM] @ text_ND[rows_QM].swapaxes(1, 2)
    # The column of a text's first copy stands for all copies: identical texts tie exactly, however BLAS rounds.
    first_QM = same_QMM.argmax(axis=1)
    similarity_QMM = np.take_along_axis(similarity_QMM, first_QM[:, None, :], axis=2)
    out: dict[tuple[Direction, Ties], tuple[Array, Array]] = {}
    items_QM = np.full(rows_QM.shape, rows_QM.shape[1])
    for ties, relevant_QMM in zip(TIES, (same_QMM, own_QMM), strict=True):
        copies_QM = relevant_QMM.sum(axis=-1)
        luck = [hit_probability(items_QM, copies_QM, np.minimum(items_QM, k)) for k in ks]
        for direction in DIRECTIONS:
            # [query, item]: the block has images as rows, so texts as queries are its transpose (`same` is symmetric)
            turn = (0, 2, 1) if direction == "text_to_image" else (0, 1, 2)
            hits = expected_hits(similarity_QMM.transpose(turn), relevant_QMM, ks)
            out[direction, ties] = (hits, np.stack(luck, axis=-1))
    return out
