"""Prompt ensembles and their AUROC and AUPRC."""

from __future__ import annotations

import numpy as np
import pytest

from eval_zero_shot import EvalError, Finding, Task
from eval_zero_shot.classify import ClassEmbeddings, class_embeddings, unit

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


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_features_that_are_not_numbers_are_refused(bad: float) -> None:
    features = np.ones((3, 4))
    features[1] = bad
    with pytest.raises(EvalError, match="studies: 1 of 3 feature vectors are zero or not finite"):
        unit(features, "studies")
