"""Labels of a task's classes out of the label columns of shards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.tasks import Task


def task_labels(shards: Any, rows: NDArray, task: Task) -> NDArray[np.float64]:
    """Labels [N, L] in the task's order: 1, 0, nan where unknown or where the shards do not have the label.

    A class of several labels is present where any of them is 1, and absent where all of them are known to be.
    Raises EvalError when the shards have none of the task's labels, or there is no row.
    """
    if len(rows) == 0:
        raise EvalError("no study to evaluate", why="the split is empty", fix="name a split that the shard set has")
    asked = dict.fromkeys(label for name in task.names for label in task.label_of(name))
    known = [label for label in asked if label in shards.label_names]
    if not known:
        raise EvalError(
            f"no label of task {task.name} ({', '.join(list(asked)[:5])}...) is a label of these shards",
            why="every score would be compared with nothing",
            fix=f"choose a task for their labels: {', '.join(shards.label_names) or '(they have none)'}",
        )
    columns_NK = shards.labels(tuple(known))[rows]
    labels_NL = np.full((len(rows), len(task.names)), np.nan)
    for j, name in enumerate(task.names):
        labels = task.label_of(name)
        mine_NK = columns_NK[:, [known.index(label) for label in labels if label in known]]
        whole = mine_NK.shape[1] == len(labels)
        absent_N = (mine_NK == 0).all(axis=1) & whole
        labels_NL[:, j] = np.where((mine_NK == 1).any(axis=1), 1.0, np.where(absent_N, 0.0, np.nan))
    return labels_NL


def require_labels(shards: Any, task: Task) -> None:
    """Raises EvalError naming what is missing where exactly one class is right but the shards lack some classes."""
    missing = [label for name in task.names for label in task.label_of(name) if label not in shards.label_names]
    if task.kind == "classes" and missing:
        raise EvalError(
            f"the shards have no label {', '.join(missing)}, which task {task.name} asks for",
            why="a study of that class would count as of no class, and accuracy be over an easier choice",
            fix=f"their labels are: {', '.join(shards.label_names)}; name one in the task's label: of each class",
        )
