"""What a probe is asked about, and the studies it learns from and is scored on.

Legend: N studies, D features, L labels or classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.tasks import Task

Array = NDArray[np.float64]
FOLDS = 5
FORM = "A,B for labels, or NAME=A|B|C for classes of which a study has one"


@dataclass(frozen=True)
class Question:
    """Labels that may hold together (multi-label), or classes of which a study has one (`exclusive`: multi-class)."""

    name: str
    names: tuple[str, ...]
    exclusive: bool = False

    @property
    def identity(self) -> str:
        return hashlib.sha256(repr((self.names, self.exclusive)).encode()).hexdigest()

    def labels(self, shards: Any) -> Array:
        """[rows, L]: 1, 0, nan for unknown. Of classes: the class of a study is the one label that is 1, and all of a
        study's row is nan where none is. Raises EvalError where a study has two."""
        labels_NL = shards.labels(self.names).astype(np.float64)
        if not self.exclusive:
            return labels_NL
        count_N = (labels_NL == 1).sum(1)
        if (count_N > 1).any():
            raise EvalError(
                f"{int((count_N > 1).sum())} studies have more than one class of {self.name}",
                why="classes exclude one another in a softmax",
                fix=f"probe them as labels: --labels {','.join(self.names)}",
            )
        return np.where(count_N[:, None] == 1, (labels_NL == 1).astype(np.float64), np.nan)


def question(text: str | None, label_names: Sequence[str], task: Task | None = None) -> Question:
    """What `--labels` asks for (FORM). None: the task's labels that the shards have, of kind classes all of them as
    classes; without a task all labels of the shards.

    Raises EvalError naming the labels there are.
    """
    if text is None and task is not None:
        labels = [label for name in task.names for label in task.label_of(name)]
        if task.kind == "classes":
            found = Question(task.name, tuple(labels), exclusive=True)
        else:
            found = Question(task.name, tuple(dict.fromkeys(label for label in labels if label in label_names)))
    elif text is None:
        found = Question("labels", tuple(label_names))
    elif "=" in text:
        name, _, classes = text.partition("=")
        found = Question(name.strip(), tuple(c.strip() for c in classes.split("|")), exclusive=True)
    else:
        found = Question("labels", tuple(n.strip() for n in text.split(",")))
    unknown = [name for name in found.names if name not in label_names]
    few = found.exclusive and len(found.names) < 2
    if unknown or not found.names or few or len(set(found.names)) < len(found.names):
        what = f"the shards have no label {', '.join(unknown) or 'at all'}" if unknown or not found.names else None
        raise EvalError(
            what or f"--labels {text}: a name twice, or a single class",
            why="there is nothing to learn",
            fix=f"choose of: {', '.join(label_names) or '(build them with --label-columns)'}; the form: {FORM}",
        )
    return found


@dataclass(frozen=True)
class Split:
    """features_ND, labels_NL (1, 0, nan = unknown), hashed patients_N."""

    features_ND: Array
    labels_NL: Array
    patients_N: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.features_ND)

    def with_(self, other: Split | None) -> Split:
        if other is None or not len(other):
            return self
        return Split(
            np.concatenate([self.features_ND, other.features_ND]),
            np.concatenate([self.labels_NL, other.labels_NL]),
            np.concatenate([self.patients_N, other.patients_N]),
        )

    def rows(self, keep: ArrayLike) -> Split:
        keep = np.asarray(keep)
        return Split(self.features_ND[keep], self.labels_NL[keep], self.patients_N[keep])

    def scaled(self, mean_D: Array, spread_D: Array) -> Split:
        return Split((self.features_ND - mean_D) / spread_D, self.labels_NL, self.patients_N)


def scaling(train: Split) -> tuple[Array, Array]:
    """Mean and spread of every feature over the training split; a constant feature is left at its scale."""
    mean, spread = train.features_ND.mean(0), train.features_ND.std(0)
    return mean, np.where(spread > 1e-12, spread, 1.0)


def require_apart(**patients: ArrayLike | None) -> None:
    """Raise EvalError where two splits share patients."""
    named = [(name, set(np.asarray(who).tolist())) for name, who in patients.items() if who is not None]
    for i, (one, theirs) in enumerate(named):
        for other, others in named[i + 1 :]:
            if shared := len(theirs & others):
                raise EvalError(
                    f"{shared} patients are in {one} and in {other}",
                    why="the probe would be scored, or its strength chosen, on patients it has learnt",
                    fix="build the shards again with splits by patient (python -m data_shards.build)",
                )


def folds_by_patient(patients_N: Sequence[str] | NDArray, folds: int = FOLDS) -> NDArray[np.int64]:
    """Fold of each study. A patient's studies share one; it follows from the patient's hash alone, so it is the same
    for every model and every subset."""
    numbers = [int(hashlib.sha256(str(p).encode()).hexdigest()[:8], 16) % folds for p in patients_N]
    return np.asarray(numbers, dtype=np.int64)
