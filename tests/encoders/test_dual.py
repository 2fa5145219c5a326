"""The dual encoder: pooled features and patch tokens of one forward pass, texts with their pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from encoders.dual import DualEncoder, build_dual

GRIDS = {
    "voxvit_tiny.p-4x8x8_i-8x16x16_c-2_l-1": (2, 2, 2),
    "voxvit_tiny.p-4x8x8_i-8x16x16_c-2_l-1_o-mean_s-conv": (2, 2, 2),
    "voxvit_tiny.p-4x8x8_i-16x16x16_c-2_l-1_o-grid": (4, 2, 2),  # its native grid, for a smaller volume too
    "resnet10t": (1, 1),
    "vit_tiny_patch16_224": (14, 14),
    "swin_tiny_patch4_window7_224": (7, 7),
}


@pytest.mark.parametrize("name", GRIDS)
def test_patch_tokens(name: str, make_dual: Callable[..., DualEncoder]) -> None:
    dual = make_dual(name)
    grid, size = GRIDS[name], 224 if "224" in name else 32
    x = torch.randn(2, 2, 8, 16, 16) if len(grid) == 3 else torch.randn(2, 3, size, size)
    with torch.no_grad():
        plain, full = dual.encode_image(x), dual.encode_image(x, tokens=True)
    assert plain.tokens_SND is None
    assert torch.equal(plain.study_BD, full.study_BD)
    assert full.grid == grid
    assert full.tokens_SND.shape == (2, torch.tensor(grid).prod(), dual.clip.visual.trunk.num_features)
    assert full.study_S.tolist() == [0, 1]


def test_towers_without_tokens_say_so(make_dual: Callable[..., DualEncoder]) -> None:
    dual = make_dual({"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32})
    with pytest.raises(ValueError, match="timm towers only"):
        dual.encode_image(torch.randn(1, 3, 32, 32), tokens=True)


def test_texts_keep_kinds_hashes_and_pairs(
    make_dual: Callable[..., DualEncoder], packed_batch: Callable[..., Any], texts: tuple[str, ...]
) -> None:
    batch = packed_batch(texts, lambda text: [49406, len(text), 49407])
    features = make_dual().encode_text(batch)
    assert features.units_UD.shape == (len(texts), 24)
    assert torch.equal(features.hash64_U, batch.hash64_U) and torch.equal(features.kind_U, batch.kind_U)
    assert torch.equal(features.pair_unit_P, batch.pair_unit_P)


def test_scale_and_bias(model_cfg: Callable[..., dict[str, Any]]) -> None:
    assert build_dual(model_cfg("resnet10t")).logit_bias is None
    dual = build_dual({**model_cfg("resnet10t"), "init_logit_bias": -10.0})
    assert dual.logit_bias.item() == -10
    assert dual.logit_scale.item() == pytest.approx(2.659, abs=1e-3)


def test_another_layout_is_refused(model_cfg: Callable[..., dict[str, Any]]) -> None:
    cfg = model_cfg("resnet10t")
    with pytest.raises(TypeError, match="custom_text"):
        build_dual({**cfg, "custom_text": False})
    with pytest.raises(TypeError, match="depth"):
        build_dual({**cfg, "vision_cfg": {"depth": 3}})
    before = {**cfg}
    build_dual(cfg)
    assert cfg == before
