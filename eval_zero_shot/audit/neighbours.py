"""Test studies that the model itself sees next to a training study, nearer than unrelated patients ever come.

The threshold is the cosine that the nearest neighbour of one in a hundred studies exceeds among other patients of its
own set (the stricter of training and test). By that definition one test study in a hundred exceeds it by chance; more
than chance calls for a look at the pairs, not for a verdict: neighbours are often the same view of different patients
(a fifth of SLAKE's images have one in PMC-OA, arXiv 2606.10066).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.audit.duplicates import FEWEST, QUERIES, TAIL, Found, Pair
from eval_zero_shot.audit.nearest import cosine_distance, nearest, unrelated
from eval_zero_shot.audit.verdict import Check

NAME = "embedding neighbours"
RARE = 0.01  # chance below which more neighbours than expected are called more


def neighbours(
    test_ND: NDArray[np.float32],
    train_MD: NDArray[np.float32],
    test_patients: NDArray[np.str_],
    train_patients: NDArray[np.str_],
    seed: int = 0,
) -> Found:
    """Pairs of test and training studies above the calibrated cosine. Features are unit vectors."""
    from scipy.stats import beta, binom

    nulls = []
    for features, people in ((train_MD, train_patients), (test_ND, test_patients)):
        numbers = np.unique(people, return_inverse=True)[1]
        nulls.append(unrelated(features, numbers, cosine_distance, QUERIES, seed))
    nulls = [null for null in nulls if len(null) >= FEWEST]
    if not nulls:
        says = f"fewer than {FEWEST} patients on either side, so how near unrelated patients come is not known."
        return Found(Check(NAME, "not checked", says))
    limit = min(float(np.percentile(null, TAIL)) for null in nulls)
    found = nearest(test_ND, train_MD, cosine_distance, limit=limit)
    hits = np.flatnonzero(found.distance_Q < limit)
    k, n = len(hits), len(test_ND)
    beyond = [(int((null < limit).sum()), len(null)) for null in nulls]
    chance = max(float(beta.ppf(0.975, k0 + 1, total - k0)) for k0, total in beyond)  # Clopper-Pearson, the upper end
    more = bool(binom.sf(k - 1, n, chance) < RARE)
    says = (
        f"{k} of {n} test studies have a training neighbour above cosine {1 - limit:.4f}, which 1 of 100 studies "
        f"exceeds among unrelated patients (up to {chance * n:.1f} expected)"
    )
    says += ": more than chance; look at the pairs, which may be one view of different patients." if more else "."
    pairs = tuple(
        Pair("embedding", int(i), int(found.index_Q[i]), 1 - float(found.distance_Q[i]), 1 - limit,
             int(found.within_Q[i]))
        for i in hits
    )  # fmt: skip
    return Found(Check(NAME, "warn" if more else "ok", says, k / n, chance, n), pairs)
