"""Paired comparisons: the same resampled patients, marks, Holm, prompt sets chosen on validation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from eval_zero_shot.compare import compare, main
from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Metric, Outcome, read_results, write_results
from eval_zero_shot.paired import cases_of, holm, paired_difference

FINDINGS = ("effusion", "nodule")


def scored(strength: float, seed: int = 0, n: int = 300, noise: int = 9, variant: str = "") -> pd.DataFrame:
    """Scores of n studies of n / 2 patients; the labels are those of `seed`, the noise of `noise`."""
    labels = np.random.default_rng(seed).integers(0, 2, (n, len(FINDINGS))).astype(float)
    scores = strength * labels + np.random.default_rng([seed, noise]).normal(size=labels.shape)
    labels[np.random.default_rng(seed + 1).random(labels.shape) < 0.1] = np.nan
    rows = [
        (f"s{i}", f"p{i // 2}", variant, name, scores[i, j], labels[i, j])
        for i in range(n)
        for j, name in enumerate(FINDINGS)
    ]
    return pd.DataFrame(rows, columns=["key", "patient", "variant", "of", "score", "label"])


def outcome(model: str, scores: pd.DataFrame, headline: str = "auroc", **more: Any) -> Outcome:
    value = Metric(headline, 0.7)
    about = {"data_sha256": "d", "split": "test", "rows_sha256": "r", "task_sha256": "t", "prompt_set": "main"}
    plain: dict[str, Any] = {
        "protocol": "classification", "task": "chest", "model": model, "model_sha256": model, "headline": headline,
        "metrics": (value,), "studies": 300, "scans": 300, "patients": 150, "classes": FINDINGS, "provenance": about,
        "scores": scores,
    }  # fmt: skip
    return Outcome(**{**plain, **more})


def test_the_statistic_is_scikit_learns() -> None:
    cases = cases_of(outcome("a", scored(1.0)))
    want = [
        roc_auc_score(y[~np.isnan(y)], s[~np.isnan(y)])
        for s, y in zip(cases.scores_NL.T, cases.labels_NL.T, strict=True)
    ]
    assert cases.value(np.ones((1, 300)))[0] == pytest.approx(np.mean(want), abs=1e-12)
    weights = np.random.default_rng(0).integers(0, 3, (1, 300)).astype(float)
    want = [
        roc_auc_score(y[~np.isnan(y)], s[~np.isnan(y)], sample_weight=weights[0][~np.isnan(y)])
        for s, y in zip(cases.scores_NL.T, cases.labels_NL.T, strict=True)
    ]
    assert cases.value(weights)[0] == pytest.approx(np.mean(want), abs=1e-12)


@pytest.mark.parametrize("headline", ["acc1", "balanced_accuracy"])
def test_answers_are_the_highest_scores(headline: str) -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 3, 60), rng.normal(size=(60, 3))
    rows = [(f"s{i}", f"p{i}", "", f"c{k}", scores[i, k], float(truth[i] == k)) for i in range(60) for k in range(3)]
    table = pd.DataFrame(rows, columns=["key", "patient", "variant", "of", "score", "label"])
    cases = cases_of(outcome("a", table, headline, classes=("c0", "c1", "c2")))
    order = [int(key[1:]) for key in cases.keys]
    said = scores[order].argmax(1)
    want = np.mean(said == truth[order]) if headline == "acc1" else balanced_accuracy_score(truth[order], said)
    assert cases.value(np.ones((1, 60)))[0] == pytest.approx(want, abs=1e-12)


def test_a_better_model_wins_and_the_other_way_round_it_loses() -> None:
    strong, weak = outcome("strong", scored(2.0)), outcome("weak", scored(0.6, noise=7))
    (won,), (lost,) = compare([strong], [weak]), compare([weak], [strong])
    assert (won.mark, lost.mark) == ("win", "loss")
    assert won.difference.value == pytest.approx(-lost.difference.value)
    assert won.difference.low is not None and won.difference.low > 0.05
    assert won.p_holm is not None and won.p_holm < 0.01
    (tied,) = compare([strong], [replace(strong, model="twin")])
    assert tied.mark == "tie" and tied.difference.value == 0.0
    assert (tied.difference.reason or "").startswith("all resamples agree")
    assert replace(tied.difference, value=-0.5).mark == "untold", "every draw says the same, and it is no tie"


def test_pairing_makes_the_interval_narrower() -> None:
    """Two models with the same errors but for a little noise."""
    base = scored(1.0)
    near = base.assign(score=base["score"] + np.random.default_rng(3).normal(scale=0.1, size=len(base)))
    a, b = cases_of(outcome("a", base)), cases_of(outcome("b", near))
    paired, _ = paired_difference(a, b)
    apart, _ = paired_difference(a, cases_of(outcome("c", scored(1.0, noise=77))))
    assert paired.low is not None and paired.high is not None and apart.low is not None and apart.high is not None
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)


def test_patients_are_drawn_whole() -> None:
    """Every study three times is no more evidence than once."""
    one = scored(1.0), scored(0.8, noise=7)
    many = [pd.concat([t.assign(key=t["key"] + f"-{i}") for i in range(3)], ignore_index=True) for t in one]
    widths = []
    for pair in (one, many):
        found, _ = paired_difference(*(cases_of(outcome("m", t)) for t in pair), method="percentile")
        assert found.low is not None and found.high is not None and found.patients == 150
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=1e-9)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_a_mean_has_the_interval_of_theory(method: Any) -> None:
    """Hits of 400 queries: the difference of means is nearly normal, so its interval is known."""
    rng = np.random.default_rng(0)
    hits = rng.random((400, 2)) < (0.6, 0.5)
    tables = [
        pd.DataFrame({"key": [f"q{i}" for i in range(400)], "patient": [f"p{i}" for i in range(400)], "variant": "",
                      "of": "text_to_image", "score": column.astype(float), "label": np.nan})
        for column in hits.T
    ]  # fmt: skip
    a, b = (cases_of(outcome("m", t, "recall", protocol="retrieval")) for t in tables)
    found, drawn = paired_difference(a, b, resamples=4000, method=method)
    differences = hits[:, 0].astype(float) - hits[:, 1]
    reach = norm.ppf(0.975) * differences.std() / 20
    assert found.value == pytest.approx(differences.mean())
    assert found.low == pytest.approx(differences.mean() - reach, abs=0.006)
    assert found.high == pytest.approx(differences.mean() + reach, abs=0.006)
    assert len(drawn) == 4000


def test_bca_agrees_with_scipy_on_a_skewed_statistic() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).lognormal(sigma=1.5, size=80)
    tables = [
        pd.DataFrame({"key": [f"q{i}" for i in range(80)], "patient": [f"p{i}" for i in range(80)], "variant": "",
                      "of": "x", "score": column, "label": np.nan})
        for column in (values, np.zeros(80))
    ]  # fmt: skip
    a, b = (cases_of(outcome("m", t, "recall", protocol="retrieval")) for t in tables)
    found, _ = paired_difference(a, b, resamples=20000)
    want = bootstrap((values,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(0))
    low, high = want.confidence_interval
    assert found.low == pytest.approx(low, rel=0.03) and found.high == pytest.approx(high, rel=0.03)


def test_holm_steps_down() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]


def with_sets(model: str, default: pd.DataFrame, other: pd.DataFrame, on_validation: tuple[float, float]) -> Outcome:
    """Two prompt sets, scored on the test and on the validation split."""
    metrics = [Metric("auroc", 0.7), Metric("auroc", 0.6, at={"prompts": "short"})]
    metrics += [
        Metric("auroc", value, at={"prompts": name, "validation": "val"})
        for name, value in zip(("main", "short"), on_validation, strict=True)
    ]
    scores = pd.concat([default, other.assign(variant="short")], ignore_index=True)
    return outcome(model, scores, metrics=tuple(metrics))


def test_each_model_speaks_its_own_best_prompts() -> None:
    good, bad = scored(2.0), scored(0.2, noise=5)
    ours = with_sets("ours", bad, good, (0.5, 0.9))  # the default words do not suit it
    theirs = with_sets("theirs", scored(1.0, noise=6), bad, (0.8, 0.5))
    default, chosen = compare([ours], [theirs])
    assert (default.prompts, default.mark, default.chosen) == ("default", "loss", ("main", "main"))
    assert (chosen.prompts, chosen.mark, chosen.chosen) == ("validation", "win", ("short", "main"))
    assert chosen.spread[0] == (0.6, 0.7)


@pytest.mark.parametrize(("choice", "other"), [("together", "first"), ("mean", "together")])
def test_a_model_that_reads_studies_whole_is_compared_with_one_that_does_not(choice: str, other: str) -> None:
    a, b = outcome("a", scored(2.0)), outcome("b", scored(0.2, noise=5))
    a, b = (replace(o, provenance={**o.provenance, "scan_choice": c}) for o, c in ((a, choice), (b, other)))
    assert compare([a], [b])[0].mark == "win"
    every = replace(b, provenance={**b.provenance, "scan_choice": "every"})
    with pytest.raises(EvalError, match=r"scans together|mean of its scans"):
        compare([a], [every])


@pytest.mark.parametrize("name", ["data_sha256", "rows_sha256", "task_sha256", "split"])
def test_other_cases_or_words_are_not_compared(name: str) -> None:
    a = outcome("a", scored(1.0))
    b = replace(a, model="b", provenance={**a.provenance, name: "another"})
    with pytest.raises(EvalError, match=f"differ in {name}"):
        compare([a], [b])


def test_missing_cases_are_not_compared() -> None:
    a, b = outcome("a", scored(1.0)), outcome("b", scored(1.0).iloc[2:])
    with pytest.raises(EvalError, match="not of the same cases"):
        compare([a], [b])


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "a", [outcome("strong", scored(2.0))])
    write_results(tmp_path / "b", [outcome("weak", scored(0.6, noise=7))])
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0
    told = capsys.readouterr().out
    assert "A: strong, B: weak" in told and "A 1 won, 0 tied, 0 lost" in told
    body = json.loads((tmp_path / "c" / "comparison.json").read_text())
    (one,) = body["comparisons"]
    assert one["mark"] == "win" and one["low"] > 0 and one["resamples"] == 1000 and one["method"] == "bca"
    assert (tmp_path / "c" / "comparison.png").stat().st_size > 5000
    both = [*read_results(tmp_path / "a"), *read_results(tmp_path / "b")]
    write_results(tmp_path / "both", both)
    where = str(tmp_path / "both")
    assert main([where, where]) == 1
    assert "name one: --model-a or --model-b, of strong, weak" in capsys.readouterr().err
    assert main([where, where, "--model-a", "weak", "--model-b", "strong"]) == 0
    assert "0 won, 0 tied, 1 lost" in capsys.readouterr().out
    assert main([where, where, "--model-a", "weak", "--model-b", "strong", "--resamples", "10"]) == 1
    assert main([str(tmp_path / "gone"), where]) == 1
    assert "there is no folder 'gone'" in capsys.readouterr().err


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    whole = outcome("a", scored(1.0), metrics=(Metric("auroc", 0.5, 0.4, 0.6, "x", {"k": 5}, 3, method="logit"),))
    write_results(tmp_path, [whole], {"suite": "s"})
    (back,) = read_results(tmp_path)
    assert back == whole
    pd.testing.assert_frame_equal(back.scores, whole.scores)  # type: ignore[arg-type]


def test_other_prompts_or_training_studies_are_not_compared() -> None:
    a = outcome("a", scored(1.0))
    for name in ("prompt_set", "train_rows_sha256"):
        b = replace(a, model="b", provenance={**a.provenance, name: "another"})
        with pytest.raises(EvalError, match=f"differ in {name}"):
            compare([a], [b])


def test_many_tasks_get_draws_enough_for_holm() -> None:
    strong = [outcome("strong", scored(3.0), task=f"t{i}") for i in range(30)]
    weak = [outcome("weak", scored(0.0, noise=7), task=f"t{i}") for i in range(30)]
    found = compare(strong, weak)
    assert {c.difference.resamples for c in found} == {3000}
    assert all(c.p_holm is not None and c.p_holm < 0.05 for c in found)
