"""docs/benchmarks.md teaches the task file as it is. (Its commands run in tests/test_docs.py, in order.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eval_zero_shot import Task, load_task
from eval_zero_shot.outcome import Metric
from eval_zero_shot.thresholds import RULES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
EXAMPLES = [part.partition("```")[0] for part in PAGE.split("```yaml\n")[1:]]
EXAMPLES += [part.partition("\nYAML")[0] for part in PAGE.split("<<'YAML'\n")[1:]]
EXAMPLES += [part.partition("```")[0] for part in (DOCS / "data.md").read_text(encoding="utf-8").split("```yaml\n")[1:]]


def keys(section: str) -> set[str]:
    """First column of the tables of a section."""
    return {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_tasks(example: str, tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(example)
    assert load_task(file).texts()


def test_every_key_is_explained() -> None:
    section = PAGE.partition("## 2.")[2].partition("## 3.")[0]
    assert keys(section) == set(Task.model_fields)
    assert all(f"`{key}`" in section for key in ("label", "words", "prompts"))


def test_every_field_of_a_metric_and_every_threshold_is_explained() -> None:
    assert keys(PAGE.partition("## 4.")[2]) == set(Metric.__dataclass_fields__)
    section = (DOCS / "evaluate.md").read_text(encoding="utf-8").partition("## Thresholds")[2].partition("## ")[0]
    assert keys(section) - {"threshold"} == set(RULES)
