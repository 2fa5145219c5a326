"""Metrics of a probe are scikit-learn's, weighted resamples are resamples, neighbours are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from eval_zero_shot.outcome import Metric
from eval_zero_shot.probe.knn import nearest_share
from eval_zero_shot.probe.measures import measure

NAN = float("nan")


def named(metrics: list[Metric]) -> dict[tuple[str, str], Metric]:
    return {(m.name, m.of): m for m in metrics}


def test_labels() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (300, 2)).astype(float)
    scores = labels + rng.normal(size=(300, 2))
    labels[:40, 1] = NAN
    patients = np.array([f"p{i // 3}" for i in range(300)])
    found = named(measure(scores, labels, patients, ("a", "b"), False, np.array([0.5, 0.5]), resamples=200))
    known = ~np.isnan(labels[:, 1])
    y, s = labels[known, 1], scores[known, 1]
    assert found["auroc", "b"].value == pytest.approx(roc_auc_score(y, s))
    assert found["auprc", "b"].value == pytest.approx(average_precision_score(y, s))
    assert found["balanced_accuracy", "b"].value == pytest.approx(balanced_accuracy_score(y, s > 0.5))
    assert found["auroc", "b"].n == 260 and found["auroc", ""].n == 300
    for (name, of), metric in found.items():
        assert metric.low < metric.value < metric.high, (name, of)
        assert 0.03 < metric.high - metric.low < 0.25
    for name in ("auroc", "auprc", "balanced_accuracy"):
        mean = np.mean([found[name, of].value for of in ("a", "b")])
        assert found[name, ""].value == pytest.approx(mean)


def test_a_patients_studies_go_together() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(rng.integers(0, 2, (40, 1)), 10, axis=0).astype(float)
    scores = labels + np.repeat(rng.normal(size=(40, 1)), 10, axis=0)
    widths = []
    for step in (1, 10):
        patients = np.array([f"p{i // step}" for i in range(400)])
        m = named(measure(scores, labels, patients, ("a",), False, np.array([0.5]), resamples=300))["auprc", ""]
        widths.append(m.high - m.low)
    assert widths[1] > 2 * widths[0]


def test_classes() -> None:
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 6, 400)
    logits = rng.normal(size=(400, 6)) + 2 * np.eye(6)[classes]
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    labels = np.eye(6)[classes]
    labels[:25] = NAN
    names, patients = tuple("abcdef"), np.array([f"p{i}" for i in range(400)])
    found = named(measure(logits, labels, patients, names, True, np.zeros(6), resamples=100))
    y, s = classes[25:], logits[25:]
    assert found["acc1", ""].value == pytest.approx(accuracy_score(y, s.argmax(1)))
    assert found["balanced_accuracy", ""].value == pytest.approx(balanced_accuracy_score(y, s.argmax(1)))
    assert found["auroc", ""].value == pytest.approx(roc_auc_score(y, np.exp(s), multi_class="ovr"))
    top = np.argsort(-s, axis=1)[:, :5]
    assert found["acc5", ""].value == pytest.approx((top == y[:, None]).any(1).mean())
    unseen = logits.copy()
    unseen[:, 2] = NAN
    found = named(measure(unseen, labels, patients, names, True, np.zeros(6), resamples=100))
    assert found["recall", "c"].value == 0 and found["auroc", "c"].value is None
    assert found["auroc", "c"].reason == "a class is missing in training"


@pytest.mark.parametrize("k", [1, 20, 500])
def test_neighbours_are_scikit_learns_by_cosine(k: int) -> None:
    rng = np.random.default_rng(4)
    known, scored = rng.normal(size=(150, 8)), rng.normal(size=(40, 8))
    labels = rng.integers(0, 2, (150, 3)).astype(float)
    labels[:50, 2] = NAN
    share = nearest_share(known, labels, scored, k)
    for j in range(3):
        use = ~np.isnan(labels[:, j])
        theirs = KNeighborsClassifier(min(k, int(use.sum())), metric="cosine").fit(known[use], labels[use, j])
        np.testing.assert_allclose(share[:, j], theirs.predict_proba(scored)[:, 1], atol=1e-12)
