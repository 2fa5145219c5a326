"""Metrics of probed labels or classes, with intervals over patients.

AUROC of a label: closed form on the logit scale (eval_zero_shot.delong). Everything else: percentiles of resamples of
patients, the draws of eval_zero_shot.statistics.

Legend: N studies, L labels or classes, R resamples, P patients.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.metrics import answers, top_k
from eval_zero_shot.outcome import Metric
from eval_zero_shot.statistics import Run, finding_interval, percentile_interval, weighted_auroc

Array = NDArray[np.float64]
Values = dict[tuple[str, str], Array]  # (metric, label or "") -> [R]
UNSEEN = -1e9  # log-probability of a class that was not in training: any other class is the answer
NOT_LEARNT = "a class is missing in training"
_CHUNK = 4_000_000


def weighted_average_precision(scores_N: ArrayLike, labels_N: ArrayLike, weights_RN: ArrayLike) -> Array:
    """Average precision under each row of weights, tied scores as one threshold (scikit-learn's definition); nan labels
    are masked; nan where no positive has weight."""
    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N, dtype=np.float64)
    rows = np.flatnonzero(~np.isnan(labels))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    if not len(rows):
        return np.full(len(np.atleast_2d(weights_RN)), np.nan)
    starts = np.flatnonzero(np.r_[True, np.diff(scores[rows]) != 0])
    weights = np.atleast_2d(np.asarray(weights_RN, dtype=np.float64))[:, rows]
    right_RG = np.add.reduceat(weights * labels[rows], starts, axis=1)
    all_RG = np.cumsum(np.add.reduceat(weights, starts, axis=1), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_RG = np.where(all_RG > 0, np.cumsum(right_RG, axis=1) / all_RG, 0)
        return (right_RG * precision_RG).sum(1) / right_RG.sum(1)


def values(
    scores_NL: Array, labels_NL: Array, names: tuple[str, ...], exclusive: bool, base_L: Array, weights_RN: Array
) -> Values:
    """Every metric under each row of weights. Macro values are over the labels that have a value on the data."""
    scores_NL = np.where(np.isnan(scores_NL), UNSEEN, scores_NL) if exclusive else scores_NL
    found: Values = {}
    nothing = np.full(len(weights_RN), np.nan)
    for j, name in enumerate(names):
        y, s, learnt = labels_NL[:, j], scores_NL[:, j], not np.isnan(scores_NL[:, j]).any()
        learnt = learnt and not (exclusive and (s == UNSEEN).all())
        found["auroc", name] = weighted_auroc(s, y, weights_RN) if learnt else nothing
        found["auprc", name] = weighted_average_precision(s, y, weights_RN) if learnt else nothing
        if not exclusive:
            right = (s > base_L[j]) == (y == 1)
            sides = [_share(right, y == side, weights_RN) for side in (1, 0)]
            found["balanced_accuracy", name] = (sides[0] + sides[1]) / 2 if learnt else nothing
    macro = ["auroc", "auprc"] if exclusive else ["auroc", "auprc", "balanced_accuracy"]
    ones = np.ones((1, len(labels_NL)))
    usable = [n for j, n in enumerate(names) if not np.isnan(found["auroc", n]).all()
              and not np.isnan(weighted_auroc(scores_NL[:, j], labels_NL[:, j], ones)[0])]  # fmt: skip
    for metric in macro:
        each = [found[metric, name] for name in usable]
        found[metric, ""] = np.mean(each, axis=0) if each else nothing
    if exclusive:
        known_N, truth_N = ~np.isnan(labels_NL).all(1), np.argmax(labels_NL == 1, axis=1)
        hit_N = (answers(scores_NL) == truth_N).astype(np.float64)  # of classes that tie, the last listed
        recalls = {n: _share(hit_N, labels_NL[:, j] == 1, weights_RN) for j, n in enumerate(names)}
        found |= {("recall", name): recall for name, recall in recalls.items()}
        present = [recalls[n] for j, n in enumerate(names) if (labels_NL[:, j] == 1).any()]
        found["balanced_accuracy", ""] = np.mean(present, axis=0) if present else nothing
        found["acc1", ""] = _share(hit_N, known_N, weights_RN)
        if len(names) > 5:
            found["acc5", ""] = top_k(scores_NL, truth_N, 5, weights_RN * known_N)
    return found


def _share(right_N: NDArray, of_N: ArrayLike, weights_RN: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights_RN @ (right_N * np.asarray(of_N))) / (weights_RN @ np.asarray(of_N, dtype=np.float64))


def patient_weights(patients_N: NDArray[np.str_], resamples: int, seed: int = 0) -> Iterator[Array]:
    """How often each study counts in each resample of patients, in blocks [R, N]."""
    names, of_N = np.unique(patients_N, return_inverse=True)
    rng = np.random.Generator(np.random.Philox(seed))
    block = max(1, _CHUNK // max(len(names), len(of_N)))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)[:, of_N].astype(np.float64)


def measure(
    scores_NL: Array, labels_NL: Array, patients_N: NDArray[np.str_], names: tuple[str, ...], exclusive: bool,
    base_L: Array, *, resamples: int = 1000, seed: int = 0, level: float = 0.95,
) -> list[Metric]:  # fmt: skip
    """Every metric with its interval; None with the reason where there is none."""
    here = values(scores_NL, labels_NL, names, exclusive, base_L, np.ones((1, len(labels_NL))))
    blocks = [
        values(scores_NL, labels_NL, names, exclusive, base_L, w) for w in patient_weights(patients_N, resamples, seed)
    ]
    found, patients = [], len(np.unique(patients_N))
    run = Run.of(scores_NL, labels_NL, patients_N)
    for (metric, of), value in here.items():
        j = names.index(of) if of else None
        known = int((~np.isnan(labels_NL).all(1) if j is None else ~np.isnan(labels_NL[:, j])).sum())
        if j is not None and np.isnan(scores_NL[:, j]).all() and metric != "recall":
            found.append(Metric(metric, None, of=of, n=known, level=level, reason=NOT_LEARNT))
        elif j is not None and metric == "auroc":
            found.append(Metric.of_interval(metric, finding_interval(run, j, level), of=of, n=known))
        else:
            drawn_R = np.concatenate([block[metric, of] for block in blocks]) if blocks else np.zeros(0)
            interval = percentile_interval(float(value[0]), drawn_R, level=level, patients=patients)
            if interval.low is not None and interval.high is not None and interval.high - interval.low < 1e-12:
                reason = "all resamples agree, which says nothing of other patients"
                found.append(Metric(metric, interval.value, of=of, n=known, level=level, reason=reason))
            else:
                found.append(Metric.of_interval(metric, interval, of=of, n=known))
    return found
