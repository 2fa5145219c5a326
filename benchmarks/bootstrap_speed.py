"""1,000 patient resamples of 18 AUROCs over 3,039 cases, against a loop: `python -m benchmarks.bootstrap_speed`.

Ours: eval_zero_shot.resample, each finding sorted once, all resamples a cumulative sum over it. The loop draws the same
number of patients with numpy, repeats their rows and calls scikit-learn's roc_auc_score for each finding; it is timed
over fewer resamples (--loop-resamples) and stated per 1,000. Both give the macro AUROC's 95 % percentile interval.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine

CASES, SCANS_A_PATIENT, FINDINGS = 3039, 2.33, 18  # CT-RATE's validation set: 3,039 volumes of 1,304 patients


def cases(seed: int = 0) -> tuple[NDArray, NDArray, NDArray]:
    """scores_NL, labels_NL, patients_N with prevalences from 7 to 45 %."""
    rng = np.random.default_rng(seed)
    patients_N = np.sort(rng.integers(0, int(CASES / SCANS_A_PATIENT), CASES)).astype(str)
    labels_NL = (rng.random((CASES, FINDINGS)) < np.linspace(0.07, 0.45, FINDINGS)).astype(float)
    return rng.normal(size=labels_NL.shape) + labels_NL, labels_NL, patients_N


def ours(scores_NL: NDArray, labels_NL: NDArray, patients_N: NDArray, resamples: int) -> tuple[float, float]:
    from eval_zero_shot.resample import interval
    from eval_zero_shot.statistics import weighted_auroc

    def macro(weights_RN: NDArray) -> NDArray:
        columns = zip(scores_NL.T, labels_NL.T, strict=True)
        return np.mean([weighted_auroc(s, y, weights_RN) for s, y in columns], axis=0)

    found = interval(macro, patients_N, resamples=resamples)
    assert found.low is not None and found.high is not None
    return found.low, found.high


def loop(scores_NL: NDArray, labels_NL: NDArray, patients_N: NDArray, resamples: int) -> tuple[float, float]:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    rows_of = [np.flatnonzero(patients_N == p) for p in np.unique(patients_N)]
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([rows_of[i] for i in rng.integers(0, len(rows_of), len(rows_of))])
        drawn.append(np.mean([roc_auc_score(labels_NL[rows, j], scores_NL[rows, j]) for j in range(FINDINGS)]))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bootstrap_speed", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs of ours (default: 5)")
    parser.add_argument("--loop-resamples", type=int, default=100, metavar="N", help="of the loop (default: 100)")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    print(machine())
    given = cases()
    ours(*given, 10), loop(*given, 1)  # imports
    seconds, busy = [], []
    for _ in range(args.repeats):
        began, cpu = time.perf_counter(), time.process_time()
        low, high = ours(*given, 1000)
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - cpu)  # one thread: what it takes on a core of its own
    began, cpu = time.perf_counter(), time.process_time()
    loop_low, loop_high = loop(*given, args.loop_resamples)
    slow, slow_busy = (
        (now - then) * 1000 / args.loop_resamples
        for now, then in ((time.perf_counter(), began), (time.process_time(), cpu))
    )
    median = statistics.median(seconds)
    print(f"1,000 resamples of {FINDINGS} AUROCs over {CASES:,} cases:")
    spread = f"median of {args.repeats}; {min(seconds):.2f} to {max(seconds):.2f}"
    cpu = statistics.median(busy)
    print(f"  ours  {median:6.2f} s, {cpu:.2f} s of processor ({spread})   {low:.4f} to {high:.4f}")
    few = f"from {args.loop_resamples} resamples"
    print(f"  loop  {slow:6.2f} s, {slow_busy:.2f} s of processor ({few})   {loop_low:.4f} to {loop_high:.4f}")
    print(f"  loop / ours {slow_busy / cpu:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
