"""Text-image retrieval in pools of a stated size, both directions, fair to identical texts and to ties.

Shapes: N studies, U distinct texts, D embedding, M pool size, Q pools.
The studies are permuted and cut into consecutive pools of exactly M (a last short pool is easier and is dropped),
`repeats` times with a fixed seed. A hit@k: any item with the query's own text (by hash) is among the k best. Two
studies with the same normal report cannot be told apart by text, so either is right, in both directions, and chance is
stated with that.
Ties are worth the share of random orders in which they hit, so a model with constant features scores chance, not 100 %.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.classify import unit
from eval_zero_shot.errors import EvalError

Direction = Literal["text_to_image", "image_to_text"]
DIRECTIONS: tuple[Direction, ...] = ("text_to_image", "image_to_text")


@dataclass(frozen=True)
class Recall:
    """R@k of one direction in pools of one size.

    value: mean over queries, pools and repeats. partition_low/high: 2.5 and 97.5 percentiles over repeats, that is the
    noise of cutting pools, NOT a sampling interval. chance_plain: k / pool. chance: expected value of random scores
    given the duplicate texts of these very pools. chance_measured: one run of random scores through the same code.
    `value` is None where the studies do not fill one pool; `reason` says so.
    """

    direction: Direction
    k: int
    pool: int
    value: float | None
    chance_plain: float
    chance: float | None = None
    chance_measured: float | None = None
    partition_low: float | None = None
    partition_high: float | None = None
    pools: int = 0
    repeats: int = 0
    studies: int = 0
    distinct_texts: int = 0
    reason: str | None = None


def text_hash(text: str) -> str:
    """Identity of a text: blake2b of it with white space collapsed."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).hexdigest()


def cut_pools(n: int, pool: int, repeats: int, seed: int) -> NDArray[np.intp]:
    """Row numbers [repeats, pools, pool]; no study twice within a repeat, the remainder left out."""
    per = n // pool
    rng = np.random.Generator(np.random.Philox(seed))
    cut = [rng.permutation(n)[: per * pool].reshape(per, pool) for _ in range(repeats)]
    return np.stack(cut) if cut else np.empty((0, per, pool), dtype=np.intp)


def expected_hits(scores: NDArray[np.float64], relevant: NDArray[np.bool_], ks: Sequence[int]) -> NDArray[np.float64]:
    """Probability of a hit@k for each query and k [..., query, k], ties broken at random.

    `scores` and `relevant` are [..., query, item]; every query has a relevant item. With g items strictly above the
    best relevant one, t tied with it, r of those relevant and s = k - g places left, a miss is s draws out of t that
    all avoid r.
    """
    best = np.where(relevant, scores, -np.inf).max(axis=-1, keepdims=True)
    tied = scores == best
    above, ties, right = (scores > best).sum(axis=-1), tied.sum(axis=-1), (tied & relevant).sum(axis=-1)
    return np.stack([_hit_probability(ties, right, np.minimum(k - above, ties)) for k in ks], axis=-1)


def _hit_probability(items: NDArray, relevant: NDArray, draws: NDArray) -> NDArray[np.float64]:
    """1 - C(items - relevant, draws) / C(items, draws): at least one relevant among `draws` without replacement."""
    miss = np.ones(items.shape)
    for i in range(int(draws.max(initial=0))):
        left = np.maximum(items - i, 1)
        miss = np.where(i < draws, miss * np.clip(items - relevant - i, 0, None) / left, miss)
    return 1.0 - miss


def retrieve(
    image_ND: ArrayLike,
    text_ND: ArrayLike,
    hashes_N: Sequence[str],
    *,
    pools: Sequence[int] = (64,),
    ks: Sequence[int] = (1, 5, 10),
    repeats: int = 100,
    seed: int = 0,
) -> tuple[Recall, ...]:
    """Recall of both directions for every pool size and k. Row i of both arrays is study i; any feature scale.

    hashes_N: identity of each study's text (`text_hash`); equal hashes count as each other's hit.
    Raises EvalError on features that are not finite, on lengths that differ, or on a pool or k below 1.
    """
    images, texts = unit(image_ND, "studies"), unit(text_ND, "reports")
    if images.shape != texts.shape or len(hashes_N) != len(images):
        raise EvalError(
            f"images {images.shape}, texts {texts.shape} and {len(hashes_N)} hashes do not fit together",
            why="study i would be matched with another study's text",
            fix="give one text vector and one hash for each study, from the same model",
        )
    if min(*pools, *ks, repeats) < 1:
        raise EvalError("a pool, k or repeat count below 1", why="no query is left", fix="give positive numbers")
    n = len(images)
    group_N = np.unique(np.asarray(hashes_N), return_inverse=True)[1]
    out: list[Recall] = []
    for pool in pools:
        cut = cut_pools(n, pool, repeats, seed)
        if cut.shape[1] == 0:
            reason = f"{n} studies do not fill one pool of {pool}"
            out += [
                Recall(direction, k, pool, None, min(k / pool, 1.0), studies=n, reason=reason)
                for direction in DIRECTIONS
                for k in ks
            ]
        else:
            out += _pooled(images, texts, group_N, cut, ks, seed)
    return tuple(out)


def _pooled(
    images: NDArray, texts: NDArray, group_N: NDArray, cut: NDArray, ks: Sequence[int], seed: int
) -> list[Recall]:
    """All recalls of one pool size; `cut` is [repeats, Q, M]."""
    repeats, n_pools, pool = cut.shape
    rng = np.random.Generator(np.random.Philox([seed, 1]))
    ours, noise, chance = (np.empty((repeats, len(DIRECTIONS), len(ks))) for _ in range(3))
    for i, rows_QM in enumerate(cut):
        same_QMM = group_N[rows_QM][:, :, None] == group_N[rows_QM][:, None, :]
        similarity_QMM = images[rows_QM] @ texts[rows_QM].swapaxes(1, 2)
        # The column of a text's first copy stands for all copies: identical texts tie exactly, however BLAS rounds.
        first_QM = same_QMM.argmax(axis=1)
        similarity_QMM = np.take_along_axis(similarity_QMM, first_QM[:, None, :], axis=2)
        random_QMM = rng.random(same_QMM.shape)
        copies_QM = same_QMM.sum(axis=-1)
        for d, direction in enumerate(DIRECTIONS):
            # [query, item]: the block has images as rows, so texts as queries are its transpose (`same` is symmetric)
            turn = (0, 2, 1) if direction == "text_to_image" else (0, 1, 2)
            ours[i, d] = expected_hits(similarity_QMM.transpose(turn), same_QMM, ks).mean(axis=(0, 1))
            noise[i, d] = expected_hits(random_QMM.transpose(turn), same_QMM, ks).mean(axis=(0, 1))
            for j, k in enumerate(ks):
                draws = np.full_like(copies_QM, min(k, pool))
                chance[i, d, j] = _hit_probability(np.full_like(copies_QM, pool), copies_QM, draws).mean()
    low, high = np.percentile(ours, (2.5, 97.5), axis=0)
    ours, noise, chance = ours.mean(axis=0), noise.mean(axis=0), chance.mean(axis=0)
    return [
        Recall(
            direction, k, pool, float(ours[d, j]), min(k / pool, 1.0), float(chance[d, j]), float(noise[d, j]),
            float(low[d, j]), float(high[d, j]), n_pools, repeats, len(group_N), len(np.unique(group_N)),
        )
        for d, direction in enumerate(DIRECTIONS)
        for j, k in enumerate(ks)
    ]  # fmt: skip
