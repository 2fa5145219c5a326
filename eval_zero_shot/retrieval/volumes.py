"""Volume to volume: are the nearest studies of other patients alike in their findings? Two definitions, never mixed.

jaccard       CT-CLIP (arXiv 2403.17834): of studies with at least one finding, the mean over the k nearest of
              |both| / (|both| + |either alone|). The paper calls it MAP@k; it is graded, and no average precision.
exact_labels  SPECTRE: relevant is a study with the same label tuple; average precision over the k nearest,
              sum of precision at each hit / min(k, relevant studies). Queries without a relevant study are left out.

Legend: N studies, L labels, K values of k. A study counts where all labels are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.retrieval.top import top_k

Relevance = Literal["jaccard", "exact_labels"]
RELEVANCES: tuple[Relevance, ...] = ("jaccard", "exact_labels")


@dataclass(frozen=True)
class VolumeHits:
    """Score of each query study at each k, [N, K]; nan for a study that is no query, left_out says how many and why."""

    score_NK: NDArray[np.float64]
    chance_K: NDArray[np.float64]
    candidates: int
    left_out: Mapping[str, int]


def volume_hits(
    image_ND: ArrayLike,
    labels_NL: ArrayLike,
    owner_N: Sequence[str] | NDArray,
    relevance: Relevance,
    ks: Sequence[int] = (1, 5, 10, 50),
) -> VolumeHits:
    """Scores of every study as a query among those of other owners: owner_N names the patient of each, or the study
    itself, where a patient's other studies may be found. chance_K: the expected relevance of a random candidate (for
    exact_labels its precision, which average precision of a random order approaches from above).

    Raises EvalError where labels and studies differ in number, or where a k is below 1.
    """
    labels, owners = np.asarray(labels_NL, dtype=np.float64), np.asarray(owner_N).astype(str)
    images = np.asarray(image_ND)
    if not len(images) == len(labels) == len(owners) or labels.ndim != 2 or labels.shape[1] == 0 or min(ks) < 1:
        raise EvalError(
            f"{len(images)} studies, labels {labels.shape}, {len(owners)} owners and k of {list(ks)} do not fit",
            why="a study would be compared by another one's labels",
            fix="give one row of labels and one owner a study, at least one label, and k of 1 or more",
        )
    known = ~np.isnan(labels).any(axis=1)
    used = known & (np.nan_to_num(labels).any(axis=1) if relevance == "jaccard" else True)
    at = np.flatnonzero(used)
    left_out = {"an unknown label": int((~known).sum()), "no finding": int((known & ~used).sum())}
    group = np.unique(owners[at], return_inverse=True)[1].reshape(-1)
    score_NK = np.full((len(images), len(ks)), np.nan)
    chance_K = np.full(len(ks), np.nan)
    if len(at) > 1:
        found, _ = top_k(images[at], images[at], max(ks), group_Q=group, group_M=group)
        alike, luck = (_jaccard if relevance == "jaccard" else _exact)(labels[at].astype(bool), found, group, ks)
        score_NK[at] = alike
        lone = np.isnan(alike).all(axis=1)
        left_out["no other study to find"] = int(lone.sum())
        chance_K[:] = float(np.nanmean(luck[~lone])) if (~lone).any() else np.nan
    return VolumeHits(score_NK, chance_K, len(at), {reason: n for reason, n in left_out.items() if n})


def _jaccard(
    labels: NDArray[np.bool_], found: NDArray, group: NDArray, ks: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n = len(labels)
    score = np.full((n, len(ks)), np.nan)
    luck = np.full(n, np.nan)
    number, size = labels.astype(np.float64), labels.sum(axis=1).astype(np.float64)
    for i in range(n):
        both = number @ number[i]
        like = both / (size + size[i] - both)
        others = group != group[i]
        if not others.any():
            continue
        mine = found[i][found[i] >= 0]
        score[i] = [like[mine[:k]].mean() for k in ks]
        luck[i] = like[others].mean()
    return score, luck


def _exact(
    labels: NDArray[np.bool_], found: NDArray, group: NDArray, ks: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n = len(labels)
    kind = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    score = np.full((n, len(ks)), np.nan)
    luck = np.full(n, np.nan)
    for i in range(n):
        others = group != group[i]
        relevant = int((others & (kind == kind[i])).sum())
        if relevant == 0:
            continue
        mine = found[i][found[i] >= 0]
        hit = kind[mine] == kind[i]
        gained = np.cumsum(np.cumsum(hit) / np.arange(1, len(hit) + 1) * hit)
        score[i] = [gained[min(k, len(gained)) - 1] / min(k, relevant) for k in ks]
        luck[i] = relevant / others.sum()
    return score, luck
