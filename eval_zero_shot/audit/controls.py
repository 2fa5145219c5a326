"""Controls: what is left of the scores when the image, its order, its border or the leaked studies are taken away.

Differences are of macro AUROC between two sets of scores of the same patients, under the same bootstrap draws.
Multimodal gain is S_v - S_blank (Chen et al. 2024, MMStar, arXiv 2403.20330).

Legend: N studies, L findings, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.audit.verdict import Check
from eval_zero_shot.outcome import Metric
from eval_zero_shot.resample import interval, means_by_patient
from eval_zero_shot.statistics import Interval, Run, auroc_intervals, macro_difference

MATERIAL = 0.05  # AUROC or accuracy; smaller differences are not worth a word
RESIDUE = 0.60  # AUROC of shuffled voxels that is worth a look
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """The scores that everything is compared with."""

    scores_NL: Array
    labels_NL: Array
    patients_N: NDArray[np.str_]
    resamples: int = 1000
    seed: int = 0

    def run(self, scores_NL: Array | None = None, keep_N: NDArray[np.bool_] | None = None) -> Run:
        labels = self.labels_NL if keep_N is None else np.where(keep_N[:, None], self.labels_NL, np.nan)
        return Run.of(self.scores_NL if scores_NL is None else scores_NL, labels, self.patients_N)

    def macro(self, scores_NL: Array | None = None, keep_N: NDArray[np.bool_] | None = None) -> Interval:
        return auroc_intervals(self.run(scores_NL, keep_N), resamples=self.resamples, seed=self.seed)[1]

    def loss(self, scores_NL: Array | None = None, keep_N: NDArray[np.bool_] | None = None) -> Interval:
        """Macro AUROC of the scores as they are less that of others, or of a part of the studies."""
        return macro_difference([self.run()], [self.run(scores_NL, keep_N)], resamples=self.resamples, seed=self.seed)


@dataclass(frozen=True)
class Control:
    check: Check
    metrics: tuple[Metric, ...] = ()


def said(interval: Interval) -> str:
    """ "0.812 (0.771 to 0.850)"; where many are looked at and limits are wider, "(0.771 to 0.850 at 99.75 %)" """
    if interval.value is None:
        return f"unknown ({interval.reason})"
    level = "" if round(interval.level, 6) == 0.95 else f" at {100 * interval.level:.4g} %"
    limits = f" ({interval.low:.3f} to {interval.high:.3f}{level})" if interval.low is not None else ""
    return f"{interval.value:.3f}{limits}"


def known(interval: Interval) -> bool:
    """Whether there are limits, or every resample agreed on the value (an AUROC of 1 in all of them, say)."""
    return interval.low is not None or (interval.reason or "").startswith("all resamples agree")


def above(interval: Interval, bound: float = 0.0) -> bool:
    """Whether the whole interval is known to lie above the bound."""
    lower = interval.value if interval.low is None else interval.low
    return known(interval) and lower is not None and lower > bound


def better_than_chance(case: Case) -> Control:
    macro = case.macro()
    better = above(macro, 0.5)
    says = f"macro AUROC {said(macro)}"
    says += "." if better else ": not above chance (0.5), so the controls below have little to take away."
    return Control(Check("better than chance", "ok" if better else "warn", says, macro.value, 0.5, len(case.labels_NL)),
                   (Metric.of_interval("auroc", macro, n=len(case.labels_NL)),))  # fmt: skip


def decontaminated(case: Case, leaking_N: NDArray[np.bool_], unseen: Sequence[str] = ()) -> Control:
    """Scores without the test studies that have an identical or near-identical image or their patient in training.

    unseen: checks for such leaks that could not be made; where they found none, that says nothing.
    """
    name, keep = "decontaminated scores", ~leaking_N
    k, n = int(leaking_N.sum()), len(leaking_N)
    if not k and unseen:
        says = f"no test study had to be removed, but not checked: {', '.join(unseen)}."
        return Control(Check(name, "not checked", says, n=n))
    if not k:
        return Control(Check(name, "ok", f"no test study had to be removed: the scores of all {n} stand.", 0.0, 0.0, n))
    at = {"on": "decontaminated"}
    if not keep.any() or (loss := case.loss(keep_N=keep)).value is None:
        says = f"without the {k} of {n} leaking studies no finding has both classes left."
        return Control(Check(name, "not checked", says, n=n))
    clean = case.macro(keep_N=keep)
    inflated = above(loss)
    says = f"macro AUROC {said(case.macro())} on all {n} studies, {said(clean)} without the {k} leaking ones; "
    says += f"paired difference {said(loss)}"
    says += ": the leak raises the score." if inflated else "; report the score without them."
    metrics = (Metric.of_interval("auroc", clean, at=at, n=n - k), Metric.of_interval("auroc_loss", loss, at=at, n=n))
    return Control(Check(name, "fail" if inflated else "warn", says, loss.value, 0.0, n), metrics)


def shuffled_voxels(case: Case, scores_NL: Array) -> Control:
    """Inputs with their voxels in another order: intensities stay, anatomy goes."""
    name, n = "shuffled voxels", len(scores_NL)
    macro, loss = case.macro(scores_NL), case.loss(scores_NL)
    at = {"control": "shuffled voxels"}
    metrics = (Metric.of_interval("auroc", macro, at=at, n=n), Metric.of_interval("auroc_loss", loss, at=at, n=n))
    if not above(case.macro(), 0.5):
        return Control(Check(name, "not checked", "the model is not above chance with its images whole."), metrics)
    says = f"macro AUROC {said(macro)} with each image's voxels shuffled, {said(loss)} lower than with them in order"
    if not known(loss):
        check = Check(name, "not checked", f"{says}; no interval ({loss.reason}).", n=n)
    elif not above(loss):
        check = Check(name, "fail", f"{says}: the scores do not depend on anatomy.", loss.value, 0.0, n)
    elif above(macro, 0.5) and (macro.value or 0) >= RESIDUE:
        check = Check(name, "warn", f"{says}: intensities alone carry a part of it.", macro.value, RESIDUE, n)
    else:
        check = Check(name, "ok", f"{says}.", macro.value, RESIDUE, n)
    return Control(check, metrics)


def text_prior(case: Case, blank_L: Array, average_L: Array) -> Control:
    """What the prompts alone reach: every study gets the score of a blank, or of the average image.

    AUROC of a constant is one half by definition, so the gain over it is AUROC - 0.5. For the rule "positive where the
    score is above 0" the prior answers alike for everyone, and is right as often as that answer is.
    """
    name, n = "text prior", len(case.labels_NL)
    usable = ~np.isnan(case.labels_NL).all(axis=0)
    if not usable.any():
        return Control(Check(name, "not checked", "no study has a known label."))
    labels = case.labels_NL[:, usable]
    answers = {"model": case.scores_NL, "blank": blank_L, "average": average_L}
    right_NL = {
        key: _right(np.broadcast_to(scores, case.labels_NL.shape)[:, usable], labels) for key, scores in answers.items()
    }
    mean = {key: float(np.nanmean(right, axis=0).mean()) for key, right in right_NL.items()}
    share_L = np.nanmean(labels, axis=0)
    majority = float(np.maximum(share_L, 1 - share_L).mean())
    people, means = means_by_patient(right_NL["model"] - right_NL["blank"], case.patients_N)
    gain = interval(lambda w: means(w).mean(axis=1), people, resamples=case.resamples, seed=case.seed)
    macro = case.macro()
    metrics = [Metric("accuracy", mean["model"], n=n), Metric("accuracy", majority, at={"control": "majority"}, n=n)]
    metrics += [Metric("accuracy", mean[key], at={"control": key}, n=n) for key in ("blank", "average")]
    metrics += [Metric("auroc", 0.5, at={"control": "blank"}, n=n, reason="the AUROC of a constant")]
    metrics += [Metric.of_interval("multimodal_gain", gain, at={"of": "accuracy"}, n=n)]
    if macro.value is not None:
        low, high = (None if v is None else v - 0.5 for v in (macro.low, macro.high))
        metrics += [Metric("multimodal_gain", macro.value - 0.5, low, high, at={"of": "auroc"}, n=n)]
    says = (
        f"answering by the sign of the score is right in {mean['model']:.3f} of cases with the image, "
        f"{mean['blank']:.3f} with a blank one, {mean['average']:.3f} with the average one ({majority:.3f} by always "
        f"giving the more frequent answer); gain over blank {said(gain)}"
    )
    if above(gain):
        return Control(Check(name, "ok", f"{says}.", gain.value, 0.0, n), tuple(metrics))
    says += ": the rule's accuracy is the prompts' prior; rank (AUROC) or fit a threshold instead."
    return Control(Check(name, "warn", says, gain.value, 0.0, n), tuple(metrics))


def blanked_border(case: Case, by_name: dict[str, Array]) -> Control:
    """The score with the corners, or a frame, of every image blanked."""
    name, n = "border of the image", len(case.labels_NL)
    losses = {part: case.loss(scores) for part, scores in by_name.items()}
    metrics = tuple(Metric.of_interval("auroc_loss", loss, at={"control": part}, n=n) for part, loss in losses.items())
    parts = "; ".join(f"with {part} macro AUROC changes by {said(_negative(loss))}" for part, loss in losses.items())
    worst = max(losses.values(), key=lambda loss: loss.value or 0.0)
    if above(worst) and (worst.value or 0) >= MATERIAL:
        says = f"{parts}: the scores lean on what lies there, a mark or anatomy cut by the border; look at the images."
        return Control(Check(name, "warn", says, worst.value, MATERIAL, n), metrics)
    return Control(Check(name, "ok", f"{parts}.", worst.value, MATERIAL, n), metrics)


def _negative(loss: Interval) -> Interval:
    """A loss as a change."""
    low, high = (None if v is None else -v for v in (loss.high, loss.low))
    return replace(loss, value=None if loss.value is None else -loss.value, low=low, high=high)


def separation_loss(case: Case, finding: int, blanked_N: Array) -> Interval:
    """How much nearer to each other blanking brings the positive and the negative studies of one finding: the fall in
    (mean score of positives - of negatives), in standard deviations of the score. Sees what AUROC does not where it is
    at its ceiling."""
    labels_N, spread = case.labels_NL[:, finding], float(case.scores_NL[:, finding].std())
    change_N = (case.scores_NL[:, finding] - blanked_N) / max(spread, 1e-12)
    sides_N2 = np.stack([np.where(labels_N == side, change_N, np.nan) for side in (1, 0)], axis=1)
    people, means = means_by_patient(sides_N2, case.patients_N)
    return interval(lambda w: means(w) @ [1.0, -1.0], people, resamples=case.resamples, seed=case.seed)


def _right(scores_NL: NDArray, labels_NL: Array) -> Array:
    """1 where the rule "above 0 is positive" is right, 0 where it is wrong, nan where the label is unknown."""
    return np.where(np.isnan(labels_NL), np.nan, (scores_NL > 0) == (labels_NL == 1))
