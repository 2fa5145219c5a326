"""The solver of the probe: scikit-learn's optimum, masks, starts, what cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from eval_zero_shot import EvalError
from eval_zero_shot.probe.logistic import fit_classes, fit_labels, prepare

NAN = float("nan")
STRENGTHS = (1e-4, 1e-2, 1.0, 100.0)


def features(n: int, width: int, seed: int = 0) -> np.ndarray:
    """Correlated, of unlike scales, not centred."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) / np.sqrt(width) + 0.3


def sklearns(x: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
    """scikit-learn's optimum. Newton's method reaches it to the last digit; the objective is the same for lbfgs."""
    return LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(x, y)


@pytest.mark.parametrize("shape", [(300, 15), (40, 90)], ids=["more studies", "more features"])
def test_labels_meet_scikit_learns_optimum_each_over_its_known_studies(shape: tuple[int, int]) -> None:
    x, rng = features(*shape), np.random.default_rng(1)
    labels = rng.integers(0, 2, (len(x), 3)).astype(float)
    labels[:, 0] = x[:, 0] + rng.normal(size=len(x)) > 0.3
    labels[::3, 0] = labels[5:20, 2] = NAN
    fits = fit_labels(prepare(x), labels, STRENGTHS)
    assert fits.converged and fits.gradient_SP.max() <= 1e-9
    for s, strength in enumerate(STRENGTHS):
        for j in range(3):
            known = ~np.isnan(labels[:, j])
            theirs = sklearns(x[known], labels[known, j], strength)
            np.testing.assert_allclose(fits.weights_SKD[s, j], theirs.coef_[0], atol=1e-4)
            np.testing.assert_allclose(fits.intercepts_SK[s, j], theirs.intercept_[0], atol=1e-4)


@pytest.mark.parametrize("shape", [(300, 15), (60, 90)], ids=["more studies", "more features"])
def test_classes_meet_scikit_learns_optimum(shape: tuple[int, int]) -> None:
    x, rng = features(*shape), np.random.default_rng(2)
    classes = (x[:, :4] + rng.normal(size=(len(x), 4))).argmax(1)
    fits = fit_classes(prepare(x), classes, STRENGTHS)
    assert fits.converged
    for s, strength in enumerate(STRENGTHS):
        theirs = sklearns(x, classes, strength)
        np.testing.assert_allclose(fits.weights_SKD[s], theirs.coef_, atol=1e-4)
        centred = theirs.intercept_ - theirs.intercept_.mean()
        np.testing.assert_allclose(fits.intercepts_SK[s], centred, atol=1e-4)


def test_lbfgs_of_scikit_learn_agrees_too() -> None:
    x, rng = features(400, 10), np.random.default_rng(3)
    for classes in (rng.integers(0, 2, 400), rng.integers(0, 5, 400)):
        theirs = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(x, classes)
        fit = fit_classes if classes.max() > 1 else fit_labels
        y = classes if classes.max() > 1 else classes[:, None].astype(float)
        fits = fit(prepare(x), y, [0.1])
        np.testing.assert_allclose(fits.weights_SKD[0], theirs.coef_, atol=1e-4)


def test_the_order_of_strengths_and_the_batch_do_not_matter() -> None:
    x, rng = features(200, 12), np.random.default_rng(4)
    labels, basis = rng.integers(0, 2, (200, 9)).astype(float), prepare(x)
    every = fit_labels(basis, labels, (10.0, 1e-3, 0.1))
    for s, strength in enumerate(every.strengths):
        for j in range(9):
            alone = fit_labels(basis, labels[:, [j]], [strength])
            np.testing.assert_allclose(every.weights_SKD[s, j], alone.weights_SKD[0, 0], atol=1e-6)


def test_float32_stops_at_its_gradient_and_is_near() -> None:
    x, rng = features(500, 20), np.random.default_rng(5)
    classes = (x[:, :3] + rng.normal(size=(500, 3))).argmax(1)
    exact = fit_classes(prepare(x), classes, [0.1])
    single = fit_classes(prepare(x.astype(np.float32)), classes, [0.1])
    assert single.weights_SKD.dtype == np.float32 and single.gradient_SP.max() <= 1e-5
    np.testing.assert_allclose(single.weights_SKD, exact.weights_SKD, atol=1e-3)


@pytest.mark.parametrize("shape", [(200, 8), (20, 40)])
def test_a_start_holds_a_weak_fit_and_not_a_strong_one(shape: tuple[int, int]) -> None:
    x, rng = features(*shape), np.random.default_rng(6)
    y = rng.integers(0, 2, (len(x), 1)).astype(float)
    start = (rng.normal(size=(1, shape[1])), np.zeros(1))
    weak, strong = 1e-9, 1e3
    fits = fit_labels(prepare(x), y, [weak, strong], start=start)
    np.testing.assert_allclose(fits.weights_SKD[0], start[0], atol=1e-5)
    assert fits.converged and np.abs(fits.weights_SKD[1] - start[0]).max() > 0.1
    # the optimum's own equation: W - W0 = -C Σ (p - y) x
    p = 1 / (1 + np.exp(-fits.logits(x, 1)))
    np.testing.assert_allclose(fits.weights_SKD[1] - start[0], -strong * ((p - y).T @ x), rtol=1e-3, atol=1e-3)


def test_constant_features_and_separable_classes_have_a_finite_optimum() -> None:
    x = np.c_[np.r_[np.full(20, -1.0), np.full(20, 1.0)], np.full(40, 3.0)]
    fits = fit_labels(prepare(x), (x[:, :1] > 0).astype(float), [1.0])
    assert 1 < fits.weights_SKD[0, 0, 0] < 10 and abs(fits.weights_SKD[0, 0, 1]) < 1e-6
    alike = fit_labels(prepare(np.ones((10, 4))), np.r_[np.ones(4), np.zeros(6)][:, None], [1.0])
    np.testing.assert_allclose(alike.weights_SKD, 0, atol=1e-9)
    np.testing.assert_allclose(alike.intercepts_SK[0, 0], np.log(4 / 6), atol=1e-6)


def test_what_cannot_be_fitted_is_refused() -> None:
    basis = prepare(np.random.default_rng(0).normal(size=(6, 2)))
    with pytest.raises(EvalError, match="a class is missing"):
        fit_labels(basis, np.ones((6, 1)), [1.0])
    with pytest.raises(EvalError, match="a class is missing"):
        fit_classes(basis, np.array([0, 1, 3, 3, 1, 0]), [1.0])
    with pytest.raises(EvalError, match="not positive"):
        fit_labels(basis, np.array([[0.0, 1, 0, 1, 1, 0]]).T, [0.0])
    with pytest.raises(EvalError, match="other than 1, 0"):
        fit_labels(basis, np.array([[0.0, 1, 0, 1, 1, 2]]).T, [1.0])
    with pytest.raises(EvalError, match="5 labels for 6 studies"):
        fit_labels(basis, np.array([[0.0, 1, 0, 1, 1]]).T, [1.0])
    with pytest.raises(EvalError, match="not finite"):
        prepare(np.full((4, 2), NAN))


def test_a_fit_that_was_cut_short_says_so() -> None:
    x = features(100, 10)
    fits = fit_labels(prepare(x), (x[:, :1] > 0.3).astype(float), [10.0], max_iterations=2)
    assert not fits.converged and fits.gradient_SP.max() > 1e-9


@pytest.mark.parametrize("start", [False, True])
def test_every_tensor_of_a_fit_is_made_where_its_features_are(start: bool) -> None:
    """In place of a GPU: a tensor made without saying where lands on another device, and mixing the two is an error."""
    x, rng = features(60, 5), np.random.default_rng(4)
    labels, classes = rng.integers(0, 2, (60, 2)).astype(float), rng.integers(0, 3, 60)
    labels[::7, 0] = NAN
    begin = {kind: (rng.normal(size=(n, 5)), np.zeros(n)) for kind, n in (("labels", 2), ("classes", 3))}
    more = [{"start": begin[kind]} if start else {} for kind in ("labels", "classes")]
    wanted = [fit_labels(prepare(x), labels, [0.1, 1.0], **more[0]), fit_classes(prepare(x), classes, [1.0], **more[1])]
    torch.set_default_device("meta")
    try:
        with pytest.raises((RuntimeError, NotImplementedError)):  # so a forgotten device would not go unseen
            torch.ones(3, device="cpu") + torch.ones(3)
        found = [
            fit_labels(prepare(x), labels, [0.1, 1.0], **more[0]),
            fit_classes(prepare(x), classes, [1.0], **more[1]),
        ]
    finally:
        torch.set_default_device(None)
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one.weights_SKD, other.weights_SKD)
