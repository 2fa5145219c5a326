"""Recipes: what is read, from files and from the command line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_shards import geometry as records
from encoders.tag import parse_tag
from pretrain import schema, schema_data, schema_objectives
from pretrain.config import ConfigError, dump, load_recipe, packaged, schema_help, smoke, split_argv
from tests.pretrain.recipes import RECIPE


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_recipe_is_read_with_numbers_as_numbers(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    assert recipe.optim.lr == 1e-4  # YAML 1.1 would read 1e-4 as text
    assert isinstance(recipe.data.geometry, schema_data.VolumeGeometry)
    assert recipe.data.geometry.windows == ((-1000.0, 200.0), (-100.0, 200.0))
    assert recipe.data.train_view.size == (56, 64, 80)
    assert recipe.objectives[1].options == {"label_smoothing": 0.1}
    assert recipe.train.batch_size == 32


def test_recipe_is_frozen(recipe_file: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(str(recipe_file)).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=3e-5", "optim.lr", 3e-5),
        ("optim.lr=.5", "optim.lr", 0.5),
        ("model.image.grad_checkpointing=true", "model.image.grad_checkpointing", True),
        ("optim.clip_norm=null", "optim.clip_norm", None),
        ("objectives.0.weight=2", "objectives.0.weight", 2.0),
        ("data.geometry.windows.1=[-160, 240]", "data.geometry.windows.1", (-160.0, 240.0)),
        ("output.run=no", "output.run", "no"),
        ("checkpoint={keep_top: 4}", "checkpoint.keep_top", 4),
        ("data.cache='a: b'", "data.cache", "a: b"),
        ("data.cache=[unclosed", "data.cache", "[unclosed"),
    ],
)
def test_override_sets_a_typed_value(recipe_file: Path, override: str, key: str, value: object) -> None:
    at: object = load_recipe(str(recipe_file), [override])
    for part in key.split("."):
        at = at[int(part)] if isinstance(at, tuple) else getattr(at, part)
    assert at == value


def test_overrides_take_pairs_and_the_last_one_wins(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["--train.steps", "50", "train.steps=60", "--optim.warmup_steps", "7"])
    assert (recipe.train.steps, recipe.optim.warmup_steps) == (60, 7)


def test_override_replaces_and_appends_objectives(recipe_file: Path) -> None:
    one = load_recipe(str(recipe_file), ["objectives=[{name: sigmoid, init_bias: -5}]"])
    assert [o.name for o in one.objectives] == ["sigmoid"]
    three = load_recipe(str(recipe_file), ["objectives.2.name=sigmoid", "objectives.2.weight=0.1"])
    assert [(o.name, o.weight) for o in three.objectives][2] == ("sigmoid", 0.1)


def test_override_of_kind_starts_the_section_anew(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    for order in (1, -1):
        recipe = load_recipe(str(recipe_file), [f"data.source.path={tmp_path}", "data.source.kind=shards"][::order])
        assert recipe.data.source == schema_data.ShardSource(kind="shards", path=str(tmp_path))


def test_dump_reads_back_equal(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["optim.lr=1e-7", "data.cache=~/x"])
    text = dump(recipe)
    again = tmp_path / "again.yaml"
    again.write_text(text, encoding="utf-8")
    assert load_recipe(str(again)) == recipe
    assert "eps: " in text  # defaults are written out


def test_dump_tells_the_options_that_objectives_have_and_the_recipe_does_not_name(tmp_path: Path) -> None:
    """As comments that may be taken in: `classes` beside `positives: same_caption` would be refused."""
    recipe = load_recipe(
        "ct3d.yaml", ["objectives=[{name: contrastive, to_text: 0.5}, {name: simclr}, {name: sentence}]"]
    )
    text = dump(recipe)
    assert "  to_text: 0.5\n" in text and "# to_text" not in text
    assert "  # classes: labels\n" in text and "  # crops:\n  #   scale: [0.4, 1.0]\n" in text
    taken = tmp_path / "taken.yaml"
    begin = text.index("- name: sentence")
    taken.write_text(text[:begin] + text[begin:].replace("  # ", "  "), encoding="utf-8")
    options = load_recipe(str(taken)).objectives[2].options
    assert options.keys() == schema_objectives.SentenceOptions.model_fields.keys()
    assert schema_objectives.SentenceOptions(**{**options, "units": tuple(options["units"])}) == (
        schema_objectives.SentenceOptions()
    )


@pytest.mark.parametrize("name", packaged())
@pytest.mark.parametrize("small", [False, True])
def test_packaged_recipes_are_valid_and_survive_dump(
    name: str, small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    text = yaml.safe_load((Path(schema.__file__).parents[1] / "configs" / name).read_text(encoding="utf-8"))
    overrides = [f"data.source.path={tmp_path}"] if text["data"]["source"]["kind"] == "shards" else []
    for part in text["data"]["source"].get("sources", ()):
        Path(part["path"]).mkdir(parents=True)
        (Path(part["path"]) / "manifest.json").write_text("{}", encoding="utf-8")
    recipe = load_recipe(name, overrides, smoke=small)
    if small:
        assert recipe.train.steps == 2 and recipe.train.batch_size <= 32
    assert recipe.name == name.removesuffix(".yaml")
    assert load_recipe(name.removesuffix(".yaml"), overrides, smoke=small) == recipe
    (tmp_path / "again.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_a_file_here_goes_before_a_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ct3d.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("ct3d.yaml").name == "trial"
    assert load_recipe("ct3d").name == "ct3d"


def test_smoke_keeps_the_kind_of_tower(recipe_file: Path) -> None:
    views = ["data.train_view.size=[64,64,96]", "data.eval_view.size=[64,64,96]"]
    words = ["model.image.name=swin3d_base.i-64x64x96_c-2", *views]
    assert load_recipe(str(recipe_file), words).model.image.name == "swin3d_base.i-64x64x96_c-2"
    small = smoke(load_recipe(str(recipe_file), words))
    assert small.model.image.name == "swin3d_tiny.i-64x64x96_c-2_w-12_l-1"


def test_smoke_shrinks_and_overrides_still_win(recipe_file: Path) -> None:
    whole = load_recipe(str(recipe_file))
    small = load_recipe(str(recipe_file), smoke=True)
    assert smoke(whole) == small
    assert (small.train.steps, small.train.batch_size, small.data.workers, small.train.accelerator) == (2, 2, 0, "cpu")
    tag = parse_tag(small.model.image.name)
    assert (tag.layers, tag.grid, tag.channels) == (2, (56, 64, 80), 2)
    assert load_recipe(str(recipe_file), ["train.steps=5", "data.workers=2"], smoke=True).train.steps == 5


@pytest.mark.parametrize(("told", "parts"), [("null", None), ("8", 1), ("4000", 4000)])
def test_smoke_cuts_batches_where_the_recipe_does(recipe_file: Path, told: str, parts: int | None) -> None:
    assert smoke(load_recipe(str(recipe_file), [f"train.chunk={told}"])).train.chunk == parts
    assert load_recipe(str(recipe_file), [f"train.chunk={told}"], smoke=True).train.chunk == parts


def test_smoke_leaves_a_chunk_and_a_batch_that_are_told(recipe_file: Path) -> None:
    told = load_recipe(str(recipe_file), ["train.chunk=3", "train.batch_size=6"], smoke=True).train
    assert (told.chunk, told.batch_size) == (3, 6)


def test_kind_words_mirror_the_records_of_data_shards() -> None:
    """A key added on one side only would be lost between recipe and preprocessing."""
    assert schema_data.PERCENTILES == records.PERCENTILES
    for section, record in (
        (schema_data.VolumeGeometry, records.Geometry),
        (schema_data.PlanarGeometry, records.PlanarGeometry),
        (schema_data.ViewSection, records.View),
    ):
        fields = {f.name: f.default for f in dataclasses.fields(record)}
        assert set(section.model_fields) == set(fields)
        written = {k: f.default for k, f in section.model_fields.items() if not f.is_required()}
        assert written == {k: fields[k] for k in written}


def test_arguments_are_sorted() -> None:
    line = "--config ct3d.yaml --optim.lr 1e-4 --smoke --train.steps=-1 --data.geometry.pad_hu -1000"
    found = split_argv(line.split())
    assert found.config == "ct3d.yaml"
    assert found.overrides == ("optim.lr=1e-4", "train.steps=-1", "data.geometry.pad_hu=-1000")
    assert (found.smoke, found.print_config, found.resume, found.help) == (True, False, None, False)
    assert split_argv(["--resume", "runs/x", "--print-config"]).resume == "runs/x"
    assert split_argv(["-h"]).help


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ct3d.yaml", "--config ct3d.yaml"),
        ("--config", "--config has no value"),
        ("--optim.lr --smoke", "--optim.lr has no value"),
        ("--config a --config b", "twice"),
    ],
)
def test_malformed_arguments_are_refused(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        split_argv(line.split())


def test_help_names_every_key_and_every_key_has_a_meaning() -> None:
    rows = [line for line in schema_help().splitlines() if line.startswith(("data.", "model.", "train.", "optim."))]
    assert len(rows) > 60
    assert all(len(row) > 52 for row in rows), [row for row in rows if len(row) <= 52]
    assert "optim.lr " in schema_help()
    assert "auto | fp32 | bf16" in schema_help()


def test_recipes_are_judged_without_torch(recipe_file: Path) -> None:
    code = """
import sys
from pretrain.config import load_recipe, dump, schema_help
schema_help()
dump(load_recipe(sys.argv[1]))
try:
    load_recipe(sys.argv[1], ["optim.lrr=1", "model.image.name=voxvit_tny"])
except ValueError as error:
    assert "2 problems" in str(error), error
heavy = {"torch", "lightning", "timm", "open_clip", "monai", "numpy"} & set(sys.modules)
assert not heavy, heavy
load_recipe(sys.argv[1], ["optim.lrr=1"])
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(recipe_file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr  # a ConfigError that nobody catches prints its message alone
    assert "did you mean optim.lr?" in result.stderr
