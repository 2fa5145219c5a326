"""The zero-shot classifier as weights of a probe, for a probe that starts at it and is drawn towards it.

With unit features x, z-scored to z = (x - m) / s, and the model's temperature e^τ, the zero-shot logit of a label is

    e^τ · x·(p - n)  =  z·(e^τ s∘(p - n)) + e^τ m·(p - n)

with p and n the ensembles of its positive and negative prompts (a class of several: p alone, in a softmax). The probe

    min over W, b of   Σ loss(z·W + b, y) + 1/(2 C) · |W - W0|²,      W0 = e^τ s∘(p - n), starting at W0 and its b

is the zero-shot classifier (its intercept fitted) as C goes to 0 and the plain probe as C grows: text-informed linear
probes, LP++ (Huang et al. 2024, arXiv 2404.02285) and CLAP (Silva-Rodríguez et al. 2024, arXiv 2312.12730), in their
simplest form.

Legend: D features, L labels or classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.probe.split import Question
from eval_zero_shot.tasks import Task

Array = NDArray[np.float64]


def zero_shot_directions(inputs: Any, task: Task, question: Question) -> Array:
    """e^τ · (p - n), or e^τ · p for classes, [L, D], with the prompts of the task's default set. Raises EvalError where
    the task has no prompts for a label, or no negative ones for labels that do not exclude each other."""
    from eval_zero_shot.classify import side_vectors

    class_of = {label: i for i, name in enumerate(task.names) for label in task.label_of(name)}
    lacking = [label for label in question.names if label not in class_of]
    one_sided = task.kind == "classes" and not question.exclusive
    if lacking or one_sided:
        sides = "negative prompts" if one_sided else "prompts"
        raise EvalError(
            f"task {task.name} has no {sides} for {', '.join(lacking) or 'its classes'}",
            why="a text-initialised probe starts at the words for each label",
            fix="leave --task out, or probe the task's own labels",
        )
    vectors = side_vectors(task, inputs.texts(task.texts(task.default_set)))
    side_LD = vectors[0] if question.exclusive else vectors[0] - vectors[1]
    rows = [class_of[label] for label in question.names]
    return math.exp(float(inputs.loaded.model.logit_scale.detach())) * side_LD[rows]


def start_at(directions_LD: Array, mean_D: Array, spread_D: Array) -> tuple[Array, Array]:
    """(W0 [L, D], intercepts [L]) for z-scored features."""
    return directions_LD * spread_D, np.asarray(directions_LD @ mean_D)
