"""Do the scores belong to the findings they are named after? Shuffled class names, the best assignment, and the sign.

AUROC of every score column against every finding's labels, [L, L]. With names in order its diagonal should be best. A
model whose class names are permuted scores at chance on the diagonal while some other one-to-one assignment (Hungarian
method) scores well. The best of L! assignments looks good by luck, so it is chosen on one half of the patients and
measured on the other, both ways; under right names that gain is at most zero in expectation.

Legend: N studies, L findings, R resamples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.audit.controls import MATERIAL, Case, Control, above, known, said
from eval_zero_shot.audit.verdict import Check
from eval_zero_shot.outcome import Metric
from eval_zero_shot.resample import patient_weights
from eval_zero_shot.statistics import finding_interval, percentile_interval, weighted_auroc

SHUFFLES = 20
FEW = 200  # resamples of a whole matrix of AUROCs
Array = NDArray[np.float64]


def auroc_matrix(scores_NL: Array, labels_NL: Array, weights_RN: NDArray) -> Array:
    """[R, L, L]: AUROC of score column c against finding f's labels, at [r, f, c]; nan where a class is missing."""
    n_findings = labels_NL.shape[1]
    out = np.empty((len(weights_RN), n_findings, n_findings))
    for f in range(n_findings):
        for c in range(n_findings):
            out[:, f, c] = weighted_auroc(scores_NL[:, c], labels_NL[:, f], weights_RN)
    return out


def permuted_names(case: Case, names: Sequence[str]) -> Control:
    """Whether another assignment of score columns to findings beats the one by name."""
    name = "permuted class names"
    if len(names) < 2:
        return Control(Check(name, "not checked", "one finding has nobody to be exchanged with."))
    half_N = np.asarray([hashlib.sha256(str(p).encode()).digest()[0] % 2 for p in case.patients_N])
    halves = [(half_N == h).astype(float)[None] for h in (0, 1)]
    matrices = [auroc_matrix(case.scores_NL, case.labels_NL, w)[0] for w in halves]
    usable = np.flatnonzero(~np.isnan(matrices).any(axis=(0, 2)))
    if len(usable) < 2:
        return Control(
            Check(name, "not checked", "fewer than two findings have both classes in each half of patients.")
        )
    scores, labels = case.scores_NL[:, usable], case.labels_NL[:, usable]
    chosen = [_best(matrix[np.ix_(usable, usable)]) for matrix in matrices]
    weights_RN = _draws(case)
    drawn = [
        _gain(scores, labels, weights_RN * halves[1 - h][0], order) for h, order in enumerate(chosen)
    ]  # each assignment on the half that did not choose it
    gain_R = (drawn[0] + drawn[1]) / 2
    gain = percentile_interval(float(gain_R[0]), gain_R[1:], patients=len(np.unique(case.patients_N)))
    whole = auroc_matrix(scores, labels, np.ones((1, len(scores))))[0]
    order = _best(whole)
    own, best = float(np.diag(whole).mean()), float(whole[np.arange(len(order)), order].mean())
    metrics = (
        Metric("auroc", best, at={"control": "best assignment"}, n=len(scores), reason="chosen on the same studies"),
        Metric.of_interval("auroc_gain", gain, at={"control": "best assignment"}, n=len(scores)),
    )
    moved = [f"{names[usable[f]]} by the score of {names[usable[c]]}" for f, c in enumerate(order) if f != c]
    says = (
        f"macro AUROC {own:.3f} by name, {best:.3f} under the best one-to-one assignment; chosen on one half of the "
        f"patients and measured on the other, the gain is {said(gain)}"
    )
    if not known(gain):
        return Control(Check(name, "not checked", f"{says}; no interval ({gain.reason}).", n=len(scores)), metrics)
    if above(gain) and (gain.value or 0) >= MATERIAL:
        says += f": the scores belong to other findings ({', '.join(moved[:6])}{', ...' if len(moved) > 6 else ''})."
        return Control(Check(name, "fail", says, gain.value, MATERIAL, len(scores)), metrics)
    return Control(Check(name, "ok", f"{says}.", gain.value, MATERIAL, len(scores)), metrics)


def shuffled_names(case: Case, names: Sequence[str]) -> Control:
    """The score when every finding is asked for with another finding's prompts, over several derangements."""
    name = "shuffled class names"
    matrix = auroc_matrix(case.scores_NL, case.labels_NL, np.ones((1, len(case.scores_NL))))[0]
    usable = np.flatnonzero(~np.isnan(np.diag(matrix)))
    if len(usable) < 2:
        return Control(Check(name, "not checked", "fewer than two findings have both classes."))
    scores, labels = case.scores_NL[:, usable], case.labels_NL[:, usable]
    orders = _derangements(len(usable), case.seed)
    weights_RN = _draws(case)[: 1 + FEW]
    matrices = auroc_matrix(scores, labels, weights_RN)
    findings = np.arange(len(usable))
    shuffled_R = np.mean([matrices[:, findings, order].mean(axis=1) for order in orders], axis=0)
    own_R = matrices[:, findings, findings].mean(axis=1)
    people = len(np.unique(case.patients_N))
    loss = percentile_interval(float(own_R[0] - shuffled_R[0]), own_R[1:] - shuffled_R[1:], patients=people)
    macro = percentile_interval(float(shuffled_R[0]), shuffled_R[1:], patients=people)
    at = {"control": "shuffled class names"}
    metrics = (
        Metric.of_interval("auroc", macro, at=at, n=len(scores)),
        Metric.of_interval("auroc_loss", loss, at=at, n=len(scores)),
    )
    says = (
        f"macro AUROC {said(macro)} when each finding is asked for in another's words (mean of "
        f"{len(orders)} derangement{'s' if len(orders) > 1 else ''}); in its own it is higher by {said(loss)}"
    )
    if not known(loss):
        return Control(Check(name, "not checked", f"{says}; no interval ({loss.reason}).", n=len(scores)), metrics)
    if above(loss):
        return Control(Check(name, "ok", f"{says}.", loss.value, 0.0, len(scores)), metrics)
    worse = loss.high is not None and loss.high < 0
    why = "another's words do better than the own" if worse else "the words make no reliable difference"
    return Control(Check(name, "warn", f"{says}: {why}.", loss.value, 0.0, len(scores)), metrics)


def inverted(case: Case, names: Sequence[str]) -> Control:
    """Findings whose scores are reliably the wrong way round: positive and negative prompts, or labels, exchanged."""
    name, n = "inverted findings", len(case.scores_NL)
    level = 1 - 0.05 / len(names)
    found = [finding_interval(case.run(), j, level) for j in range(len(names))]
    wrong = [(names[j], i) for j, i in enumerate(found) if i.high is not None and i.high < 0.5]
    values = [i.value for i in found if i.value is not None]
    if not values:
        return Control(Check(name, "not checked", "no finding has both classes."))
    if not wrong:
        return Control(Check(name, "ok", "no finding's AUROC is reliably below 0.5.", min(values), 0.5, n))
    listed = "; ".join(f"{finding}: AUROC {said(interval)}" for finding, interval in wrong)
    says = f"scores are the wrong way round for {listed}; prompts or labels may be exchanged."
    return Control(Check(name, "fail", says, min(values), 0.5, n))


def _best(matrix_LL: Array) -> NDArray[np.int64]:
    """Column for each finding; the one by name among equally good ones."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(matrix_LL + 1e-9 * np.eye(len(matrix_LL)), maximize=True)[1]


def _gain(scores_NL: Array, labels_NL: Array, weights_RN: NDArray, order: NDArray[np.int64]) -> Array:
    """[R] macro AUROC under an assignment less that by name."""
    gains = [
        weighted_auroc(scores_NL[:, c], labels_NL[:, f], weights_RN)
        - weighted_auroc(scores_NL[:, f], labels_NL[:, f], weights_RN)
        for f, c in enumerate(order)
        if f != c
    ]
    return np.sum(gains, axis=0) / len(order) if gains else np.zeros(len(weights_RN))


def _draws(case: Case) -> Array:
    """[1 + R, N] weights of studies: all once, then patients drawn."""
    drawn = patient_weights(case.patients_N, case.resamples, case.seed)
    return np.concatenate([np.ones((1, len(case.patients_N))), *drawn])


def _derangements(n: int, seed: int) -> list[NDArray[np.int64]]:
    """Up to SHUFFLES orders in which nobody stays in place."""
    rng, found = np.random.Generator(np.random.Philox([seed, 3])), {}
    for _ in range(50 * SHUFFLES):
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            found[tuple(order.tolist())] = order
        if len(found) == SHUFFLES:
            break
    return list(found.values())
