"""Pools, ties and identities of texts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eval_zero_shot.retrieval.pools import cut_pools
from eval_zero_shot.retrieval.texts import text_identity
from eval_zero_shot.retrieval.ties import expected_hits


def test_pools_are_exact_disjoint_and_repeatable() -> None:
    cut = cut_pools(100, 32, 3, seed=7)
    assert cut.shape == (3, 3, 32)
    for repeat in cut:
        assert len(np.unique(repeat)) == 96
    assert np.array_equal(cut, cut_pools(100, 32, 3, seed=7))
    assert not np.array_equal(cut[0], cut[1])


def test_expected_hits_is_the_mean_over_all_orders_of_ties() -> None:
    scores = np.array([[3.0, 2.0, 2.0, 2.0, 1.0]])
    relevant = np.array([[False, True, False, True, True]])
    for k in range(1, 6):
        found = []
        for order in itertools.permutations(range(5)):  # every way to break ties
            ranked = sorted(range(5), key=lambda i, order=order: (-scores[0, i], order[i]))
            found.append(any(relevant[0, i] for i in ranked[:k]))
        assert expected_hits(scores, relevant, [k])[0, 0] == pytest.approx(np.mean(found))


def test_hash_ignores_white_space_only() -> None:
    assert text_identity("No  effusion.\n") == text_identity("No effusion.")
    assert text_identity("No effusion.") != text_identity("no effusion.")
