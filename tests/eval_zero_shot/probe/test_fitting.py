"""Strengths are chosen without the test studies; what cannot be learnt is nan; splits that leak are refused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from eval_zero_shot import EvalError
from eval_zero_shot.probe.fitting import STRENGTHS, choose_strength, fit_and_score, merit, probe
from eval_zero_shot.probe.split import Question, Split, folds_by_patient, question, require_apart, scaling
from eval_zero_shot.tasks import Task

NAN = float("nan")


def problem(n: int, seed: int = 0, width: int = 12) -> Split:
    """Two labels, the second noise; every third label unknown; two studies a patient."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, 2)).astype(float)
    features = rng.normal(size=(n, width))
    features[:, 0] += labels[:, 0]
    labels[::3, 0] = NAN
    return Split(features, labels, np.array([f"p{seed}-{i // 2}" for i in range(n)]))


def in_classes(n: int, seed: int = 0, count: int = 4) -> Split:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, count, n)
    features = rng.normal(size=(n, 10))
    features[np.arange(n), classes] += 1.5
    labels = np.eye(count)[classes]
    labels[::9] = NAN
    return Split(features, labels, np.array([f"c{seed}-{i}" for i in range(n)]))


def test_folds_keep_patients_together_and_depend_on_nothing_else() -> None:
    patients = np.array([f"p{i // 3}" for i in range(300)])
    folds = folds_by_patient(patients)
    for name in np.unique(patients):
        assert len(set(folds[patients == name])) == 1
    assert np.array_equal(folds[::-1], folds_by_patient(patients[::-1]))
    assert np.bincount(folds).min() > 20


def test_strength_has_the_best_macro_auroc_on_validation_the_smaller_on_a_tie() -> None:
    train, validation = problem(300, 1), problem(200, 2)

    def score(c: float) -> float:
        each = []
        for j in range(2):
            known, held = ~np.isnan(train.labels_NL[:, j]), ~np.isnan(validation.labels_NL[:, j])
            fit = LogisticRegression(C=c, tol=1e-10, max_iter=10_000)
            fit.fit(train.features_ND[known], train.labels_NL[known, j])
            each.append(
                roc_auc_score(validation.labels_NL[held, j], fit.decision_function(validation.features_ND[held]))
            )
        return float(np.mean(each))

    strength, where = choose_strength(train, validation)
    assert where == "validation split" and strength in STRENGTHS
    assert score(strength) >= max(score(c) for c in STRENGTHS) - 1e-9
    # features that separate at any strength: all tie
    x = np.r_[np.full((20, 1), -1.0), np.full((20, 1), 1.0)]
    easy = Split(x, (x > 0).astype(float), np.array([f"e{i}" for i in range(40)]))
    assert choose_strength(easy, easy)[0] == STRENGTHS[0]


def test_without_validation_folds_by_patient_and_without_cases_one() -> None:
    train = problem(300, 1)
    assert choose_strength(train, None)[1] == "5 folds by patient"
    few = Split(train.features_ND[1:3], np.array([[1.0, 0], [0.0, 1]]), np.array(["a", "a"]))
    strength, where = choose_strength(few, None)
    assert strength == 1.0 and "too few" in where


def test_the_finer_search_is_at_least_as_good() -> None:
    train, validation = problem(150, 3), problem(150, 4)

    def score(c: float) -> float:
        return merit(fit_and_score(train, validation.features_ND, False, [c])[0], validation.labels_NL, False)

    finer, _ = choose_strength(train, validation, finer=True)
    assert score(finer) >= max(score(10.0**p) for p in range(-6, 7, 2)) - 1e-12
    assert np.log10(finer) * 8 == pytest.approx(round(np.log10(finer) * 8), abs=1e-9)


def test_the_probe_is_refitted_on_train_and_validation() -> None:
    train, validation, test = problem(200, 5), problem(100, 6), problem(50, 7)
    found = probe(train, validation, test.features_ND)
    both = train.with_(validation)
    known = ~np.isnan(both.labels_NL[:, 0])
    theirs = LogisticRegression(C=found.strength, tol=1e-10, max_iter=10_000)
    theirs.fit(both.features_ND[known], both.labels_NL[known, 0])
    np.testing.assert_allclose(found.logits_NL[:, 0], theirs.decision_function(test.features_ND), atol=1e-4)
    y = both.labels_NL[known, 0]
    assert found.base_L[0] == pytest.approx(np.log(y.mean() / (1 - y.mean())))


@pytest.mark.parametrize("count", [2, 4])
def test_classes_give_scikit_learns_probabilities(count: int) -> None:
    train, test = in_classes(200, 1, count), in_classes(80, 2, count)
    logits = fit_and_score(train, test.features_ND, True, [0.1])[0]
    known = ~np.isnan(train.labels_NL[:, 0])
    theirs = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000)
    theirs.fit(train.features_ND[known], train.labels_NL[known].argmax(1))
    np.testing.assert_allclose(np.exp(logits), theirs.predict_proba(test.features_ND), atol=1e-5)


def test_what_cannot_be_learnt_is_nan() -> None:
    train, test = problem(60, 8), problem(30, 9)
    train.labels_NL[:, 1] = 1
    logits = probe(train, None, test.features_ND).logits_NL
    assert np.isfinite(logits[:, 0]).all() and np.isnan(logits[:, 1]).all()
    gone = in_classes(100, 3)
    gone.labels_NL[gone.labels_NL[:, 2] == 1] = NAN
    logits = probe(gone, None, gone.features_ND, True).logits_NL
    assert np.isnan(logits[:, 2]).all() and np.exp(logits[:, [0, 1, 3]]).sum(1) == pytest.approx(1)


def test_units_of_features_do_not_matter_and_a_constant_one_is_harmless() -> None:
    train, test = problem(200, 10), problem(100, 11)
    units = np.logspace(-3, 3, 12)

    def logits(change: object) -> np.ndarray:
        parts = [Split(change(s.features_ND), s.labels_NL, s.patients_N) for s in (train, test)]
        scale = scaling(parts[0])
        return probe(parts[0].scaled(*scale), None, parts[1].scaled(*scale).features_ND).logits_NL

    plain = logits(lambda x: x)
    np.testing.assert_allclose(logits(lambda x: x * units + 7), plain, atol=1e-6)
    np.testing.assert_allclose(logits(lambda x: np.c_[x, np.full(len(x), 0.1)]), plain, atol=1e-6)


def test_splits_that_share_patients_are_refused_with_their_number() -> None:
    with pytest.raises(EvalError, match="2 patients are in train and in test"):
        require_apart(train=["a", "b", "b", "c"], validation=None, test=["b", "c", "d"])
    require_apart(train=["a"], validation=["b"], test=["c"])


def test_what_labels_asks_for() -> None:
    known = ("liver", "spleen", "effusion")
    assert question(None, known).names == known
    sides = {"positive": ["a"], "negative": ["b"]}
    task = Task.model_validate({"name": "t", "classes": {"fluid": {"label": "effusion", **sides}, "absent": sides}})
    assert question(None, known, task) == Question("t", ("effusion",))
    classes = {"a": {"label": "liver"}, "b": {"label": "spleen"}}
    task = Task.model_validate({"name": "o", "kind": "classes", "classes": classes, "prompt_sets": {"x": ["{}."]}})
    assert question(None, known, task) == Question("o", ("liver", "spleen"), exclusive=True)
    assert question("effusion,liver", known) == Question("labels", ("effusion", "liver"))
    assert question("organ=liver|spleen", known) == Question("organ", ("liver", "spleen"), exclusive=True)
    for wrong in ("kidney", "organ=liver", "organ=liver|kidney", "liver,liver"):
        with pytest.raises(EvalError, match=r"no label kidney|a name twice, or a single class"):
            question(wrong, known)
