"""Everything that is said of findings and of classes, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from eval_zero_shot.class_metrics import class_metrics, log_odds, softmax
from eval_zero_shot.finding_metrics import finding_metrics, probability, thresholds_of
from eval_zero_shot.outcome import Metric
from eval_zero_shot.statistics import Run, auroc_intervals

NAN = float("nan")
NAMES = ("a", "b", "never")


def find(metrics: list[Metric], name: str, of: str = "", **at: object) -> Metric:
    (found,) = [m for m in metrics if (m.name, m.of, dict(m.at)) == (name, of, at)]
    return found


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice([0.0, 1.0, NAN], size=(120, 3), p=[0.6, 0.3, 0.1])
    labels[:, 2] = np.where(rng.random(120) < 0.5, 0.0, NAN)
    return rng.normal(size=(120, 3)) * 0.1 + 0.1 * np.nan_to_num(labels) - 0.05, labels, rng.integers(0, 50, 120)


@pytest.fixture(scope="module")
def found(world: tuple) -> list[Metric]:
    scores, labels, patients = world
    thresholds = thresholds_of(scores, labels, (scores[:60], labels[:60]))
    groups = {"both": ("a", "b")}
    return finding_metrics(scores, labels, patients, NAMES, thresholds, scale=20.0, groups=groups, resamples=100)


def test_values_and_intervals_of_findings(world: tuple, found: list[Metric]) -> None:
    scores, labels, patients = world
    each, macro = auroc_intervals(Run.of(scores, labels, patients), resamples=100)
    for j, name in enumerate("ab"):
        known = ~np.isnan(labels[:, j])
        y, s = labels[known, j], scores[known, j]
        auroc = find(found, "auroc", name)
        assert (auroc.value, auroc.low, auroc.high, auroc.method) == (
            *(each[j].value, each[j].low, each[j].high),
            "logit",
        )
        assert auroc.value == pytest.approx(sk.roc_auc_score(y, s)) and auroc.n == known.sum()
        assert find(found, "auprc", name).value == pytest.approx(sk.average_precision_score(y, s))
        assert find(found, "f1", name, threshold="sign").value == pytest.approx(sk.f1_score(y, s > 0))
        weighted = find(found, "f1_weighted", name, threshold="sign")
        assert weighted.value == pytest.approx(sk.f1_score(y, s > 0, average="weighted"))
        assert weighted.low < weighted.value < weighted.high
    assert find(found, "auroc").value == pytest.approx(np.mean([each[0].value, each[1].value]))
    assert (find(found, "auroc").low, find(found, "auroc").high) == pytest.approx((macro.low, macro.high))


def test_groups_have_a_macro_and_a_micro_mean(world: tuple, found: list[Metric]) -> None:
    scores, labels, _ = world
    macro = find(found, "auroc", group="both", average="macro")
    assert macro.value == find(found, "auroc").value
    known = ~np.isnan(labels[:, :2])
    micro = sk.roc_auc_score(labels[:, :2][known], scores[:, :2][known])
    assert find(found, "auroc", group="both", average="micro").value == pytest.approx(micro)
    assert find(found, "auroc", average="micro").value != macro.value


def test_a_finding_without_positives_has_reasons_and_no_numbers(found: list[Metric]) -> None:
    of = [m for m in found if m.of == "never" and m.name != "threshold"]
    assert len(of) > 20
    assert all(m.value is None and m.low is None and m.reason == "no positive study" for m in of)
    assert "class is missing" in str(find(found, "threshold", "never", threshold="validation").reason)


def test_thresholds_come_from_the_split_that_is_named(world: tuple, found: list[Metric]) -> None:
    scores, labels, _ = world
    for rule, part in (("validation", slice(0, 60)), ("test", slice(0, 120))):
        fitted = find(found, "threshold", "a", threshold=rule)
        at, known = fitted.value, ~np.isnan(labels[:, 0])
        assert fitted.n == known[part].sum()
        false, true, tried = sk.roc_curve(labels[part, 0][known[part]], scores[part, 0][known[part]])
        assert at == tried[np.argmin((1 - true) ** 2 + false**2)]
        expected = sk.balanced_accuracy_score(labels[known, 0], scores[known, 0] >= at)
        assert find(found, "balanced_accuracy", "a", threshold=rule).value == pytest.approx(expected)
    assert set(thresholds_of(scores, labels, None)) == {"sign", "test"}


def test_probabilities_are_the_softmax_of_both_sides() -> None:
    sides = np.array([[0.3, 0.1], [0.2, 0.2], [-0.9, 0.9]])
    ours = probability(sides[:, 0] - sides[:, 1], 50.0)
    assert ours == pytest.approx(softmax(sides, 50.0)[:, 0])


def test_classes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth, patients = rng.integers(0, 6, 150), rng.integers(0, 60, 150)
    scores = rng.normal(size=(150, 6)) * 0.1 + 0.1 * np.eye(6)[truth]
    names = tuple("uvwxyz")
    found = class_metrics(scores, truth, patients, names, scale=10.0, groups={"ends": ("u", "z")}, resamples=50)
    said, p = scores.argmax(axis=1), softmax(scores, 10.0)
    assert find(found, "acc1").value == pytest.approx(sk.accuracy_score(truth, said))
    assert find(found, "acc5").value == pytest.approx(sk.top_k_accuracy_score(truth, scores, k=5))
    assert find(found, "balanced_accuracy").value == pytest.approx(sk.balanced_accuracy_score(truth, said))
    assert find(found, "f1_macro").value == pytest.approx(sk.f1_score(truth, said, average="macro"))
    assert find(found, "f1_weighted").value == pytest.approx(sk.f1_score(truth, said, average="weighted"))
    assert find(found, "auroc").value == pytest.approx(sk.roc_auc_score(truth, p, multi_class="ovr", average="macro"))
    assert find(found, "auprc").value == pytest.approx(sk.average_precision_score(np.eye(6)[truth], p))
    assert find(found, "recall", "v").value == pytest.approx(sk.recall_score(truth, said, average=None)[1])
    inside = np.isin(truth, (0, 5))
    within = sk.accuracy_score(truth[inside], said[inside])
    assert find(found, "acc1", group="ends", average="micro").value == pytest.approx(within)
    ends = np.mean([find(found, "recall", name).value for name in "uz"])
    assert find(found, "balanced_accuracy", group="ends", average="macro").value == pytest.approx(ends)
    error = find(found, "calibration_error", bins=15)
    assert error.value > 0 and error.low is None and "resampling" in str(error.reason)
    assert all(m.low is not None and m.low <= m.value <= m.high for m in found if m is not error)


def test_top_five_needs_six_classes_and_absent_ones_are_named() -> None:
    scores, truth = np.eye(5)[[0, 1, 2, 3]] + 0.1, np.arange(4)
    found = class_metrics(scores, truth, np.arange(4), tuple("abcde"), resamples=20)
    assert not [m for m in found if m.name in ("acc5", "calibration_error")]
    assert find(found, "recall", "e").reason == "no study of this class"
    assert find(found, "balanced_accuracy").value == 1.0


def test_saturated_softmax_does_not_tie() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.7, 0.1]])
    assert len(np.unique(softmax(scores, 100.0)[:, 0])) < 3
    assert (np.diff(log_odds(scores, 100.0)[:, 0]) < 0).all()
