"""Zero-shot classification with positive and negative prompts, each side an ensemble.

Shapes: N studies, D embedding, L findings, P prompts. Scores are cos(image, positive) - cos(image, negative): with two
classes this orders studies exactly as CLIP's softmax does, without the saturated ties of a softmax in low precision.
Ensembles as in CLIP (Radford et al. 2021, arXiv 2103.00020 §3.1.4): mean of the normalised prompts, normalised again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.tasks import Task

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClassEmbeddings:
    """One vector a side and finding: `positive_LD`, `negative_LD`. Of length 1, but for the rule mean_cosine, where the
    product with an image is the mean of its cosines with the prompts."""

    names: tuple[str, ...]
    positive_LD: Array
    negative_LD: Array


@dataclass(frozen=True)
class FindingScore:
    """Values of one finding; all are None where one class is missing, and `reason` says so.

    f1 (of the positive class) and balanced_accuracy are those of the rule "positive where its prompts are nearer than
    the negative ones" (Merlin, arXiv 2406.06512): no threshold is fitted, so both depend on the wording.
    """

    auroc: float | None
    auprc: float | None
    n_pos: int
    n_neg: int
    n_unknown: int
    reason: str | None = None
    f1: float | None = None
    balanced_accuracy: float | None = None


@dataclass(frozen=True)
class Classification:
    """Per finding and macro values; `macro_*` is the plain mean over the findings that are not in `excluded`."""

    findings: dict[str, FindingScore]
    macro_auroc: float | None
    macro_auprc: float | None
    positive_NL: Array
    negative_NL: Array

    @property
    def scores_NL(self) -> Array:
        return self.positive_NL - self.negative_NL

    @property
    def excluded(self) -> dict[str, str]:
        """Findings left out of the macro mean, and why."""
        return {name: score.reason for name, score in self.findings.items() if score.reason is not None}


def unit(vectors: ArrayLike, what: str) -> Array:
    """Rows scaled to length 1, float64. Raises EvalError naming `what` on a row that is not finite or has no length."""
    array = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(array, axis=-1, keepdims=True)
    bad = ~(np.isfinite(length) & (length > 1e-12))
    if bad.any():
        raise EvalError(
            f"{what}: {int(bad.sum())} of {bad.size} feature vectors are zero or not finite",
            why="a cosine with them is not a number, and any AUROC of it would be noise",
            fix="look at the training run: a non-finite weight, or an encoder that returns nothing for these inputs",
        )
    return array / length


def class_embeddings(
    task: Task, text_vectors: Mapping[str, ArrayLike], prompt_set: str | None = None
) -> ClassEmbeddings:
    """Ensembles of the prompts of one set (None: the default) of a task of kind findings.

    text_vectors: every prompt -> vector D, see `embedding.embed_texts`. Raises EvalError for a task of kind classes.
    """
    if task.kind != "findings":
        raise EvalError(
            f"task {task.name} is of kind {task.kind}",
            why="its classes have no negative prompts; exactly one of them is right",
            fix="score it with python -m eval_zero_shot.classify",
        )
    positive_LD, negative_LD = side_vectors(task, text_vectors, prompt_set)
    return ClassEmbeddings(task.names, positive_LD, negative_LD)


def side_vectors(task: Task, text_vectors: Mapping[str, ArrayLike], prompt_set: str | None = None) -> tuple[Array, ...]:
    """A vector of every class [L, D] for each of the sides of `Task.prompts`, by the task's rule."""
    sides: list[list[Array]] = [[] for _ in task.prompts(task.names[0], prompt_set)]
    for name in task.names:
        for side, prompts in zip(sides, task.prompts(name, prompt_set), strict=True):
            prompts_PD = unit([np.asarray(text_vectors[prompt]) for prompt in prompts], f"prompts of {name}")
            mean_D = prompts_PD.mean(axis=0)
            side.append(mean_D if task.rule == "mean_cosine" else unit(mean_D, f"prompt ensemble of {name}"))
    return tuple(np.stack(side) for side in sides)


def score_finding(scores_N: ArrayLike, labels_N: ArrayLike) -> FindingScore:
    """AUROC and AUPRC of one finding over the studies whose label is known.

    `labels_N` holds 1, 0 and nan for unknown; unknown is masked, never counted as 0. Ties count one half in AUROC.
    """
    from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N, dtype=np.float64)
    known = ~np.isnan(labels)
    y = labels[known]
    if not np.isin(y, (0.0, 1.0)).all():
        raise EvalError("labels other than 1, 0 and unknown", why="AUROC needs two classes", fix="map them to 1/0/null")
    n_pos, n_neg = int(y.sum()), int((1 - y).sum())
    n_unknown = int((~known).sum())
    if n_pos == 0 or n_neg == 0:
        if n_pos + n_neg == 0:
            reason = "no study with a known label"
        else:
            reason = "no positive study" if n_pos == 0 else "no negative study"
        return FindingScore(None, None, n_pos, n_neg, n_unknown, reason)
    if not np.isfinite(scores[known]).all():
        raise EvalError("a score is not finite", why="its rank is undefined", fix="look at the features it came from")
    scores, said = scores[known], (scores[known] > 0).astype(float)
    return FindingScore(
        float(roc_auc_score(y, scores)),
        float(average_precision_score(y, scores)),
        n_pos,
        n_neg,
        n_unknown,
        f1=float(f1_score(y, said, zero_division=0.0)),
        balanced_accuracy=float(balanced_accuracy_score(y, said)),
    )


def classify(image_ND: ArrayLike, prompts: ClassEmbeddings, labels_NL: ArrayLike) -> Classification:
    """Score every study against every finding, then AUROC and AUPRC per finding and their macro means.

    image_ND: features, any scale. labels_NL: 1, 0, nan (unknown), columns in the order of `prompts.names`.
    Raises EvalError on features that are not finite and on shapes that do not belong together.
    """
    images, labels = unit(image_ND, "studies"), np.asarray(labels_NL, dtype=np.float64)
    expected = (len(images), len(prompts.names))
    if labels.shape != expected or images.shape[1] != prompts.positive_LD.shape[1]:
        raise EvalError(
            f"labels {labels.shape}, images {images.shape} and prompts {prompts.positive_LD.shape} do not fit together",
            why="scores would be compared with another study's or another finding's labels",
            fix=f"labels must be {expected}, and images and prompts come from the same model",
        )
    positive_NL, negative_NL = images @ prompts.positive_LD.T, images @ prompts.negative_LD.T
    scores_NL = positive_NL - negative_NL
    findings = {name: score_finding(scores_NL[:, i], labels[:, i]) for i, name in enumerate(prompts.names)}
    return Classification(findings, _mean(f.auroc for f in findings.values()),
                          _mean(f.auprc for f in findings.values()), positive_NL, negative_NL)  # fmt: skip


def _mean(values: object) -> float | None:
    known = [value for value in values if value is not None]  # type: ignore[attr-defined]
    return float(np.mean(known)) if known else None
