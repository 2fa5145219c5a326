"""Runs without a text tower: refused where they cannot be, released as a folder that plain timm loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import encoders
from pretrain import build, fit
from pretrain.config import dump, load_recipe
from pretrain.errors import ConfigError

ALONE: dict[str, Any] = {"model": {"text": None}, "objectives": [{"name": "simclr", "dim": 8}]}
NO_TEXTS = {"report": False}


@pytest.fixture
def alone(
    make_fit: Callable[..., Any], tmp_path: Path, radiograph_data: dict[str, Any], request: pytest.FixtureRequest
) -> Any:
    image = {"name": getattr(request, "param", "vit_tiny_patch16_224"), "image_size": 32}
    return make_fit(
        tmp_path,
        data=radiograph_data | {"units": NO_TEXTS},
        model={"text": None, "image": image},
        objectives=[{"name": "simclr", "dim": 8}],
        train={"steps": 3},
    )


@pytest.mark.parametrize("alone", ["vit_tiny_patch16_224", "resnet50"], indirect=True)
def test_a_run_is_released_for_timm(alone: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And loads after it has moved, with equal features, by timm and by encoders.load, in a process without us."""
    assert alone("run") == 0
    said = capsys.readouterr().out
    assert "timm.create_model('local-dir:" in said and "open_clip" not in said
    assert not any("logit_scale" in row for row in alone.metrics("run"))
    release, moved = alone.folder("run") / "release", tmp_path / "elsewhere"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = timm.create_model(f"local-dir:{release}", pretrained=True).eval()(images)
    trained = alone.weights("run")
    shutil.move(release, moved)
    loaded = encoders.load(moved)
    assert loaded.kind == "timm" and loaded.tokenizer is None
    state = loaded.model.state_dict()
    assert {f"visual.trunk.{k}" for k in state} == trained.keys()
    assert all(torch.equal(trained[f"visual.trunk.{k}"], v) for k, v in state.items())
    with torch.no_grad():
        assert torch.equal(loaded.model(images), before)
        torch.save({"images": images, "features": before}, tmp_path / "features.pt")
    code = (
        "import sys, timm, torch; kept = torch.load(sys.argv[2], weights_only=True)\n"
        "model = timm.create_model(f'local-dir:{sys.argv[1]}', pretrained=True).eval()\n"
        "assert 'encoders' not in sys.modules and torch.equal(model(kept['images']), kept['features'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(moved), str(tmp_path / "features.pt")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((moved / "config.json").read_text())
    assert config.get("model_args", {}) == ({} if config["architecture"] == "resnet50" else {"img_size": 32})
    assert config["planar_cfg"]["geometry"]["size"] == [32, 32]


def test_another_run_starts_from_such_a_release(alone: Any) -> None:
    assert alone("first") == 0
    release = alone.folder("first") / "release"
    recipe = load_recipe(str(alone.recipe), [f"model.init={release}"])
    state = build.build_model(recipe).clip.visual.trunk.state_dict()
    want = alone.weights("first")
    assert all(torch.equal(want[f"visual.trunk.{k}"], v) for k, v in state.items())
    with pytest.raises(ConfigError, match="is not a release folder of an image tower alone"):
        load_recipe(str(alone.recipe), [f"model.init={release.parent}"])


def test_embed_and_probe_take_the_release(
    make_fit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Volumes here: a head of labels goes along, and the evaluators read the folder."""
    import pyarrow.parquet as pq

    from eval_zero_shot import embed
    from eval_zero_shot.probe.__main__ import main as probe

    data = {"units": NO_TEXTS}
    runs = make_fit(tmp_path, data=data, model={"text": None}, objectives=[{"name": "labels"}])
    assert runs("run") == 0
    release = runs.folder("run") / "release"
    assert encoders.load(release).heads["labels"].labels == ("effusion", "nodule")
    recipe = load_recipe(str(runs.recipe))
    shards = recipe.data.source.path  # type: ignore[union-attr]
    assert embed.main(["--model", str(release), "--input", shards, "--out", str(tmp_path / "f.parquet")]) == 0
    assert pq.read_table(tmp_path / "f.parquet").num_rows == 24
    words = ["--model", str(release), "--data", shards, "--out", str(tmp_path / "probe"), "--no-cache"]
    assert probe([*words, "--labels", "nodule", "--resamples", "0"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.units.report=true"], "nobody would read them (report): model.text is null"),
        (['objectives=[{"name": "contrastive"}]'], "contrastive compares with texts, and model.text is null"),
        (['objectives=[{"name": "matching"}]'], "matching compares with texts, and model.text is null"),
        (["model.centred=true"], "there is no such space"),
        (
            ["model.image.name=convnext_base", "model.image.pretrained=laion2b"],
            "'laion2b' is of an open_clip model, and without a text tower 'convnext_base' is timm's",
        ),
        (["optim.lr_multipliers.text=0"], "optim.lr_multipliers.text"),
        (["evaluate.task=hannover_cxr"], "zero-shot scores compare images with texts"),
        (["model.image.name=ViT-B-16"], "'ViT-B-16' is open_clip's own tower"),
    ],
)
def test_what_needs_texts_is_refused(alone: Any, words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe(str(alone.recipe), words)
    assert says in str(refused.value)


def test_a_name_that_open_clip_has_too_is_timms(alone: Any) -> None:
    """With a text tower it is open_clip's, of which there are several weights."""
    words = ["model.image.name=convnext_base", "model.image.pretrained=true"]
    told = build.model_cfg(load_recipe(str(alone.recipe), words))["vision_cfg"]
    assert (told["timm_model_name"], told["timm_model_pretrained"]) == ("convnext_base", True)
    with pytest.raises(ConfigError, match="open_clip has several weights for 'convnext_base'"):
        load_recipe(str(alone.recipe), [*words, "model.text={}", "data.units.report=true"])


def test_a_dumped_recipe_without_texts_is_read_again(alone: Any, tmp_path: Path) -> None:
    recipe = load_recipe(str(alone.recipe), ["optim.lr_multipliers.heads=2"])
    (tmp_path / "dumped.yaml").write_text(dump(recipe))
    assert load_recipe(str(tmp_path / "dumped.yaml")) == recipe


def test_somebody_elses_objective_that_reads_texts_is_refused(alone: Any, plugins: None) -> None:
    recipe = load_recipe(str(alone.recipe), ['objectives=[{"name": "pretrain.objectives.sigmoid:Sigmoid"}]'])
    with pytest.raises(ConfigError, match=r"Sigmoid reads image:global\.pooled, and model.text is null"):
        build.build_objectives(recipe)


def test_a_tower_that_nobody_knows_is_refused(alone: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main(alone.argv("run", model__image__name="vit_tiny_patch16_999")) == 1
    assert "no model is called 'vit_tiny_patch16_999'" in capsys.readouterr().err


SLICE = {"kind": "slice", "plane": "coronal", "size": [32, 32], "windows": [[-1000, 200], [-160, 240], [-450, 1050]]}


@pytest.fixture
def sliced(make_fit: Callable[..., Any], tmp_path: Path) -> Any:
    """Coronal slices of volumes; scored with a text tower."""
    return make_fit(
        tmp_path,
        data={
            "geometry": SLICE,
            "train_view": {"kind": "random", "size": [32, 32], "scale": [0.5, 1.0]},
            "eval_view": {"kind": "slices", "size": [32, 32], "slices": 3},
        },
        model={"image": {"name": "resnet10t", "image_size": 32}},
        objectives=[{"name": "contrastive"}],
        train={"steps": 3},
    )


def test_a_tower_of_images_trains_on_slices_of_volumes(sliced: Any, shards: Path, tmp_path: Path) -> None:
    """The release says how they were cut; its slices are those of the stream; several are averaged by evaluators."""
    import numpy as np

    from data_shards.preprocess import crops_of
    from data_shards.shard_set import ShardSet
    from eval_zero_shot import embed
    from eval_zero_shot.embedding import embed_images

    assert sliced("run") == 0
    release = encoders.load(sliced.folder("run") / "release")
    assert release.kind == "clip" and release.geometry.kind == "slice" and release.view.slices == 3
    studies = ShardSet.open(shards)
    source, meta = studies.scan(20, 0)
    crops = release.preprocess.crops(np.asarray(source), spacing_mm=meta["spacing_mm"])
    assert crops.shape == (3, 3, 32, 32)
    assert np.array_equal(crops.numpy(), crops_of(source, meta, release.geometry, release.view))
    found = embed_images(release.model, studies, [20], release.geometry, release.view)
    with torch.no_grad():
        each = torch.nn.functional.normalize(release.model.eval().encode_image(crops).study_BD, dim=1)
    mean = torch.nn.functional.normalize(each.mean(0), dim=0)
    torch.testing.assert_close(torch.from_numpy(found.features_ND[0]), mean, rtol=1e-4, atol=1e-5)
    out = tmp_path / "features.parquet"
    assert embed.main(["--model", str(release_folder(sliced)), "--input", str(shards), "--out", str(out)]) == 0


def release_folder(runs: Any) -> Path:
    return runs.folder("run") / "release"


def test_batches_of_slices_are_the_same_for_any_number_of_workers(sliced: Any) -> None:
    """Which slice and which part of it depends on seed, epoch and row alone."""
    from pretrain.studies import build_data

    recipe = load_recipe(str(sliced.recipe))
    data, seen = build_data(recipe), []
    for workers in (0, 2):
        told = load_recipe(str(sliced.recipe), [f"data.workers={workers}", "train.steps=6"])
        stream = build.training_stream(told, data, build.tokenizer(told), 0, 1, 0)
        seen.append([batch.images_BCDHW.clone() for batch in stream])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert not torch.equal(seen[0][0], seen[0][4])  # the second epoch has other slices


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("data.geometry.windows=[[0, 1], [0, 1]]", "2 windows for the three channels"),
        ("data.geometry.span=[0.6, 0.4]", "the first number must be below the second"),
        ("data.geometry.plane=oblique", "oblique"),
        ("data.geometry.windows=[[1, 0]]", "low must be below high"),
        ("data.eval_view={kind: multi, size: [32, 32]}", "multi crops are for volumes and images"),
        ("data.train_view={kind: slices, size: [32, 32]}", "training reads one region a study"),
        ("data.eval_view={kind: centre, size: [32, 32], slices: 3}", "would be ignored: kind is centre"),
        ("data.eval_view={kind: centre, size: [64, 64]}", "differs from data.geometry.size"),
        ("model.image.name=voxvit_tiny.p-8x16x16_i-16x32x32_c-3", "takes volumes, data.geometry makes images"),
    ],
)
def test_recipes_of_slices_that_cannot_be_are_refused(sliced: Any, word: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe(str(sliced.recipe), [word])
    assert says in str(refused.value)


def test_slices_are_of_volumes(sliced: Any, tiny: Any, tmp_path: Path, radiographs: Path) -> None:
    with pytest.raises(ConfigError, match="slices are of a volume that is seen slice by slice"):
        load_recipe(str(tiny.recipe), ["data.eval_view={kind: slices, size: [16, 32, 32]}"])
    from pretrain.studies import build_data

    recipe = load_recipe(str(sliced.recipe), [f"data.source={{kind: shards, path: {radiographs}}}"])
    with pytest.raises(ConfigError, match="the shard set holds images"):
        build_data(recipe)


@pytest.mark.parametrize("text", [None, {"width": 32, "layers": 1, "heads": 2, "context_length": 64}])
def test_a_tower_starts_from_a_file(alone: Any, text: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a text tower beside it or without, and not again where a run is resumed."""
    from safetensors.torch import save_file

    state = timm.create_model("resnet10t", num_classes=5).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    words = ["model.image.name=resnet10t", f"model.image.pretrained_file={tmp_path / 'model.safetensors'}"]
    words += [f"model.text={json.dumps(text)}"]
    if text:
        words += ["data.units.report=true", 'objectives=[{"name": "contrastive"}]']
    recipe = load_recipe(str(alone.recipe), words)
    trunk = build.build_model(recipe).clip.visual.trunk
    assert all(torch.equal(state[k], v) for k, v in trunk.state_dict().items())
    assert "left aside: fc (2); still random: none" in capsys.readouterr().out
    resumed = build.build_model(recipe, with_init=False).clip.visual.trunk
    assert not torch.equal(resumed.conv1[0].weight, state["conv1.0.weight"])
    other = load_recipe(str(alone.recipe), [*words, "model.image.name=resnet18"])
    with pytest.raises(ConfigError, match=r"does not fit this tower: .* missing from the file"):
        build.build_model(other)
    with pytest.raises(ConfigError, match="would overwrite the published weights"):
        load_recipe(str(alone.recipe), [*words, "model.image.pretrained=true"])


def test_a_run_goes_on_from_a_checkpoint_with_the_moving_average_of_byol(
    alone: Any, monkeypatch: pytest.MonkeyPatch, equal: Any
) -> None:
    byol = {"name": "byol", "views": "crops", "dim": 8, "hidden": 16, "crops": {"small": 1}}
    settings = {"objectives": [byol], "train__steps": 4, "optim__ema_decay": 0.5, "checkpoint__every_steps": 2}
    monkeypatch.setattr("pretrain.checkpoint.prune", lambda *_: None)
    assert alone("whole", **settings) == 0 and alone("cut", **settings) == 0
    root = alone.folder("cut") / "checkpoints"
    shutil.rmtree(alone.checkpoint("cut"))
    for name in ("last", "best"):
        (root / name).unlink()
        (root / name).symlink_to("step-00000002")
    assert not equal(alone.weights("cut"), alone.weights("whole"))
    assert alone.resume("cut") == 0
    assert equal(alone.weights("cut"), alone.weights("whole"))
    files = (alone.checkpoint(name) / "trainer.ckpt" for name in ("cut", "whole"))
    own = [torch.load(file, weights_only=True)["objectives"] for file in files]
    assert equal(*own) and any("target_head" in key for key in own[0])
