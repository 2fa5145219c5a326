"""Summaries of sweeps, from run folders as `pretrain.fit` leaves them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.scores import outcome_of, read_scores
from benchmarks.sweep_summary import markdown, step_seconds, summarise, write
from eval_zero_shot.outcome import Metric, Outcome, write_results

FINDINGS = ("cyst", "effusion", "stone")


def finished_run(
    folder: Path, skill: float, seed: int, rows: str = "same", steps: Sequence[float] = (0, 5, 10), view: str = "v",
    pools: bool = True,
) -> Path:  # fmt: skip
    """A run whose scores follow the labels by `skill`; 60 studies of 40 patients; stones are always absent."""
    from torch.utils.tensorboard import SummaryWriter

    labels = np.random.default_rng(7).integers(0, 2, (60, 3)).astype(float)
    labels[:, 2], labels[0, 0] = 0.0, np.nan
    positive = skill * np.nan_to_num(labels) + np.random.default_rng(seed).normal(size=labels.shape)
    scores = pd.DataFrame(
        [
            (f"{i:04x}", f"p{i % 40}", "", name, positive[i, j], labels[i, j])
            for i in range(60)
            for j, name in enumerate(FINDINGS)
        ],
        columns=["key", "patient", "variant", "of", "score", "label"],
    )
    common: dict[str, Any] = {
        "task": "t",
        "model": "m",
        "model_sha256": "s",
        "studies": 60,
        "scans": 60,
        "patients": 40,
    }
    common["provenance"] = {"rows_sha256": rows, "view_sha256": view}
    at: dict[str, Any] = {"k": 1, "pool": 16, "ties": "identical_texts"}
    values = (("recall", skill / 10), ("chance", 0.0625)) if pools else (("recall", None), ("chance", None))
    recalls = [Metric(n, v, of="text_to_image", at=at) for n, v in values]
    headline = "recall_at_1_in_64" if pools else "recall_at_1_in_full"
    hits = pd.DataFrame(
        [
            (f"{i:04x}", f"p{i % 40}", "", way, float((i + seed + j) % 4 < skill), 1.0)
            for i in range(60)
            for j, way in enumerate(("image_to_text", "text_to_image"))
        ],
        columns=scores.columns,
    )
    found = [
        Outcome("classification", headline="auroc", metrics=(Metric("auroc", 0.5),), classes=FINDINGS, scores=scores,
                **common),
        Outcome("retrieval", headline=headline, metrics=(Metric(headline, 0.1), *recalls), scores=hits, **common),
    ]  # fmt: skip
    write_results(folder / "results", found)
    (folder / "environment.json").write_text(json.dumps({"cores": 2}))
    (folder / "recipe.yaml").write_text("train: {steps: 10}\noptim: {lr: 0.001}\n")
    board = SummaryWriter(str(folder / "tensorboard"))
    for number, seconds in enumerate(steps):
        board.add_scalar("loss", 1.0, 10 * number, walltime=1000.0 + seconds)
    board.close()
    return folder


def test_a_better_arm_is_told_from_a_worse_one(tmp_path: Path) -> None:
    arms = {
        "good": [finished_run(tmp_path / f"good{s}", 2.0, s) for s in range(3)],
        "poor": [finished_run(tmp_path / f"poor{s}", 0.0, 10 + s) for s in range(3)],
    }
    summary = summarise(arms, [("good", "poor")], resamples=200)
    (difference,), good = summary["differences"], summary["arms"]["good"]
    assert difference["of"] == "good - poor"
    assert difference["macro"]["low"] > 0.2
    assert difference["macro"]["runs"] == 3 and difference["macro"]["patients"] == 40
    recall, poor = difference["recall_at_1_in_64"], summary["arms"]["poor"]["recall_at_1_in_64"]
    assert recall["value"] == good["recall_at_1_in_64"]["value"] == 0.5 and poor["value"] == 0
    assert 0.3 < recall["low"] < 0.5 < recall["high"] < 0.7
    assert good["macro"]["low"] < good["macro"]["value"] < good["macro"]["high"]
    each = [good["findings"][name]["value"] for name in ("cyst", "effusion")]
    assert good["macro"]["value"] == pytest.approx(np.mean(each)), "findings without both classes are left out"
    assert good["findings"]["stone"]["value"] is None
    assert good["retrieval"][0]["value"] == pytest.approx(0.2)

    told = markdown(summary)
    assert "text to image R@1 of 16 (chance 0.062)" in told and "| good | 10 | 0.001 | 0.500 |" in told
    assert f"| good - poor | 3 | {difference['macro']['value']:+.3f} (" in told
    assert json.loads(write(tmp_path / "out", summary).read_text()) == json.loads(json.dumps(summary))


def test_retrieval_in_pools_that_no_arm_could_fill_is_no_column(tmp_path: Path) -> None:
    arms = {name: [finished_run(tmp_path / name, 1.0, 0, pools=name == "some")] for name in ("some", "none")}
    assert "R@1 of 16" in markdown(summarise(arms, [], resamples=10))
    assert "R@1" not in markdown(summarise({"none": arms["none"]}, [], resamples=10))


def test_runs_on_other_studies_are_refused(tmp_path: Path) -> None:
    arms = {"a": [finished_run(tmp_path / "a", 1.0, 0)], "b": [finished_run(tmp_path / "b", 1.0, 0, rows="other")]}
    with pytest.raises(ValueError, match="rows_sha256"):
        summarise(arms, [("a", "b")], resamples=10)


def test_systems_may_see_scans_differently_and_parts_of_one_may_not(tmp_path: Path) -> None:
    arms = {name: [finished_run(tmp_path / name, 1.0, 0, view=name)] for name in ("a", "b")}
    with pytest.raises(ValueError, match="view_sha256"):
        summarise(arms, [("a", "b")], resamples=10)
    assert summarise(arms, [("a", "b")], systems=True, resamples=10)["differences"][0]["of"] == "a - b"


def test_step_time_leaves_pauses_out(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", 1.0, 0, steps=(0, 5, 10, 100, 105, 110))
    assert step_seconds(folder) == pytest.approx(0.5)
    assert step_seconds(finished_run(tmp_path / "short", 1.0, 0, steps=(0,))) is None


def test_scores_come_back_as_written(tmp_path: Path) -> None:
    outcome = outcome_of(finished_run(tmp_path / "run", 1.0, 0) / "results")
    scores = read_scores(outcome)
    assert scores.findings == FINDINGS and len(scores.keys) == 60
    assert np.isnan(scores.run.labels_NL[0, 0]) and scores.run.patients_N[41] == "p1"
    assert scores.finding("stone").scores_NL[:, 0].tolist() == scores.run.scores_NL[:, 2].tolist()
    with pytest.raises(ValueError, match="synonyms"):
        read_scores(outcome, "synonyms")
    assert outcome.scores is not None
    with pytest.raises(ValueError, match="cut short"):
        read_scores(replace(outcome, scores=outcome.scores.iloc[:-1]))
