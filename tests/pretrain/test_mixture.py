"""Recipes that mix shard sets: what they say, what is refused, and a run from two sources to a release."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_shards import DataError
from eval_zero_shot.outcome import read_results
from pretrain import build, schema, studies
from pretrain.config import ConfigError, dump, load_recipe, schema_help
from pretrain.runs import refuse_changes
from tests.pretrain.recipes import RECIPE

PHANTOM = "{kind: phantom, studies: 40, seed: 3}"


def entries(one: Path | str, two: Path | str, *weights: float | None) -> list[dict[str, Any]]:
    named = (("ct", one), ("more", two))
    plain = [{"name": name, "path": str(path)} for name, path in named]
    return [{**e, "weight": w} for e, w in zip(plain, weights, strict=True)] if weights else plain


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")

    def message(source: str, *overrides: str) -> str:
        path = tmp_path / "trial.yaml"
        path.write_text(RECIPE.replace(PHANTOM, f"{{kind: mixture, {source}}}".replace("@", f"{tmp_path}/")))
        with pytest.raises(ConfigError) as caught:
            load_recipe(str(path), overrides)
        return str(caught.value)

    return message


BOTH = "sources: [{name: ct, path: @a, weight: 3}, {name: xr, path: @b, weight: 1}]"
UNWEIGHTED = "sources: [{name: ct, path: @a}, {name: xr, path: @b}]"


@pytest.mark.parametrize(
    ("source", "key", "words"),
    [
        ("", "data.source.sources", "required"),
        ("sources: []", "data.source.sources", "an empty list"),
        (BOTH.replace("weight: 1", "wieght: 1"), "data.source.sources.1.wieght", "did you mean"),
        (BOTH.replace("weight: 1", "weight: 0"), "data.source.sources.1.weight", "must be above 0"),
        (BOTH.replace("weight: 1", "weight: .inf"), "data.source.sources.1.weight", "finite"),
        (BOTH.replace(", weight: 1", ""), "data.source.sources.1", "source 'xr' has no weight"),
        (BOTH.replace("@b", "@absent"), "data.source.sources.1.path", "no folder"),
        (BOTH.replace("name: xr", "name: ct"), "data.source.sources.1.name", "'ct' is there already"),
        (BOTH.replace("name: xr", "name: x/r"), "data.source.sources.1.name", "other characters"),
        (f"{BOTH}, mix: uniform", "data.source.sources.0.weight", "would be ignored"),
        (f"{BOTH}, mix: even", "data.source.mix", "not one of weights, proportional"),
        (f"{UNWEIGHTED}, mix: temperature", "data.source.temperature", "required by mix: temperature"),
        (f"{BOTH}, temperature: 2", "data.source.temperature", "would be ignored"),
        (BOTH.replace("name: xr,", "name: xr, modality: CR,"), "data.source.sources.1.modality", "would be ignored"),
        (BOTH.replace("name: xr,", "name: xr, modality: x-ray,"), "data.source.sources.1.modality", "other characters"),
        (f"{BOTH}, by: modality", "data.source.by", "mixed batches have no groups"),
        (f"{BOTH}, batches: sorted", "data.source.batches", "not one of mixed, homogeneous, stratified"),
    ],
)
def test_a_mistake_is_named_with_its_key(refused: Callable[..., str], source: str, key: str, words: str) -> None:
    message = refused(source)
    assert f"{key}  (" in message
    assert words in message.split(f"{key}  (")[1].split("\n\n")[0]


def test_a_batch_smaller_than_its_groups_is_refused_at_once(refused: Callable[..., str]) -> None:
    three = BOTH.replace("]", ", {name: mr, path: @a, weight: 1}]")
    message = refused(f"{three}, batches: stratified", "train.batch_size=2")
    assert "train.batch_size  (command line)\n  a global batch of 2 cannot hold all 3 sources" in message
    assert "fix: 3 or more" in message


def test_help_names_the_keys_of_a_mixture() -> None:
    for key in ("sources.0.name", "sources.0.path", "sources.0.weight", "mix", "temperature", "batches", "by"):
        assert f"data.source.{key} " in schema_help()
    assert "data.max_damaged " in schema_help()
    assert "with kind: mixture" in schema_help()


@pytest.fixture
def mixed(make_fit: Callable[..., Any], tmp_path: Path, shards: Path, more_shards: Path, plugins: None) -> Any:
    fit = make_fit(tmp_path, objectives=[{"name": "trouble:Trouble"}, {"name": "sentence"}])
    edit(fit, kind="mixture", sources=entries(shards, more_shards, 3, 1))
    return fit


def edit(fit: Any, **keys: Any) -> None:
    """Set keys of data.source in the recipe's file."""
    recipe = yaml.safe_load(fit.recipe.read_text())
    old = recipe["data"]["source"] if "kind" not in keys else {}
    recipe["data"]["source"] = {**old, **keys}
    fit.recipe.write_text(yaml.safe_dump(recipe))


def counts(rows: list[str]) -> dict[str, int]:
    """Last samples drawn, by what and name."""
    return {row.split(",")[1].removeprefix("samples/"): int(row.split(",")[2]) for row in rows if ",samples/" in row}


def test_two_sources_are_trained_scored_and_released(
    mixed: Any, task_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mixed("run", evaluate__task=str(task_file), evaluate__final=True, evaluate__max_studies=None) == 0
    want = {"source/ct": 24, "source/more": 8, "modality/CT": 24, "modality/MR": 8}
    assert counts(mixed.metrics("run")) == want
    said = capsys.readouterr().out
    assert "drawn    ct 24 (75.0 %), more 8 (25.0 %)\n" in said and "drawn    CT 24 (75.0 %), MR 8" in said
    classified = read_results(mixed.folder("run") / "results")[0]
    assert classified.studies == 6, "four of one source and two of the other"
    assert classified.scores is not None
    known = classified.scores[(classified.scores["variant"] == "") & classified.scores["label"].notna()]
    found = known["of"].value_counts().to_dict()
    assert found == {"nodule": 6, "effusion": 4}, "unknown where the source does not have the label"
    recipe = load_recipe(str(mixed.folder("run") / "recipe.yaml"))
    assert dump(recipe) == (mixed.folder("run") / "recipe.yaml").read_text()
    data = studies.build_data(recipe)
    model = json.loads((mixed.checkpoint("run") / "model.json").read_text())
    assert model["manifest"] == data.shards.manifest_hash


@pytest.mark.parametrize("kind", [{"batches": "homogeneous"}, {"batches": "stratified", "by": "modality"}])
def test_smoke_keeps_the_batches_whole(mixed: Any, kind: dict[str, str]) -> None:
    from pretrain import fit

    edit(mixed, **kind)
    assert fit.main([*mixed.argv("smoke", evaluate__task=None), "--smoke"]) == 0
    drawn = counts(mixed.metrics("smoke"))
    assert drawn["source/ct"] + drawn["source/more"] == (4 if kind["batches"] == "homogeneous" else 8)


def test_a_stopped_run_goes_on_and_moved_sources_may_be_named_anew(
    mixed: Any,
    equal: Any,
    trouble: Callable[..., None],
    tmp_path: Path,
    more_shards: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mixed("whole") == 0
    trouble(signal_at=5)
    assert mixed("cut", data__workers=1) == 143
    trouble()
    moved = shutil.copytree(more_shards, tmp_path / "moved")
    file = mixed.folder("cut") / "recipe.yaml"
    whole = file.read_text()
    file.write_text(whole.replace("weight: 3.0", "weight: 2.0"))
    assert mixed.resume("cut") == 1
    assert "data.source.sources.0.weight 3.0 -> 2.0" in capsys.readouterr().err
    file.write_text(whole.replace(str(more_shards), str(moved)))
    assert mixed.resume("cut") == 0
    assert equal(mixed.weights("cut"), mixed.weights("whole"))
    assert mixed.metrics("cut") == mixed.metrics("whole")


def test_ranks_may_change_where_the_global_batch_stays(tiny: Any) -> None:
    assert tiny("run", train__steps=3) == 0
    checkpoint = tiny.checkpoint("run")
    recipe = load_recipe(str(tiny.folder("run") / "recipe.yaml"))

    def with_train(**changes: int) -> schema.Recipe:
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})

    refuse_changes(checkpoint, with_train(batch_size=2, devices=2))
    with pytest.raises(ConfigError, match=r"batch_size x train.devices 4 x 1 = 4 -> 4 x 2 = 8"):
        refuse_changes(checkpoint, with_train(devices=2))


def test_what_only_the_shards_can_tell_is_refused_with_its_source(mixed: Any, radiographs: Path) -> None:
    recipe = str(mixed.recipe)

    def message(*overrides: str) -> str:
        with pytest.raises((ConfigError, DataError)) as caught:
            studies.build_data(load_recipe(recipe, overrides))
        return str(caught.value)

    planar = f"data.source.sources.1.path={radiographs}"
    assert "source 'more' holds images, the recipe is for volumes" in message(planar)
    stratified = load_recipe(recipe, ["data.source.batches=stratified", "train.batch_size=2"])
    data = studies.build_data(stratified)
    with pytest.raises(DataError, match=r"global batch of 2 cannot hold all 2 groups.*none of more[\s\S]*of 4, or"):
        build.training_stream(stratified, data, lambda text: [1], 0, 1, 0)


def test_damage_within_the_budget_does_not_stop_a_run(
    tiny: Any, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    shard = copy / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[3000] ^= 1  # in the first sample's volume
    shard.write_bytes(data)
    where = {"data__source__path": str(copy)}
    assert tiny("strict", **where) == 1
    assert "error: shard-000000.tar, sample study0: member 00.vol.b2nd does not match" in capsys.readouterr().err
    assert tiny("tolerant", **where, data__max_damaged=1) == 0
    assert capsys.readouterr().err.count("warning: damaged sample left out, 1 of at most 1") == 1
