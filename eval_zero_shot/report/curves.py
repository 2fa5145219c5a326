"""What a page draws out of per-case scores: ROC, reliability, counts and the hardest errors of every finding.

Shapes: N cases of one finding under one model; score_N ranks them, label_N is 1, 0 or nan (unknown, left out).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.outcome import Outcome

if TYPE_CHECKING:
    import pandas as pd

POINTS, BINS, HARDEST = 80, 10, 4


@dataclass(frozen=True)
class Counts:
    """Cases and patients with and without a finding; unknown labels apart."""

    positive: int
    negative: int
    unknown: int
    positive_patients: int
    negative_patients: int

    @property
    def fewest_patients(self) -> int:
        """Patients on the smaller side, on which an interval rests."""
        return min(self.positive_patients, self.negative_patients)


def findings(outcome: Outcome) -> dict[str, pd.DataFrame]:
    """Rows of the main scores of every finding or class that has labels, in the order of the task's classes."""
    if outcome.scores is None:
        return {}
    main = outcome.scores[(outcome.scores["variant"] == "") & (outcome.scores["of"] != "")]
    parts = {str(name): part for name, part in main.groupby("of", sort=False) if part["label"].notna().any()}
    order = [name for name in outcome.classes if name in parts]
    return {name: parts[name] for name in (*order, *(n for n in parts if n not in order))}


def counts(part: pd.DataFrame) -> Counts:
    """How many cases and patients stand behind a finding's numbers."""
    label, patient = part["label"].to_numpy(float), part["patient"].to_numpy(str)
    with_it, without = label == 1, label == 0
    sides = (len(np.unique(patient[with_it])), len(np.unique(patient[without])))
    return Counts(int(with_it.sum()), int(without.sum()), int(np.isnan(label).sum()), *sides)


def roc(score_N: ArrayLike, label_N: ArrayLike, points: int = POINTS) -> list[list[float]] | None:
    """[false positive rates, true positive rates] of scikit-learn's curve, thinned to at most `points` corners that are
    evenly spread along it; None where a class is missing."""
    from sklearn.metrics import roc_curve

    score, label = _known(score_N, label_N)
    if len(np.unique(label)) < 2:
        return None
    false, true, _ = roc_curve(label, score)
    if len(false) > points:
        along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(false)) + np.abs(np.diff(true)))])
        kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)))
        false, true = false[kept], true[kept]
    return [[round(float(v), 4) for v in values] for values in (false, true)]


def reliability(score_N: ArrayLike, label_N: ArrayLike, bins: int = BINS) -> list[list[float]]:
    """[mean score, share with the finding, low, high, cases] of bins with equally many cases (equal scores stay in one
    bin). low, high: 95 % Wilson interval of the share, cases taken as independent."""
    score, label = _known(score_N, label_N)
    if not len(score):
        return []
    edges = np.unique(np.quantile(score, np.linspace(0, 1, min(bins, max(1, len(score) // 5)) + 1)))
    place = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, max(len(edges) - 2, 0))
    found = []
    for b in np.unique(place):
        inside = place == b
        hits, n = int(label[inside].sum()), int(inside.sum())
        row = (score[inside].mean(), hits / n, *wilson(hits, n))
        found.append([*(round(float(v), 4) for v in row), n])
    return found


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, doi 10.1080/01621459.1927.10502953); scipy's binomtest gives the same
    after a test that is not wanted here, a thousand times slower."""
    share, scale = hits / n, 1 + z * z / n
    middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float((middle - half) / scale)), min(1.0, float((middle + half) / scale))


def probabilities(outcome: Outcome, part: pd.DataFrame) -> pd.DataFrame | None:
    """Rows of a finding with a probability as score, sigmoid(logit scale * score), which is CLIP's softmax over both
    sides; None where findings are not scored by cosine differences, or no scale is known."""
    scale = outcome.provenance.get("logit_scale")
    if outcome.protocol != "classification" or outcome.headline != "auroc" or not isinstance(scale, int | float):
        return None
    with np.errstate(over="ignore"):
        return part.assign(score=1 / (1 + np.exp(-float(scale) * part["score"].to_numpy(float))))


def ranked(outcome: Outcome) -> dict[str, pd.DataFrame]:
    """Finding or class -> its cases with the score that its AUROC ranks by: of classes the log odds of the softmax, not
    the cosine itself, which is higher for some studies with every class."""
    parts = findings(outcome)
    scale = outcome.provenance.get("logit_scale")
    if outcome.protocol != "classification" or outcome.headline == "auroc" or len(parts) < 2:
        return parts
    from eval_zero_shot.class_metrics import log_odds

    names = list(parts)
    wide = np.stack(
        [parts[n].set_index("key")["score"].reindex(parts[names[0]]["key"]).to_numpy(float) for n in names], 1
    )
    odds = log_odds(wide, float(scale) if isinstance(scale, int | float) else 1.0)
    place = {key: i for i, key in enumerate(parts[names[0]]["key"])}
    return {n: p.assign(score=odds[[place[k] for k in p["key"]], j]) for j, (n, p) in enumerate(parts.items())}


def finding_curves(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Finding -> {"roc", "bins", "probability", "error", "positive", "negative"}, as the page's script draws them.

    Reliability is of `probabilities`. Where there are none the bins are of scores, and only whether they rise can be
    read from them.
    """
    found = {}
    for name, part in ranked(outcome).items():
        curve = roc(part["score"], part["label"])
        if curve is None:
            continue
        probable = probabilities(outcome, part)
        shown = part if probable is None else probable
        n, bins = counts(part), reliability(shown["score"], shown["label"])
        found[name] = {
            "roc": curve, "bins": bins, "probability": probable is not None,
            "error": None if probable is None else _calibration_error(outcome, name), "positive": n.positive,
            "negative": n.negative,
        }  # fmt: skip
    return found


def _calibration_error(outcome: Outcome, name: str) -> float | None:
    """As the protocol states it."""
    stated = (
        m.value for m in outcome.metrics if (m.name, m.of) == ("calibration_error", name) and set(m.at) <= {"bins"}
    )
    return next(stated, None)


def hardest(part: pd.DataFrame, most: int = HARDEST) -> dict[str, list[tuple[str, float, float]]]:
    """(key, score, share) of the negatives scored highest and the positives scored lowest, worst first.

    share: of the other side's cases that the error is on the wrong side of (a negative above 97 % of the positives).
    A case on the wrong side of nobody is no error and is not listed.
    """
    known = part[part["label"].notna()].sort_values(["score", "key"], kind="stable")
    positive, negative = known[known["label"] == 1], known[known["label"] == 0]
    if not len(positive) or not len(negative):
        return {"negatives": [], "positives": []}
    p, n = positive["score"].to_numpy(float), negative["score"].to_numpy(float)
    above = [(str(k), float(s), float((p < s).mean())) for k, s in zip(negative["key"], n, strict=True)][::-1]
    below = [(str(k), float(s), float((n > s).mean())) for k, s in zip(positive["key"], p, strict=True)]
    wrong = ([one for one in side if one[2] > 0] for side in (above, below))
    return dict(zip(("negatives", "positives"), (side[:most] for side in wrong), strict=True))


def _known(score_N: ArrayLike, label_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    score, label = np.asarray(score_N, float), np.asarray(label_N, float)
    known = ~np.isnan(label) & np.isfinite(score)
    return score[known], label[known]
