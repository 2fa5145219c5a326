"""Layer-wise learning-rate decay, and towers that are locked: what every parameter's rate is, and what moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from encoders.dual import build_dual
from pretrain import build
from pretrain.errors import ConfigError
from pretrain.layers import layer_factors
from pretrain.module import Pretraining
from pretrain.optim import parameter_groups
from tests.pretrain.test_grad_cache import batch
from tests.pretrain.test_image_start import SMALL, no_trainer  # noqa: F401  a fixture
from tests.pretrain.test_optim import module_of, recipe_of

TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 3}
OURS = ("voxvit_tiny.p-8x16x16_i-16x32x32_c-1_l-2", "i3d_resnet26.i-32x64x64_c-1_w-8", "swin3d_tiny.i-32x32x32_c-1")


def clip_of(vision: dict[str, Any] | str, text: dict[str, Any] | None = None) -> Any:
    if isinstance(vision, str):
        vision = {"timm_model_name": vision, "timm_pool": "", "timm_proj": "linear", "image_size": 32}
    cfg = {"embed_dim": 16, "custom_text": True, "vision_cfg": vision, "text_cfg": text or TEXT}
    return build_dual(cfg).clip


def test_rates_of_open_clips_own_towers_are_beits() -> None:
    """Two image blocks and three text blocks: L is 3 and 4."""
    factors = layer_factors(clip_of({"layers": 2, "width": 64, "patch_size": 16, "image_size": 32}), 0.5)
    expected = {
        "visual.conv1.weight": 1 / 8, "visual.class_embedding": 1 / 8, "visual.positional_embedding": 1 / 8,
        "visual.ln_pre.bias": 1 / 8, "visual.transformer.resblocks.0.attn.in_proj_weight": 1 / 4,
        "visual.transformer.resblocks.1.mlp.c_fc.bias": 1 / 2, "visual.ln_post.weight": 1 / 2, "visual.proj": 1,
        "text.token_embedding.weight": 1 / 16, "text.positional_embedding": 1 / 16,
        "text.transformer.resblocks.0.ln_1.weight": 1 / 8, "text.transformer.resblocks.1.ln_1.weight": 1 / 4,
        "text.transformer.resblocks.2.ln_2.bias": 1 / 2, "text.ln_final.bias": 1 / 2, "text.text_projection": 1,
        "logit_scale": 1,
    }  # fmt: skip
    assert {name: factors[name] for name in expected} == expected
    resnet = layer_factors(clip_of({"layers": [1, 2, 1, 1], "width": 16, "image_size": 32}), 0.5)
    assert [resnet[f"visual.{name}.conv1.weight"] for name in ("layer1.0", "layer2.0", "layer2.1", "layer4.0")] == [
        1 / 32, 1 / 16, 1 / 8, 1 / 2,
    ]  # fmt: skip
    assert (resnet["visual.conv1.weight"], resnet["visual.attnpool.c_proj.weight"]) == (1 / 64, 1)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "resnet10t", "swin_tiny_patch4_window7_224"])
def test_rates_of_timm_towers_are_timms(name: str) -> None:
    """The classifier that timm counts stands where our projection does."""
    theirs = timm.create_model(name, num_classes=3)
    names = {id(p): n for n, p in theirs.named_parameters()}
    groups = param_groups_layer_decay(theirs, layer_decay=0.7)
    expected = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    ours = layer_factors(clip_of(name), 0.7)
    trunk = [n for n in ours if n.startswith("visual.trunk.")]
    assert len(trunk) > 10
    for n in trunk:
        assert ours[n] == pytest.approx(expected[n.removeprefix("visual.trunk.")]), n
    assert ours["visual.head.proj.weight"] == 1


@pytest.mark.parametrize("name", OURS)
def test_rates_of_towers_for_volumes_rise_from_the_stem_to_the_projection(name: str) -> None:
    clip = clip_of(name)
    factors = layer_factors(clip, 0.5)
    trunk = [factors[f"visual.trunk.{n}"] for n, _ in clip.visual.trunk.named_parameters()]
    assert trunk == sorted(trunk), "parameters are listed from the stem up"
    assert max(trunk) == 0.5 and factors["visual.head.proj.weight"] == 1
    levels = sorted(set(trunk))
    assert levels == [0.5**i for i in range(len(levels), 0, -1)]


def test_rates_of_hugging_face_towers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=16, **sizes)).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path), "hf_pooler_type": "cls_pooler"}
    factors = layer_factors(clip_of("test_vit", {**text, "hf_proj_type": "mlp", "context_length": 16}), 0.5)
    bert = "text.transformer."
    assert factors[f"{bert}embeddings.word_embeddings.weight"] == 1 / 8
    assert factors[f"{bert}embeddings.LayerNorm.bias"] == 1 / 8
    assert factors[f"{bert}encoder.layer.0.attention.self.query.weight"] == 1 / 4
    assert factors[f"{bert}encoder.layer.1.output.dense.bias"] == 1 / 2
    behind = [n for n in factors if n.startswith((f"{bert}pooler.", "text.proj."))]
    assert len(behind) == 4 and {factors[n] for n in behind} == {1}


def test_a_stem_without_blocks_is_one_layer() -> None:
    factors = layer_factors(clip_of("voxvit_tiny.p-8x16x16_i-16x32x32_c-1_s-extremes_o-grid_l-0"), 0.5)
    stem = [v for n, v in factors.items() if n.startswith("visual.trunk.patch_embed.")]
    assert stem and set(stem) == {0.5}
    assert factors["visual.head.proj.weight"] == 1


def test_a_tower_without_layers_is_refused() -> None:
    clip = clip_of("resnet10t")
    clip.text = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4))
    with pytest.raises(ConfigError, match=r"layers of the text tower, a Sequential, cannot be told apart"):
        layer_factors(clip, 0.5)


def test_each_layer_moves_at_its_own_rate(tiny: Any) -> None:
    """Adam's first step moves every weight by its rate; towers have one block each, so L is 2."""
    changes = {
        "layer_decay": 0.5,
        "lr_multipliers": {"text": 0.1},
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "eps": 1e-20,
    }
    changes = {f"optim__{key}": value for key, value in changes.items()}
    before = module_of(recipe_of(tiny, **changes)).dual.clip.state_dict()
    assert tiny("run", train__steps=1, **changes) == 0
    moved = {name: float((value - before[name]).abs().max()) for name, value in tiny.weights("run").items()}
    for name, rate in {
        "visual.trunk.cls_token": 2.5e-4, "visual.trunk.blocks.0.qkv.weight": 5e-4, "visual.head.proj.weight": 1e-3,
        "text.token_embedding.weight": 2.5e-5, "text.transformer.resblocks.0.attn.in_proj_weight": 5e-5,
        "text.text_projection": 1e-3, "logit_scale": 1e-3,
    }.items():  # fmt: skip
        assert moved[name] == pytest.approx(rate, rel=1e-3), name


def test_groups_hold_every_parameter_once_and_objectives_have_the_whole_rate(tiny: Any) -> None:
    module = module_of(recipe_of(tiny, optim__layer_decay=0.5))
    groups = parameter_groups(module, module.recipe.optim)
    listed = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(listed) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    factors = {group["name"]: group["lr_factor"] for group in groups}
    assert factors["heads"] == 1 and factors["image x 0.25, no decay"] == 0.25 and factors["text x 0.5"] == 0.5


# ---------------------------------------------------------------------------------------------------------- locked


def locked(tiny: Any, image: str, **more: Any) -> Pretraining:
    recipe = recipe_of(
        tiny, model__image__name=image, model__image__token_dropout=0.0, objectives=[{"name": "contrastive"}],
        optim__lr_multipliers={"image": 0.0, "heads": 0.0}, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    return Pretraining(recipe, build.build_model(recipe), build.build_objectives(recipe)).train()


def kept_by(trunk: nn.Module, module: Pretraining) -> int:
    """Bytes that the image tower keeps for a backward pass."""
    kept: list[int] = []
    forward, hooks = trunk.forward, torch.autograd.graph.saved_tensors_hooks

    def watched(*args: Any, **kwargs: Any) -> Any:
        with hooks(lambda t: (kept.append(t.numel() * t.element_size()), t)[1], lambda t: t):
            return forward(*args, **kwargs)

    trunk.forward = watched
    module.compute(batch()).backward()
    trunk.forward = forward
    return sum(kept)


def test_a_locked_tower_keeps_no_graph_and_its_batch_norm_stays_still(tiny: Any, no_trainer: None) -> None:  # noqa: F811
    module = locked(tiny, SMALL)
    trunk = module.dual.clip.visual.trunk
    before = {name: value.clone() for name, value in module.dual.clip.visual.state_dict().items()}
    assert any("running_mean" in name for name in before)
    assert kept_by(trunk, module) == 0
    free = module_of(recipe_of(tiny, model__image__name=SMALL, model__image__token_dropout=0.0)).train()
    assert kept_by(free.dual.clip.visual.trunk, free) > 1_000_000
    assert all(p.grad is None for p in module.dual.clip.visual.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.dual.clip.visual.state_dict().items())
    assert float(module.dual.clip.text.token_embedding.weight.grad.abs().max()) > 0


def test_a_locked_tower_is_the_same_after_a_run_in_parts(tiny: Any) -> None:
    """Statistics that stand still are no hindrance to `train.chunk`."""
    changes = {
        "model__image": {"name": SMALL}, "optim__lr_multipliers": {"image": 0.0}, "optim__layer_decay": 0.9,
        "train__chunk": 2, "train__steps": 3,
    }  # fmt: skip
    before = module_of(recipe_of(tiny, **changes)).dual.clip.state_dict()
    assert tiny("run", **changes) == 0
    same = {name for name, value in tiny.weights("run").items() if torch.equal(value, before[name])}
    assert {n for n in before if n.startswith("visual.trunk.")} <= same
    assert not {"visual.head.proj.weight", "text.text_projection", "logit_scale"} & same


def test_the_projection_of_open_clips_own_vit_is_a_head(tiny: Any) -> None:
    """As that of a timm tower: locked with `heads`, not with `image`."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dual = nn.ModuleDict({"clip": clip_of({"layers": 1, "width": 64, "patch_size": 16, "image_size": 32})})

    optim = recipe_of(tiny, optim__lr_multipliers={"image": 0.25, "heads": 3.0}).optim
    module = Named()
    names = {id(p): n.removeprefix("dual.clip.") for n, p in module.named_parameters()}
    factors = {names[id(p)]: g["lr_factor"] for g in parameter_groups(module, optim) for p in g["params"]}  # type: ignore[attr-defined]
    assert (factors["visual.proj"], factors["visual.conv1.weight"]) == (3.0, 0.25)
    assert factors["text.text_projection"] == 3.0
