"""One probe: fit, choose the strength C without the test studies, fit again, score.

Legend: N studies, D features, L labels or classes, S strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.probe.split import FOLDS, Split, folds_by_patient
from eval_zero_shot.statistics import weighted_auroc

Array = NDArray[np.float64]
Start = tuple[Array, Array]
STRENGTHS = tuple(10.0**power for power in range(-6, 7))
FIXED = 1.0  # C where nothing may be or can be chosen
GRADIENT = 1e-6  # at which fits stop: scikit-learn's default is 1e-4


@dataclass(frozen=True)
class Fitted:
    """logits_NL of the scored studies (nan: could not be learnt); the C that was chosen, and on what.

    base_L: log odds of each label in what was fitted, the threshold of balanced accuracy.
    """

    logits_NL: Array
    strength: float
    chosen_on: str
    base_L: Array


def fit_and_score(
    fitted: Split, scored_ND: Array, exclusive: bool, strengths: Sequence[float], start: Start | None = None,
    device: str = "cpu",
) -> Array:  # fmt: skip
    """Logits [S, N, L] of studies under the fit at each strength; nan for a label without both classes in `fitted`.

    Classes (`exclusive`) give log-probabilities of the softmax over the classes that `fitted` has; the others nan.
    start: (weights [L, D], intercepts [L]) the fit starts at and is drawn towards.
    """
    from eval_zero_shot.probe.logistic import fit_classes, fit_labels, prepare

    y = fitted.labels_NL
    out = np.full((len(strengths), len(scored_ND), y.shape[1]), np.nan)
    known = ~np.isnan(y).all(1)
    positive_L, negative_L = (y == 1).any(0), (y == 0).any(0)
    use = np.flatnonzero(positive_L if exclusive else positive_L & negative_L)
    if len(use) < (2 if exclusive else 1):
        return out
    x, y = fitted.features_ND[known], y[known][:, use]
    basis = prepare(x, device)
    begin = None if start is None else (start[0][use], start[1][use])
    if exclusive and len(use) > 2:
        fits = fit_classes(basis, y.argmax(1), strengths, start=begin, tolerance=GRADIENT)
    elif exclusive:  # softmax of two classes is one label, whose logit is the difference of theirs
        begin = begin and tuple((part[1] - part[0])[None] for part in begin)
        fits = fit_labels(basis, y[:, 1:], strengths, start=begin, tolerance=GRADIENT)
    else:
        fits = fit_labels(basis, y, strengths, start=begin, tolerance=GRADIENT)
    if not fits.converged:
        raise EvalError(
            f"a fit stopped at a gradient of {fits.gradient_SP.max():.1e}, above {fits.tolerance:.0e}",
            why="it is not the optimum, and another model's might be",
            fix="leave out the largest strengths, or features that are not finite or of wild scale",
        )
    for s in range(len(strengths)):
        logits = fits.logits(scored_ND, s)
        if exclusive:
            logits = np.concatenate([0 * logits, logits], axis=1) if len(use) == 2 else logits
            logits = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        out[s][:, use] = logits
    return out


def merit(scores_NL: Array, labels_NL: Array, exclusive: bool) -> float:
    """What C is chosen by: macro AUROC over the labels with both classes, or balanced accuracy; nan where none is."""
    if exclusive:
        known = ~np.isnan(labels_NL).all(1)
        scores, truth = np.where(np.isnan(scores_NL[known]), -np.inf, scores_NL[known]), labels_NL[known] == 1
        right = truth[np.arange(len(truth)), scores.argmax(1)] if len(truth) else np.zeros(0)
        each = [right[truth[:, c]].mean() for c in range(truth.shape[1]) if truth[:, c].any()]
        return float(np.mean(each)) if len(each) > 1 else np.nan
    ones = np.ones((1, len(labels_NL)))
    usable = [j for j in range(labels_NL.shape[1]) if not np.isnan(scores_NL[:, j]).any()]
    found = np.array([weighted_auroc(scores_NL[:, j], labels_NL[:, j], ones)[0] for j in usable])
    found = found[~np.isnan(found)]
    return float(found.mean()) if len(found) else np.nan


def choose_strength(
    train: Split, validation: Split | None, exclusive: bool = False, *, strengths: Sequence[float] = STRENGTHS,
    finer: bool = False, start: Start | None = None, device: str = "cpu",
) -> tuple[float, str]:  # fmt: skip
    """(C with the best `merit`, the smaller one on a tie, and where that was measured): on the validation split, or
    over folds by patient where there is none that can tell.

    finer: CLIP's search instead of the given strengths: 10^-6 ... 10^6 in steps of two decades, then the steps around
    the best halved until an eighth of a decade (Radford et al. 2021, appendix A.3).
    """

    def split_merit(fitted: Split, scored: Split, at: Sequence[float]) -> Array:
        logits_SNL = fit_and_score(fitted, scored.features_ND, exclusive, at, start, device)
        return np.array([merit(logits_NL, scored.labels_NL, exclusive) for logits_NL in logits_SNL])

    def on_validation(at: Sequence[float]) -> Array:
        assert validation is not None
        return split_merit(train, validation, at)

    if validation is not None and not np.isnan(on_validation(strengths[:1])).any():
        return _search(on_validation, strengths, finer), "validation split"
    fold_N = folds_by_patient(train.patients_N)
    parts = [(train.rows(fold_N != fold), train.rows(fold_N == fold)) for fold in range(FOLDS)]
    parts = [p for p in parts if min(map(len, p)) and not np.isnan(split_merit(*p, strengths[:1])).any()]
    if not parts:
        return FIXED, f"nothing: too few cases to choose, C = {FIXED:g}"

    def on_folds(at: Sequence[float]) -> Array:
        return np.sum([split_merit(*part, at) for part in parts], axis=0)

    return _search(on_folds, strengths, finer), f"{len(parts)} folds by patient"


def _search(score: Callable[[Sequence[float]], Array], strengths: Sequence[float], finer: bool) -> float:
    if not finer:
        ordered = sorted(strengths)
        return ordered[int(np.argmax(score(ordered)))]
    powers = [float(p) for p in range(-6, 7, 2)]
    known: dict[float, float] = dict(zip(powers, score([10**p for p in powers]), strict=True))
    step = 1.0
    while step >= 0.125:
        best = _best(known)
        new = [p for p in (best - step, best + step) if -6 <= p <= 6 and p not in known]
        known |= dict(zip(new, score([10**p for p in new]), strict=True)) if new else {}
        step /= 2
    return float(10 ** _best(known))


def _best(known: dict[float, float]) -> float:
    return min(known, key=lambda power: (-known[power], power))


def probe(
    train: Split, validation: Split | None, scored_ND: Array, exclusive: bool = False, *, strength: float | None = None,
    refit: bool = True, **how: Any,
) -> Fitted:  # fmt: skip
    """Choose C (`choose_strength`, which takes `how`) unless it is given, fit on train and, with `refit`, validation
    together, score. Features are taken as they are: see `scaling`."""
    if strength is None:
        strength, chosen_on = choose_strength(train, validation, exclusive, **how)
    else:
        chosen_on = f"nothing: fixed, C = {strength:g}"
    together = train.with_(validation) if refit else train
    start, device = how.get("start"), how.get("device", "cpu")
    logits_NL = fit_and_score(together, scored_ND, exclusive, [strength], start, device)[0]
    positive_L, negative_L = ((together.labels_NL == side).sum(0) for side in (1, 0))
    base_L = np.log(np.maximum(positive_L, 0.5)) - np.log(np.maximum(negative_L, 0.5))
    return Fitted(logits_NL, strength, chosen_on, base_L)
