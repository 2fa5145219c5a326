"""A paired difference of two outcomes on the same cases, with an interval over patients.

Both models see the same resampled patients, so what makes a patient easy or hard for either cancels in the difference.
The statistic is the headline of the task, computed again from the per-case scores under case weights:

    auroc                     mean over findings of the AUROC (ties one half); findings with both classes in the data
    acc1, balanced_accuracy   the class with the highest score is the answer; of classes that tie, the one listed last,
                              as in scikit-learn and in the protocol
    any other                 mean of the scores (hits of retrieval, right answers of vqa)

Legend: N cases, P patients, R resamples, L findings, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.cases import SCANS
from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Outcome
from eval_zero_shot.resample import Method, resample
from eval_zero_shot.statistics import weighted_auroc

Array = NDArray[np.float64]
SAME = (
    "data_sha256", "split", "rows_sha256", "task_sha256", "prompt_set", "draws_sha256", "items_sha256", "images_sha256",
    "train_rows_sha256", "validation_rows_sha256", "finer", "features", "same_patient", "labels", "repeats",
    "base_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class Cases:
    """What a statistic is computed from: keys_N, patients_N, and per model and variant scores_NL and labels_NL (one
    column where the protocol has no classes)."""

    statistic: str
    keys: tuple[str, ...]
    patients_N: NDArray[np.str_]
    scores_NL: Array
    labels_NL: Array

    def value(self, weights_RN: Array) -> Array:
        """The statistic for each row of weights; nan where a class has no weight."""
        if self.statistic == "auroc":
            each = [weighted_auroc(s, y, weights_RN) for s, y in zip(self.scores_NL.T, self.labels_NL.T, strict=True)]
            return np.mean(each, axis=0)
        if self.statistic in ("acc1", "balanced_accuracy"):
            return self._accuracy(weights_RN)
        total = weights_RN.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights_RN @ self.scores_NL[:, 0]) / total

    def _accuracy(self, weights_RN: Array) -> Array:
        last = self.scores_NL.shape[1] - 1
        said_N = last - self.scores_NL[:, ::-1].argmax(axis=1)
        right_N = (self.labels_NL[np.arange(len(said_N)), said_N] == 1).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.statistic == "acc1":
                return (weights_RN @ right_N) / weights_RN.sum(axis=1)
            of_class = self.labels_NL == 1  # a class without weight in a resample makes it nan, and skipped
            present = of_class.any(axis=0)
            recall_RK = (weights_RN @ (right_N[:, None] * of_class)) / (weights_RN @ of_class.astype(float))
            return recall_RK[:, present].mean(axis=1)

    def only(self, columns: NDArray[np.bool_]) -> Cases:
        """With some of its findings."""
        return Cases(self.statistic, self.keys, self.patients_N, self.scores_NL[:, columns], self.labels_NL[:, columns])


def cases_of(outcome: Outcome, variant: str = "") -> Cases:
    """The cases of one variant of an outcome. Raises EvalError where there is none."""
    if not variant and outcome.main.value is None:
        raise EvalError(
            f"{outcome.protocol} of task {outcome.task} has no score for {outcome.model}: {outcome.main.reason}",
            why="there is nothing to compare",
            fix="score studies that have what it needs, or compare the other tasks alone",
        )
    scores = outcome.scores
    rows = None if scores is None else scores[scores["variant"] == variant]
    if rows is None or not len(rows):
        raise EvalError(
            f"{outcome.protocol} of task {outcome.task} has no per-case scores"
            + (f" of {variant!r}" if variant else ""),
            why="a paired difference is computed case by case",
            fix="score it again with --out; results of another program have none",
        )
    classes = outcome.headline in ("auroc", "acc1", "balanced_accuracy")
    column = rows["of"] if classes else rows["of"].map(lambda _: "all")
    long = rows.assign(column=column, case=rows["key"] if classes else rows["key"] + "/" + rows["of"])
    wide = long.pivot(index="case", columns="column", values=["score", "label"])
    found = set(wide.columns.get_level_values(1))
    names = [name for name in outcome.classes if name in found] if classes else sorted(found)
    patient = long.drop_duplicates("case").set_index("case")["patient"].reindex(wide.index)
    return Cases(
        outcome.headline,
        tuple(map(str, wide.index)),
        patient.to_numpy().astype(str),
        wide["score"][names].to_numpy(dtype=np.float64),
        wide["label"][names].to_numpy(dtype=np.float64),
    )


def require_comparable(ours: Outcome, theirs: Outcome) -> None:
    """Raise EvalError where two outcomes are not of the same cases asked the same."""
    name = f"{ours.protocol} of task {ours.task}"
    if ours.headline != theirs.headline:
        raise EvalError(
            f"{name}: one result is about {ours.headline}, the other about {theirs.headline}",
            why="their difference would mean nothing",
            fix="score both with the same task file",
        )
    choices = [o.provenance.get("scan_choice", "first") for o in (ours, theirs)]
    whole = "together" in choices and "every" not in choices  # how a model reads a study is part of it
    if choices[0] != choices[1] and not whole:
        one, other = (SCANS.get(choice, choice) for choice in choices)
        raise EvalError(
            f"{name}: one result is of {one}, the other of {other}",
            why="a difference between them could be one of which scans were scored, not of models",
            fix="score both models with the same choice (--scans, or scans: of a suite's entry)",
        )
    differ = [k for k in SAME if ours.provenance.get(k) != theirs.provenance.get(k)]
    if differ:
        raise EvalError(
            f"{name}: the two results differ in {', '.join(differ)}",
            why="a difference between them could be one of data or wording, not of models",
            fix="score both models with the same command on the same shards",
        )


@dataclass(frozen=True)
class Difference:
    """ours - theirs of one task. p: two-sided, from the same resamples, at least 2 / (resamples + 1).

    skipped: resamples in which a class is lost. low, high: None where half of them are, or all agree (`reason`).
    """

    statistic: str
    ours: float
    theirs: float
    value: float
    low: float | None
    high: float | None
    p: float | None
    level: float
    method: Method
    resamples: int
    skipped: int
    cases: int
    patients: int
    reason: str | None = None

    @property
    def mark(self) -> str:
        """win, loss or tie: on which side of 0 the whole interval is. Without an interval "untold", but for scores that
        are equal in every resample, which tie."""
        if self.low is None or self.high is None:
            return "tie" if self.value == 0 else "untold"
        if self.low <= 0 <= self.high:
            return "tie"
        return "win" if self.low > 0 else "loss"


def paired_difference(
    ours: Cases, theirs: Cases, *, resamples: int = 1000, seed: int = 0, level: float = 0.95, method: Method = "bca"
) -> tuple[Difference, Array]:
    """(the difference with its interval, its value in each resample).

    Patients are drawn with replacement, all cases of one together, the same draw for both models. percentile: of the
    resampled differences. bca: bias-corrected and accelerated (Efron, JASA 1987, 82:171), acceleration by leaving each
    patient out. Raises EvalError where the cases differ.
    """
    if ours.keys != theirs.keys or ours.scores_NL.shape != theirs.scores_NL.shape:
        raise EvalError(
            "the two results are not of the same cases and classes",
            why="a paired difference needs both models' score of every case",
            fix="score both models with the same command on the same shards",
        )
    n = len(ours.keys)
    if ours.statistic == "auroc":
        known = ours.labels_NL
        usable = np.array([len(np.unique(c[~np.isnan(c)])) == 2 for c in known.T], dtype=bool)
        if not usable.any():
            raise EvalError("no finding has both classes", why="an AUROC needs both", fix="choose another split")
        ours, theirs = ours.only(usable), theirs.only(usable)
    everyone = np.ones((1, n))
    one, other = float(ours.value(everyone)[0]), float(theirs.value(everyone)[0])
    drawn = resample(
        lambda weights_RN: ours.value(weights_RN) - theirs.value(weights_RN), ours.patients_N, resamples=resamples,
        seed=seed, jackknife=method == "bca",
    )  # fmt: skip
    found, drawn_R = drawn.interval(0, level, method), drawn.drawn_RM[:, 0]
    p = None if found.low is None else drawn.p_at(0.0, 0, method)
    difference = Difference(
        ours.statistic, one, other, one - other, found.low, found.high, p, level, method, resamples, found.skipped, n,
        found.patients, found.reason,
    )  # fmt: skip
    return difference, drawn_R


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (Scand J Statist 1979, 6:65); None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        out[i] = highest
    return out
