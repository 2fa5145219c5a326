"""Closed-form interval of one AUROC on clustered data, on the logit scale.

The variance is DeLong's (Biometrics 1988, 44:837) for clusters (Obuchowski, Biometrics 1997, 53:567): studies of one
patient go together. The interval is taken of logit(AUROC) and mapped back (Qin and Hotilovac, Stat Methods Med Res
2008, 17:207), so it stays inside (0, 1) and is lopsided near its ends, where a percentile bootstrap of few cases is too
narrow. The variance is not let under what its AUROC and its patients lead to expect. `benchmarks.coverage` measures
how often the interval holds the truth.

Legend: N studies, P positive ones, M negative ones, K patients.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import multivariate_normal, norm, t

Array = NDArray[np.float64]


def auroc_and_variance(
    scores_N: ArrayLike, labels_N: ArrayLike, patients_N: ArrayLike
) -> tuple[float, float, tuple[int, int]]:
    """(AUROC with ties as one half, its variance, patients with a positive and with a negative study).

    Labels are 1, 0 and nan for unknown, which is masked. nan where a class is missing; the variance is nan as well
    where a class has a single patient.
    """
    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N, dtype=np.float64)
    known = ~np.isnan(labels)
    scores, labels = scores[known], labels[known] == 1
    _, patient_N = np.unique(np.asarray(patients_N)[known], return_inverse=True)
    positive, negative = scores[labels], scores[~labels]
    if not len(positive) or not len(negative):
        return math.nan, math.nan, (0, 0)
    # Share of the other class that each study is on the right side of.
    right_P = _share_below(negative, positive)
    right_M = 1 - _share_below(positive, negative)
    value = float(right_P.mean())
    patients = int(patient_N.max()) + 1
    count_K = [np.bincount(patient_N[side], minlength=patients) for side in (labels, ~labels)]
    sum_K = [
        np.bincount(patient_N[side], weights=right - value, minlength=patients)
        for side, right in ((labels, right_P), (~labels, right_M))
    ]
    with_class = (int((count_K[0] > 0).sum()), int((count_K[1] > 0).sum()))
    if min(with_class) < 2:
        return value, math.nan, with_class
    sizes = (len(positive), len(negative))
    own = [
        k / ((k - 1) * size) * float(np.square(total).sum())
        for k, size, total in zip(with_class, sizes, sum_K, strict=True)
    ]
    shared = patients / (patients - 1) * float((sum_K[0] * sum_K[1]).sum())
    variance = own[0] / sizes[0] + own[1] / sizes[1] + 2 * shared / (sizes[0] * sizes[1])
    return value, max(variance, 0.0), with_class


def _expected_variance(auroc: float, positive: int, negative: int) -> float:
    """The variance under normal scores of equal spread: Bamber's (J Math Psych 1975, 12:387), in which the chance that
    two positives both exceed one negative is a bivariate normal of correlation one half. A handful of positives that
    happen to lie close together show DeLong too small a variance; this one depends on the AUROC and the numbers
    alone."""
    z = float(norm.ppf(auroc))
    both = float(multivariate_normal([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]]).cdf([z, z]))
    spread = auroc * (1 - auroc) + (positive + negative - 2) * (both - auroc**2)
    return max(spread, 0.0) / (positive * negative)


def _share_below(reference: Array, x: Array) -> Array:
    ordered = np.sort(reference)
    return (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / (2 * len(ordered))


def logit_interval(
    scores_N: ArrayLike, labels_N: ArrayLike, patients_N: ArrayLike, level: float = 0.95
) -> tuple[float, float, float]:
    """(AUROC, low, high). low and high are nan where a class has fewer than two patients.

    Where every positive is above every negative the variance is nought and says nothing; the interval is then that of
    the rule of three: the AUROC at which so perfect a result has the probability (1 - level) / 2, were the patients of
    the smaller class independent Bernoulli draws.
    """
    value, variance, classes = auroc_and_variance(scores_N, labels_N, patients_N)
    fewest = min(classes)
    if math.isnan(variance):
        return value, math.nan, math.nan
    tail = (1 - level) / 2
    if value in (0.0, 1.0):
        far = tail ** (1 / fewest)
        return (value, far, 1.0) if value == 1.0 else (value, 0.0, 1 - far)
    variance = max(variance, _expected_variance(value, *classes))
    # Student's t with the patients of the smaller class: that is how well the variance itself is known.
    reach = float(t.ppf(1 - tail, fewest - 1)) if fewest < 1000 else float(norm.ppf(1 - tail))
    reach *= math.sqrt(variance) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    return value, 1 / (1 + math.exp(-(centre - reach))), 1 / (1 + math.exp(-(centre + reach)))
