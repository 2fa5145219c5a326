"""Intervals for AUROC (closed form, eval_zero_shot.delong), its macro mean, means over seeds and differences: bootstrap
over patients.

Shapes: N studies, P patients, L findings, R resamples, S runs (seeds).
The unit of resampling is the patient: a patient's studies come and go together. A resample is a vector of multinomial
patient weights, so each finding is sorted once and all resamples are one cumulative sum over it.
Runs on the same patients share the draw (their errors on one patient go together); runs on different patients draw
apart. Both follow from drawing weights over the union of all patients. Several runs are resampled too, with their
spread widened by sqrt(S / (S - 1)), without which few seeds give too narrow an interval ("narrowness bias", Hesterberg
2015, arXiv 1411.5279). A run's own errors are in the draw of patients and in the draw of runs, so the interval errs on
the wide side where seeds hardly differ, most where each run has its own patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.delong import logit_interval
from eval_zero_shot.errors import EvalError

Array = NDArray[np.float64]
_CHUNK = 4_000_000  # numbers held at once in a block of weights: 32 MB


@dataclass(frozen=True)
class Interval:
    """`value` is the estimate on the data itself; low and high are None where no interval can be given (`reason`).

    resamples: how many were drawn; skipped: how many of them lost a class and say nothing.
    """

    value: float | None
    low: float | None
    high: float | None
    level: float = 0.95
    resamples: int = 0
    skipped: int = 0
    patients: int = 0
    runs: int = 1
    method: str = "percentile"
    reason: str | None = None


@dataclass(frozen=True)
class Run:
    """Scores of one trained model: scores_NL, labels_NL (1, 0, nan = unknown), patients_N."""

    scores_NL: Array
    labels_NL: Array
    patients_N: NDArray[np.str_]

    @classmethod
    def of(cls, scores_NL: ArrayLike, labels_NL: ArrayLike, patients_N: Sequence[str] | NDArray) -> Run:
        """Checked arrays; a vector is one finding. Raises EvalError on shapes that differ."""
        scores, labels = (np.asarray(x, dtype=np.float64) for x in (scores_NL, labels_NL))
        scores, labels = (x[:, None] if x.ndim == 1 else x for x in (scores, labels))
        patients = np.asarray(patients_N).astype(str)
        if scores.shape != labels.shape or patients.shape != scores.shape[:1] or len(scores) == 0:
            raise EvalError(
                f"scores {scores.shape}, labels {labels.shape} and patients {patients.shape} do not fit together",
                why="a study's score would be resampled with another patient",
                fix="give one row a study, in one order, and at least one study",
            )
        return cls(scores, labels, patients)


def weighted_auroc(scores_N: ArrayLike, labels_N: ArrayLike, weights_RN: ArrayLike) -> Array:
    """AUROC of each row of weights; ties count one half, nan labels are masked; nan where a class has no weight."""
    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N, dtype=np.float64)
    weights_RN = np.atleast_2d(np.asarray(weights_RN))
    rows = np.flatnonzero(~np.isnan(labels))
    rows = rows[np.argsort(scores[rows], kind="stable")]
    if len(rows) == 0:
        return np.full(len(weights_RN), np.nan)
    starts = np.flatnonzero(np.r_[True, np.diff(scores[rows]) != 0])  # where a group of tied scores begins
    weights = weights_RN[:, rows].astype(np.float64)
    positive_RG = np.add.reduceat(weights * labels[rows], starts, axis=1)
    negative_RG = np.add.reduceat(weights * (1 - labels[rows]), starts, axis=1)
    below_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
    pairs = positive_RG.sum(1) * negative_RG.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (positive_RG * below_RG).sum(1) / pairs, np.nan)


def weighted_mean(scores_N: ArrayLike, labels_N: ArrayLike, weights_RN: ArrayLike) -> Array:
    """Mean score of each row of weights, such as recall of hits 0 and 1; nan labels are masked."""
    scores, known = np.asarray(scores_N, dtype=np.float64), ~np.isnan(np.asarray(labels_N, dtype=np.float64))
    weights_RN = np.atleast_2d(np.asarray(weights_RN))[:, known].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights_RN @ scores[known] / weights_RN.sum(1)


Measure = Callable[[ArrayLike, ArrayLike, ArrayLike], Array]


def bootstrap(runs: Sequence[Run], resamples: int, seed: int, measure: Measure = weighted_auroc) -> tuple[Array, Array]:
    """(estimate_SL, resampled_SRL): every finding's AUROC (or another measure) in every run, on the data and under each
    patient draw."""
    names, inverse = np.unique(np.concatenate([run.patients_N for run in runs]), return_inverse=True)
    patient_of = np.split(inverse, np.cumsum([len(run.patients_N) for run in runs])[:-1])
    findings = {run.scores_NL.shape[1] for run in runs}
    if len(findings) != 1:
        raise EvalError("runs with different numbers of findings", why="their macro means differ in kind", fix="align")
    (n_findings,) = findings
    rng = np.random.Generator(np.random.Philox(seed))
    n_patients = len(names)
    estimate = np.empty((len(runs), n_findings))
    drawn = np.empty((len(runs), resamples, n_findings))
    for s, run in enumerate(runs):
        for j in range(n_findings):
            ones = np.ones((1, len(run.patients_N)))
            estimate[s, j] = measure(run.scores_NL[:, j], run.labels_NL[:, j], ones)[0]
    block = max(1, _CHUNK // max(n_patients, max(len(run.patients_N) for run in runs)))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        counts_RP = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=size)
        for s, run in enumerate(runs):
            weights_RN = counts_RP[:, patient_of[s]]
            for j in range(n_findings):
                drawn[s, start : start + size, j] = measure(run.scores_NL[:, j], run.labels_NL[:, j], weights_RN)
    return estimate, drawn


def percentile_interval(
    value: float, drawn_R: Array, *, level: float = 0.95, patients: int = 0, runs: int = 1
) -> Interval:
    """Percentiles of the resamples that are numbers. No interval where a class is missing or half of them is lost."""
    kept = drawn_R[~np.isnan(drawn_R)]
    skipped, total = int(len(drawn_R) - len(kept)), len(drawn_R)
    reason = None
    if np.isnan(value):
        reason = "a class is missing"
    elif total == 0:
        reason = "no resamples asked for"
    elif 2 * skipped > total:
        reason = f"{skipped} of {total} resamples lose a class"
    if reason is not None:
        known = None if np.isnan(value) else float(value)
        return Interval(known, None, None, level, total, skipped, patients, runs, reason=reason)
    tail = 50 * (1 - level)
    low, high = np.percentile(kept, (tail, 100 - tail))
    return Interval(float(value), float(low), float(high), level, total, skipped, patients, runs)


def auroc_intervals(
    run: Run, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[tuple[Interval, ...], Interval]:
    """(an interval for each finding, one for their macro mean) of one set of scores.

    A finding's own interval is the closed form on the logit scale (eval_zero_shot.delong): percentiles of resamples are
    too narrow where cases are few. The macro mean is over the findings with both classes in the data; it is taken
    inside each resample, and resamples in which one of these loses a class are skipped and counted, so every resample
    averages the same findings.
    """
    (estimate_L,), (drawn_RL,) = bootstrap([run], resamples, seed)
    usable = ~np.isnan(estimate_L)
    each = [finding_interval(run, j, level) for j in range(len(estimate_L))]
    total = len(np.unique(run.patients_N))
    if not usable.any():
        return tuple(each), percentile_interval(np.nan, drawn_RL[:, 0], level=level, patients=total)
    macro = percentile_interval(
        float(estimate_L[usable].mean()), drawn_RL[:, usable].mean(axis=1), level=level, patients=total
    )
    return tuple(each), _of_some_width(macro)


def finding_interval(run: Run, finding: int, level: float = 0.95) -> Interval:
    """Interval of one finding's AUROC. None for low and high, with the reason, where a class has under two patients."""
    labels_N = run.labels_NL[:, finding]
    value, low, high = logit_interval(run.scores_NL[:, finding], labels_N, run.patients_N, level)
    patients = len(np.unique(run.patients_N[~np.isnan(labels_N)]))
    if np.isnan(value):
        return Interval(None, None, None, level, patients=patients, method="logit", reason="a class is missing")
    if np.isnan(low):
        reason = "a class has a single patient"
        return Interval(value, None, None, level, patients=patients, method="logit", reason=reason)
    return Interval(value, low, high, level, patients=patients, method="logit")


def macro_over_runs(
    runs: Sequence[Run], *, resamples: int = 1000, seed: int = 0, level: float = 0.95, measure: Measure = weighted_auroc
) -> Interval:
    """Interval of the mean macro AUROC over runs (seeds), patients resampled inside every draw of runs; or of the mean
    over columns of another measure from 0 to 1.

    None where all resamples agree, as they do with every pair in order: a width of zero, however few the patients.
    """
    value, drawn_R = _mean_over_runs(*bootstrap(runs, resamples, seed, measure), seed)
    drawn_R = drawn_R.clip(0.0, 1.0)  # the spread between few runs is widened, past what a share can be
    return _of_some_width(percentile_interval(value, drawn_R, level=level, patients=_patients(runs), runs=len(runs)))


def _of_some_width(found: Interval) -> Interval:
    """Without limits where every pair is in order (or none) in every resample."""
    if found.low is None or found.low != found.high or found.value not in (0.0, 1.0):
        return found
    return replace(found, low=None, high=None, reason="all resamples agree, which says nothing of other patients")


def macro_difference(
    ours: Sequence[Run], theirs: Sequence[Run], *, resamples: int = 1000, seed: int = 0, level: float = 0.95,
    measure: Measure = weighted_auroc,
) -> Interval:  # fmt: skip
    """Interval of mean macro AUROC(ours) - mean macro AUROC(theirs), or of another measure, paired by patient.

    Both arms are scored under the same patient draws. With as many runs in both arms run i is paired with run i (same
    seed), else runs are drawn apart. Findings count where they have both classes in every run of both arms.
    """
    estimate_SL, drawn_SRL = bootstrap([*ours, *theirs], resamples, seed, measure)
    usable = ~np.isnan(estimate_SL).any(axis=0)
    estimate_SL, drawn_SRL = estimate_SL[:, usable], drawn_SRL[:, :, usable]
    n = len(ours)
    everyone = _patients([*ours, *theirs])
    if len(theirs) == n:
        value, drawn_R = _mean_over_runs(estimate_SL[:n] - estimate_SL[n:], drawn_SRL[:n] - drawn_SRL[n:], seed)
    else:
        value_a, drawn_a = _mean_over_runs(estimate_SL[:n], drawn_SRL[:n], seed)
        value_b, drawn_b = _mean_over_runs(estimate_SL[n:], drawn_SRL[n:], seed + 1)
        value, drawn_R = value_a - value_b, drawn_a - drawn_b
    return percentile_interval(value, drawn_R, level=level, patients=everyone, runs=min(n, len(theirs)))


def _mean_over_runs(estimate_SL: Array, drawn_SRL: Array, seed: int) -> tuple[float, Array]:
    """Mean over findings and runs, on the data and for each resample of patients and runs."""
    usable = ~np.isnan(estimate_SL).any(axis=0)
    n_runs, resamples, _ = drawn_SRL.shape
    if not usable.any():
        return np.nan, np.full(resamples, np.nan)
    macro_S, macro_SR = estimate_SL[:, usable].mean(axis=1), drawn_SRL[:, :, usable].mean(axis=2)
    if n_runs == 1:
        return float(macro_S[0]), macro_SR[0]
    rng = np.random.Generator(np.random.Philox([seed, 1]))
    chosen_SR = rng.integers(n_runs, size=(n_runs, resamples))
    everyone_R = macro_SR.mean(axis=0)
    spread_R = np.take_along_axis(macro_SR, chosen_SR, axis=0).mean(axis=0) - everyone_R
    return float(macro_S.mean()), everyone_R + spread_R * np.sqrt(n_runs / (n_runs - 1))


def _patients(runs: Sequence[Run]) -> int:
    return len(np.unique(np.concatenate([run.patients_N for run in runs])))
