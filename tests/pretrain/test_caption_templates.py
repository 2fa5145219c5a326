"""A recipe whose captions are made of labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from pretrain import build
from pretrain.config import ConfigError, load_recipe

WORDS = """\
classes:
  nodule: {present: [a nodule, {text: a spot, weight: 2}], absent: no nodule}
  effusion: {present: fluid, absent: no fluid}
"""
OBJECTIVES = [{"name": "contrastive", "units": ["caption"]}]


def recipe(make_fit: Callable[..., Any], folder: Path, words: str | None) -> Any:
    file = folder / "words.yaml"
    if words is not None:
        file.write_text(words)
    made = make_fit(folder, objectives=OBJECTIVES)
    text = made.recipe.read_text()
    made.recipe.write_text(
        text.replace("report: true", "report: false")
        .replace("sentences: true", f"templates: {file}", 1)
        .replace("    shuffle_sentences: true\n", "")
    )
    return made


def test_it_trains_on_labels_alone(make_fit: Callable[..., Any], tmp_path: Path) -> None:
    tiny = recipe(make_fit, tmp_path, WORDS)
    assert tiny("r", train__steps=3, checkpoint__every_steps=3) == 0
    assert len(tiny.metrics("r")) > 1
    policy = build.unit_policy(load_recipe(str(tiny.recipe), []))
    assert policy.templates is not None and set(policy.templates.classes) == {"nodule", "effusion"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (None, r"data\.units\.templates .*\n  no caption templates"),
        ("classes: {nodule: {presnt: x}}", r"data\.units\.templates .*\n.*classes\.nodule\.presnt"),
    ],
)
def test_a_wrong_file_is_a_problem_of_the_recipe(
    make_fit: Callable[..., Any], tmp_path: Path, words: str | None, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_recipe(str(recipe(make_fit, tmp_path, words).recipe), [])


def test_a_class_without_labels_stops_the_run(
    make_fit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = recipe(make_fit, tmp_path, "classes: {nodul: {present: x}}")
    assert tiny("r", train__steps=3) != 0
    assert "did you mean nodule?" in capsys.readouterr().err


def test_labels_alone_are_enough_with_templates_and_nothing_without(
    make_fit: Callable[..., Any], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    whole = ShardSet.open(shards)
    with ShardWriter(bare, max_samples=10) as writer:
        for row in range(len(whole)):
            source, meta = whole.scan(row)
            scan = Scan(array=source[:], spacing_mm=tuple(meta["spacing_mm"]))
            info = whole.json(row)
            writer.write(Study(whole.key(row), info["patient"], info["split"], (scan,), Texts(), info["labels"]))
    tiny = recipe(make_fit, tmp_path, WORDS)
    path = {"data__source__path": str(bare)}
    assert tiny("r", train__steps=3, checkpoint__every_steps=3, **path) == 0
    assert len(tiny.metrics("r")) > 1
    capsys.readouterr()
    changed = {"data__units__templates": None, "data__units__report": True, "objectives": [{"name": "contrastive"}]}
    assert tiny("s", **changed, **path) == 1
    assert "no study of split 'train' has a text" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_templates(
    make_fit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = recipe(make_fit, tmp_path, WORDS)
    assert tiny("r", train__steps=3, checkpoint__every_steps=3) == 0
    (tmp_path / "words.yaml").write_text(WORDS.replace("a spot", "a shadow"))
    assert tiny.resume("r") == 1
    assert "the file of data.units.templates was changed since the run began" in capsys.readouterr().err
    (tmp_path / "words.yaml").write_text(WORDS)
    assert tiny.resume("r") == 0
