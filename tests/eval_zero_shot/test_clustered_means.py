"""Intervals of means over queries: patients come and go together."""

from __future__ import annotations

import numpy as np
import pytest

from eval_zero_shot.resample import clustered_means

NAN = float("nan")


def test_value_is_the_mean_over_the_queries_that_were_asked() -> None:
    values = np.array([[1.0, NAN], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    first, second = clustered_means(values, np.array(["a", "b", "c", "d"]), resamples=200)
    assert (first.value, second.value) == (0.5, pytest.approx(1 / 3))
    assert first.low is not None and first.low < 0.5 < first.high


def test_width_is_that_of_independent_patients_not_of_their_queries() -> None:
    """Ten queries a patient, all alike: no narrower than one query a patient."""
    rng = np.random.default_rng(0)
    values, patients = rng.integers(0, 2, size=200).astype(float), np.arange(200)
    (once,) = clustered_means(values[:, None], patients, resamples=2000)
    (many,) = clustered_means(np.repeat(values, 10)[:, None], np.repeat(patients, 10), resamples=2000)
    assert (many.low, many.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert once.high - once.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(200), rel=0.1)


@pytest.mark.parametrize(
    ("values", "patients", "reason"),
    [([1.0, 1.0, 1.0], "abc", "all resamples agree"), ([1 / 3] * 7, "abcdefg", "all resamples agree"),
      ([1.0, 0.0, 1.0], "aaa", "single patient"),
     ([NAN, NAN, NAN], "abc", "no case has a value")],
)  # fmt: skip
def test_no_interval_is_better_than_one_of_width_zero(values: list[float], patients: str, reason: str) -> None:
    (found,) = clustered_means(np.array(values)[:, None], np.array(list(patients)))
    assert (found.low, found.high) == (None, None)
    assert found.reason is not None and reason in found.reason
