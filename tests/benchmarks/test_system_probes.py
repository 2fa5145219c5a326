"""Probes of several shard sets as one table."""

from __future__ import annotations

import numpy as np

from benchmarks.comparisons import SWEEPS
from benchmarks.system_probes import QUESTIONS, side_by_side
from eval_zero_shot.statistics import Run, macro_over_runs


def test_a_set_is_no_case_of_what_it_was_not_asked() -> None:
    one = Run.of([[0.1], [0.9], [0.4]], [[0], [1], [1]], ["a", "b", "c"])
    other = Run.of([[0.2, 0.3], [0.8, 0.1]], [[0, 1], [1, 0]], ["d", "e"])
    both = side_by_side([one, other])
    assert both.scores_NL.shape == both.labels_NL.shape == (5, 3)
    assert np.isnan(both.labels_NL[:3, 1:]).all() and np.isnan(both.labels_NL[3:, 0]).all()
    assert np.array_equal(both.scores_NL[3:, 1:], other.scores_NL) and both.patients_N.tolist() == list("abcde")
    alone = [macro_over_runs([run], resamples=0).value for run in (one, other)]
    assert macro_over_runs([both], resamples=0).value == np.average(np.array(alone, float), weights=[1, 2])


def test_every_question_is_of_a_sweep() -> None:
    assert set(QUESTIONS) <= set(SWEEPS)
