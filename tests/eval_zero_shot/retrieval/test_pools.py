"""Pools cut again and again: strict and tie-aware, the short pool, chance, ks."""

from __future__ import annotations

import numpy as np
import pytest

from eval_zero_shot.retrieval.pools import cut_pools, permutations, pool_hits
from eval_zero_shot.retrieval.ranks import DIRECTIONS, TIES, rank_both


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def world(n: int = 37, groups: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.integers(groups, size=n)
    texts = rng.normal(size=(groups, 6))[group]
    return unit(texts + rng.normal(size=(n, 6))), unit(texts), group


def test_strict_and_tie_aware_hits_are_those_of_each_pool_by_itself() -> None:
    images, texts, group = world()
    pool, repeats = 9, 4
    found = pool_hits(images, texts, group, pool, (1, 3), repeats, seed=5)
    for name in ((d, t) for d in DIRECTIONS for t in TIES):
        sums, times = np.zeros((37, 2)), np.zeros(37, dtype=int)
        for members in cut_pools(37, pool, repeats, seed=5).reshape(-1, pool):
            sums[members] += rank_both(images[members], texts[members], group[members])[name].hits((1, 3))
            times[members] += 1
        assert np.allclose(found[name].sum_NK, sums)
        assert np.array_equal(found[name].times_N, times)
        assert found[name].mean_RK.mean(axis=0) == pytest.approx(sums.sum(axis=0) / times.sum())


def test_one_pool_of_everybody_is_the_full_pool() -> None:
    images, texts, group = world()
    whole = rank_both(images, texts, group)
    for name, hits in pool_hits(images, texts, group, 37, (1, 5), 2, seed=0).items():
        assert np.allclose(hits.mean_NK, whole[name].hits((1, 5)))
        assert hits.chance_K == pytest.approx(whole[name].chance((1, 5)).mean(axis=0))


def test_the_short_pool_is_dropped_and_kept_only_under_its_own_name() -> None:
    images, texts, group = world()
    found = pool_hits(images, texts, group, 9, (1,), 3, seed=1, short=True)
    assert pool_hits(images, texts, group, 9, (1,), 3, seed=1)["text_to_image", "strict"].short_RK is None
    for name, hits in found.items():
        assert hits.short_RK is not None
        for r, order in enumerate(permutations(37, 3, seed=1)):
            last = order[36:]  # one study: always right
            alone = rank_both(images[last], texts[last], group[last])[name].hits((1,)).mean()
            assert alone == 1.0
            assert hits.short_RK[r, 0] == pytest.approx((hits.mean_RK[r, 0] * 36 + alone) / 37)


def test_constant_features_score_chance_in_both_ways() -> None:
    ones, group = unit(np.ones((32, 4))), np.arange(32) // 2
    for (_, ties), hits in pool_hits(ones, ones, group, 16, (1, 5), 3, seed=0).items():
        assert hits.mean_RK.mean(axis=0) == pytest.approx(hits.chance_K)
        if ties == "strict":
            assert hits.chance_K == pytest.approx([1 / 16, 5 / 16])


def test_a_study_that_was_never_drawn_has_no_score() -> None:
    images, texts, group = world()
    hits = pool_hits(images, texts, group, 20, (1,), 1, seed=0)["text_to_image", "strict"]
    assert np.isnan(hits.mean_NK).sum() == 17
