"""The patient bootstrap: agreement with scikit-learn, clustering, pairing, and how often it covers the truth."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from eval_zero_shot import EvalError
from eval_zero_shot.statistics import (
    Run,
    auroc_intervals,
    bootstrap,
    macro_difference,
    macro_over_runs,
    weighted_auroc,
    weighted_mean,
)

NAN = float("nan")
TRUE_AUROC = 0.8
SHIFT = 1.1902322  # distance of two unit normals whose AUROC is 0.8: sqrt(2) * Phi^-1(0.8)


def simulated(n: int, rng: np.random.Generator, prevalence: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    labels = (rng.random(n) < prevalence).astype(float)
    return rng.normal(size=n) + SHIFT * labels, labels


def width(interval: object) -> float:
    return interval.high - interval.low  # type: ignore[attr-defined]


@pytest.mark.parametrize("decimals", [1, 12])  # one decimal: mostly ties
def test_weighted_auroc_is_that_of_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(0)
    scores, labels = simulated(60, rng)
    scores, labels[rng.random(60) < 0.2] = scores.round(decimals), NAN
    weights = rng.integers(0, 4, size=(5, 60))
    known = ~np.isnan(labels)
    for ours, row in zip(weighted_auroc(scores, labels, weights), weights, strict=True):
        assert ours == pytest.approx(roc_auc_score(labels[known], scores[known], sample_weight=row[known]), abs=1e-12)


def test_weights_are_copies_of_rows() -> None:
    rng = np.random.default_rng(1)
    scores, labels = simulated(30, rng)
    weights = rng.integers(0, 3, size=30)
    repeated = np.repeat(np.arange(30), weights)
    expected = roc_auc_score(labels[repeated], scores[repeated])
    assert weighted_auroc(scores, labels, weights)[0] == pytest.approx(expected, abs=1e-12)


def test_no_weight_on_a_class_is_not_a_number() -> None:
    assert np.isnan(weighted_auroc([0.1, 0.9], [0, 1], [[1, 0], [0, 3]])).all()
    assert np.isnan(weighted_auroc([0.1, 0.9], [NAN, NAN], [[1, 1]])).all()


def test_constant_scores_are_one_half_in_every_resample() -> None:
    (interval,), macro = auroc_intervals(Run.of(np.zeros(40), np.arange(40) % 2, range(40)), resamples=50)
    assert interval.value == 0.5
    assert interval.low < 0.45 and interval.high == pytest.approx(1 - interval.low)  # no spread is no certainty
    assert (macro.value, macro.low, macro.high) == (0.5, 0.5, 0.5)


def test_means_of_hits_nest_too() -> None:
    """One study a patient, one run: the interval of a share, as the binomial has it."""
    hits, known = np.repeat([[1.0, 0.0]], 100, axis=0), np.ones((100, 2))
    hits[60:, 0], known[:50, 1] = 0.0, np.nan
    run = Run.of(hits, known, range(100))
    found = macro_over_runs([run], measure=weighted_mean, resamples=4000)
    assert found.value == pytest.approx((0.6 + 0.0) / 2)
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.6 * 0.4 / 100) / 2, rel=0.1)
    nothing = macro_difference([run], [run], measure=weighted_mean, resamples=50)
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_same_seed_same_interval() -> None:
    scores, labels = simulated(50, np.random.default_rng(2))
    run = Run.of(scores, labels, range(50))
    assert auroc_intervals(run, resamples=100, seed=3) == auroc_intervals(run, resamples=100, seed=3)
    assert auroc_intervals(run, resamples=100, seed=3) != auroc_intervals(run, resamples=100, seed=4)


def test_resamples_do_not_depend_on_how_they_are_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = simulated(50, np.random.default_rng(2))
    run = Run.of(scores, labels, range(50))
    whole = bootstrap([run], 64, seed=0)[1]
    monkeypatch.setattr("eval_zero_shot.statistics._CHUNK", 500)
    assert np.array_equal(whole, bootstrap([run], 64, seed=0)[1], equal_nan=True)


def test_a_patients_studies_are_one_observation() -> None:
    scores, labels = simulated(100, np.random.default_rng(4))
    once = auroc_intervals(Run.of(scores, labels, range(100)), resamples=500)[1]
    four = Run.of(np.repeat(scores, 4), np.repeat(labels, 4), np.repeat(np.arange(100), 4))
    clustered = auroc_intervals(four, resamples=500)[1]
    apart = auroc_intervals(Run.of(four.scores_NL, four.labels_NL, range(400)), resamples=500)[1]
    assert clustered.patients == 100
    assert (clustered.low, clustered.high) == pytest.approx((once.low, once.high))
    assert width(apart) < 0.65 * width(clustered)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(200):
        scores, labels = simulated(100, rng)
        interval = auroc_intervals(Run.of(scores, labels, range(100)), resamples=300)[0][0]
        covered.append(interval.low <= TRUE_AUROC <= interval.high)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_macro_interval_is_narrower_than_its_findings_and_skips_none_of_them() -> None:
    rng = np.random.default_rng(6)
    columns = [simulated(120, rng) for _ in range(6)]
    scores, labels = (np.column_stack([c[i] for c in columns]) for i in (0, 1))
    each, macro = auroc_intervals(Run.of(scores, labels, range(120)), resamples=300)
    assert macro.value == pytest.approx(np.mean([interval.value for interval in each]))
    assert width(macro) < 0.6 * np.mean([width(interval) for interval in each])


def test_one_class_gives_no_interval_and_stays_out_of_the_macro() -> None:
    scores, labels = simulated(60, np.random.default_rng(7))
    both = Run.of(np.column_stack([scores, scores]), np.column_stack([labels, np.ones(60)]), range(60))
    (first, second), macro = auroc_intervals(both, resamples=100)
    assert second.value is None
    assert second.low is None
    assert second.reason == "a class is missing"
    assert macro.value == pytest.approx(first.value)
    assert (macro.low, macro.high) == pytest.approx((first.low, first.high), abs=0.05)


def test_resamples_that_lose_a_class_are_counted_and_too_many_give_no_interval() -> None:
    rng = np.random.default_rng(8)
    labels = np.zeros(50)
    labels[:2] = 1
    _, interval = auroc_intervals(Run.of(rng.normal(size=50), labels, range(50)), resamples=400)
    assert interval.skipped == pytest.approx(400 * np.exp(-2), abs=25)
    assert interval.low is not None
    hopeless = np.column_stack([np.roll(labels, 2 * j) for j in range(8)])  # eight findings, two patients each
    _, macro = auroc_intervals(Run.of(rng.normal(size=(50, 8)), hopeless, range(50)), resamples=400)
    assert macro.value is not None
    assert macro.low is None
    assert macro.reason is not None
    assert "lose a class" in macro.reason


def test_seeds_that_agree_are_one_run_and_seeds_that_differ_widen() -> None:
    rng = np.random.default_rng(9)
    scores, labels = simulated(150, rng)
    run = Run.of(scores, labels, range(150))
    alone = macro_over_runs([run], resamples=400)
    same = macro_over_runs([run] * 5, resamples=400)
    assert (same.value, same.low, same.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert same.runs == 5
    skills = [0.0, 0.3, 0.8, 1.5, 3.0]  # seeds of very unequal quality
    unequal = [Run.of(s * labels + rng.normal(size=150), labels, range(150)) for s in skills]
    assert width(macro_over_runs(unequal, resamples=400)) > 2 * width(alone)


def test_the_interval_of_few_unequal_seeds_stays_within_what_an_auroc_can_be() -> None:
    labels = np.repeat([[0.0], [1.0]], 10, axis=0)
    perfect, inverted = (Run.of(sign * labels, labels, range(20)) for sign in (1, -1))
    interval = macro_over_runs([perfect, perfect, inverted], resamples=200)
    assert interval.value == pytest.approx(2 / 3)
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_runs_on_other_patients_add_information_runs_on_the_same_do_not() -> None:
    rng = np.random.default_rng(10)
    scores, labels = simulated(100, rng)
    shared = macro_over_runs([Run.of(scores, labels, range(100))] * 4, resamples=500)
    apart = [Run.of(*simulated(100, rng), [f"{s}-{i}" for i in range(100)]) for s in range(4)]
    assert width(macro_over_runs(apart, resamples=500)) < 0.85 * width(shared)


def test_mean_over_seeds_covers_the_truth() -> None:
    """Five runs that share patients and half of their errors: the interval is for the mean over such runs."""
    rng = np.random.default_rng(11)
    covered = []
    for _ in range(120):
        common, labels = rng.normal(size=100), (rng.random(100) < 0.4).astype(float)
        runs = []
        for _ in range(5):
            noise = np.sqrt(0.5) * common + np.sqrt(0.5) * rng.normal(size=100)
            runs.append(Run.of(noise + SHIFT * labels, labels, range(100)))
        interval = macro_over_runs(runs, resamples=200)
        covered.append(interval.low <= TRUE_AUROC <= interval.high)
    assert 0.89 <= np.mean(covered) <= 0.995


def test_difference_is_paired_by_patient() -> None:
    rng = np.random.default_rng(12)
    scores, labels = simulated(150, rng)
    theirs = [Run.of(scores, labels, range(150))]
    ours = [Run.of(scores + 0.3 * labels + 0.05 * rng.normal(size=150), labels, range(150))]
    paired = macro_difference(ours, theirs, resamples=400)
    a, b = macro_over_runs(ours, resamples=400), macro_over_runs(theirs, resamples=400)
    assert paired.value == pytest.approx(a.value - b.value)
    assert paired.low > 0
    assert width(paired) < 0.5 * min(width(a), width(b))


def test_difference_of_a_model_with_itself_is_zero() -> None:
    run = Run.of(*simulated(80, np.random.default_rng(13)), range(80))
    nothing = macro_difference([run, run], [run, run], resamples=50)
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_difference_takes_unequal_numbers_of_runs() -> None:
    rng = np.random.default_rng(14)
    _, labels = simulated(80, rng)
    runs = [Run.of(rng.normal(size=80) + labels, labels, range(80)) for _ in range(5)]
    out = macro_difference(runs[:3], runs[3:], resamples=100)
    assert out.low < out.value < out.high


def test_row_order_does_not_matter() -> None:
    rng = np.random.default_rng(15)
    scores, labels = simulated(60, rng)
    order = rng.permutation(60)
    patients = np.array([f"p{i:02d}" for i in range(60)])
    one = macro_over_runs([Run.of(scores, labels, patients)], resamples=50)
    other = macro_over_runs([Run.of(scores[order], labels[order], patients[order])], resamples=50)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(EvalError, match="do not fit"):
        Run.of(np.zeros((3, 2)), np.zeros((3, 1)), ["a", "b", "c"])
    with pytest.raises(EvalError, match="do not fit"):
        Run.of(np.zeros(3), np.zeros(3), ["a", "b"])
    one, two = Run.of([0.0], [1], ["a"]), Run.of([[0.0, 1.0]], [[1, 0]], ["a"])
    with pytest.raises(EvalError, match="different numbers of findings"):
        macro_over_runs([one, two])
