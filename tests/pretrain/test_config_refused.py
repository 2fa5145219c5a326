"""Recipes: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config import ConfigError, load_recipe, options_of
from pretrain.schema_objectives import ContrastiveOptions, SigmoidOptions
from tests.pretrain.recipes import RECIPE


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


TOWER = "voxvit_tiny.p-8x16x16_i-56x64x80_c-2"


def refused(path: Path, *overrides: str, edit: tuple[str, str] = ("", "")) -> str:
    """Message of the refusal of RECIPE after one textual edit and some overrides."""
    assert edit[0] in RECIPE
    path.write_text(RECIPE.replace(*edit, 1) if edit[0] else RECIPE, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    return str(caught.value)


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
        (("    windows:", "    levels: 1\n    windows:"), "data.geometry.levels", 7, "must be at least 2, got 1"),
        (("size: [56, 64, 80]", "size: [56, 60, 80]"), "data.train_view.size", 10, "multiple of the model's patch"),
        (("centre, size: [56, 64, 80]", "centre, size: [48, 64, 80]"), "data.eval_view.size", 11, "i-56x64x80"),
        (("centre, size: [56, 64, 80]", "centre, size: [64, 80]"), "data.eval_view.size", 11, "D H W"),
        (("kind: random", "kind: sliding"), "data.train_view.kind", 10, "random"),
        (("kind: centre", "kind: random"), "data.eval_view.kind", 11, "sliding or multi"),
        (("kind: centre", "merge: max, kind: sliding"), "data.eval_view.merge", 11, "use mean"),
        (("voxvit_tiny", "voxvit_tny"), "model.image.name", 14, "did you mean voxvit_tiny?"),
        (("voxvit_tiny", "voxvt_tiny"), "model.image.name", 14, "did you mean voxvit_tiny"),
        (("c-2", "q-2"), "model.image.name", 14, "field 'q-2' is unknown"),
        ((TOWER, "swin3d_smal.i-64x64x64_c-2"), "model.image.name", 14, "did you mean swin3d_small?"),
        ((TOWER, "swin3d_tiny.i-56x64x80_c-2"), "model.image.name", 14, "not a multiple of 32"),
        ((TOWER, "swin3d_tiny.i-64x64x96_c-2"), "data.train_view.size", 10, "not a multiple of"),
        ((TOWER, "swin3d_tiny.i-64x64x96_c-3"), "data.geometry.windows", 7, "c-2"),
        (("c-2}", "c-2, pretrained_file: x.pt}"), "model.image.pretrained_file", 14, "cannot start from a file"),
        (("{name: sentence}", "{name: rotation}"), "objectives.0", 16, "cannot be turned so"),
        (("{name: sentence}", "{name: simclr, max_drop: 1}"), "objectives.0.max_drop", 16, "must be below 1"),
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


def test_objectives_on_views_share_them(recipe_file: Path) -> None:
    two = 'objectives=[{"name": "simclr", "block": 0.5}, {"name": "contrastive"}, {"name": "inpainting"}]'
    message = refused(recipe_file, two)
    assert "objectives.2.block  (command line)\n  0.25, but 0.5 in objectives.0: they share the same" in message
    message = refused(recipe_file, 'objectives=[{"name": "inpainting"}]', "model.image.token_dropout=0.5")
    assert "objectives.0  (command line)\n  inpainting needs a token at every place" in message


def test_a_file_to_start_from_must_be_there_and_be_the_only_start(recipe_file: Path, tmp_path: Path) -> None:
    swin = ("model.image.name=swin3d_tiny.i-64x64x96_c-2", f"model.image.pretrained_file={tmp_path / 'absent.pt'}")
    assert "no file" in refused(recipe_file, *swin)
    assert "would overwrite part of the release" in refused(recipe_file, *swin, f"model.init={tmp_path}")


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
        ConfigError, match=r"ct3d\.yaml, .*ct3d_real\.yaml, .*xray2d\.yaml\n  fix: did you mean xray2d\.yaml"
    ):
        load_recipe("xray2.yaml")


def test_stage_two_speaks_the_same_words(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    assert options_of(recipe, 1, ContrastiveOptions).label_smoothing == 0.1
    with pytest.raises(ConfigError) as caught:
        options_of(recipe, 1, SigmoidOptions)
    assert f"objectives.1.label_smoothing  ({recipe_file}:17)\n  unknown key" in str(caught.value)
