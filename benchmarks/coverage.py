"""How often an interval for one AUROC holds the truth: `python -m benchmarks.coverage [--trials 1000]`.

Simulated patients, one in six with two studies whose scores and labels go together; scores are normal in both classes
(unit variance, half of it the patient's own), so the true AUROC is known. For every number of patients, prevalence and
true AUROC: the share of trials whose 95 % interval holds the truth, for the closed form on the logit scale
(eval_zero_shot.delong) and for the percentile bootstrap over patients.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

import numpy as np

PATIENTS, PREVALENCES, AUROCS = (33, 100, 300, 1000), (0.05, 0.15, 0.4), (0.8, 0.9, 0.95)
FEW = 15  # patients of a class


def simulate(
    patients: int, prevalence: float, auroc: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and patient numbers of one trial."""
    from scipy.stats import norm

    patient_N = np.sort(np.concatenate([np.arange(patients), np.arange(0, patients, 6)]))
    own_K, ill_K = rng.normal(size=patients), rng.random(patients) < prevalence
    ill_N = ill_K[patient_N]
    again = np.r_[False, np.diff(patient_N) == 0] & (rng.random(len(patient_N)) < 0.3)  # drawn anew at the second visit
    ill_N = np.where(again, rng.random(len(patient_N)) < prevalence, ill_N)
    noise = np.sqrt(0.5) * (own_K[patient_N] + rng.normal(size=len(patient_N)))
    return noise + np.sqrt(2) * norm.ppf(auroc) * ill_N, ill_N.astype(float), patient_N


def cell(patients: int, prevalence: float, auroc: float, trials: int, resamples: int) -> tuple[float, float, float]:
    """(coverage of the logit form, of the bootstrap, share of trials with an interval and FEW patients in each class),
    over the trials of the last."""
    from eval_zero_shot.delong import logit_interval
    from eval_zero_shot.statistics import Run, macro_over_runs

    held = np.zeros(2)
    counted = 0
    for trial in range(trials):
        rng = np.random.Generator(np.random.Philox([trial, patients, round(1000 * prevalence), round(1000 * auroc)]))
        scores, labels, patient_N = simulate(patients, prevalence, auroc, rng)
        if min(len(np.unique(patient_N[labels == side])) for side in (0, 1)) < FEW:
            continue
        counted += 1
        _, low, high = logit_interval(scores, labels, patient_N)
        held[0] += low <= auroc <= high
        if resamples:
            interval = macro_over_runs([Run.of(scores, labels, patient_N)], resamples=resamples, seed=trial)
            if interval.low is not None and interval.high is not None:
                held[1] += interval.low <= auroc <= interval.high
    logit, percentile = held / counted if counted else (np.nan, np.nan)
    percentile = percentile if resamples else np.nan
    return float(logit), float(percentile), counted / trials


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description="How often an interval for one AUROC holds the truth."
    )
    add = parser.add_argument
    add("--trials", type=int, default=1000, metavar="N", help="simulated test sets a cell (default: 1000)")
    add("--resamples", type=int, default=400, metavar="N", help="of the bootstrap; 0 leaves it out (default: 400)")
    args = parser.parse_args(argv)
    print(f"Coverage of nominal 95 % intervals, {args.trials} trials a cell, {args.resamples} resamples; trials with")
    print(f"fewer than {FEW} patients in a class are left out (there the page says `too few cases`).\n")
    print("| patients | prevalence | true AUROC | logit | percentile bootstrap | trials counted |")
    print("|---|---|---|---|---|---|")
    least = 1.0
    for patients, prevalence, auroc in itertools.product(PATIENTS, PREVALENCES, AUROCS):
        logit, percentile, share = cell(patients, prevalence, auroc, args.trials, args.resamples)
        if share < 0.02:
            print(f"| {patients} | {prevalence:.0%} | {auroc} | – | – | {share:.0%} |", flush=True)
            continue
        least = min(least, logit)
        other = "–" if np.isnan(percentile) else f"{percentile:.3f}"
        print(f"| {patients} | {prevalence:.0%} | {auroc} | {logit:.3f} | {other} | {share:.0%} |", flush=True)
    print(f"\nLeast coverage of the logit form: {least:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
