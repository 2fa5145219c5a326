"""Metrics with intervals, all from one draw of patients: what a protocol computes per class, and their means.

Legend: N cases, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.outcome import Metric, Value
from eval_zero_shot.resample import Method, resample

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Number:
    """What is said of a number: name, class, circumstances and cases as in `Metric`; why there is none, if known."""

    name: str
    of: str = ""
    at: Mapping[str, Value] = field(default_factory=dict)
    n: int = 0
    reason: str | None = None
    no_interval: str | None = None  # why resamples say nothing of its noise


@dataclass(frozen=True, kw_only=True)
class Measure(Number):
    """compute: weights [R, N] -> its value [R], nan where there is none."""

    compute: Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class Mean(Number):
    """The plain mean of measures (by their place), taken inside every resample, over those that have a value on the
    data. A resample in which one of these has none is skipped, so every resample averages the same classes."""

    members: tuple[int, ...]
    reason: str | None = "no class has a value"


def once(compute: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """The same, computed once for a block of weights that several measures ask about one after the other."""
    last: list[Any] = [None, None]

    def remembered(weights_RN: Array) -> Any:
        if last[0] is not weights_RN:
            last[:] = weights_RN, compute(weights_RN)
        return last[1]

    return remembered


def measure(
    measures: Sequence[Measure], means: Sequence[Mean], patients_N: Sequence[str] | NDArray, *, resamples: int = 1000,
    seed: int = 0, level: float = 0.95, method: Method = "percentile",
) -> list[Metric]:  # fmt: skip
    """A metric of every measure, then of every mean, with intervals over patients (`eval_zero_shot.resample`)."""
    everyone = np.ones((1, len(patients_N)))
    values = [float(m.compute(everyone)[0]) for m in measures]
    members = [[i for i in mean.members if not np.isnan(values[i])] for mean in means]

    def statistic(weights_RN: Array) -> Array:
        each = [  # what will have no interval is not computed again
            np.full(len(weights_RN), value) if m.no_interval else m.compute(weights_RN)
            for m, value in zip(measures, values, strict=True)
        ]
        nothing = np.full(len(weights_RN), np.nan)
        joined = [np.mean([each[i] for i in inside], axis=0) if inside else nothing for inside in members]
        return np.stack([*each, *joined], axis=1)

    drawn = resample(statistic, patients_N, resamples=resamples, seed=seed, jackknife=method == "bca")
    found = []
    for i, number in enumerate([*measures, *means]):
        said: Number = number
        metric = Metric.of_interval(said.name, drawn.interval(i, level, method), of=said.of, at=said.at, n=said.n)
        if metric.value is None:
            metric = replace(metric, reason=said.reason or metric.reason)
        elif said.no_interval:
            metric = replace(metric, low=None, high=None, method=None, reason=said.no_interval)
        found.append(metric)
    return found
