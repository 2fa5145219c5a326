"""The linear probe: scikit-learn's optimum, patients kept together, strengths chosen without the test studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardWriter
from encoders.dual import build_dual
from encoders.release import write_release
from eval_zero_shot import EvalError
from eval_zero_shot.probe import Split, choose_strength, folds_by_patient, logistic, main, probe

from .conftest import GEOMETRY, VIEW

NAN = float("nan")


def problem(n: int, seed: int = 0, width: int = 12, signal: float = 1.0) -> Split:
    """Two labels, the second noise; every third label unknown; two studies a patient."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, 2)).astype(float)
    features = rng.normal(size=(n, width))
    features[:, 0] += signal * labels[:, 0]
    labels[::3, 0] = NAN
    return Split(features, labels, np.array([f"p{seed}-{i // 2}" for i in range(n)]))


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0, 100.0])
def test_the_optimum_is_scikit_learns(strength: float) -> None:
    split = problem(200, width=20)
    y = split.labels_NL[:, 1]
    weights, intercept = logistic(split.features_ND, y, strength)
    theirs = LogisticRegression(C=strength, tol=1e-12, max_iter=100_000).fit(split.features_ND, y)
    np.testing.assert_allclose(weights, theirs.coef_[0], rtol=1e-5, atol=1e-7)
    assert intercept == pytest.approx(float(theirs.intercept_[0]), rel=1e-5, abs=1e-7)


def test_separable_classes_have_a_finite_optimum() -> None:
    x = np.r_[np.full(20, -1.0), np.full(20, 1.0)][:, None]
    weights, _ = logistic(x, (x[:, 0] > 0).astype(float), 1.0)
    assert 1 < float(weights[0]) < 10


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(EvalError, match="a class is missing"):
        logistic(np.zeros((4, 2)), np.ones(4), 1.0)
    with pytest.raises(EvalError, match="not finite"):
        logistic(np.full((4, 2), NAN), np.array([0.0, 1, 0, 1]), 1.0)


def test_folds_keep_patients_together_and_depend_on_nothing_else() -> None:
    patients = np.array([f"p{i // 3}" for i in range(300)])
    folds = folds_by_patient(patients)
    for name in np.unique(patients):
        assert len(set(folds[patients == name])) == 1
    assert np.array_equal(folds[::-1], folds_by_patient(patients[::-1]))
    assert np.bincount(folds).min() > 20


def test_strength_is_chosen_on_validation_or_on_folds() -> None:
    train, validation = problem(300, 1), problem(200, 2)
    strength, where = choose_strength(train, validation, 0)
    assert where == "validation split"
    known, held = ~np.isnan(train.labels_NL[:, 0]), ~np.isnan(validation.labels_NL[:, 0])

    def score(c: float) -> float:
        fitted = LogisticRegression(C=c, tol=1e-10, max_iter=10_000)
        fitted.fit(train.features_ND[known], train.labels_NL[known, 0])
        return roc_auc_score(validation.labels_NL[held, 0], fitted.decision_function(validation.features_ND[held]))

    assert score(strength) >= max(score(c) for c in (1e-5, 1e-3, 1e-1, 10.0)) - 1e-6
    assert choose_strength(train, None, 0)[1] == "5 folds by patient"
    few = Split(train.features_ND[1:3], np.array([[1.0, 0], [0.0, 1]]), np.array(["a", "a"]))
    assert "too few" in choose_strength(few, None, 0)[1]


def test_a_probe_learns_what_is_there_and_says_what_is_not() -> None:
    found, macro, logits = probe(problem(400, 1), None, problem(300, 2), ("signal", "noise"))
    signal, noise = found
    assert signal.auroc is not None and 0.7 < signal.auroc < 0.85
    assert noise.interval.low is not None and noise.interval.low < 0.5 < noise.interval.high  # type: ignore[operator]
    assert macro is not None and macro.value == pytest.approx((signal.auroc + noise.auroc) / 2)  # type: ignore[operator]
    assert np.isfinite(logits).all()
    assert signal.test_positive + signal.test_negative == int((~np.isnan(problem(300, 2).labels_NL[:, 0])).sum())
    one = problem(50, 3)
    one.labels_NL[:, 1] = 1.0
    (_, missing), _, logits = probe(one, None, problem(60, 4), ("signal", "always"))
    assert missing.auroc is None and missing.interval.reason == "a class is missing in training"
    assert np.isnan(logits[:, 1]).all()


def test_units_of_features_do_not_matter() -> None:
    train, test = problem(200, 5), problem(200, 6)
    scales = np.logspace(-3, 3, 12)
    once, _, _ = probe(train, None, test, ("signal", "noise"))
    scaled = [Split(s.features_ND * scales + 7, s.labels_NL, s.patients_N) for s in (train, test)]
    again, _, _ = probe(scaled[0], None, scaled[1], ("signal", "noise"))
    assert [p.auroc for p in once] == pytest.approx([p.auroc for p in again], abs=1e-6)


def test_from_the_command_line(tmp_path: Path, capsys: Any) -> None:
    with ShardWriter(tmp_path / "shards") as writer:
        for i in range(60):
            bright = i % 2
            array = np.random.default_rng(i).normal(400 * bright - 200, 60, (5, 9, 9)).astype(np.int16)
            split = "train" if i < 30 else "val" if i < 40 else "test"
            scans = (Scan(array=array, spacing_mm=(3.0, 2.0, 2.0)),)
            writer.write(Study(f"{i:016x}", f"{i:016x}", split, scans, Texts(report="A scan."), {"bright": bright}))
    torch.manual_seed(0)
    vision = {"timm_model_name": "voxvit_tiny.p-2x4x4_i-4x8x8_c-1_l-1", "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": {**vision, "image_size": 8}, "text_cfg": text}
    release = write_release(tmp_path / "release", build_dual(config).clip.state_dict(), config, GEOMETRY, VIEW)
    arguments = ["--model", str(release), "--data", str(tmp_path / "shards"), "--device", "cpu"]
    arguments += ["--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "validation split" in capsys.readouterr().out
    (label,) = json.loads((tmp_path / "out" / "probe.json").read_text())["labels"]
    assert label["label"] == "bright" and label["auroc"] > 0.9  # brightness survives any random encoder
    assert (label["train_positive"], label["test_negative"]) == (20, 10)
    assert main([*arguments, "--labels", "brght"]) == 1
    assert "no label brght" in capsys.readouterr().err
    assert main([*arguments, "--test-split", "tset"]) == 1
    assert "no study in split 'tset'" in capsys.readouterr().err
