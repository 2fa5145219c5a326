"""Can the labels be told without anatomy? A logistic regression on corners and border, and one on how the scan was
acquired, cross-validated by patient; and whether the model's own score leans on the border.

A probe is believed where its AUROC's interval, at a level corrected for all probes of the audit (Bonferroni), lies
above 0.5 and the AUROC is at least 0.60. That is a property of the data. It becomes a failure of the scores where
blanking the corners or the frame also lowers the model's AUROC for the same finding, or brings the scores of positive
and negative studies nearer to each other.

Legend: N studies, L findings, K numbers a probe sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.audit.controls import MATERIAL, Case, Control, above, said, separation_loss
from eval_zero_shot.audit.verdict import Check
from eval_zero_shot.outcome import Metric
from eval_zero_shot.statistics import Interval, Run, finding_interval, macro_difference

FOLDS = 5
FEWEST = 10  # patients of a class
CAUGHT = 0.60
ALPHA = 0.01  # of all probes together; cross-validated scores vary more than an interval of their AUROC knows
SEPARATION = 0.2  # standard deviations of the score
STRENGTH = 0.1  # C of the regression: features are standardised and few, studies may be fewer
BORDER, ACQUISITION = "border shortcut", "acquisition shortcut"
Array = NDArray[np.float64]


def with_kinds(facts_NK: NDArray[np.float32], kinds_N: Sequence[str]) -> Array:
    """Numbers of the acquisition and one column for each kind of scan (modality and file type)."""
    names, index = np.unique(np.asarray(kinds_N, dtype=str), return_inverse=True)
    return np.concatenate([facts_NK, np.eye(len(names))[index]], axis=1).astype(np.float64)


def probe(features_NK: NDArray, labels_N: Array, patients_N: NDArray[np.str_], seed: int) -> Array | str:
    """Out-of-fold scores [N] (nan where the label is unknown), or why there are none."""
    from sklearn.linear_model import LogisticRegression

    rows = np.flatnonzero(~np.isnan(labels_N))
    y, x = labels_N[rows], np.asarray(features_NK, dtype=np.float64)[rows]
    people, patient = np.unique(patients_N[rows], return_inverse=True)
    fewest = min(len(np.unique(patient[y == side])) for side in (0, 1))
    if fewest < FEWEST:
        return f"a class has {fewest} patients, fewer than {FEWEST}"
    if (x == x[0]).all():
        return "the same for every study"
    rng = np.random.Generator(np.random.Philox([seed, 4]))
    order = rng.permutation(len(people))
    positive = np.bincount(patient, weights=y, minlength=len(people)) > 0
    order = order[np.argsort(positive[order], kind="stable")]  # patients with the finding are dealt out evenly
    fold = np.empty(len(people), np.int64)
    fold[order] = np.arange(len(people)) % FOLDS
    out = np.full(len(labels_N), np.nan)
    for held in (fold[patient] == number for number in range(FOLDS)):
        if len(np.unique(y[~held])) < 2:
            return "a fold of patients lacks a class"
        spread = x[~held].std(axis=0)
        scaled = (x - x[~held].mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
        model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(scaled[~held], y[~held])
        out[rows[held]] = model.decision_function(scaled[held])
    return out


def shortcut(
    name: str, case: Case, names: Sequence[str], features_NK: NDArray, blanked: dict[str, Array], probes: int
) -> Control:
    """One probe for every finding.

    blanked: the model's scores [N, L] with a part of the image blanked, by name of the part; none: the model's
    dependence is not asked. probes: of the whole audit.
    """
    level = 1 - ALPHA / max(probes, 1)
    n = len(case.labels_NL)
    metrics: list[Metric] = []
    caught: list[tuple[str, Interval]] = []
    leaning: list[str] = []
    why, values = set(), []
    for j, finding in enumerate(names):
        scores = probe(features_NK, case.labels_NL[:, j], case.patients_N, case.seed)
        if isinstance(scores, str):
            why.add(scores)
            continue
        known = ~np.isnan(scores)
        run = Run.of(scores[known], case.labels_NL[known, j], case.patients_N[known])
        interval = finding_interval(run, 0, level)
        metrics.append(Metric.of_interval("auroc", interval, of=finding, at={"from": name}, n=int(known.sum())))
        values.append(interval.value or 0.0)
        if not above(interval, 0.5) or (interval.value or 0) < CAUGHT:
            continue
        caught.append((finding, interval))
        own = Run.of(case.scores_NL[:, j], case.labels_NL[:, j], case.patients_N)
        for part, blanked_NL in blanked.items():
            other = Run.of(blanked_NL[:, j], case.labels_NL[:, j], case.patients_N)
            loss = macro_difference([own], [other], resamples=case.resamples, seed=case.seed)
            at = {"control": part}
            metrics.append(Metric.of_interval("auroc_loss", loss, of=finding, at=at, n=n))
            nearer = separation_loss(case, j, blanked_NL[:, j])
            metrics.append(Metric.of_interval("separation_loss", nearer, of=finding, at=at, n=n))
            if above(loss) and (loss.value or 0) >= MATERIAL:
                leaning.append(f"AUROC of {finding} falls by {said(loss)} with {part}")
            elif above(nearer) and (nearer.value or 0) >= SEPARATION:
                leaning.append(f"scores of {finding} come {said(nearer)} standard deviations nearer with {part}")
    seen = "the border and corners" if name == BORDER else "size, spacing, file and mean intensity"
    if not values:
        return Control(Check(name, "not checked", f"no finding could be probed: {'; '.join(sorted(why))}."))
    worst = max(values)
    if not caught:
        says = f"no finding can reliably be told from {seen} alone (greatest AUROC {worst:.3f}, by its interval not "
        says += f"materially above chance; {len(values)} findings probed)."
        return Control(Check(name, "ok", says, worst, CAUGHT, n), tuple(metrics))
    listed = "; ".join(
        f"{finding} with AUROC {said(i)}" for finding, i in sorted(caught, key=lambda c: -(c[1].value or 0))
    )
    says = f"{seen} alone, without anatomy, tell {listed} (logistic regression, folds by patient)"
    if leaning:
        says += f"; and the model uses it: {'; '.join(leaning)}."
        return Control(Check(name, "fail", says, worst, CAUGHT, n), tuple(metrics))
    says += (
        "; the model's scores do not depend on the border measurably." if blanked else ": look how cases were chosen."
    )
    return Control(Check(name, "warn", says, worst, CAUGHT, n), tuple(metrics))
