"""Metrics against scikit-learn, weights, ties and unknown labels included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from eval_zero_shot import metrics
from eval_zero_shot.statistics import weighted_auroc
from eval_zero_shot.thresholds import SIGN, matching_prevalence, nearest_to_corner

NAN = float("nan")


@pytest.fixture(params=["smooth", "tied"])
def world(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scores_N, labels_N with unknown ones, weights_RN, and which are known."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0.0, 1.0, NAN], size=150, p=[0.6, 0.3, 0.1])
    scores = rng.normal(size=150) + np.nan_to_num(labels)
    if request.param == "tied":
        scores = np.round(scores)
    return scores, labels, rng.integers(0, 4, (5, 150)).astype(float), ~np.isnan(labels)


RANKING = {
    "auroc": (weighted_auroc, sk.roc_auc_score),
    "auprc": (metrics.average_precision, sk.average_precision_score),
}


@pytest.mark.parametrize("name", RANKING)
def test_ranking_is_that_of_scikit_learn(name: str, world: tuple) -> None:
    scores, labels, weights, known = world
    ours, theirs = RANKING[name]
    for value, w in zip(ours(scores, labels, weights), weights, strict=True):
        assert value == pytest.approx(theirs(labels[known], scores[known], sample_weight=w[known]), abs=1e-12)


def test_sensitivity_is_a_point_of_scikit_learns_curve(world: tuple) -> None:
    scores, labels, weights, known = world
    for specificity in (0.5, 0.9, 1.0):
        ours = metrics.sensitivity_at_specificity(scores, labels, weights, specificity)
        for value, w in zip(ours, weights, strict=True):
            used = known & (w > 0)
            false, true, _ = sk.roc_curve(labels[used], scores[used], sample_weight=w[used], drop_intermediate=False)
            assert value == pytest.approx(true[false <= 1 - specificity + 1e-12].max(), abs=1e-12)


DECIDED = {
    "f1": lambda y, p, w: sk.f1_score(y, p, sample_weight=w, zero_division=0.0),
    "f1_weighted": lambda y, p, w: sk.f1_score(y, p, sample_weight=w, average="weighted", zero_division=0.0),
    "f1_macro": lambda y, p, w: sk.f1_score(y, p, sample_weight=w, average="macro", zero_division=0.0),
    "precision": lambda y, p, w: sk.precision_score(y, p, sample_weight=w, zero_division=0.0),
    "sensitivity": lambda y, p, w: sk.recall_score(y, p, sample_weight=w),
    "specificity": lambda y, p, w: sk.recall_score(y, p, sample_weight=w, pos_label=0),
    "accuracy": lambda y, p, w: sk.accuracy_score(y, p, sample_weight=w),
    "balanced_accuracy": lambda y, p, w: sk.balanced_accuracy_score(y, p, sample_weight=w),
}


@pytest.mark.parametrize("name", DECIDED)
@pytest.mark.parametrize("at", [0.0, 0.6, 99.0])
def test_decisions_are_those_of_scikit_learn(name: str, at: float, world: tuple) -> None:
    scores, labels, weights, known = world
    ours = getattr(metrics.confusion(scores >= at, labels, weights), name)
    for value, w in zip(ours, weights, strict=True):
        assert value == pytest.approx(DECIDED[name](labels[known], scores[known] >= at, w[known]), abs=1e-12)


def test_a_class_without_weight_gives_no_number() -> None:
    scores, labels = np.array([2.0, 1, 0]), np.array([1.0, 0, 0])
    lost = np.array([[0.0, 1, 1], [1, 1, 1]])
    for ours in (metrics.average_precision, metrics.sensitivity_at_specificity, weighted_auroc):
        assert np.isnan(ours(scores, labels, lost)).tolist() == [True, False]
    assert np.isnan(metrics.confusion(scores > 0, labels, lost).f1).tolist() == [True, False]
    assert np.isnan(metrics.average_precision(scores, [NAN] * 3, lost)).all()


@pytest.mark.parametrize("tied", [False, True])
def test_several_classes_are_those_of_scikit_learn(tied: bool) -> None:
    rng = np.random.default_rng(1)
    truth, weights = rng.integers(0, 7, 200), rng.integers(1, 4, (3, 200)).astype(float)
    scores = rng.normal(size=(200, 7)) + 1.5 * np.eye(7)[truth]
    scores = np.round(scores) if tied else scores
    said = metrics.answers(scores)
    if not tied:
        assert (said == scores.argmax(axis=1)).all()
    for k in (1, 5):
        for value, w in zip(metrics.top_k(scores, truth, k, weights), weights, strict=True):
            assert value == pytest.approx(sk.top_k_accuracy_score(truth, scores, k=k, sample_weight=w), abs=1e-12)
    assert (metrics.top_k(scores, truth, 1, weights) == weights @ (said == truth) / weights.sum(1)).all()


def test_calibration_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(2)
    probability, label = rng.random(300), rng.integers(0, 2, 300).astype(float)
    ones = np.ones((1, 300))
    theirs = binary_calibration_error(torch.tensor(probability), torch.tensor(label).long(), n_bins=metrics.BINS)
    assert float(theirs) == pytest.approx(metrics.calibration_error(probability, label, ones)[0], abs=1e-6)
    logits, truth = rng.normal(size=(300, 4)), rng.integers(0, 4, 300)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    theirs = multiclass_calibration_error(torch.tensor(softmax), torch.tensor(truth), 4, n_bins=metrics.BINS)
    ours = metrics.calibration_error(softmax.max(axis=1), (softmax.argmax(axis=1) == truth).astype(float), ones)[0]
    assert float(theirs) == pytest.approx(ours, abs=1e-6)


def test_calibration_curve_by_hand() -> None:
    probability, right = np.array([0.0, 0.1, 0.2, 0.9, 1.0, 0.5]), np.array([0, 1, 0, 1, 1, NAN])
    said, frequency, weight = metrics.calibration_curve(probability, right, np.ones((1, 6)), bins=5)
    assert said[0] == pytest.approx([0.1, NAN, NAN, NAN, 0.95], nan_ok=True)
    assert frequency[0] == pytest.approx([1 / 3, NAN, NAN, NAN, 1.0], nan_ok=True)
    assert weight[0].tolist() == [3, 0, 0, 0, 2]
    expected = (3 * (1 / 3 - 0.1) + 2 * 0.05) / 5
    assert metrics.calibration_error(probability, right, np.ones((1, 6)), bins=5)[0] == pytest.approx(expected)


def test_the_corner_is_found_by_looking_at_every_threshold(world: tuple) -> None:
    scores, labels, _, known = world
    found = nearest_to_corner(scores, labels)

    def distance(at: float) -> float:
        cells = metrics.confusion(scores >= at, labels, np.ones(150))
        return float((1 - cells.sensitivity[0]) ** 2 + (1 - cells.specificity[0]) ** 2)

    assert found in scores[known]
    assert distance(found) == pytest.approx(min(distance(at) for at in scores[known]), abs=1e-12)


def test_as_many_yes_as_positives() -> None:
    scores, labels = np.array([0.9, 0.1, 0.8, 0.3, 0.7]), np.array([1.0, 0, 1, NAN, 0])
    at = matching_prevalence(scores, labels)
    assert at == 0.8 and (scores[~np.isnan(labels)] >= at).sum() == 2
    assert matching_prevalence(scores, np.ones(5)) is None and nearest_to_corner(scores, np.zeros(5)) is None


def test_the_sign_says_no_on_a_tie() -> None:
    assert [score >= SIGN for score in (-1.0, 0.0, 1e-12)] == [False, False, True]
