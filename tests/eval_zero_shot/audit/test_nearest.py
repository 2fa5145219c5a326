"""Nearest neighbours in blocks, against the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest

from eval_zero_shot.audit import nearest as module
from eval_zero_shot.audit.nearest import cosine_distance, hamming, nearest, unrelated
from eval_zero_shot.audit.neighbours import neighbours


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERIES", 7)
    monkeypatch.setattr(module, "POOL", 11)


def unit(rng: np.random.Generator, n: int, d: int = 16) -> np.ndarray:
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_blocks_give_what_the_matrix_gives() -> None:
    rng = np.random.default_rng(0)
    a, b = unit(rng, 30), unit(rng, 50)
    patients = rng.integers(0, 9, 30), rng.integers(0, 9, 50)
    whole = (1 - a @ b.T).astype(np.float64)
    found = nearest(a, b, cosine_distance, limit=0.5)
    np.testing.assert_array_equal(found.index_Q, whole.argmin(1))
    np.testing.assert_array_equal(found.within_Q, (whole <= 0.5).sum(1))
    whole[patients[0][:, None] == patients[1][None]] = np.inf
    found = nearest(a, b, cosine_distance, patients)
    np.testing.assert_allclose(found.distance_Q, whole.min(1), atol=1e-6)
    words = rng.integers(0, 2**63, (20, 2)).astype(np.uint64)
    ones = np.unpackbits(words.view(np.uint8).reshape(20, -1), axis=1)
    np.testing.assert_array_equal(hamming(words, words), (ones[:, None] != ones[None]).sum(-1))


def test_nobody_else_in_the_pool_is_no_neighbour() -> None:
    x = unit(np.random.default_rng(1), 5)
    assert len(unrelated(x, np.zeros(5, np.int64), cosine_distance, 10, 0)) == 0
    assert (nearest(x, x[:0], cosine_distance).index_Q == -1).all()


def names(n: int, word: str) -> np.ndarray:
    return np.asarray([f"{word}{i}" for i in range(n)])


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_beyond_chance_are_said_and_chance_is_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    test, train = unit(rng, 200), unit(rng, 400)
    clean = neighbours(test, train, names(200, "a"), names(400, "b"))
    assert clean.check.severity == "ok", clean.check.says
    near = train.copy()
    near[:20] = test[:20] + 0.01 * rng.normal(size=(20, 16)).astype(np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    found = neighbours(test, near, names(200, "a"), names(400, "b"))
    assert found.check.severity == "warn"
    assert {pair.test for pair in found.pairs} >= set(range(20))


def test_few_patients_are_not_judged() -> None:
    rng = np.random.default_rng(0)
    found = neighbours(unit(rng, 10), unit(rng, 12), names(10, "a"), names(12, "b"))
    assert found.check.severity == "not checked"
