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

    @property
    def names(self) -> tuple[str, ...]:
        return self.task.names

    def scores(self, features_NF: ArrayLike) -> Array:
        """[N, L] as the classification protocol ranks studies: of findings the cosine with the positive prompts less
        the negative, of classes the cosine."""
        from eval_zero_shot.classify import side_vectors, unit

        sides = side_vectors(self.task, self.vectors)
        images = unit(features_NF, "studies")
        return images @ (sides[0] - sides[1] if len(sides) == 2 else sides[0]).T

    def prompts(self) -> tuple[str, ...]:
        return self.task.texts()


def scored_of(inputs: Inputs, rows: NDArray, task: Task, patients_N: NDArray[np.str_]) -> Scored:
    """Raises EvalError where the shards have none of the task's labels."""
    from eval_zero_shot.labels import require_labels, task_labels

    require_labels(inputs.shards, task)
    return Scored(task, task_labels(inputs.shards, rows, task), patients_N, inputs.texts(task.texts()))
