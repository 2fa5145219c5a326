"""Class names against scores: permuted ones are found, right and useless ones are not accused."""

from __future__ import annotations

import numpy as np
import pytest

from eval_zero_shot.audit.assignment import auroc_matrix, inverted, permuted_names, shuffled_names
from eval_zero_shot.audit.controls import Case

NAMES = tuple("abcdef")


def case(seed: int, order: list[int], signal: float = 1.5, n: int = 200) -> Case:
    """Scores of six correlated findings, column `order[f]` being about finding f; two studies a patient."""
    rng = np.random.default_rng(seed)
    sick = rng.normal(size=(n, 1))
    labels = ((sick + rng.normal(size=(n, 6))) > 0).astype(float)
    scores = np.empty((n, 6))
    scores[:, order] = signal * labels + rng.normal(size=(n, 6))
    labels[rng.random((n, 6)) < 0.1] = np.nan
    return Case(scores, labels, np.asarray([f"p{i // 2}" for i in range(n)]), 200, seed)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("signal", [0.0, 0.3, 1.5])
def test_right_names_are_not_accused(seed: int, signal: float) -> None:
    assert permuted_names(case(seed, list(range(6)), signal), NAMES).check.severity == "ok"


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5, 0], [1, 0, 2, 3, 4, 5]], ids=["all", "two"])
def test_permuted_names_are_found(order: list[int]) -> None:
    found = permuted_names(case(0, order), NAMES).check
    assert found.severity == "fail"
    assert f"a by the score of {NAMES[order[0]]}" in found.says


def test_shuffled_names_cost_a_model_that_reads_them_and_not_one_that_does_not() -> None:
    whole = case(0, list(range(6)))
    found = shuffled_names(whole, NAMES)
    assert found.check.severity == "ok" and found.check.value > 0.1
    same = Case(np.repeat(whole.scores_NL[:, :1], 6, axis=1), whole.labels_NL, whole.patients_N, 200)
    assert shuffled_names(same, NAMES).check.severity == "warn"


def test_one_finding_is_not_checked() -> None:
    whole = case(0, list(range(6)))
    one = Case(whole.scores_NL[:, :1], whole.labels_NL[:, :1], whole.patients_N, 50)
    assert permuted_names(one, NAMES[:1]).check.severity == "not checked"
    assert shuffled_names(one, NAMES[:1]).check.severity == "not checked"


def test_a_finding_the_wrong_way_round() -> None:
    whole = case(0, list(range(6)))
    scores = whole.scores_NL.copy()
    scores[:, 2] *= -1
    found = inverted(Case(scores, whole.labels_NL, whole.patients_N), NAMES).check
    assert found.severity == "fail" and "for c: AUROC" in found.says
    assert inverted(whole, NAMES).check.severity == "ok"


def test_the_matrix_holds_every_pair() -> None:
    from sklearn.metrics import roc_auc_score

    whole = case(3, list(range(6)))
    matrix = auroc_matrix(whole.scores_NL, whole.labels_NL, np.ones((1, 200)))[0]
    known = ~np.isnan(whole.labels_NL[:, 1])
    assert matrix[1, 4] == pytest.approx(roc_auc_score(whole.labels_NL[known, 1], whole.scores_NL[known, 4]))
