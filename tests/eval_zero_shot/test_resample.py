"""Bootstrap over patients of any weighted statistic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

from eval_zero_shot import EvalError
from eval_zero_shot.resample import interval, left_out_weights, means_by_patient, patient_weights, resample
from eval_zero_shot.statistics import Run, auroc_intervals, weighted_auroc

PATIENTS = np.array(["c", "a", "b", "a", "d", "a"])


def weights(patients: object, resamples: int = 200, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(patient_weights(patients, resamples, seed)))


def mean_of(values_N: np.ndarray) -> object:
    return lambda weights_RN: weights_RN @ values_N / weights_RN.sum(axis=1)


def test_cases_of_a_patient_come_and_go_together() -> None:
    drawn = weights(PATIENTS)
    assert drawn.shape == (200, 6)
    assert (drawn[:, [1]] == drawn[:, [3, 5]]).all()
    assert (drawn[:, [0, 1, 2, 4]].sum(axis=1) == 4).all()
    assert len(np.unique(drawn, axis=0)) > 20


def test_the_draw_follows_from_seed_and_patients_alone() -> None:
    order = np.random.default_rng(0).permutation(6)
    assert (weights(PATIENTS)[:, order] == weights(PATIENTS[order])).all()
    assert (weights(PATIENTS)[:50] == weights(PATIENTS, 50)).all()
    assert (weights(PATIENTS) != weights(PATIENTS, seed=1)).any()


def test_blocks_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(PATIENTS)
    monkeypatch.setattr("eval_zero_shot.resample._CHUNK", 20)
    assert len(list(patient_weights(PATIENTS, 200))) > 50
    assert (weights(PATIENTS) == whole).all()


def test_each_patient_is_left_out_once() -> None:
    left = np.concatenate(list(left_out_weights(PATIENTS)))
    assert left.tolist() == [[1, 0, 1, 0, 1, 0], [1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1]]


def test_weights_mean_repeated_rows() -> None:
    rng = np.random.default_rng(3)
    labels, patients = rng.integers(0, 2, 60), rng.integers(0, 25, 60)
    scores = np.round(rng.normal(size=60) + labels, 1)
    found = resample(lambda w: weighted_auroc(scores, labels, w), patients, resamples=20)
    for drawn, weight in zip(found.drawn_RM[:, 0], weights(patients, 20), strict=True):
        rows = np.repeat(np.arange(60), weight.astype(int))
        assert drawn == pytest.approx(roc_auc_score(labels[rows], scores[rows]), abs=1e-12)
    assert found.estimate_M[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_macro_interval_is_that_of_the_statistics_module() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, (80, 3)).astype(float)
    scores, patients = rng.normal(size=(80, 3)) + labels, rng.integers(0, 30, 80).astype(str)

    def macro(weights_RN: np.ndarray) -> np.ndarray:
        return np.mean([weighted_auroc(s, y, weights_RN) for s, y in zip(scores.T, labels.T, strict=True)], axis=0)

    ours, theirs = interval(macro, patients), auroc_intervals(Run.of(scores, labels, patients))[1]
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_are_those_of_scipy(method: str) -> None:
    values = np.random.default_rng(5).exponential(size=200)
    ours = interval(mean_of(values), np.arange(200), resamples=9999, method=method)
    rng = np.random.default_rng(0)
    how = {"percentile": "percentile", "bca": "BCa"}[method]
    theirs = bootstrap((values,), np.mean, n_resamples=9999, method=how, rng=rng).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.008)
    assert ours.method == method


def test_bca_shifts_as_scipy_does() -> None:
    values = np.random.default_rng(6).exponential(size=40) ** 2
    shift = {}
    for method in ("percentile", "bca"):
        ours = interval(mean_of(values), np.arange(40), resamples=9999, method=method)
        shift[method] = (ours.low, ours.high)
    assert shift["bca"][0] > shift["percentile"][0] and shift["bca"][1] > shift["percentile"][1] + 0.05


def test_many_statistics_share_a_draw() -> None:
    a, b = np.random.default_rng(7).normal(size=(2, 6))
    both = resample(lambda w: np.stack([w @ a, w @ b], axis=1), PATIENTS, resamples=30, jackknife=True)
    assert both.drawn_RM.shape == (30, 2) and both.jackknife_PM is not None and both.jackknife_PM.shape == (4, 2)
    assert (both.drawn_RM[:, 1] == resample(lambda w: w @ b, PATIENTS, resamples=30).drawn_RM[:, 0]).all()


def test_no_interval_says_why() -> None:
    labels = np.array([1.0, 0, 0, 0, 0, 0])
    lost = interval(lambda w: weighted_auroc(np.arange(6.0), labels, w), np.arange(6))
    assert lost.value == 0.0 and lost.low is None and "lose a class" not in str(lost.reason)
    rare = interval(lambda w: np.where(w[:, 0] > 1, 0.5, np.nan), np.arange(6))
    assert rare.value is None and rare.reason == "a class is missing"
    agree = interval(lambda w: np.ones(len(w)), PATIENTS)
    assert (agree.low, agree.value) == (None, 1.0) and "all resamples agree" in str(agree.reason)
    assert interval(mean_of(np.arange(3.0)), ["a"] * 3).reason == "a single patient"
    assert interval(mean_of(np.arange(3.0)), ["a", "b", "c"], resamples=0).reason == "no resamples asked for"
    with pytest.raises(EvalError, match="no case"):
        interval(mean_of(np.empty(0)), [])
    with pytest.raises(EvalError, match="left-out"):
        resample(mean_of(np.arange(6.0)), PATIENTS).interval(0, method="bca")


def test_resamples_that_lose_a_class_are_counted() -> None:
    labels, scores = np.array([1.0, 1, 0, 0, 0, 0]), np.array([3.0, 1, 2, 0, 0, 0])
    found = interval(lambda w: weighted_auroc(scores, labels, w), np.arange(6))
    assert 0 < found.skipped < 300 and found.low is not None


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_p_and_interval_say_the_same(method: Any) -> None:
    """p is below 1 - level where the interval of that level leaves 0 out, but for a draw or two at the border."""
    near = 0
    for seed in range(60):
        values = np.random.default_rng(seed).gumbel(0.4, 1.0, 40) - 0.9
        names, means = means_by_patient(values[:, None], [str(i) for i in range(40)])
        drawn = resample(means, names, resamples=400, seed=seed, jackknife=True)
        found, p = drawn.interval(0, 0.9, method), drawn.p_at(0.0, 0, method)
        assert found.low is not None and found.high is not None
        if abs(p - 0.1) > 0.02:
            assert (p < 0.1) is not (found.low <= 0 <= found.high), seed
        else:
            near += 1
    assert near < 20
