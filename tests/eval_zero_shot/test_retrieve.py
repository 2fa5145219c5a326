"""Pooled retrieval against a reference written out query by query."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eval_zero_shot import EvalError
from eval_zero_shot.retrieve import cut_pools, expected_hits, retrieve, text_hash


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def duplicated(n: int, groups: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Studies whose texts repeat: images [n, width], texts [n, width] (equal inside a group), hashes."""
    rng = np.random.default_rng(seed)
    group = rng.integers(groups, size=n)
    texts = rng.normal(size=(groups, width))[group]
    return texts + 0.9 * rng.normal(size=(n, width)), texts, [f"h{g}" for g in group]


@pytest.mark.parametrize("groups", [3, 9, 10_000])
def test_recall_is_that_of_a_brute_force_count_with_duplicates(groups: int) -> None:
    n, pool, repeats, seed = 37, 9, 4, 5
    images, texts, hashes = duplicated(n, groups, 6, seed)
    out = retrieve(images, texts, hashes, pools=(pool,), ks=(1, 3), repeats=repeats, seed=seed)
    cut = cut_pools(n, pool, repeats, seed)
    image_unit, text_unit = unit(images), unit(texts)
    for recall in out:
        hits = []
        for members in cut.reshape(-1, pool):
            for q in members:
                query, gallery = (
                    (text_unit, image_unit) if recall.direction == "text_to_image" else (image_unit, text_unit)
                )
                # a tie between texts is a tie between the same words: whichever comes first, all are right or all wrong
                ranked = sorted(members, key=lambda i, q=q: (-round(float(query[q] @ gallery[i]), 9), hashes[i]))
                hits.append(any(hashes[i] == hashes[q] for i in ranked[: recall.k]))
        assert recall.value == pytest.approx(np.mean(hits), abs=1e-12)
        assert (recall.pool, recall.pools, recall.repeats) == (pool, n // pool, repeats)


def test_pools_are_exact_disjoint_and_repeatable() -> None:
    cut = cut_pools(100, 32, 3, seed=7)
    assert cut.shape == (3, 3, 32)
    for repeat in cut:
        assert len(np.unique(repeat)) == 96
    assert np.array_equal(cut, cut_pools(100, 32, 3, seed=7))
    assert not np.array_equal(cut[0], cut[1])


def test_one_text_for_all_is_always_a_hit_and_chance_says_so() -> None:
    rng = np.random.default_rng(0)
    out = retrieve(rng.normal(size=(8, 3)), np.ones((8, 3)), ["same"] * 8, pools=(4,), ks=(1,), repeats=2)
    for recall in out:
        assert recall.value == recall.chance == recall.chance_measured == 1.0
        assert recall.chance_plain == 0.25


def test_chance_counts_duplicates_and_agrees_with_random_scores() -> None:
    rng = np.random.default_rng(1)
    hashes = ["normal"] * 60 + [f"h{i}" for i in range(60)]
    out = retrieve(rng.normal(size=(120, 4)), rng.normal(size=(120, 4)), hashes, pools=(20,), ks=(1, 5), repeats=60)
    for recall in out:
        assert recall.chance is not None
        assert recall.chance > 2 * recall.chance_plain
        assert recall.chance_measured == pytest.approx(recall.chance, abs=0.02)


def test_chance_without_duplicates_is_k_of_n() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 4))
    for recall in retrieve(x, x, [str(i) for i in range(20)], pools=(10,), ks=(1, 5, 10), repeats=3):
        assert recall.chance == pytest.approx(recall.k / 10)
        assert recall.value == 1.0


def test_constant_features_score_chance_not_one() -> None:
    ones = np.ones((32, 4))
    for recall in retrieve(ones, ones, [str(i) for i in range(32)], pools=(16,), ks=(1, 5), repeats=2):
        assert recall.value == pytest.approx(recall.k / 16)


def test_expected_hits_is_the_mean_over_all_orders_of_ties() -> None:
    scores = np.array([[3.0, 2.0, 2.0, 2.0, 1.0]])
    relevant = np.array([[False, True, False, True, True]])
    for k in range(1, 6):
        found = []
        for order in itertools.permutations(range(5)):  # every way to break ties
            ranked = sorted(range(5), key=lambda i, order=order: (-scores[0, i], order[i]))
            found.append(any(relevant[0, i] for i in ranked[:k]))
        assert expected_hits(scores, relevant, [k])[0, 0] == pytest.approx(np.mean(found))


def test_too_few_studies_are_said_not_padded() -> None:
    out = retrieve(np.eye(5), np.eye(5), list("abcde"), pools=(64,), ks=(1,))
    assert [r.value for r in out] == [None, None]
    assert out[0].reason == "5 studies do not fill one pool of 64"


def test_hash_ignores_white_space_only() -> None:
    assert text_hash("No  effusion.\n") == text_hash("No effusion.")
    assert text_hash("No effusion.") != text_hash("no effusion.")


def test_wrong_input_is_refused() -> None:
    with pytest.raises(EvalError, match="do not fit"):
        retrieve(np.eye(3), np.eye(3), ["a", "b"])
    with pytest.raises(EvalError, match="below 1"):
        retrieve(np.eye(3), np.eye(3), ["a", "b", "c"], ks=(0,))
    with pytest.raises(EvalError, match="reports"):
        retrieve(np.eye(3), np.full((3, 3), np.nan), ["a", "b", "c"])
