"""What is wrong in a suite's file, told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_zero_shot.errors import EvalError
from eval_zero_shot.suite_read import load_suite


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entries": []}, "entries: "),
        ({"entires": 1}, "entires: "),
        ({"entries": [{"protocol": "telepathy"}]}, "entries.0: needs protocol: one of classification"),
        ({"entries": [{"protocol": ["classification"]}]}, "entries.0: "),
        (
            {"entries": [{"protocol": "classification", "taks": "phantom"}]},
            r"entries.0.taks: is no key here; did you mean task\?",
        ),
        ({"data": None}, "entries.0: no data is named"),
        ({"entries": [{"protocol": "retrieval", "pools": ["all"]}]}, "entries.0.pools"),
    ],
)
def test_mistakes_of_a_suite_are_named(suite: Path, change: dict[str, Any], said: str) -> None:
    suite.write_text(yaml.safe_dump({**yaml.safe_load(suite.read_text()), **change}))
    with pytest.raises(EvalError, match=said):
        load_suite(suite)


def test_everything_wrong_with_a_suite_is_told_at_once(suite: Path) -> None:
    """Of form and of what entries name, whichever entries are right otherwise."""
    body = yaml.safe_load(suite.read_text())
    twice = body["entries"][0]
    entries: list[dict[str, Any]] = [
        {"protocol": "classification", "taks": "phantom"},
        {"protocol": "classification", "task": "nonesuch"},
        {"protocol": "vqa", "items": "lost.jsonl"},
        {"protocol": "interpolation", "base": "b", "tasks": ["nowhere.yaml"], "validation_split": "test"},
    ]
    suite.write_text(yaml.safe_dump({"name": "x", "refrence": "y", "entries": entries}))
    with pytest.raises(EvalError) as told:
        load_suite(suite)
    for said in (
        "has 10 mistake(s)", "refrence: is no key here; did you mean reference?", "entries.0.taks: is no key here",
        "entries.0.task: is missing", "entries.0: no data is named", "entries.1: no data is named",
        "entries.1.task: no zero-shot task 'nonesuch'", "entries.2.items: there is no file 'lost.jsonl'",
        "entries.3: no data is named", "entries.3: validation_split and split are both 'test'",
        "entries.3.tasks: no zero-shot task",
    ):  # fmt: skip
        assert said in str(told.value), said
    assert "entries.2: no data" not in str(told.value), "questions may be of images of their own"
    suite.write_text(yaml.safe_dump({**body, "entries": [twice, twice, {"protocol": "audit", "task": "nonesuch"}]}))
    with pytest.raises(EvalError) as told:
        load_suite(suite)
    for said in ("2 mistake(s)", "entries.1: two entries give classification of toy", "entries.2.task: no zero-shot"):
        assert said in str(told.value)
