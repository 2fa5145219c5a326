"""Ranks by blocks against counts over the whole matrix in float64, and CLIP_benchmark's recall by its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eval_zero_shot import EvalError
from eval_zero_shot.retrieval import blocks, ranks
from eval_zero_shot.retrieval.ranks import DIRECTIONS, TIES, Direction, Ties, rank_both
from eval_zero_shot.retrieval.ties import Ranks

KS = (1, 5, 10, 50)


@pytest.fixture(params=[(1024, 4096), (7, 5)], ids=["one block", "many blocks"], autouse=True)
def block_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in zip(("ROWS", "COLUMNS"), request.param, strict=True):
        monkeypatch.setattr(ranks, name, size)


def unit(x: np.ndarray) -> np.ndarray:
    """As features are used: unit length in float32, then all sums in float64."""
    x = x.astype(np.float64)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)


def brute(
    images: np.ndarray, texts: np.ndarray, hashes: list[str], study_i: np.ndarray, study_t: np.ndarray
) -> dict[tuple[Direction, Ties], tuple[np.ndarray, ...]]:
    """above, tied, relevant among tied, relevant: query by query over the whole matrix."""
    first = [hashes.index(h) for h in hashes]
    similarity = unit(images) @ unit(texts)[first].T
    own = study_i[:, None] == study_t[None, :]
    of_study = {s: {hashes[t] for t in np.flatnonzero(study_t == s)} for s in study_t.tolist()}
    same = np.array([[h in of_study[s] for h in hashes] for s in study_i.tolist()])
    out: dict[tuple[Direction, Ties], tuple[np.ndarray, ...]] = {}
    for direction, (ties, relevant) in itertools.product(DIRECTIONS, zip(TIES, (same, own), strict=True)):
        rows = []
        pairs = zip(similarity, relevant) if direction == "image_to_text" else zip(similarity.T, relevant.T)
        for scores, right in pairs:
            best = scores[right].max()
            tied = np.abs(scores - best) < 1e-12
            rows.append(((scores > best + 1e-12).sum(), tied.sum(), (tied & right).sum(), right.sum()))
        out[direction, ties] = tuple(np.array(rows).T)
    return out


def check(images: np.ndarray, texts: np.ndarray, hashes: list[str], study_i: np.ndarray, study_t: np.ndarray) -> None:
    found = rank_both(images, texts, hashes, study_i, study_t)
    for name, expected in brute(images, texts, hashes, study_i, study_t).items():
        ours = found[name]
        for got, wanted in zip((ours.above_Q, ours.tied_Q, ours.relevant_Q, ours.copies_Q), expected, strict=True):
            assert np.array_equal(got, wanted), name


@pytest.mark.parametrize("groups", [1, 4, 20, 10_000])
@pytest.mark.parametrize("width", [2, 16])
def test_ranks_are_those_of_the_whole_matrix_with_duplicate_texts(groups: int, width: int) -> None:
    rng = np.random.default_rng(groups + width)
    group = rng.integers(groups, size=43)
    texts = rng.normal(size=(groups, width))[group]
    images = (texts + rng.normal(size=(43, width))).astype(np.float32)
    number = np.arange(43)
    check(images, texts.astype(np.float32), [f"h{g}" for g in group], number, number)


def test_ranks_with_duplicate_images_and_a_grid_of_ties() -> None:
    """Vectors of few values: many cosines are equal in mathematics and differ in the last bit of a float32."""
    rng = np.random.default_rng(3)
    images, texts = (rng.integers(-1, 2, size=(60, 5)) + 0.5 for _ in range(2))
    number = np.arange(60)
    check(images, texts, [str(i) for i in number], number, number)
    assert (rank_both(images, texts, number)["image_to_text", "strict"].tied_Q > 1).any()


def test_several_scans_and_captions_a_study() -> None:
    rng = np.random.default_rng(4)
    study_i, study_t = (
        np.repeat(np.arange(12), rng.integers(1, 4, 12)),
        np.repeat(np.arange(12), rng.integers(1, 4, 12)),
    )
    study_i, study_t = rng.permutation(study_i), rng.permutation(study_t)
    hashes = [f"h{g}" for g in rng.integers(9, size=len(study_t))]
    check(rng.normal(size=(len(study_i), 6)), rng.normal(size=(len(study_t), 6)), hashes, study_i, study_t)


def test_collapsed_features_score_chance_in_both_ways() -> None:
    n = 50
    ones = np.ones((n, 8)) * np.linspace(0.5, 3, n)[:, None]  # one direction, lengths of their own
    hashes = [f"h{i // 2}" for i in range(n)]
    for (_, ties), found in rank_both(ones, ones, hashes).items():
        assert np.allclose(found.hits((1, 5)), found.chance((1, 5)))
        if ties == "strict":
            assert np.allclose(found.hits((1, 5)), [1 / n, 5 / n])


def test_nearly_collapsed_features_are_still_told_apart() -> None:
    """All cosines within the float32 band of doubt: float64 decides every one."""
    rng = np.random.default_rng(5)
    images, texts = (np.ones((70, 6)) + 3e-4 * rng.normal(size=(70, 6)) for _ in range(2))
    number = np.arange(70)
    check(images, texts, [str(i % 30) for i in number], number, number)


def test_order_of_the_studies_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    images, texts = rng.normal(size=(40, 4)), rng.normal(size=(40, 4))
    hashes = np.array([f"h{g}" for g in rng.integers(25, size=40)])
    texts = texts[[int(np.flatnonzero(hashes == h)[0]) for h in hashes]]
    order = rng.permutation(40)
    before, after = rank_both(images, texts, hashes), rank_both(images[order], texts[order], hashes[order])
    for name, found in before.items():
        assert np.array_equal(found.above_Q[order], after[name].above_Q)
        assert np.array_equal(found.tied_Q[order], after[name].tied_Q)
        assert np.array_equal(found.relevant_Q[order], after[name].relevant_Q)


def test_strict_is_never_easier_than_identical_texts() -> None:
    rng = np.random.default_rng(7)
    hashes = np.repeat(np.arange(20), 3)
    texts = rng.normal(size=(20, 5))[hashes]
    found = rank_both(texts + rng.normal(size=(60, 5)), texts, hashes)
    for direction in DIRECTIONS:
        strict, aware = (found[direction, ties].hits((1, 5, 10)).mean(axis=0) for ties in ("strict", "identical_texts"))
        assert (strict < aware).all()


def test_recall_is_that_of_clip_benchmark_on_features_without_ties() -> None:
    """Its definition: 1 where any positive is among the K first. Images with several captions, each a positive."""
    rng = np.random.default_rng(8)
    n = 150
    captions = np.repeat(np.arange(n), rng.integers(1, 4, size=n))
    images = rng.normal(size=(n, 24)).astype(np.float32)
    texts = (images[captions] + 2.5 * rng.normal(size=(len(captions), 24))).astype(np.float32)
    ours = rank_both(images, texts, np.arange(len(captions)), np.arange(n), captions)
    scores = unit(texts) @ unit(images).T
    positive = captions[:, None] == np.arange(n)[None, :]
    for k in KS:
        image_recall = np.mean([positive[t][np.argsort(-scores[t])[:k]].any() for t in range(len(captions))])
        text_recall = np.mean([positive[:, i][np.argsort(-scores[:, i])[:k]].any() for i in range(n)])
        assert 0 < image_recall < 1
        assert ours["text_to_image", "strict"].hits([k]).mean() == pytest.approx(image_recall, abs=1e-6)
        assert ours["image_to_text", "strict"].hits([k]).mean() == pytest.approx(text_recall, abs=1e-6)


def test_the_band_of_doubt_is_wider_than_float32_errs() -> None:
    rng = np.random.default_rng(9)
    for width in (8, 512, 2048):
        a, b = (blocks.Vectors(rng.normal(size=(200, width)) + 1, "x") for _ in range(2))
        rough = a.take(slice(None)) @ b.take(slice(None)).T
        exact = a.take(slice(None)).astype(np.float64) @ b.take(slice(None)).astype(np.float64).T
        assert 4 * np.abs(rough - exact).max() < blocks.doubt(width)


def all_orders(above: int, tied: int, relevant: int) -> list[int]:
    """Rank of the first relevant item for each choice of places of the relevant among the tied."""
    return [above + min(places) + 1 for places in itertools.combinations(range(tied), relevant)]


@pytest.mark.parametrize(("above", "tied", "relevant"), [(0, 1, 1), (3, 5, 1), (2, 6, 3), (0, 4, 4), (7, 6, 2)])
def test_expected_rank_and_reciprocal_rank_are_means_over_all_orders(above: int, tied: int, relevant: int) -> None:
    one = Ranks(*(np.array([v]) for v in (above, tied, relevant, relevant)), items=20)
    places = np.array(all_orders(above, tied, relevant))
    assert one.rank()[0] == pytest.approx(places.mean())
    assert one.reciprocal_rank()[0] == pytest.approx((1 / places).mean())


def test_wrong_input_is_refused() -> None:
    x = np.eye(3)
    with pytest.raises(EvalError, match="do not fit"):
        rank_both(x, x, ["a", "b", "c"], [0, 1], [0, 1, 2])
    with pytest.raises(EvalError, match="do not fit"):
        rank_both(x, np.eye(4), list("abcd"), [0, 1, 2])
    with pytest.raises(EvalError, match="1 images or texts belong to a study without the other"):
        rank_both(x, x, ["a", "b", "c"], [0, 1, 2], [0, 1, 1])
    with pytest.raises(EvalError, match="texts: 1 of 3"):
        rank_both(x, np.diag([1.0, np.nan, 1.0]), ["a", "b", "c"])
