"""open_clip's vision transformer through our seam: its own numbers, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.dual import DualEncoder, build_dual
from encoders.open_clip_vit import encode_vit, is_plain_vit

VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16}


def build(model_cfg: Callable[..., dict[str, Any]], **vision: Any) -> DualEncoder:
    torch.manual_seed(0)
    return build_dual({**model_cfg("resnet10t"), "vision_cfg": {**VIT, **vision}}).train()


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach().double() - theirs.detach().double()).norm() / theirs.detach().double().norm())


def gradients(dual: DualEncoder, ours: bool, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    dual.zero_grad()
    out = dual.encode_image(images).pooled_SD if ours else dual.clip.visual(images)
    out.float().square().sum().backward()
    found = {name: p.grad.clone() for name, p in dual.clip.visual.named_parameters() if p.grad is not None}
    return out.detach(), found


@pytest.mark.parametrize(
    "vision", [{}, {"final_ln_after_pool": True}, {"ls_init_value": 0.1}, {"no_ln_pre": True}, {"patch_dropout": 0.5}]
)
def test_features_and_gradients_are_open_clips(
    model_cfg: Callable[..., dict[str, Any]], vision: dict[str, Any]
) -> None:
    dual, images = build(model_cfg, **vision), torch.randn(3, 3, 32, 32)
    assert is_plain_vit(dual.clip.visual)
    results = []
    for ours in (True, False):
        torch.manual_seed(1)  # of the patches that are dropped
        results.append(gradients(dual, ours, images))
    (mine, my), (its, its_own) = results
    assert relative(mine, its) < 1e-6
    assert my.keys() == its_own.keys() == {name for name, _ in dual.clip.visual.named_parameters()}
    for name, gradient in my.items():
        # A key's bias moves all scores of a query alike, which softmax forgets: its gradient is only rounding.
        if not name.endswith("in_proj_bias"):
            assert relative(gradient, its_own[name]) < 1e-5, name


def test_blocks_with_an_adapter_keep_their_own_forward_pass(model_cfg: Callable[..., dict[str, Any]]) -> None:
    class Adapted(torch.nn.Linear):
        pass

    for name in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
        tower = build(model_cfg).clip.visual
        tower.transformer.resblocks[1].set_submodule(name, Adapted(64, 64))
        assert not is_plain_vit(tower)


def test_bf16_is_no_further_from_fp32_than_open_clips(model_cfg: Callable[..., dict[str, Any]]) -> None:
    dual, images = build(model_cfg), torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        exact = dual.clip.visual(images)
        with torch.autocast("cpu", torch.bfloat16):
            mine, its = dual.encode_image(images).pooled_SD, dual.clip.visual(images)
    assert relative(mine, exact) < max(1.25 * relative(its, exact), 5e-3)


def test_evaluated_it_gives_open_clips_bits(model_cfg: Callable[..., dict[str, Any]]) -> None:
    dual, images = build(model_cfg).eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(dual.encode_image(images).pooled_SD, dual.clip.visual(images))


def test_grad_checkpointing_changes_nothing(model_cfg: Callable[..., dict[str, Any]]) -> None:
    dual, images = build(model_cfg), torch.randn(2, 3, 32, 32)
    plain = gradients(dual, True, images)[1]
    dual.clip.set_grad_checkpointing(True)
    again = gradients(dual, True, images)[1]
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize(
    "vision", [{"attentional_pool": True}, {"pool_type": "avg"}, {"block_type": "custom"}, {"output_tokens": True}]
)
def test_other_towers_run_as_they_are(model_cfg: Callable[..., dict[str, Any]], vision: dict[str, Any]) -> None:
    assert not is_plain_vit(build(model_cfg, **vision).clip.visual)


def test_a_tower_without_projection(model_cfg: Callable[..., dict[str, Any]]) -> None:
    tower = build(model_cfg).clip.visual.eval()
    tower.proj = None
    images = torch.randn(2, 3, 32, 32)
    assert relative(encode_vit(tower, images), tower(images)) < 1e-6
