"""Intervals of any statistic that takes case weights: bootstrap over patients.

Legend: N cases, P patients, R resamples, M statistics.
A resample draws patients with replacement; all cases of a patient come and go together, so it is a vector of weights
(multinomial over patients) over the cases. A statistic is a function of weights [R, N] that answers [R] or [R, M], nan
where a resample says nothing (a class is lost); many statistics share one draw. The draw follows from the seed and the
set of patients alone: runs on the same patients see the same resamples, in whatever order their cases are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from eval_zero_shot.errors import EvalError
from eval_zero_shot.statistics import Interval

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
Method = Literal["percentile", "bca"]
_CHUNK = 100_000  # weights in a block: 0.8 MB, which stays in a core's cache through all statistics


def patient_weights(patients_N: Sequence[str] | NDArray, resamples: int, seed: int = 0) -> Iterator[Array]:
    """Blocks of weights [r, N] float64, `resamples` rows in all; a row sums to about N, over patients exactly to P."""
    patient_N, n_patients = _numbered(patients_N)
    rng = np.random.Generator(np.random.Philox(seed))
    for size in _blocks(resamples, max(len(patient_N), n_patients)):
        counts_RP = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=size)
        yield counts_RP[:, patient_N].astype(np.float64)


def left_out_weights(patients_N: Sequence[str] | NDArray) -> Iterator[Array]:
    """Blocks of weights [r, N]: row p is 1 but for the cases of patient p, in ascending order of patients."""
    patient_N, n_patients = _numbered(patients_N)
    done = 0
    for size in _blocks(n_patients, len(patient_N)):
        yield (patient_N[None, :] != np.arange(done, done + size)[:, None]).astype(np.float64)
        done += size


@dataclass(frozen=True)
class Resampled:
    """estimate_M: on the data. drawn_RM: on each resample. jackknife_PM: with each patient left out, if asked for."""

    estimate_M: Array
    drawn_RM: Array
    patients: int
    jackknife_PM: Array | None = None

    def interval(self, column: int = 0, level: float = 0.95, method: Method = "percentile") -> Interval:
        """Interval of one statistic. None for low and high, with the reason, where the resamples cannot give one.

        percentile: of the resamples that say something. bca: bias-corrected and accelerated (Efron, JASA 1987, 82:171).
        """
        value, drawn_R = float(self.estimate_M[column]), self.drawn_RM[:, column]
        kept = drawn_R[~np.isnan(drawn_R)]
        total, skipped = len(drawn_R), len(drawn_R) - len(kept)
        low = high = None
        reason = None
        if np.isnan(value):
            reason = "a class is missing"
        elif total == 0:
            reason = "no resamples asked for"
        elif self.patients < 2:
            reason = "a single patient"
        elif 2 * skipped > total:
            reason = f"{skipped} of {total} resamples lose a class"
        elif np.ptp(kept) <= 1e-12 and np.isclose(kept[0], value, rtol=0, atol=1e-12):  # equal but for rounding
            reason = "all resamples agree, which says nothing of other patients"
        else:
            tails = ((1 - level) / 2, (1 + level) / 2)
            if method == "bca":
                if self.jackknife_PM is None:
                    raise EvalError("bca without the values of left-out patients", fix="resample(..., jackknife=True)")
                tails = _bca_tails(value, kept, self.jackknife_PM[:, column], tails)
            low, high = (float(v) for v in np.quantile(kept, tails))
        known = None if np.isnan(value) else value
        return Interval(known, low, high, level, total, skipped, self.patients, method=method, reason=reason)

    def p_at(self, at: float, column: int = 0, method: Method = "percentile") -> float:
        """Two-sided p of the statistic being `at`: 1 - the level of the narrowest interval of this method that reaches
        `at`, so that p and interval cannot say two things. At least 2 / (resamples + 1)."""
        kept = self.drawn_RM[:, column][~np.isnan(self.drawn_RM[:, column])]
        tails = [(float(side.sum()) + 1) / (len(kept) + 1) for side in (kept <= at, kept >= at)]
        if method == "bca":
            assert self.jackknife_PM is not None
            bias, acceleration = _bca(float(self.estimate_M[column]), kept, self.jackknife_PM[:, column])
            quantiles = np.clip([tails[0], 1 - tails[1]], 1e-12, 1 - 1e-12)
            from_bias = norm.ppf(quantiles) - bias  # what `_bca_tails` does to a tail, undone
            nominal = norm.cdf(from_bias / (1 + acceleration * from_bias) - bias)
            tails = [float(nominal[0]), 1 - float(nominal[1])]
        return float(np.clip(2 * min(tails), 2 / (len(kept) + 1), 1.0))


def resample(
    statistic: Statistic, patients_N: Sequence[str] | NDArray, *, resamples: int = 1000, seed: int = 0,
    jackknife: bool = False,
) -> Resampled:  # fmt: skip
    """A statistic on the data, on each resample of patients and, for BCa, with each patient left out."""
    n = len(patients_N)
    if n == 0:
        raise EvalError("no case to resample", why="there is nothing to state", fix="name a split that has studies")

    def every(blocks: Iterator[Array]) -> Array:
        values = [_columns(statistic(weights_RN)) for weights_RN in blocks]
        return np.concatenate(values) if values else np.empty((0, len(estimate_M)))

    estimate_M = _columns(statistic(np.ones((1, n))))[0]
    drawn_RM = every(patient_weights(patients_N, resamples, seed))
    left_out = every(left_out_weights(patients_N)) if jackknife else None
    return Resampled(estimate_M, drawn_RM, len(np.unique(np.asarray(patients_N))), left_out)


def interval(
    statistic: Statistic, patients_N: Sequence[str] | NDArray, *, resamples: int = 1000, seed: int = 0,
    level: float = 0.95, method: Method = "percentile",
) -> Interval:  # fmt: skip
    """Interval of one statistic, see `Resampled.interval`."""
    drawn = resample(statistic, patients_N, resamples=resamples, seed=seed, jackknife=method == "bca")
    return drawn.interval(0, level, method)


def means_by_patient(values_NM: Array, patients_N: Sequence[str] | NDArray) -> tuple[NDArray[np.str_], Statistic]:
    """(patients_P, statistic of weights of patients): the mean of each column over its known values (nan: unknown).

    A sum over a patient's cases is all that a mean needs of them, so resamples cost patients, not cases.
    """
    names, patient_N = np.unique(np.asarray(patients_N).astype(str), return_inverse=True)
    known_NM = ~np.isnan(values_NM)
    sums_PM, counts_PM = np.zeros((len(names), values_NM.shape[1])), np.zeros((len(names), values_NM.shape[1]))
    np.add.at(sums_PM, patient_N, np.where(known_NM, values_NM, 0.0))
    np.add.at(counts_PM, patient_N, known_NM.astype(np.float64))

    def means(weights_RP: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights_RP @ sums_PM) / (weights_RP @ counts_PM)

    return names, means


def clustered_means(
    values_NM: Array, patients_N: Sequence[str] | NDArray, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> list[Interval]:
    """Interval of the mean of each column over its known values; cases of a patient (or image) come and go together.

    A column that is known of a single patient has none, nor one on which all resamples agree.
    """
    names, means = means_by_patient(values_NM, patients_N)
    drawn = resample(means, names, resamples=resamples, seed=seed)
    found = []
    for column, values_N in enumerate(values_NM.T):
        interval = drawn.interval(column, level)
        patients = len(np.unique(np.asarray(patients_N)[~np.isnan(values_N)]))
        if interval.value is None:
            interval = replace(interval, reason="no case has a value")
        elif patients < 2:
            interval = replace(interval, low=None, high=None, reason="a single patient")
        found.append(replace(interval, patients=patients))
    return found


def _numbered(patients_N: Sequence[str] | NDArray) -> tuple[NDArray[np.intp], int]:
    names, patient_N = np.unique(np.asarray(patients_N).astype(str), return_inverse=True)
    return patient_N, len(names)


def _blocks(rows: int, width: int) -> Iterator[int]:
    block = max(1, _CHUNK // max(width, 1))
    for start in range(0, rows, block):
        yield min(block, rows - start)


def _columns(values: Array) -> Array:
    return values[:, None] if values.ndim == 1 else values


def _bca(value: float, kept_R: Array, left_out_P: Array) -> tuple[float, float]:
    """(bias, acceleration). A value below all resamples counts as half a resample below."""
    r = len(kept_R)
    share = (float((kept_R < value).sum()) + 0.5 * float((kept_R == value).sum())) / r
    bias = float(norm.ppf(np.clip(share, 0.5 / r, 1 - 0.5 / r)))
    known = left_out_P[~np.isnan(left_out_P)]
    spread = known.mean() - known
    scale = float(np.square(spread).sum()) ** 1.5
    return bias, 0.0 if scale == 0 else float((spread**3).sum()) / (6 * scale)


def _bca_tails(value: float, kept_R: Array, left_out_P: Array, tails: tuple[float, float]) -> tuple[float, float]:
    """The quantiles to read instead of `tails`."""
    bias, acceleration = _bca(value, kept_R, left_out_P)
    z_low, z_high = (bias + norm.ppf(tail) for tail in tails)
    return (
        float(norm.cdf(bias + z_low / (1 - acceleration * z_low))),
        float(norm.cdf(bias + z_high / (1 - acceleration * z_high))),
    )
