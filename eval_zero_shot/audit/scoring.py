"""Scores of a task out of features: the one place where the audit meets the classification protocol.

Legend: N studies, L findings, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.inputs import Inputs
from eval_zero_shot.tasks import Task

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """A task's labels_NL (1, 0, nan) and what is needed to score any features against its prompts."""

    task: Task
    labels_NL: Array
    patients_N: NDArray[np.str_]
    vectors: Mapping[str, Any]
    scale: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.task.names

    def scores(self, features_NF: ArrayLike) -> Array:
        """[N, L] as the classification protocol ranks studies: of findings the cosine with the positive prompts less
        the negative, of classes the log odds of the softmax, which are above 0 where a class is more likely than not.
        """
        from eval_zero_shot.class_metrics import log_odds
        from eval_zero_shot.classify import side_vectors, unit

        sides = side_vectors(self.task, self.vectors)
        images = unit(features_NF, "studies")
        if len(sides) == 2:
            return images @ (sides[0] - sides[1]).T
        return log_odds(images @ sides[0].T, self.scale or 1.0)

    def prompts(self) -> tuple[str, ...]:
        return self.task.texts()


def scored_of(inputs: Inputs, rows: NDArray, task: Task, patients_N: NDArray[np.str_]) -> Scored:
    """Raises EvalError where the shards have none of the task's labels. Of kind classes, studies of none or of several
    of the classes are unknown in all, as they are left out of the classification."""
    from eval_zero_shot.classification import released_scale
    from eval_zero_shot.labels import require_labels, task_labels

    require_labels(inputs.shards, task)
    labels_NL = task_labels(inputs.shards, rows, task)
    if task.kind == "classes":
        one_N = (labels_NL == 1).sum(axis=1) == 1
        labels_NL = np.where(one_N[:, None], (labels_NL == 1).astype(np.float64), np.nan)
    return Scored(task, labels_NL, patients_N, inputs.texts(task.texts()), released_scale(inputs.loaded))
