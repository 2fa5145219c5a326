"""Sampling noise of a mean over queries: bootstrap over patients, the candidates fixed.

Legend: Q queries, M metrics, P patients, R resamples. All queries of a patient come and go together. What other studies
there are to be confused with stays as it is: that part of the noise is not in these intervals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.statistics import Interval, percentile_interval

Array = NDArray[np.float64]
_CHUNK = 1_000_000  # patient weights held at once: 8 MB


def clustered_means(
    values_QM: Array, patients_Q: NDArray, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> list[Interval]:
    """An interval for the mean of each column; nan entries (a query that was never asked) do not count.

    low and high are None, with a reason, where all resamples agree: that says nothing of other patients.
    """
    names, patient_Q = np.unique(patients_Q, return_inverse=True)
    known_QM = ~np.isnan(values_QM)
    sums_PM, counts_PM = np.zeros((len(names), values_QM.shape[1])), np.zeros((len(names), values_QM.shape[1]))
    np.add.at(sums_PM, patient_Q.reshape(-1), np.where(known_QM, values_QM, 0.0))
    np.add.at(counts_PM, patient_Q.reshape(-1), known_QM.astype(float))
    rng = np.random.Generator(np.random.Philox(seed))
    drawn: list[Array] = []
    block = max(1, _CHUNK // len(names))
    with np.errstate(invalid="ignore", divide="ignore"):
        value_M = sums_PM.sum(axis=0) / counts_PM.sum(axis=0)
        for start in range(0, resamples, block):
            size = min(block, resamples - start)
            weights_RP = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size).astype(float)
            drawn.append((weights_RP @ sums_PM) / (weights_RP @ counts_PM))
    drawn_RM = np.concatenate(drawn) if drawn else np.empty((0, len(value_M)))
    return [_interval(float(value), drawn_RM[:, m], level, len(names)) for m, value in enumerate(value_M)]


def _interval(value: float, drawn_R: Array, level: float, patients: int) -> Interval:
    found = percentile_interval(value, drawn_R, level=level, patients=patients)
    reason = "no query" if np.isnan(value) else found.reason
    if patients < 2:
        reason = reason or "a single patient"
    elif len(drawn_R) and not np.isnan(drawn_R).all() and np.nanmax(drawn_R) - np.nanmin(drawn_R) < 1e-12:
        reason = reason or "all resamples agree, which says nothing of other patients"
    if reason is None:
        return found
    return Interval(found.value, None, None, level, len(drawn_R), found.skipped, patients, reason=reason)
