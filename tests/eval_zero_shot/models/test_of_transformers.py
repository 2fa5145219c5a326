"""transformers CLIP and SigLIP from a folder, with random weights, give transformers' own numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.preprocess import View, apply_planar
from eval_zero_shot import EvalError
from eval_zero_shot.embedding import embed_texts
from eval_zero_shot.models.of_transformers import planar_geometry
from eval_zero_shot.release import load_dual, model_name

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bright", "dark", "scan", "number", ",", *map(str, range(12))]
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 30}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 16,
}


def folder_of(kind: str, folder: Path, seed: int = 0, **text: Any) -> Path:
    """A model, image processor and tokenizer as `save_pretrained` writes them."""
    from transformers import BertTokenizerFast

    torch.manual_seed(seed)
    text = {**TEXT, "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0, **text}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
        model, processor = transformers.CLIPModel(config), transformers.CLIPImageProcessor()
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
        model, processor = transformers.SiglipModel(config), transformers.SiglipImageProcessor()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_folder_is_scored_as_transformers_itself_would(
    kind: str, image_shards: Path, score: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = folder_of(kind, tmp_path / f"tiny-{kind}")
    found = score(f"hf:{folder}", image_shards)
    assert found["outcomes"][0]["studies"] == 12 and model_name(f"hf:{folder}") == f"hf:tiny-{kind}"

    loaded = load_dual(f"hf:{folder}", "cpu")
    texts = ["a bright scan", "a dark scan , number 1 2 3 4 5 6 7 8 9 10 11 a bright scan", "scan"]
    ours = np.stack(list(embed_texts(loaded.model, loaded.tokenizer, texts).values()))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if kind == "siglip" else True
    ids = tokenizer(texts, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    mask = ids["attention_mask"] if kind == "clip" else None
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        out = model(input_ids=ids["input_ids"], attention_mask=mask, pixel_values=images)
        vectors = torch.nn.functional.normalize(loaded.model.encode_image(images).study_BD, dim=-1)
    assert np.allclose(ours, out.text_embeds.numpy(), atol=1e-6)
    assert torch.allclose(vectors, out.image_embeds, atol=1e-6)
    assert torch.equal(loaded.model.logit_scale, model.logit_scale)


def test_other_weights_and_other_settings_are_another_identity(tmp_path: Path) -> None:
    one = load_dual(f"hf:{folder_of('clip', tmp_path / 'a')}", "cpu")
    again = load_dual(f"hf:{folder_of('clip', tmp_path / 'b')}", "cpu")
    weights = load_dual(f"hf:{folder_of('clip', tmp_path / 'c', seed=1)}", "cpu")
    activation = load_dual(f"hf:{folder_of('clip', tmp_path / 'd', hidden_act='gelu')}", "cpu")
    assert one.sha256 == again.sha256
    assert len({one.sha256, weights.sha256, activation.sha256}) == 3


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = folder_of("clip", tmp_path / "a")
    torch.save(transformers.CLIPModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EvalError, match="cannot be loaded"):
        load_dual(f"hf:{folder}", "cpu")


def test_missing_weights_and_other_architectures_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = folder_of("clip", tmp_path / "a")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvalError, match=r"lacks weights: visual_projection.weight"):
        load_dual(f"hf:{folder}", "cpu")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(EvalError, match="is a 'bert'"):
        load_dual(f"hf:{tmp_path / 'bert'}", "cpu")


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_preprocessing_is_pils_version_of_the_processor(kind: str, shared_data: Path) -> None:
    """To one grey value of 255 where the margins are even: transformers crops one pixel off where they are odd."""
    from transformers.models.clip import image_processing_pil_clip
    from transformers.models.siglip import image_processing_pil_siglip

    module = image_processing_pil_clip if kind == "CLIP" else image_processing_pil_siglip
    processor = getattr(module, f"{kind}ImageProcessorPil")()
    geometry = planar_geometry(processor.to_dict())
    files = sorted(f for f in shared_data.rglob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg"))
    compared = 0
    for file in files[:: max(1, len(files) // 8)]:
        image = Image.open(file).convert("RGB")
        image = image.crop((0, 0, min(image.size), min(image.size))) if kind == "CLIP" else image
        out = io.BytesIO()
        image.save(out, "PNG")
        theirs = processor(images=image, return_tensors="np")["pixel_values"][0]
        ours = apply_planar(out.getvalue(), geometry, View("centre"))
        assert np.abs(ours - theirs).max() <= 1.01 / 255 / min(geometry.std)
        compared += 1
    assert compared
    with pytest.raises(EvalError, match="cannot be repeated"):
        planar_geometry({**processor.to_dict(), "do_normalize": False})
