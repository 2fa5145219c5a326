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
from pretrain.config import load_recipe
from pretrain.errors import ConfigError

ALONE: dict[str, Any] = {"model": {"text": None}, "objectives": [{"name": "simclr", "dim": 8}]}
NO_TEXTS = {"report": False}


@pytest.fixture
def alone(make_fit: Callable[..., Any], tmp_path: Path, radiograph_data: dict[str, Any]) -> Any:
    image = {"name": "vit_tiny_patch16_224", "image_size": 32}
    return make_fit(
        tmp_path,
        data=radiograph_data | {"units": NO_TEXTS},
        model={"text": None, "image": image},
        objectives=[{"name": "simclr", "dim": 8}],
        train={"steps": 3},
    )


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
    assert config["model_args"] == {"img_size": 32} and config["planar_cfg"]["geometry"]["size"] == [32, 32]


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
        (["evaluate.task=hannover_cxr"], "zero-shot scores compare images with texts"),
        (["model.image.name=ViT-B-16"], "'ViT-B-16' is open_clip's own tower"),
    ],
)
def test_what_needs_texts_is_refused(alone: Any, words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe(str(alone.recipe), words)
    assert says in str(refused.value)


def test_somebody_elses_objective_that_reads_texts_is_refused(alone: Any, plugins: None) -> None:
    recipe = load_recipe(str(alone.recipe), ['objectives=[{"name": "pretrain.objectives.sigmoid:Sigmoid"}]'])
    with pytest.raises(ConfigError, match="Sigmoid reads image:global.pooled, and model.text is null"):
        build.build_objectives(recipe)


def test_a_tower_that_nobody_knows_is_refused(alone: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main(alone.argv("run", model__image__name="vit_tiny_patch16_999")) == 1
    assert "no model is called 'vit_tiny_patch16_999'" in capsys.readouterr().err
