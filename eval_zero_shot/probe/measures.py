"""Metrics of probed labels or classes, with intervals over patients.

AUROC of a label: closed form on the logit scale (eval_zero_shot.delong). Everything else: percentiles of resamples of
patients (eval_zero_shot.resample).

Legend: N studies, L labels or classes, R resamples, P patients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.metrics import answers, average_precision, top_k
from eval_zero_shot.outcome import Metric
from eval_zero_shot.resample import resample
from eval_zero_shot.statistics import Run, finding_interval, weighted_auroc

Array = NDArray[np.float64]
Values = dict[tuple[str, str], Array]  # (metric, label or "") -> [R]
UNSEEN = -1e9  # log-probability of a class that was not in training: any other class is the answer
NOT_LEARNT = "a class is missing in training"


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
        found["auprc", name] = average_precision(s, y, weights_RN) if learnt else nothing
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


def measure(
    scores_NL: Array, labels_NL: Array, patients_N: NDArray[np.str_], names: tuple[str, ...], exclusive: bool,
    base_L: Array, *, resamples: int = 1000, seed: int = 0, level: float = 0.95,
) -> list[Metric]:  # fmt: skip
    """Every metric with its interval; None with the reason where there is none."""
    kinds = list(values(scores_NL, labels_NL, names, exclusive, base_L, np.ones((1, len(labels_NL)))))

    def statistic(weights_RN: Array) -> Array:
        return np.stack(list(values(scores_NL, labels_NL, names, exclusive, base_L, weights_RN).values()), axis=1)

    drawn = resample(statistic, patients_N, resamples=resamples, seed=seed)
    run = Run.of(scores_NL, labels_NL, patients_N)
    found = []
    for column, (metric, of) in enumerate(kinds):
        j = names.index(of) if of else None
        known = int((~np.isnan(labels_NL).all(1) if j is None else ~np.isnan(labels_NL[:, j])).sum())
        if j is not None and np.isnan(scores_NL[:, j]).all() and metric != "recall":
            found.append(Metric(metric, None, of=of, n=known, level=level, reason=NOT_LEARNT))
        elif j is not None and metric == "auroc":
            found.append(Metric.of_interval(metric, finding_interval(run, j, level), of=of, n=known))
        else:
            found.append(Metric.of_interval(metric, drawn.interval(column, level), of=of, n=known))
    return found
