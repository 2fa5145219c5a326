"""Where a finding's score becomes a yes, by four rules; a yes is a score at or above the threshold.

sign        the positive prompts are nearer than the negative ones (Merlin, arXiv 2406.06512): nothing is fitted
validation  nearest to the corner (0, 1) of the ROC curve of a split that is not the one scored
prevalence  as many yes as there are positives on that split
test        nearest to the corner on the scored split itself, as CT-CLIP (arXiv 2403.17834): optimistic, for comparison
            with papers that state such numbers, and never anything else
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Rule = Literal["sign", "validation", "prevalence", "test"]
RULES: tuple[Rule, ...] = ("sign", "validation", "prevalence", "test")
SIGN = float(np.nextafter(0.0, 1.0))  # the smallest score above 0: a tie of the two sides is a no


def nearest_to_corner(scores_N: ArrayLike, labels_N: ArrayLike) -> float | None:
    """The threshold whose point of the ROC curve is nearest to (0, 1): min (1 - sensitivity)^2 + (1 - specificity)^2.

    Of equally near ones the highest. labels_N: 1, 0, nan for unknown (masked). None where a class is missing.
    """
    from sklearn.metrics import roc_curve

    scores, labels = _known(scores_N, labels_N)
    if len(np.unique(labels)) < 2:
        return None
    false, true, at = roc_curve(labels, scores, drop_intermediate=False)
    distance = (1 - true[1:]) ** 2 + false[1:] ** 2  # the first point says no to everything, above every score
    return float(at[1:][int(np.argmin(distance))])


def matching_prevalence(scores_N: ArrayLike, labels_N: ArrayLike) -> float | None:
    """The score of the n-th highest case, n being the number of positives. None where a class is missing."""
    scores, labels = _known(scores_N, labels_N)
    if len(np.unique(labels)) < 2:
        return None
    return float(np.sort(scores)[::-1][int(labels.sum()) - 1])


def _known(scores_N: ArrayLike, labels_N: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N, dtype=np.float64)
    return scores[~np.isnan(labels)], labels[~np.isnan(labels)]
