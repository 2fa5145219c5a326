"""Registered means tested: every tower forward, backward, released, loaded by open_clip, equal."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch

import encoders
from data_shards.preprocess import PlanarGeometry, View
from encoders.dual import DualEncoder, build_dual
from encoders.release import write_release
from encoders.tag import ATTENTIONS, POOLS, POSITIONS, STEMS
from encoders.tokenize import pack

TINY = [  # every pair of stem, pool and attention; positions take turns
    f"_s-{s}_e-{POSITIONS[i % len(POSITIONS)]}_o-{o}_a-{a}{'_v-2' * (a == 'volume3')}"
    for i, (a, s, o) in enumerate(itertools.product(ATTENTIONS, STEMS, POOLS))
]
NO_BLOCKS = [f"_s-{s}_o-{o}_l-0" for s, o in zip(STEMS, ("mean", "attn", "grid"), strict=True)]
OTHERS = ["_s-patch_e-learned_o-mean_a-slice3", "_s-conv_e-rope_o-attn_a-full"]
VOLUMES = [
    f"{name}.p-4x8x8_i-8x16x16_c-2_l-2{tag}"
    for name in timm.list_models("voxvit_*")
    for tag in (TINY if name == "voxvit_tiny" else OTHERS)
] + [f"voxvit_tiny.p-4x8x8_i-8x16x16_c-2{tag}" for tag in NO_BLOCKS]
VOLUMES += [f"{name}.i-8x16x16_c-2_w-8{norm}" for name in timm.list_models("i3d_*") for norm in ("", "_n-group")]
LARGER = ["swin3d_tiny.i-32x32x64_c-2_w-12", "swin3d_small.i-32x32x64_c-2_w-16_l-1"]  # sides are multiples of 32
NATIVE = {
    "open_clip_vit": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
    "open_clip_resnet": {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "image_size": 32},
}
IMAGES: list[Any] = ["resnet10t", "vit_tiny_patch16_224", "convnext_atto", *NATIVE]


def backward_reaches_everything(dual: DualEncoder, x: torch.Tensor, batch: Any) -> None:
    dual.train()
    features = dual(x, batch)
    assert features.image.study_BD.shape == (len(x), 24) and features.text.units_UD.shape == (len(batch.lengths), 24)
    (features.image.study_BD.square().sum() + features.text.units_UD.square().sum()).backward()
    for name, parameter in dual.clip.named_parameters():
        if name not in ("logit_scale", "logit_bias"):  # used by objectives only
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    dual.eval()


def released_equals_trained(dual: DualEncoder, folder: Path, x: torch.Tensor, texts: tuple[str, ...]) -> Any:
    """open_clip's own loading and ours against the model in memory. Returns open_clip's transform."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    loaded = encoders.load(folder)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(list(texts))
    packed = pack(texts, loaded.tokenizer)
    with torch.no_grad():
        image, text = dual.clip.encode_image(x), dual.clip.encode_text(tokens)
        assert torch.equal(model.encode_image(x), image)
        assert torch.equal(model.encode_text(tokens), text)
        assert torch.equal(loaded.model.encode_image(x).study_BD, image)
        assert torch.equal(loaded.model.encode_units(*packed), dual.encode_units(*packed))
        assert torch.equal(model.logit_scale, dual.logit_scale)
    return preprocess


@pytest.mark.parametrize("name", VOLUMES + LARGER)
def test_volumes(
    name: str,
    tmp_path: Path,
    make_dual: Callable[..., DualEncoder],
    packed_batch: Callable[..., Any],
    texts: tuple[str, ...],
    geometry: Any,
    view: Any,
) -> None:
    dual, size = make_dual(name), (32, 32, 64) if name in LARGER else (8, 16, 16)
    x, view = torch.randn(2, 2, *size), replace(view, size=size)
    backward_reaches_everything(dual, x, packed_batch(texts, lambda text: [49406, len(text), 49407]))
    folder = write_release(tmp_path / "r", dual.clip.state_dict(), dual.model_cfg, geometry, view)
    preprocess = released_equals_trained(dual, folder, x, texts)
    assert torch.equal(preprocess(x[0]), x[0])  # open_clip's transform leaves a prepared volume alone


@pytest.mark.parametrize("name", IMAGES)
def test_images(
    name: str, tmp_path: Path, packed_batch: Callable[..., Any], model_cfg: Callable[..., Any], texts: tuple[str, ...]
) -> None:
    cfg = model_cfg(NATIVE.get(name, name))
    size = 224 if "224" in name else 32
    dual = build_dual(cfg)
    x = torch.randn(2, 3, size, size)
    backward_reaches_everything(dual, x, packed_batch(texts, lambda text: [49406, len(text), 49407]))
    planar = PlanarGeometry(size=(size, size), interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    folder = write_release(tmp_path / "r", dual.clip.state_dict(), cfg, planar, View("centre"))
    preprocess = released_equals_trained(dual, folder, x, texts)

    from PIL import Image

    picture = Image.effect_noise((71, 50), 60).convert("RGB")
    assert torch.equal(preprocess(picture), encoders.load(folder).preprocess(picture))
