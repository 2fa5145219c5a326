"""Prompt ensembles and their AUROC and AUPRC."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from eval_zero_shot import EvalError, Finding, Task
from eval_zero_shot.classify import ClassEmbeddings, class_embeddings, classify, score_finding

NAN = float("nan")


def embeddings(n_findings: int, width: int, seed: int = 0) -> ClassEmbeddings:
    rng = np.random.default_rng(seed)
    sides = rng.normal(size=(2, n_findings, width))
    sides /= np.linalg.norm(sides, axis=-1, keepdims=True)
    return ClassEmbeddings(tuple(f"f{i}" for i in range(n_findings)), *sides)


def test_ensemble_is_the_normalised_mean_of_normalised_prompts() -> None:
    task = Task(name="t", classes={"a": Finding(positive=("p1", "p2"), negative=("n",))})
    vectors = {"p1": [10.0, 0.0], "p2": [0.0, 0.1], "n": [0.0, -3.0]}
    made = class_embeddings(task, vectors)
    assert np.allclose(made.positive_LD, [[np.sqrt(0.5), np.sqrt(0.5)]])
    assert np.allclose(made.negative_LD, [[0.0, -1.0]])


def test_prompt_sets_have_ensembles_of_their_own() -> None:
    finding = Finding(positive=("p",), negative=("n",), prompts={"other": {"positive": ["s"], "negative": ["m"]}})
    vectors = {"p": [1.0, 0.0], "n": [0.0, 1.0], "s": [-1.0, 0.0], "m": [0.0, -1.0]}
    made = class_embeddings(Task(name="t", classes={"a": finding}), vectors, "other")
    assert np.allclose(made.positive_LD, [[-1.0, 0.0]])
    assert np.allclose(made.negative_LD, [[0.0, -1.0]])


def test_opposite_prompts_cannot_be_averaged() -> None:
    task = Task(name="t", classes={"a": Finding(positive=("p", "q"), negative=("n",))})
    with pytest.raises(EvalError, match="prompt ensemble of a"):
        class_embeddings(task, {"p": [1.0, 0.0], "q": [-1.0, 0.0], "n": [0.0, 1.0]})


def test_values_are_those_of_scikit_learn_with_unknown_masked() -> None:
    rng = np.random.default_rng(1)
    images, prompts = rng.normal(size=(80, 6)), embeddings(3, 6)
    labels = rng.choice([0.0, 1.0, NAN], size=(80, 3), p=[0.5, 0.3, 0.2])
    out = classify(images, prompts, labels)
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    for j, name in enumerate(prompts.names):
        known = ~np.isnan(labels[:, j])
        score = unit[known] @ (prompts.positive_LD[j] - prompts.negative_LD[j])
        assert out.findings[name].auroc == pytest.approx(roc_auc_score(labels[known, j], score), abs=1e-12)
        assert out.findings[name].auprc == pytest.approx(average_precision_score(labels[known, j], score), abs=1e-12)
        counts = (out.findings[name].n_pos, out.findings[name].n_neg, out.findings[name].n_unknown)
        assert counts == (np.sum(labels[:, j] == 1), np.sum(labels[:, j] == 0), np.sum(~known))
    assert out.macro_auroc == pytest.approx(np.mean([f.auroc for f in out.findings.values()]))
    assert out.macro_auprc == pytest.approx(np.mean([f.auprc for f in out.findings.values()]))


def test_f1_and_balanced_accuracy_are_those_of_the_sign() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 80).astype(float)
    scores = labels - 0.7 + rng.normal(size=80)
    labels[::9] = np.nan
    known = ~np.isnan(labels)
    found = score_finding(scores, labels)
    assert found.f1 == pytest.approx(f1_score(labels[known], scores[known] > 0), abs=1e-12)
    expected = balanced_accuracy_score(labels[known], scores[known] > 0)
    assert found.balanced_accuracy == pytest.approx(expected, abs=1e-12)
    never = score_finding(-np.abs(scores) - 1, labels)
    assert (never.f1, never.balanced_accuracy) == (0.0, 0.5)
    assert score_finding(scores[:3], [1.0, 1.0, np.nan]).f1 is None


def test_unknown_is_not_absent() -> None:
    scores = [0.9, 0.8, 0.7, 0.1]
    assert score_finding(scores, [1, NAN, 0, 0]).auroc == 1.0
    assert score_finding(scores, [0, 1, 0, 0]).auroc == pytest.approx(2 / 3)


def test_length_of_an_image_vector_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    images, prompts, labels = rng.normal(size=(20, 4)), embeddings(2, 4), rng.integers(0, 2, size=(20, 2))
    scaled = images * rng.uniform(0.1, 9, size=(20, 1))
    assert np.allclose(classify(images, prompts, labels).scores_NL, classify(scaled, prompts, labels).scores_NL)


def test_a_finding_with_one_class_is_named_and_left_out_of_the_macro_mean() -> None:
    rng = np.random.default_rng(3)
    labels = np.column_stack([rng.permutation(np.arange(12) % 2), np.zeros(12), np.ones(12), np.full(12, NAN)])
    out = classify(rng.normal(size=(12, 5)), embeddings(4, 5), labels)
    assert out.macro_auroc == out.findings["f0"].auroc
    assert out.findings["f1"].auroc is None
    assert out.excluded == {
        "f1": "no positive study",
        "f2": "no negative study",
        "f3": "no study with a known label",
    }


def test_no_scorable_finding_gives_no_macro_mean() -> None:
    out = classify(np.eye(3), embeddings(1, 3), np.zeros((3, 1)))
    assert out.macro_auroc is None
    assert out.macro_auprc is None


def test_constant_scores_are_chance_and_ties_count_half() -> None:
    constant = score_finding([0.25] * 6, [1, 0, 0, 1, 0, 0])
    assert constant.auroc == 0.5
    assert constant.auprc == pytest.approx(2 / 6)
    assert score_finding([1.0, 1.0, 0.0], [1, 0, 0]).auroc == 0.75


@pytest.mark.parametrize("poison", [NAN, float("inf"), 0.0])
def test_features_that_are_not_numbers_are_refused(poison: float) -> None:
    images = np.ones((4, 3))
    images[2] = poison
    with pytest.raises(EvalError, match="1 of 4 feature vectors"):
        classify(images, embeddings(1, 3), [[1], [0], [1], [0]])


def test_shapes_and_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EvalError, match="do not fit"):
        classify(np.eye(3), embeddings(2, 3), np.zeros((3, 1)))
    with pytest.raises(EvalError, match="do not fit"):
        classify(np.eye(4), embeddings(1, 3), np.zeros((4, 1)))
    with pytest.raises(EvalError, match="labels other than"):
        score_finding([0.1, 0.2], [1, -1])
