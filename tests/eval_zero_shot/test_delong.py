"""The closed-form interval: its variance against the definition, its ends, and how often it covers the truth."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.coverage import cell
from eval_zero_shot.delong import auroc_and_variance, logit_interval

NAN = float("nan")


def by_the_definition(scores: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> tuple[float, float]:
    """Obuchowski 1997, sums written out."""
    x, y = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    psi = np.array([[float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]) for j in y] for i in x])
    auroc, v10, v01 = psi.mean(), psi.mean(1), psi.mean(0)
    s10 = s01 = s11 = 0.0
    names = np.unique(patients)
    for name in names:
        own_x, own_y = patients[x] == name, patients[y] == name
        a, b = v10[own_x].sum() - own_x.sum() * auroc, v01[own_y].sum() - own_y.sum() * auroc
        s10, s01, s11 = s10 + a * a, s01 + b * b, s11 + a * b
    m, n, k = len(x), len(y), len(names)
    k10, k01 = len(np.unique(patients[x])), len(np.unique(patients[y]))
    s10, s01, s11 = k10 / ((k10 - 1) * m) * s10, k01 / ((k01 - 1) * n) * s01, k / (k - 1) * s11
    return auroc, s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("decimals", [1, 9])  # one decimal: ties
def test_value_and_variance_are_the_definition(decimals: int) -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 30, 70)
    labels = rng.integers(0, 2, 70).astype(float)
    scores = (labels + rng.normal(size=70) + patients / 30).round(decimals)
    value, variance, classes = auroc_and_variance(scores, labels, patients)
    expected = by_the_definition(scores, labels, patients)
    assert (value, variance) == pytest.approx(expected, rel=1e-12)
    assert value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert classes == tuple(len(np.unique(patients[labels == side])) for side in (1, 0))
    unknown = np.where(np.arange(70) % 5 == 0, NAN, labels)
    known = ~np.isnan(unknown)
    assert auroc_and_variance(scores, unknown, patients) == auroc_and_variance(
        scores[known], labels[known], patients[known]
    )


def test_copies_of_a_patient_say_nothing_new() -> None:
    rng = np.random.default_rng(1)
    labels = (np.arange(80) % 2).astype(float)
    scores = labels + rng.normal(size=80)
    once = logit_interval(scores, labels, np.arange(80))
    copies = logit_interval(np.repeat(scores, 4), np.repeat(labels, 4), np.repeat(np.arange(80), 4))
    assert copies == pytest.approx(once, rel=1e-9)


def test_the_ends_of_the_scale() -> None:
    labels = np.repeat([1.0, 0.0], [20, 40])
    value, low, high = logit_interval(labels, labels, np.arange(60))
    assert (value, high) == (1.0, 1.0)
    assert low == pytest.approx(0.025 ** (1 / 20))
    value, low, high = logit_interval(-labels, labels, np.arange(60))
    assert (value, low) == (0.0, 0.0)
    assert high == pytest.approx(1 - 0.025 ** (1 / 20))
    nearly = labels.copy()
    nearly[0] = -1.0
    value, low, high = logit_interval(nearly, labels, np.arange(60))
    assert 0.5 < low < value < high < 1.0


def test_no_interval_without_two_patients_of_a_class() -> None:
    assert np.isnan(logit_interval([1.0, 2.0], [1, 1], [0, 1])).all()
    value, low, high = logit_interval([1.0, 2.0, 3.0], [0, 0, 1], [0, 1, 2])
    assert value == 1.0
    assert np.isnan([low, high]).all()


@pytest.mark.parametrize(("patients", "prevalence", "auroc"), [(300, 0.05, 0.95), (100, 0.4, 0.8), (33, 0.4, 0.9)])
def test_it_covers_the_truth(patients: int, prevalence: float, auroc: float) -> None:
    coverage, _, _ = cell(patients, prevalence, auroc, trials=400, resamples=0)
    assert coverage >= 0.92
