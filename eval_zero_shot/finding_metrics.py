"""All metrics of a task of findings, from scores and labels.

Legend: N cases, L findings, R rows of weights. scores_NL: positive - negative. labels_NL: 1, 0, nan for unknown, which
is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot import metrics
from eval_zero_shot.measured import Mean, Measure, measure, once
from eval_zero_shot.outcome import Metric, Value
from eval_zero_shot.statistics import Run, finding_interval, weighted_auroc
from eval_zero_shot.thresholds import RULES, SIGN, Rule, matching_prevalence, nearest_to_corner

Array = NDArray[np.float64]
DECISIONS = ("f1", "f1_weighted", "f1_macro", "balanced_accuracy", "accuracy", "sensitivity", "specificity")


class Fitted(NamedTuple):
    """A threshold, None where a class is missing, and the cases with a known label that it was fitted on."""

    at: float | None
    n: int


def thresholds_of(
    scores_NL: Array, labels_NL: Array, validation: tuple[Array, Array] | None
) -> dict[Rule, list[Fitted]]:
    """Every rule that can be applied -> the threshold of each finding.

    validation: scores and labels of a split that is not the one scored; without it only sign and test apply.
    """
    found: dict[Rule, list[Fitted]] = {"sign": [Fitted(SIGN, 0)] * scores_NL.shape[1]}
    if validation is not None:
        found["validation"] = _fitted(nearest_to_corner, *validation)
        found["prevalence"] = _fitted(matching_prevalence, *validation)
    found["test"] = _fitted(nearest_to_corner, scores_NL, labels_NL)
    return {rule: found[rule] for rule in RULES if rule in found}


def _fitted(rule: Callable[[Array, Array], float | None], scores_NL: Array, labels_NL: Array) -> list[Fitted]:
    columns = zip(scores_NL.T, labels_NL.T, strict=True)
    return [Fitted(rule(s, y), int((~np.isnan(y)).sum())) for s, y in columns]


def finding_metrics(
    scores_NL: Array, labels_NL: Array, patients_N: NDArray, names: Sequence[str],
    thresholds: Mapping[Rule, Sequence[Fitted]], *, scale: float | None = None,
    groups: Mapping[str, Sequence[str]] | None = None, resamples: int = 1000, seed: int = 0, level: float = 0.95,
) -> list[Metric]:  # fmt: skip
    """Per finding and their macro means: auroc, auprc, sensitivity at a specificity, decisions by every threshold rule,
    and calibration error of sigmoid(scale * score), which is CLIP's softmax over both sides.

    A finding's own AUROC has the closed-form interval (eval_zero_shot.delong); every other number that of resampled
    patients. groups: name -> findings, each with a macro and a micro AUROC (all pairs of a case and a finding as one
    list); `average` without a group is over all findings.
    """
    measures: list[Measure] = []
    of_kind: dict[tuple[str, tuple[tuple[str, Value], ...]], list[int]] = {}
    for j, finding in enumerate(names):
        s, y = scores_NL[:, j], labels_NL[:, j]
        missing = _missing(y)
        for name, at, compute, reason in _of_finding(s, y, thresholds, j, scale):
            of_kind.setdefault((name, tuple(at.items())), []).append(len(measures))
            n = int((~np.isnan(y)).sum())
            compute = _unless(missing, compute)
            why, wide = missing or reason, metrics.NO_INTERVAL.get(name)
            measures.append(Measure(name=name, of=finding, at=at, n=n, reason=why, no_interval=wide, compute=compute))
    cases = len(labels_NL)
    means = [
        Mean(name=name, at=dict(at), n=cases, members=tuple(places), no_interval=metrics.NO_INTERVAL.get(name))
        for (name, at), places in of_kind.items()
    ]
    own = of_kind["auroc", ()]
    for group, inside in {"": tuple(names), **(groups or {})}.items():
        columns = [names.index(finding) for finding in inside]
        where: dict[str, Value] = {"group": group} if group else {}
        micro = _micro_auroc(scores_NL[:, columns], labels_NL[:, columns])
        measures.append(Measure(name="auroc", at={**where, "average": "micro"}, n=cases, compute=micro))
        if group:
            members = tuple(own[c] for c in columns)
            means.append(Mean(name="auroc", at={**where, "average": "macro"}, n=cases, members=members))
    found = measure(measures, means, patients_N, resamples=resamples, seed=seed, level=level)
    run = Run.of(scores_NL, labels_NL, patients_N)
    for j, place in enumerate(own):
        closed = Metric.of_interval("auroc", finding_interval(run, j, level), of=names[j], n=found[place].n)
        found[place] = replace(closed, reason=_missing(labels_NL[:, j]) or closed.reason)
    for rule, fitted_L in thresholds.items():
        found += [
            Metric("threshold", at, of=name, at={"threshold": rule}, n=n, level=level, reason=_unfitted(at))
            for name, (at, n) in zip(names, fitted_L, strict=True)
            if rule != "sign"  # which is fitted on nothing
        ]
    return found


def _of_finding(
    s: Array, y: Array, thresholds: Mapping[Rule, Sequence[Fitted]], j: int, scale: float | None
) -> list[tuple[str, dict[str, Value], Callable[[Array], Array], str | None]]:
    """(name, at, compute, reason) of everything that is computed of one finding."""
    at_specificity: dict[str, Value] = {"specificity": metrics.SPECIFICITY}
    found: list[tuple[str, dict[str, Value], Callable[[Array], Array], str | None]] = [
        ("auroc", {}, lambda w: weighted_auroc(s, y, w), None),
        ("auprc", {}, lambda w: metrics.average_precision(s, y, w), None),
        ("sensitivity", at_specificity, lambda w: metrics.sensitivity_at_specificity(s, y, w), None),
    ]
    if scale is not None:
        p = probability(s, scale)
        found.append(("calibration_error", {"bins": metrics.BINS}, lambda w: metrics.calibration_error(p, y, w), None))
    for rule, fitted_L in thresholds.items():
        at = fitted_L[j].at
        said = np.zeros(len(s), bool) if at is None else s >= at
        cells = once(_confusion(said, y))
        for name in DECISIONS:
            compute = _unless(_unfitted(at), _decision(cells, name))
            found.append((name, {"threshold": rule}, compute, _unfitted(at)))
    return found


def probability(scores: Array, scale: float) -> Array:
    """CLIP's softmax over the two sides at the released temperature: 1 / (1 + exp(-scale * (positive - negative)))."""
    from scipy.special import expit

    return np.asarray(expit(scale * scores), dtype=np.float64)


def _confusion(said_N: NDArray, labels_N: Array) -> Callable[[Array], metrics.Confusion]:
    return lambda weights_RN: metrics.confusion(said_N, labels_N, weights_RN)


def _decision(cells: Callable[[Array], metrics.Confusion], name: str) -> Callable[[Array], Array]:
    return lambda weights_RN: np.asarray(getattr(cells(weights_RN), name))


def _micro_auroc(scores_NL: Array, labels_NL: Array) -> Callable[[Array], Array]:
    width = scores_NL.shape[1]

    def compute(weights_RN: Array) -> Array:
        return weighted_auroc(scores_NL.ravel(), labels_NL.ravel(), np.repeat(weights_RN, width, axis=1))

    return compute


def _unless(reason: str | None, compute: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return compute if reason is None else lambda weights_RN: np.full(len(weights_RN), np.nan)


def _missing(labels_N: Array) -> str | None:
    positive, negative = int((labels_N == 1).sum()), int((labels_N == 0).sum())
    if positive and negative:
        return None
    if not positive and not negative:
        return "no study with a known label"
    return "no negative study" if positive else "no positive study"


def _unfitted(at: float | None) -> str | None:
    return "no threshold: a class is missing where it is fitted" if at is None else None
