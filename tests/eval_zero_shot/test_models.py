"""Models of other packages, end to end over real shards, with weights drawn here in the packages' own formats."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data_shards.preprocess import apply_planar
from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from eval_zero_shot import EvalError
from eval_zero_shot.embed import main as embed
from eval_zero_shot.embedding import embed_texts
from eval_zero_shot.models import KINDS, short_name, split_spec
from eval_zero_shot.models.__main__ import main as models
from eval_zero_shot.release import load_dual, load_release, model_name
from eval_zero_shot.run import main as run

TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear", "resize_mode": "squash"}
TASK = {
    "name": "toy",
    "classes": {"bright": {"positive": ["a bright scan"], "negative": ["a dark scan"]}},
}


def png(grey: int, size: tuple[int, int] = (40, 56), seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    Image.fromarray(np.clip(rng.normal(grey, 40, (*size, 3)), 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def image_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "shards"
    with ShardWriter(folder) as writer:
        for i in range(12):
            scan = Scan(image=png(180 if i % 2 else 70, seed=i), modality="OT")
            texts = Texts(report=f"a {'bright' if i % 2 else 'dark'} scan, number {i}")
            labels = {"bright": i % 2}
            writer.write(Study(f"{i:016x}", f"{i + 100:016x}", "test", (scan,), texts, labels))
    return folder


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps(TASK))
    return path


def local_dir(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A model in open_clip's own folder format, with random weights."""
    cfg = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT, **changes}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": PREPROCESS}))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def score(model: str, shards: Path, task: Path, tmp_path: Path) -> dict[str, Any]:
    out = tmp_path / "out"
    words = ["--model", model, "--data", str(shards), "--task", str(task), "--out", str(out), "--resamples", "20"]
    assert run([*words, "--pool", "4", "--cache", str(tmp_path / "cache"), "--device", "cpu"]) == 0
    return json.loads((out / "results.json").read_text())


def test_open_clip_folder_is_scored_as_open_clip_itself_would(image_shards: Path, task: Path, tmp_path: Path) -> None:
    folder = local_dir(tmp_path / "tiny")
    found = score(f"open_clip:local-dir:{folder}", image_shards, task, tmp_path)

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer, shards = open_clip.get_tokenizer(f"local-dir:{folder}"), ShardSet.open(image_shards)
    images = [Image.open(io.BytesIO(bytes(shards.scan(row, 0)[0]))) for row in range(12)]
    with torch.no_grad():
        image = model.encode_image(torch.stack([transform(i) for i in images]), normalize=True)
        text = model.encode_text(tokenizer(["a bright scan", "a dark scan"]), normalize=True)
    theirs = (image @ (text[0] - text[1])).numpy()
    lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    column = lines[0].split(",").index("score")
    ours = np.array([float(line.split(",")[column]) for line in lines[1:]])
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9999
    assert found["studies"] == 12
    assert model_name(f"open_clip:local-dir:{folder}") == "open_clip:tiny"


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_open_clip_preprocessing_is_bit_exact(resize_mode: str, interpolation: str, shared_data: Path) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from eval_zero_shot.models.of_open_clip import planar_geometry
    from data_shards.preprocess import View

    files = sorted(f for f in shared_data.rglob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg"))
    images = [f.read_bytes() for f in files[:: max(1, len(files) // 6)]][:6]
    images = [b for b in images if not Image.open(io.BytesIO(b)).mode.startswith(("I", "F"))]
    assert images
    for size in (224, (96, 128)):
        cfg = {**PREPROCESS, "size": size, "resize_mode": resize_mode, "interpolation": interpolation}
        theirs, geometry = image_transform_v2(PreprocessCfg(**cfg), is_train=False), planar_geometry(cfg)
        for image in images:
            ours = torch.from_numpy(apply_planar(image, geometry, View("centre")))
            assert torch.equal(ours, theirs(Image.open(io.BytesIO(image))))


def test_padding_that_open_clip_fills_is_refused() -> None:
    from eval_zero_shot.models.of_open_clip import planar_geometry

    with pytest.raises(EvalError, match="cannot be repeated"):
        planar_geometry({**PREPROCESS, "size": 32, "resize_mode": "longest", "fill_color": 127})


@pytest.mark.parametrize("kind", ["not causal", "custom text", "siglip", "coca"])
def test_every_open_clip_text_tower_gives_open_clips_own_numbers(kind: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "not causal": {"text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "context_length": 24}},
        "custom text": {"custom_text": True, "text_cfg": {**TEXT, "context_length": 16}},
        "siglip": {"custom_text": True, "init_logit_bias": -10.0, "text_cfg": {**TEXT, "no_causal_mask": True}},
        "coca": {
            "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
            "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
            "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
            "custom_text": True,
        },
    }[kind]
    folder = local_dir(tmp_path / "tiny", **changes)
    loaded = load_dual(f"open_clip:local-dir:{folder}", "cpu")
    texts = ["a scan", "a much longer text about a bright scan of the chest, " * 4]
    ours = np.stack(list(embed_texts(loaded.model, loaded.tokenizer, texts).values()))
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.no_grad():
        ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
        theirs = model.encode_text(ids, normalize=True).numpy()
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(loaded.model.encode_image(images).study_BD, model.encode_image(images))
    assert np.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(loaded.model.logit_scale, model.logit_scale)
    assert (loaded.model.logit_bias is None) == (kind != "siglip")


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_open_clip_architecture_and_weights_file(ending: str, tmp_path: Path) -> None:
    """Under the same name, other weights never share features: they are another identity."""
    config = tmp_path / f"tiny-arch-{ending}.json"
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}))
    open_clip.add_model_config(config)
    found, file = [], tmp_path / f"weights.{ending}"
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        state = open_clip.create_model(config.stem).state_dict()
        save_file(state, file) if ending == "safetensors" else torch.save({"state_dict": state}, file)
        found.append(load_dual(f"open_clip:{config.stem}/{file}", "cpu").sha256)
    assert found[0] == found[1] != found[2]
    assert model_name(f"open_clip:{config.stem}/{file}") == f"open_clip:{config.stem}/weights"
    torch.save({"state_dict": state, "evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(EvalError, match="cannot be loaded"):
        load_dual(f"open_clip:{config.stem}/{tmp_path / 'evil.pt'}", "cpu")
    with pytest.raises(EvalError, match=f"random:{config.stem}"):
        load_dual(f"open_clip:{config.stem}", "cpu")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


def test_the_same_weights_read_otherwise_are_another_model(tmp_path: Path) -> None:
    plain, other = local_dir(tmp_path / "a"), local_dir(tmp_path / "b", quick_gelu=True)
    one, two = (load_release(f"open_clip:local-dir:{f}", "cpu") for f in (plain, other))
    assert torch.equal(one.model.clip.visual.conv1.weight, two.model.clip.visual.conv1.weight)
    assert one.sha256 != two.sha256
    moved = load_release(f"open_clip:local-dir:{plain.rename(tmp_path / 'c')}", "cpu")
    assert moved.sha256 == one.sha256, "a folder may be moved"


def test_what_is_not_there_is_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "open_clip_config.json").write_text("{}")
    for spec, match in (
        ("open_clip:ViT-B-32", "names no weights"),
        ("open_clip:ViT-B-32/nonsense", "neither a pretrained tag"),
        ("open_clip:ViT-Q-9/openai", "no architecture"),
        (f"open_clip:local-dir:{tmp_path / 'empty'}", "no open_clip_config.json"),
        (f"open_clip:local-dir:{tmp_path / 'half'}", "no weights"),
        (f"hf:{tmp_path / 'empty'}", "cannot be loaded"),
        ("random:nothing_of_this_name", "cannot be loaded"),
        ("pixels:sound", "images or volumes"),
        ("merlin:/nowhere.pt", "no Merlin checkpoint"),
        ("colipri:/nowhere", "names no Python"),
        ("process:/nowhere.py@/bin/python", "no wrapper"),
        ("clip:ViT-B-32", "names no model"),
    ):
        with pytest.raises(EvalError, match=match) as error:
            load_release(spec, "cpu")
        assert "fix: " in str(error.value), spec
    assert models(["--check", "open_clip:ViT-B-32"]) == 1
    assert "laion2b_s34b_b79k" in capsys.readouterr().err


def test_image_towers_alone_have_no_zero_shot() -> None:
    with pytest.raises(EvalError, match="image tower alone"):
        load_dual("random:test_vit", "cpu")


def test_timm_and_controls_give_features(image_shards: Path, toy_folder: Path, tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_vit"), tmp_path / "tower", safe_serialization=True)
    seen = {}
    for spec, data in (
        (f"timm:{tmp_path / 'tower'}", image_shards),
        ("random:test_vit", image_shards),
        ("pixels:image", image_shards),
    ):
        out = tmp_path / f"{len(seen)}.parquet"
        assert embed(["--model", spec, "--input", str(data), "--out", str(out)]) == 0
        import pyarrow.parquet as pq

        seen[spec] = np.stack(pq.read_table(out)["features"].to_pylist())
    assert seen["pixels:image"].shape == (12, 256)
    assert load_release("random:test_vit", "cpu").sha256 == load_release("random:test_vit", "cpu").sha256
    assert load_release("pixels:volume", "cpu").geometry.kind == "volume"


def test_names_and_the_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert models([]) == 0
    told = capsys.readouterr().out
    assert all(f"{kind}:" in told for kind in KINDS)
    assert models(["--check", "random:test_vit", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "image tower alone" in told and "image, 3 x 160 x 160" in told
    assert split_spec("release/dir") is None and split_spec("s3://bucket") is None
    assert split_spec("open_clip:ViT-B-32/openai") == ("open_clip", "ViT-B-32/openai")
    assert short_name("open_clip", "ViT-B-32/openai") == "open_clip:ViT-B-32/openai"
    assert short_name("colipri", f"{tmp_path},1mm@/x/python") == f"colipri:{tmp_path.name},1mm"
    assert short_name("hf", "openai/clip-vit-base-patch32") == "hf:openai/clip-vit-base-patch32"
