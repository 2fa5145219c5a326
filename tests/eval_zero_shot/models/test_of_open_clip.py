"""Any open_clip model, with random weights in open_clip's own formats, gives open_clip's own numbers."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data_shards.preprocess import View, apply_planar
from data_shards.shard_set import ShardSet
from eval_zero_shot import EvalError
from eval_zero_shot.embedding import embed_texts
from eval_zero_shot.models.of_open_clip import planar_geometry
from eval_zero_shot.release import load_dual, load_release, model_name

TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear", "resize_mode": "squash"}


def bert(folder: Path) -> None:
    """The config of a small BERT and its tokenizer."""
    transformers = pytest.importorskip("transformers", reason="extra hf is not installed")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    transformers.BertConfig(vocab_size=16, **sizes).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "scan", "much", "longer", "text", "chest", "bright"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


def local_dir(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A model in open_clip's own folder format, with random weights."""
    cfg = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT, **changes}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": PREPROCESS}))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_open_clip_folder_is_scored_as_open_clip_itself_would(
    image_shards: Path, score: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = local_dir(tmp_path / "tiny")
    found = score(f"open_clip:local-dir:{folder}", image_shards)

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer, shards = open_clip.get_tokenizer(f"local-dir:{folder}"), ShardSet.open(image_shards)
    images = [Image.open(io.BytesIO(bytes(shards.scan(row, 0)[0]))) for row in range(12)]
    with torch.no_grad():
        image = model.encode_image(torch.stack([transform(i) for i in images]), normalize=True)
        text = model.encode_text(tokenizer(["a bright scan", "a dark scan"]), normalize=True)
    theirs = (image @ (text[0] - text[1])).numpy()
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    ours = table[table["protocol"] == "classification"]["score"].to_numpy()
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9999
    assert found["outcomes"][0]["studies"] == 12

    # Other weights under the same name: the cache of the first run is not taken for theirs.
    before = (tmp_path / "out" / "scores.parquet").read_bytes()
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    score(f"open_clip:local-dir:{folder}", image_shards)
    assert (tmp_path / "out" / "scores.parquet").read_bytes() != before
    assert model_name(f"open_clip:local-dir:{folder}") == "open_clip:tiny"


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_open_clip_preprocessing_is_bit_exact(resize_mode: str, interpolation: str, shared_data: Path) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

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
    with pytest.raises(EvalError, match="cannot be repeated"):
        planar_geometry({**PREPROCESS, "size": 32, "resize_mode": "longest", "fill_color": 127})


@pytest.mark.parametrize("kind", ["not causal", "custom text", "siglip", "coca", "hf tokenizer", "hf tower"])
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
        "hf tokenizer": {"text_cfg": {**TEXT, "hf_tokenizer_name": "in this folder", "context_length": 20}},
        "hf tower": {
            "text_cfg": {
                "hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": "in this folder", "context_length": 20,
                "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler",
            },
        },
    }[kind]  # fmt: skip
    if kind.startswith("hf"):
        bert(tmp_path / "bert")
    folder = local_dir(tmp_path / "tiny", **changes)
    if kind.startswith("hf"):
        shutil.copytree(tmp_path / "bert", folder, dirs_exist_ok=True)
    loaded = load_dual(f"open_clip:local-dir:{folder}", "cpu")
    texts = ["a scan", "a much longer text about a bright scan of the chest, " * 4]
    ours = np.stack(list(embed_texts(loaded.model, loaded.tokenizer, texts).values()))
    model = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False).eval()
    with torch.no_grad():
        ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
        theirs = model.encode_text(ids, normalize=True).numpy()
        images = torch.rand(2, 3, 32, 32)
        assert torch.allclose(loaded.model.encode_image(images).study_BD, model.encode_image(images), atol=1e-6)
    assert np.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(loaded.model.logit_scale, model.logit_scale)
    assert (loaded.model.logit_bias is None) == (kind != "siglip")


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_open_clip_architecture_and_weights_file(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same name, other weights never share features: they are another identity."""
    # What is registered here is forgotten afterwards: other tests read the list of models.
    for registry in ("_MODEL_CONFIGS", "_MODEL_CONFIG_PATHS"):
        monkeypatch.setattr(open_clip.factory, registry, copy.copy(getattr(open_clip.factory, registry)))
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


def test_a_timm_tower_shows_where_it_looked(
    image_shards: Path, score: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    tower = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160}
    folder = local_dir(tmp_path / "tiny", vision_cfg=tower)
    assert score(f"open_clip:local-dir:{folder}", image_shards)["outcomes"][0]["studies"] == 12
    loaded = load_dual(f"open_clip:local-dir:{folder}", "cpu")
    with torch.no_grad():
        assert loaded.model.encode_image(torch.rand(1, 3, 160, 160), tokens=True).grid == (10, 10)
