"""All metrics of a task of which exactly one class is right, from the classes' scores.

Legend: N cases, K classes, R rows of weights. scores_NK: cosines. truth_N: the number of the right class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot import metrics
from eval_zero_shot.measured import Mean, Measure, measure
from eval_zero_shot.outcome import Metric, Value
from eval_zero_shot.statistics import weighted_auroc

Array = NDArray[np.float64]
FEWEST_FOR_TOP5 = 6  # with five classes every answer is among the five best


def class_metrics(
    scores_NK: Array, truth_N: NDArray[np.intp], patients_N: NDArray, names: Sequence[str], *,
    scale: float | None = None, groups: Mapping[str, Sequence[str]] | None = None, resamples: int = 1000,
    seed: int = 0, level: float = 0.95,
) -> list[Metric]:  # fmt: skip
    """acc1, acc5 (six classes or more), balanced_accuracy (the mean of the classes' recalls), f1_macro, f1_weighted,
    one-against-rest auroc and auprc, and calibration error of the answer's softmax; per class recall, auroc and auprc.

    One against rest is ranked by the log odds of the softmax (scale 1 where the model states none). Classes of which no
    case is there have no value and are in no mean. groups: name -> classes: balanced_accuracy over the group's classes
    (average macro) and acc1 over cases of these classes (micro).
    """
    n, k = scores_NK.shape
    said, ones = metrics.answers(scores_NK), np.eye(k)[truth_N]
    odds_NK = log_odds(scores_NK, 1.0 if scale is None else scale)
    absent = [None if (truth_N == c).any() else "no study of this class" for c in range(k)]
    measures: list[Measure] = []
    places: dict[str, list[int]] = {"recall": [], "auroc": [], "auprc": [], "f1": []}

    def add(name: str, c: int, compute: Callable[[Array], Array]) -> None:
        places[name].append(len(measures))
        why = absent[c]
        cases = int((truth_N == c).sum()) if name == "recall" else n
        compute = compute if why is None else _nothing
        measures.append(Measure(name=name, of=names[c], n=cases, reason=why, compute=compute))

    for c in range(k):
        add("recall", c, _of_class(said, ones, c, "sensitivity"))
        add("auroc", c, _ranked(weighted_auroc, odds_NK[:, c], ones[:, c]))
        add("auprc", c, _ranked(metrics.average_precision, odds_NK[:, c], ones[:, c]))
        add("f1", c, _of_class(said, ones, c, "f1"))
    means = [
        Mean(name=name, n=n, members=tuple(places[of]))
        for name, of in (("balanced_accuracy", "recall"), ("auroc", "auroc"), ("auprc", "auprc"), ("f1_macro", "f1"))
    ]

    def f1_weighted(weights_RN: Array) -> Array:
        f1_RK = np.stack([_of_class(said, ones, c, "f1")(weights_RN) for c in range(k)], axis=1)
        return (np.nan_to_num(f1_RK) * (weights_RN @ ones)).sum(axis=1) / weights_RN.sum(axis=1)

    whole: list[tuple[str, dict[str, Value], Callable[[Array], Array]]] = [
        ("acc1", {}, lambda w: metrics.top_k(scores_NK, truth_N, 1, w)),
        ("f1_weighted", {}, f1_weighted),
    ]
    if k >= FEWEST_FOR_TOP5:
        whole.insert(1, ("acc5", {}, lambda w: metrics.top_k(scores_NK, truth_N, 5, w)))
    if scale is not None:
        best_N, right_N = softmax(scores_NK, scale)[np.arange(n), said], (said == truth_N).astype(np.float64)
        whole.append(
            ("calibration_error", {"bins": metrics.BINS}, lambda w: metrics.calibration_error(best_N, right_N, w))
        )
    for group, inside in (groups or {}).items():
        numbers = [names.index(name) for name in inside]
        at: dict[str, Value] = {"group": group}
        members = tuple(places["recall"][c] for c in numbers)
        means.append(Mean(name="balanced_accuracy", at={**at, "average": "macro"}, n=n, members=members))
        whole.append(("acc1", {**at, "average": "micro"}, _accuracy_within(said, truth_N, np.isin(truth_N, numbers))))
    measures += [
        Measure(name=name, at=at, n=n, no_interval=metrics.NO_INTERVAL.get(name), compute=compute)
        for name, at, compute in whole
    ]
    return measure(measures, means, patients_N, resamples=resamples, seed=seed, level=level)


def softmax(scores_NK: Array, scale: float) -> Array:
    """CLIP's probabilities of the classes."""
    from scipy.special import softmax as of

    return np.asarray(of(scale * scores_NK, axis=1), dtype=np.float64)


def log_odds(scores_NK: Array, scale: float) -> Array:
    """log p - log(1 - p) of each class under the softmax: its ranking without the ties of saturated probabilities."""
    from scipy.special import logsumexp

    scaled, k = scale * np.asarray(scores_NK, dtype=np.float64), scores_NK.shape[1]
    rest = [logsumexp(np.delete(scaled, c, axis=1), axis=1) for c in range(k)]
    return scaled - np.stack(rest, axis=1)


def _of_class(said_N: NDArray, ones_NK: Array, c: int, name: str) -> Callable[[Array], Array]:
    return lambda weights_RN: getattr(metrics.confusion(said_N == c, ones_NK[:, c], weights_RN), name)


def _ranked(metric: Callable[..., Array], scores_N: Array, labels_N: Array) -> Callable[[Array], Array]:
    return lambda weights_RN: metric(scores_N, labels_N, weights_RN)


def _accuracy_within(said_N: NDArray, truth_N: NDArray, inside_N: NDArray) -> Callable[[Array], Array]:
    def compute(weights_RN: Array) -> Array:
        total = weights_RN @ inside_N.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights_RN @ (inside_N & (said_N == truth_N)).astype(np.float64)) / total

    return compute


def _nothing(weights_RN: Array) -> Array:
    return np.full(len(weights_RN), np.nan)
