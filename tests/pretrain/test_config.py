"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_shards import geometry as records
from encoders.tag import parse_tag
from pretrain import known_models, schema
from pretrain.checks import objective_names, task_names
from pretrain.config import ConfigError, dump, load_recipe, options_of, packaged, schema_help, smoke, split_argv

RECIPE = """\
name: trial
data:
  source: {kind: phantom, studies: 40, seed: 3}
  geometry:
    kind: volume
    spacing_mm: [6, 6, 6]
    windows:
      - [-1000, 200]
      - [-100, 200]
  train_view: {kind: random, size: [56, 64, 80]}
  eval_view: {kind: centre, size: [56, 64, 80]}
  units: {report: true, sentences: true}
model:
  image: {name: voxvit_tiny.p-8x16x16_i-56x64x80_c-2}
objectives:
  - {name: sentence}
  - {name: contrastive, weight: 0.5, label_smoothing: 0.1}
optim: {lr: 1e-4, warmup_steps: 10}
train:
  steps: 100
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str, edit: tuple[str, str] = ("", "")) -> str:
    """Message of the refusal of RECIPE after one textual edit and some overrides."""
    assert edit[0] in RECIPE
    path.write_text(RECIPE.replace(*edit, 1) if edit[0] else RECIPE, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ what is read


def test_recipe_is_read_with_numbers_as_numbers(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    assert recipe.optim.lr == 1e-4  # YAML 1.1 would read 1e-4 as text
    assert isinstance(recipe.data.geometry, schema.VolumeGeometry)
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
        assert recipe.data.source == schema.ShardSource(kind="shards", path=str(tmp_path))


def test_dump_reads_back_equal(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["optim.lr=1e-7", "data.cache=~/x"])
    text = dump(recipe)
    again = tmp_path / "again.yaml"
    again.write_text(text, encoding="utf-8")
    assert load_recipe(str(again)) == recipe
    assert "eps: " in text  # defaults are written out


@pytest.mark.parametrize("name", packaged())
@pytest.mark.parametrize("small", [False, True])
def test_packaged_recipes_are_valid_and_survive_dump(name: str, small: bool, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    text = yaml.safe_load((Path(schema.__file__).parents[1] / "configs" / name).read_text(encoding="utf-8"))
    overrides = [f"data.source.path={tmp_path}"] if text["data"]["source"]["kind"] == "shards" else []
    recipe = load_recipe(name, overrides, smoke=small)
    assert recipe.name == name.removesuffix(".yaml")
    assert load_recipe(name.removesuffix(".yaml"), overrides, smoke=small) == recipe
    (tmp_path / "again.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_a_file_here_goes_before_a_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ct3d.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("ct3d.yaml").name == "trial"
    assert load_recipe("ct3d").name == "ct3d"


def test_smoke_shrinks_and_overrides_still_win(recipe_file: Path) -> None:
    whole = load_recipe(str(recipe_file))
    small = load_recipe(str(recipe_file), smoke=True)
    assert smoke(whole) == small
    assert (small.train.steps, small.train.batch_size, small.data.workers, small.train.accelerator) == (2, 2, 0, "cpu")
    tag = parse_tag(small.model.image.name)
    assert (tag.layers, tag.grid, tag.channels) == (2, (56, 64, 80), 2)
    assert load_recipe(str(recipe_file), ["train.steps=5", "data.workers=2"], smoke=True).train.steps == 5


def test_kind_words_mirror_the_records_of_data_shards() -> None:
    """A key added on one side only would be lost between recipe and preprocessing."""
    assert schema.PERCENTILES == records.PERCENTILES
    for section, record in (
        (schema.VolumeGeometry, records.Geometry),
        (schema.PlanarGeometry, records.PlanarGeometry),
        (schema.ViewSection, records.View),
    ):
        fields = {f.name: f.default for f in dataclasses.fields(record)}
        assert set(section.model_fields) == set(fields)
        written = {k: f.default for k, f in section.model_fields.items() if not f.is_required()}
        assert written == {k: fields[k] for k in written}


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("edit", "key", "line", "words"),
    [
        (("optim: {lr", "optim: {lrr"), "optim.lrr", 18, "did you mean optim.lr?"),
        (("optim:", "optm:"), "optm", 18, "did you mean optim?"),
        (("name: trial", "name: trial\nlr: 3"), "lr", 2, "did you mean optim.lr?"),
        (("name: trial\n", ""), "name", None, "required, but not given"),
        (("  steps: 100", "  steps: 1e2"), "train.steps", 20, "write 100"),
        (("  steps: 100", "  steps: '100'"), "train.steps", 20, "expected a whole number, got the text '100'"),
        (("  steps: 100", "  steps: 0"), "train.steps", 20, "must be at least 1, got 0"),
        (("report: true", "report: yes"), "data.units.report", 12, "expected true or false"),
        (("lr: 1e-4", "lr: .nan"), "optim.lr", 18, "finite"),
        (("lr: 1e-4", "lr: 1e-4, lr: 1e-3"), "optim.lr", 18, "given again"),
        (("kind: centre", "kind: center"), "data.eval_view.kind", 11, "did you mean centre?"),
        (("kind: phantom", "kind: phantm"), "data.source.kind", 3, "did you mean phantom?"),
        (("kind: phantom, ", ""), "data.source.kind", 3, "phantom, shards"),
        (("[6, 6, 6]", "[6, 6]"), "data.geometry.spacing_mm", 6, "too short"),
        (("[6, 6, 6]", "[6, 6, 6, 6]"), "data.geometry.spacing_mm", 6, "too long, by 1"),
        (("[6, 6, 6]", "[6, 0, 6]"), "data.geometry.spacing_mm", 6, "positive"),
        (("- [-100, 200]", "- [200, 200]"), "data.geometry.windows.1", 9, "low must be below high"),
        (("      - [-100, 200]\n", ""), "data.geometry.windows", 7, "c-1"),
        (("    windows:", "    windows_in: percentile\n    windows:"), "data.geometry.windows.0", 9, "stored with"),
        (("size: [56, 64, 80]", "size: [56, 60, 80]"), "data.train_view.size", 10, "multiple of the model's patch"),
        (("centre, size: [56, 64, 80]", "centre, size: [48, 64, 80]"), "data.eval_view.size", 11, "i-56x64x80"),
        (("centre, size: [56, 64, 80]", "centre, size: [64, 80]"), "data.eval_view.size", 11, "D H W"),
        (("kind: random", "kind: sliding"), "data.train_view.kind", 10, "random"),
        (("kind: centre", "kind: random"), "data.eval_view.kind", 11, "sliding or multi"),
        (("kind: centre", "merge: max, kind: sliding"), "data.eval_view.merge", 11, "use mean"),
        (("voxvit_tiny", "voxvit_tny"), "model.image.name", 14, "did you mean voxvit_tiny?"),
        (("voxvit_tiny", "voxvt_tiny"), "model.image.name", 14, "did you mean voxvit_tiny"),
        (("c-2", "q-2"), "model.image.name", 14, "field 'q-2' is unknown"),
        (("voxvit_tiny.p-8x16x16_i-56x64x80_c-2", "vit_base_patch16_242"), "model.image.name", 14, "patch16_224"),
        (("voxvit_tiny.p-8x16x16_i-56x64x80_c-2", "ViT-B-32"), "model.image.name", 14, "takes images"),
        (("name: sentence", "name: sentense"), "objectives.0.name", 16, "did you mean sentence?"),
        (("name: sentence", "name: no_such_module:X"), "objectives.0.name", 16, "no module 'no_such_module'"),
        (("label_smoothing", "label_smothing"), "objectives.1.label_smothing", 17, "did you mean label_smoothing?"),
        (("smoothing: 0.1", "smoothing: 1.5"), "objectives.1.label_smoothing", 17, "must be below 1, got 1.5"),
        (("sentences: true", "sentences: false"), "objectives.0", 16, "data.units.sentences: true"),
        (("warmup_steps: 10", "warmup_steps: 100"), "optim.warmup_steps", 18, "never reached"),
        (("train:", "evaluate: {task: no_such_task}\ntrain:"), "evaluate.task", 19, "no task 'no_such_task'"),
        (("name: trial", "name: ../trial"), "name", 1, "other characters"),
        (("name: trial", "name: !!python/name:os.system trial"), "name", 1, "not allowed"),
        (("objectives:", "objectives: []\nx:"), "objectives", 15, "an empty list"),
    ],
)  # fmt: skip
def test_one_mistake_is_named_with_key_line_and_remedy(
    recipe_file: Path, edit: tuple[str, str], key: str, line: int | None, words: str
) -> None:
    message = refused(recipe_file, edit=edit)
    place = f"{recipe_file}:{line}" if line else str(recipe_file)
    assert f"{key}  ({place})\n" in message
    assert words in message.split(f"{key}  ({place})\n")[1].split("\n\n")[0]


def test_objectives_that_learn_nothing_are_refused(recipe_file: Path) -> None:
    message = refused(recipe_file, "objectives.0.weight=0", "objectives.1.weight=0")
    assert "nothing would be learnt" in message


def test_muon_and_sharded_weights_do_not_go_together(recipe_file: Path) -> None:
    message = refused(recipe_file, "optim.muon=2", "train.strategy=fsdp2")
    assert "optim.muon" in message and "whole matrices" in message


def test_splits_must_differ(recipe_file: Path) -> None:
    message = refused(recipe_file, "data.splits.select=test")
    assert "data.splits.test" in message
    assert "optimistic" in message


def test_shard_folders_are_looked_at(recipe_file: Path, tmp_path: Path) -> None:
    assert "no folder" in refused(recipe_file, "data.source.kind=shards", f"data.source.path={tmp_path / 'absent'}")
    message = refused(recipe_file, "data.source.kind=shards", f"data.source.path={tmp_path}")
    assert "data.source.path  (command line)" in message
    assert "manifest.json" in message


def test_init_must_be_a_release(recipe_file: Path, tmp_path: Path) -> None:
    assert "not a release folder" in refused(recipe_file, f"model.init={tmp_path}")


def test_images_need_an_image_tower(recipe_file: Path) -> None:
    message = refused(recipe_file, "data.geometry={kind: image}")
    assert "phantoms are CT volumes" in message
    assert "takes volumes" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.weight_deacy=3", "did you mean optim.weight_decay?"),
        ("confg=x", "did you mean --config?"),
        ("batch_size=4", "did you mean train.batch_size?"),
        ("objectives.7.weight=2", "there is no such list item"),
        ("name.x=2", "name is a value, not a section"),
        ("train.steps=many", "expected a whole number, got the text 'many'"),
    ],
)
def test_a_wrong_override_says_command_line(recipe_file: Path, override: str, words: str) -> None:
    message = refused(recipe_file, override)
    assert "(command line)" in message or "list item" in words or "section" in words
    assert words in message


def test_all_mistakes_come_together_in_file_order(recipe_file: Path) -> None:
    text = RECIPE.replace("seed: 3", "sede: 3").replace("warmup_steps: 10", "warmup_steps: 200")
    text = text.replace("c-2", "c-4").replace("label_smoothing: 0.1", "label_smoothing: two")
    recipe_file.write_text(text + "  batch: 4\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(recipe_file), ["optim.eps=0"])
    message = str(caught.value)
    keys = ["data.source.sede", "data.geometry.windows", "objectives.1.label_smoothing", "train.batch", "optim.eps"]
    assert [line.split("  (")[0] for line in message.splitlines() if line.endswith(")") and "  (" in line] == [
        *keys[:3],
        "optim.warmup_steps",
        *keys[3:],
    ]
    assert message.startswith("6 problems in ")


def test_a_broken_yaml_names_its_line(recipe_file: Path) -> None:
    message = refused(recipe_file, edit=("  steps: 100", "  steps: [100"))
    assert f"{recipe_file}:2" in message
    assert "not YAML" in message


@pytest.mark.parametrize("content", [b"name: \x00", b"\xff\xfe\x00", b"\tname: x"])
def test_a_file_that_is_no_yaml_text_is_refused(recipe_file: Path, content: bytes) -> None:
    recipe_file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"is not (YAML|a text file)"):
        load_recipe(str(recipe_file))


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [*x]",
        "? [1, 2]\n: 3",
        "name: !!float abc",
        "objectives: 3",
        "objectives: [3]",
        "objectives: [{name: 3}, {name: contrastive, units: report}]",
        "data: {source: 3, geometry: [1], train_view: null}",
        "data: {source: {kind: [1]}, splits: {train: 1}}",
        "optim: [1]",
        "model: {image: {name: 3}}",
        "evaluate: {task: 3}\ntrain: {steps: {}}",
    ],
)
def test_any_shape_of_nonsense_is_explained(recipe_file: Path, text: str) -> None:
    recipe_file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="problems in"):
        load_recipe(str(recipe_file))


def test_an_empty_file_is_refused(recipe_file: Path) -> None:
    recipe_file.write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no keys"):
        load_recipe(str(recipe_file))
    recipe_file.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="required, but not given"):
        load_recipe(str(recipe_file))


def test_an_unknown_recipe_lists_the_packaged_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"ct3d\.yaml, ct3d_real\.yaml, xray2d\.yaml\n  fix: did you mean xray2d\.yaml"
    ):
        load_recipe("xray2.yaml")


def test_stage_two_speaks_the_same_words(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    assert options_of(recipe, 1, schema.ContrastiveOptions).label_smoothing == 0.1
    with pytest.raises(ConfigError) as caught:
        options_of(recipe, 1, schema.SigmoidOptions)
    assert f"objectives.1.label_smoothing  ({recipe_file}:17)\n  unknown key" in str(caught.value)


# ---------------------------------------------------------------------------------------------------- command line


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


# ------------------------------------------------------------------------------------------------------ shipped lists


def test_known_models_are_those_that_exist() -> None:
    existing = known_models.installed()
    if known_models.is_current():
        assert known_models.names() == existing
    else:  # another timm within our floors: the list may lag, but not be something else
        assert len(known_models.names() & existing) > 0.9 * len(known_models.names())
    assert not any(name.startswith("voxvit") for name in known_models.names())


def test_pretrained_tags_and_open_clip_names_are_known() -> None:
    assert known_models.is_known("vit_base_patch16_224.augreg_in21k")
    assert known_models.is_known("ViT-B-32")
    assert known_models.suggest("vit_tiny_patch16_22").startswith("did you mean vit_tiny_patch16_224")


def test_built_in_objectives_are_known_before_import() -> None:
    from pretrain.objectives import NAMES

    assert set(NAMES) <= set(objective_names())


def test_the_phantom_task_is_packaged() -> None:
    assert "phantom" in task_names()
