"""Centring: the release needs no batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from encoders.dual import build_dual
from pretrain.centring import bias_of, centred, follow

CFG = {
    "embed_dim": 8,
    "custom_text": True,
    "vision_cfg": {
        "timm_model_name": "voxvit_tiny.p-4x8x8_i-8x16x16_c-1_l-1",
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_proj_bias": True,
        "image_size": 16,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1, "proj_bias": True},
}


def test_bias_ends_at_minus_the_mean_so_that_features_without_a_batch_are_centred() -> None:
    torch.manual_seed(0)
    dual = build_dual(CFG)
    volumes = torch.randn(32, 1, 8, 16, 16)
    bias = bias_of(dual, "image").requires_grad_(False)
    for step in range(5):
        with torch.no_grad():
            _, mean = centred(dual.encode_image(volumes).study_BD)
        follow(bias, mean, step)
    with torch.no_grad():
        alone = torch.cat([dual.encode_image(v[None]).study_BD for v in volumes])
    expected, mean = centred(alone)
    assert mean.abs().max() < 1e-6 * max(1.0, float(bias.abs().max()))
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)


def test_no_gradient_along_the_common_direction() -> None:
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    rows, _ = centred(x)
    (rows * torch.randn(6, 4, dtype=torch.float64)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_first_step_takes_the_whole_mean_and_later_ones_a_tenth() -> None:
    bias = nn.Parameter(torch.zeros(3), requires_grad=False)
    follow(bias, torch.tensor([1.0, 2.0, 3.0]), 0)
    torch.testing.assert_close(bias.data, torch.tensor([-1.0, -2.0, -3.0]))
    follow(bias, torch.full((3,), 10.0), 1000)
    torch.testing.assert_close(bias.data, torch.tensor([-2.0, -3.0, -4.0]))


def test_tower_without_a_bias_is_refused() -> None:
    plain = CFG | {"text_cfg": {k: v for k, v in CFG["text_cfg"].items() if k != "proj_bias"}}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="text tower has no projection with a bias"):
        bias_of(build_dual(plain), "text")
