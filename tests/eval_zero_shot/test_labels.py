"""Labels of a task's classes, out of the columns of real shards."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.shard_set import ShardSet
from eval_zero_shot import EvalError, Task
from eval_zero_shot.labels import require_labels, task_labels

PROMPTS = {"positive": ["a"], "negative": ["b"]}


def labelled(*labels: list[str], kind: str = "findings") -> Task:
    if kind == "findings":
        classes = {f"c{i}": {"label": label, **PROMPTS} for i, label in enumerate(labels)}
    else:
        classes = {f"c{i}": {"label": label, "prompts": [str(i)]} for i, label in enumerate(labels)}
    return Task.model_validate({"name": "t", "kind": kind, "classes": classes})


def test_any_label_makes_present_and_all_known_ones_make_absent(toy_shards: ShardSet) -> None:
    rows = toy_shards.rows("test")
    bright, dark = toy_shards.labels(("bright", "dark"))[rows].T
    task = labelled(["bright"], ["bright", "dark"], ["dark", "missing"], ["missing"])
    found = task_labels(toy_shards, rows, task)
    np.testing.assert_array_equal(found[:, 0], bright)
    either = np.where((bright == 1) | (dark == 1), 1.0, np.nan)  # one of both is always 1, or bright is unknown
    np.testing.assert_array_equal(found[:, 1], either)
    assert np.isnan(bright).any() and np.isnan(either).any()
    np.testing.assert_array_equal(found[:, 2], np.where(dark == 1, 1.0, np.nan))  # absent needs all of them known
    assert np.isnan(found[:, 3]).all()


def test_tasks_for_other_data_are_refused(toy_shards: ShardSet) -> None:
    with pytest.raises(EvalError, match=r"no label of task t \(missing\).*\n.*\n.*bright, dark"):
        task_labels(toy_shards, toy_shards.rows("test"), labelled(["missing"]))
    with pytest.raises(EvalError, match="no study to evaluate"):
        task_labels(toy_shards, np.array([], int), labelled(["bright"]))
    require_labels(toy_shards, labelled(["bright"], ["missing"]))
    with pytest.raises(EvalError, match=r"no label missing, which task t"):
        require_labels(toy_shards, labelled(["bright"], ["missing"], kind="classes"))
