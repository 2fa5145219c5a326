"""Labels and alternating batches in recipes: mistakes are found before torch is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config import ConfigError, load_recipe
from tests.pretrain.recipes import RECIPE


def refused(folder: Path, *overrides: str) -> str:
    path = folder / "trial.yaml"
    path.write_text(RECIPE)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    return str(caught.value)


def labels(**options: object) -> str:
    import json

    return "objectives=" + json.dumps([{"name": "contrastive"}, {"name": "labels", **options}])


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({"names": "none.txt"}, "objectives.1.names", "'none.txt' cannot be read"),
        ({"hierarchy": "none.csv"}, "objectives.1.hierarchy", "'none.csv' cannot be read"),
        ({"names": []}, "objectives.1.names", "empty"),
        ({"min_positives": 0}, "objectives.1.min_positives", "at least 1"),
        ({"pos_weight": 0.5}, "objectives.1.pos_weight", "at least 1"),
        ({"hierachy": "x"}, "objectives.1.hierachy", "did you mean hierarchy?"),
        ({"units": ["report"]}, "objectives.1.units", "unknown key"),
    ],
)
def test_options_of_labels(tmp_path: Path, options: dict[str, object], key: str, said: str) -> None:
    message = refused(tmp_path, labels(**options))
    assert key in message and said in message


def test_a_cycle_and_an_empty_list_of_names(tmp_path: Path) -> None:
    (tmp_path / "codes.csv").write_text("child,parent\na,b\nb,a\n")
    (tmp_path / "names.txt").write_text("\n\n")
    message = refused(tmp_path, labels(hierarchy=str(tmp_path / "codes.csv"), names=str(tmp_path / "names.txt")))
    assert "has a cycle: a -> b -> a" in message and "take out the row" in message
    assert "names no label" in message


def test_one_head_of_a_name(tmp_path: Path) -> None:
    twice = 'objectives=[{"name": "labels"}, {"name": "labels"}]'
    assert "labels is listed twice" in refused(tmp_path, twice)


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ('[{"name": "contrastive"}]', "no objective compares with section units"),
        ('[{"name": "contrastive", "units": ["section"]}, {"name": "labels"}]', "with section units alone"),
    ],
)
def test_half_of_the_batches_would_train_no_text(tmp_path: Path, objectives: str, said: str) -> None:
    assert said in refused(tmp_path, "data.units.alternate=anatomy", f"objectives={objectives}")


def test_sections_alone_are_no_text_for_the_other_batches(tmp_path: Path) -> None:
    both = 'objectives=[{"name": "contrastive", "units": ["report", "section"]}]'
    nothing = ["data.units.report=false", "data.units.sentences=false"]
    assert "no kind of text is switched on" in refused(tmp_path, both, "data.units.alternate=anatomy", *nothing)
    assert "anatomy" in refused(tmp_path, both, "data.units.alternate=organs")


def test_what_is_right_passes(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(RECIPE)
    both = 'objectives=[{"name": "contrastive", "units": ["report", "section"]}, {"name": "labels", "names": ["a"]}]'
    recipe = load_recipe(str(path), [both, "data.units.alternate=anatomy"])
    assert recipe.data.units.alternate == "anatomy"
    reads = 'objectives=[{"name": "contrastive", "units": ["section"]}, {"name": "report_contrastive"}]'  # sentences
    report = ["model.report={}", "data.units.sentences=true", "data.units.max_sentences=50"]
    load_recipe(str(path), [reads, "data.units.alternate=anatomy", *report])


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({"positives": "same_class"}, "positives", "did you mean same_label?"),
        ({"classes": "labels"}, "classes", "would be ignored: positives is same_caption"),
        ({"positives": "soft", "classes": "captions"}, "classes", "positives: same_label"),
        ({"positives": "own", "labels": ["a"]}, "labels", "would be ignored: positives is own"),
        ({"positives": "same_label", "classes": "captions", "labels": ["a"]}, "labels", "classes is captions"),
        ({"positives": "same_label", "soft_temperature": 1}, "soft_temperature", "would be ignored"),
        ({"positives": "soft", "soft_temperature": 0}, "soft_temperature", "above 0"),
        ({"positives": "soft", "labels": "none.txt"}, "labels", "'none.txt' cannot be read"),
    ],
)
def test_positives_of_contrastive(tmp_path: Path, options: dict[str, object], key: str, said: str) -> None:
    import json

    message = refused(tmp_path, "objectives=" + json.dumps([{"name": "contrastive", **options}]))
    at = f"objectives.0.{key}  (command line)\n"
    assert at in message and said in message.split(at)[1].split("\n\n")[0], message
