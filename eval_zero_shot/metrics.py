"""Metrics under case weights, equal to scikit-learn's with `sample_weight`, for all resamples at once.

Legend: N cases, L findings, K classes, R rows of weights, B bins. Every function answers one value a row of weights,
nan where its class has no weight; weights of ones give the value on the data. scikit-learn computes one row at a time,
which a bootstrap cannot wait for; the tests hold these to scikit-learn to 1e-12. Ties as there: tied scores are one
threshold (AUROC, average precision, ROC), and of tied classes the one listed last is the answer (top_k_accuracy_score).
labels_N: 1, 0, nan for unknown; unknown is masked, never counted as 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
BINS = 15  # of equal width, as Guo et al. (ICML 2017, arXiv 1706.04599)
SPECIFICITY = 0.9
# Cases that are drawn twice make bins rougher, so nearly all resamples lie above the value.
NO_INTERVAL = {"calibration_error": "resampling itself adds to a binned error"}


def _grouped(scores_N: ArrayLike, labels_N: ArrayLike, weights_RN: ArrayLike) -> tuple[Array, Array]:
    """Weight of positives and of negatives at or above each distinct score [R, thresholds], highest score first."""
    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N, dtype=np.float64)
    weights_RN = np.atleast_2d(np.asarray(weights_RN, dtype=np.float64))
    rows = np.flatnonzero(~np.isnan(labels))
    if len(rows) == 0:
        empty = np.zeros((len(weights_RN), 1))
        return empty, empty
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    ends = np.flatnonzero(np.r_[np.diff(scores[rows]) != 0, True])  # last of a group of tied scores
    weights_RN = weights_RN[:, rows]
    above = (np.cumsum(weights_RN * side, axis=1)[:, ends] for side in (labels[rows], 1 - labels[rows]))
    true_RT, false_RT = above
    return true_RT, false_RT


def average_precision(scores_N: ArrayLike, labels_N: ArrayLike, weights_RN: ArrayLike) -> Array:
    """Area under precision and recall by steps, without interpolation (average_precision_score)."""
    true_RT, false_RT = _grouped(scores_N, labels_N, weights_RN)
    positives_R = true_RT[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_RT = np.where(true_RT > 0, true_RT / (true_RT + false_RT), 0.0)
        gained_RT = np.diff(true_RT, axis=1, prepend=0.0) / positives_R[:, None]
        both = (positives_R > 0) & (false_RT[:, -1] > 0)
        return np.where(both, (precision_RT * gained_RT).sum(axis=1), np.nan)


def sensitivity_at_specificity(
    scores_N: ArrayLike, labels_N: ArrayLike, weights_RN: ArrayLike, specificity: float = SPECIFICITY
) -> Array:
    """The highest sensitivity on the ROC curve whose specificity is at least the one asked for (no interpolation)."""
    true_RT, false_RT = _grouped(scores_N, labels_N, weights_RN)
    with np.errstate(invalid="ignore", divide="ignore"):
        allowed = false_RT / false_RT[:, -1:] <= 1 - specificity + 1e-12
        sensitivity_RT = np.where(allowed, true_RT / true_RT[:, -1:], 0.0)
        return np.where((true_RT[:, -1] > 0) & (false_RT[:, -1] > 0), sensitivity_RT.max(axis=1), np.nan)


class Confusion(NamedTuple):
    """Weights of true and false positives and negatives, each [R]. A ratio over nothing is 0 for f1 and precision, as
    with zero_division=0, and nan for what needs a class that a row lost."""

    true_positive: Array
    false_positive: Array
    false_negative: Array
    true_negative: Array

    @property
    def sensitivity(self) -> Array:
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> Array:
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def precision(self) -> Array:
        return _ratio(self.true_positive, self.true_positive + self.false_positive, nothing=0.0)

    @property
    def accuracy(self) -> Array:
        return _ratio(self.true_positive + self.true_negative, sum(self))

    @property
    def balanced_accuracy(self) -> Array:
        return (self.sensitivity + self.specificity) / 2

    @property
    def f1(self) -> Array:
        """Of the positive class; nan where a row has no positive, of which F1 says nothing."""
        found = _f1(self.true_positive, self.false_positive, self.false_negative)
        return np.where(self.true_positive + self.false_negative > 0, found, np.nan)

    @property
    def f1_weighted(self) -> Array:
        """Mean over both classes by their weight, as CT-CLIP states it; the negative class counts most."""
        positive, negative = self.true_positive + self.false_negative, self.true_negative + self.false_positive
        of_negative = _f1(self.true_negative, self.false_negative, self.false_positive)
        return _ratio(positive * self.f1 + negative * of_negative, positive + negative)

    @property
    def f1_macro(self) -> Array:
        """Plain mean over both classes."""
        return (self.f1 + _f1(self.true_negative, self.false_negative, self.false_positive)) / 2


def confusion(said_N: ArrayLike, labels_N: ArrayLike, weights_RN: ArrayLike) -> Confusion:
    """said_N: what was decided, true or false."""
    labels, said = np.asarray(labels_N, dtype=np.float64), np.asarray(said_N, dtype=bool)
    weights_RN = np.atleast_2d(np.asarray(weights_RN, dtype=np.float64))
    cells = (said & (labels == 1), said & (labels == 0), ~said & (labels == 1), ~said & (labels == 0))
    return Confusion(*(weights_RN @ np.stack(cells, axis=1).astype(np.float64)).T)


def answers(scores_NK: ArrayLike) -> NDArray[np.intp]:
    """The class with the highest score, of tied ones the last listed."""
    scores = np.asarray(scores_NK)
    return scores.shape[1] - 1 - np.argmax(scores[:, ::-1], axis=1)


def top_k(scores_NK: ArrayLike, truth_N: ArrayLike, k: int, weights_RN: ArrayLike) -> Array:
    """Share of cases whose class is among the k best."""
    scores, truth = np.asarray(scores_NK), np.asarray(truth_N, dtype=np.intp)
    best = np.argsort(scores, axis=1, kind="stable")[:, ::-1][:, :k]
    hit_N = (best == truth[:, None]).any(axis=1).astype(np.float64)
    weights_RN = np.atleast_2d(np.asarray(weights_RN, dtype=np.float64))
    return _ratio(weights_RN @ hit_N, weights_RN.sum(axis=1))


def calibration_curve(
    probability_N: ArrayLike, right_N: ArrayLike, weights_RN: ArrayLike, bins: int = BINS
) -> tuple[Array, Array, Array]:
    """(mean probability, frequency, weight), each [R, B], over `bins` of equal width; nan in an empty bin.

    right_N: 1, 0, nan for unknown. A bin holds its upper edge; the first holds 0 as well.
    """
    probability, right = np.asarray(probability_N, dtype=np.float64), np.asarray(right_N, dtype=np.float64)
    known = ~np.isnan(right)
    bin_N = np.clip(np.ceil(probability[known] * bins).astype(int) - 1, 0, bins - 1)
    weights_RN = np.atleast_2d(np.asarray(weights_RN, dtype=np.float64))[:, known]
    member_NB = (bin_N[:, None] == np.arange(bins)).astype(np.float64)
    total_RB = weights_RN @ member_NB
    said_RB = weights_RN @ (member_NB * probability[known, None])
    right_RB = weights_RN @ (member_NB * right[known, None])
    return _ratio(said_RB, total_RB), _ratio(right_RB, total_RB), total_RB


def calibration_error(probability_N: ArrayLike, right_N: ArrayLike, weights_RN: ArrayLike, bins: int = BINS) -> Array:
    """Expected calibration error: mean |frequency - mean probability| over bins by their weight.

    Of a finding: its probability and label. Of several classes: the probability of the answer and whether it is right.
    """
    said_RB, right_RB, total_RB = calibration_curve(probability_N, right_N, weights_RN, bins)
    gap_RB = np.where(total_RB > 0, np.abs(right_RB - said_RB) * total_RB, 0.0)
    return _ratio(gap_RB.sum(axis=1), total_RB.sum(axis=1))


def _ratio(part: ArrayLike, whole: ArrayLike, nothing: float = np.nan) -> Array:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, nothing)


def _f1(right: Array, wrong: Array, missed: Array) -> Array:
    return _ratio(2 * right, 2 * right + wrong + missed, nothing=0.0)
