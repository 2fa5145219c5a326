"""`swin3d`: MONAI's encoder and nothing else, its maps, its published weights, refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import encoders
from encoders.dual import DualEncoder
from encoders.errors import ReleaseError
from encoders.swin3d_weights import HEADS, load_swinvit
from encoders.tag_swin3d import SWINS, SwinTag, parse_swin_tag

assert encoders.load  # importing the package is what registers the names
SMALL = "swin3d_tiny.i-32x32x64_c-2_w-12"


def model(name: str = SMALL, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def volumes(*size: int) -> Tensor:
    return torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SWINS)
def test_names_round_trip(size: str) -> None:
    for width, layers in ((None, None), (96 if size != "base" else 48, 3), (None, 1)):
        tag = SwinTag(size, (32, 64, 96), 3, width, layers)
        assert parse_swin_tag(tag.name) == tag
    width = SWINS[size][0]
    assert parse_swin_tag(f"swin3d_{size}.w-{width}_c-2").name == f"swin3d_{size}.i-96x96x96_c-2"
    assert parse_swin_tag("swin3d_tiny.l-2") == SwinTag()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("swin3d_huge", "no swin3d"),
        ("swin3d_tiny.p-8x8x8", "'p-8x8x8' is unknown"),
        ("swin3d_tiny.c-1_c-2", "given twice"),
        ("swin3d_tiny.i-96x96", "three positive integers"),
        ("swin3d_tiny.i-96x96x80", "not a multiple of 32"),
        ("swin3d_tiny.c-0", "integer from 1 to 99"),
        ("swin3d_small.w-18", "the 4 heads of the first stage do not divide it"),
    ],
)
def test_wrong_names_say_what_is_wrong(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_swin_tag(name)


def test_it_is_the_encoder_inside_swinunetr() -> None:
    """With one state dict the maps are those that MONAI's own SwinUNETR works with."""
    from monai.networks.nets import SwinUNETR

    ours = model("swin3d_tiny.i-32x32x32_c-2_w-12")
    whole = SwinUNETR(2, 1, feature_size=12)
    whole.swinViT.load_state_dict(ours.swin.state_dict(), strict=True)
    x = volumes(32, 32, 32)
    with torch.no_grad():
        theirs = whole.eval().swinViT(x, whole.normalize)[1:]
        for mine, its in zip(ours.forward_pyramid(x), theirs, strict=True):
            assert torch.equal(mine, its)


def test_four_maps_and_the_mean_of_the_coarsest() -> None:
    built, x = model(), volumes(32, 32, 64)
    maps = built.forward_pyramid(x)
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(s // k for s in (32, 32, 64)) for k in (4, 8, 16, 32)]
    assert tuple(m.shape[1] for m in maps) == built.level_widths == (24, 48, 96, 192)
    tokens = built.forward_features(x)
    assert torch.equal(tokens, maps[3].flatten(2).transpose(1, 2))
    assert torch.equal(built(x), tokens.mean(1))
    assert built(volumes(64, 32, 32)).shape == (2, 192)  # any multiple of 32


def test_a_cell_sees_its_place_first() -> None:
    """Rows of a map are in the order of its grid: a change in one corner moves that corner's cell most."""
    built = model()
    x = volumes(32, 32, 64)
    changed = x.clone()
    changed[:, :, :4, 28:, 60:] += 3
    with torch.no_grad():
        one, other = (built.forward_pyramid(v)[0].flatten(2) for v in (x, changed))
    assert int((one - other).abs().amax((0, 1)).argmax()) == 7 * 16 + 15  # place (0, 7, 15) of 8 x 8 x 16


@pytest.mark.parametrize("size", [(32, 32, 48), (16, 32, 32)])
def test_other_sizes_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not a multiple of 32"):
        model()(volumes(*size))


def test_levels_of_the_dual_encoder(make_dual: Callable[..., DualEncoder]) -> None:
    dual, x = make_dual(SMALL), volumes(32, 32, 64)
    with torch.no_grad():
        found = dual.encode_image(x, tokens=True, levels=(1, 3))
        maps = dual.clip.visual.trunk.forward_pyramid(x)
        assert torch.equal(found.study_BD, dual.encode_image(x).study_BD)
    assert dual.level_widths == (24, 48, 96, 192) and set(found.levels) == {1, 3}
    for k in (1, 3):
        assert torch.equal(found.levels[k].cells_SNC, maps[k].flatten(2).transpose(1, 2))
        assert found.levels[k].grid == tuple(maps[k].shape[2:])
    assert torch.equal(found.tokens_SND, found.levels[3].cells_SNC) and found.grid == (1, 1, 2)


def test_other_towers_have_one_level(make_dual: Callable[..., DualEncoder]) -> None:
    dual = make_dual()
    x = torch.randn(2, 2, 8, 16, 16)
    found = dual.encode_image(x, tokens=True, levels=(0,))
    assert dual.level_widths == (192,)
    assert torch.equal(found.levels[0].cells_SNC, found.tokens_SND) and found.levels[0].grid == (2, 2, 2)
    with pytest.raises(ValueError, match="level 1 asked of an image tower that has 1"):
        dual.encode_image(x, levels=(0, 1))
    dual.clip.visual.trunk.token_dropout = 0.5
    dual.train()
    assert dual.encode_image(x, levels=(0,)).levels[0].grid is None


def test_grad_checkpointing_changes_nothing() -> None:
    grads = []
    for enabled in (False, True):
        built = model("swin3d_tiny.i-32x32x32_c-2_w-12_l-1").train()
        built.set_grad_checkpointing(enabled)
        built(volumes(32, 32, 32)).square().sum().backward()
        grads.append({n: p.grad for n, p in built.named_parameters()})
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def published(built: Any, prefix: str = "module.") -> dict[str, Tensor]:
    """A file of the published layout for this tower, one channel: true key names, random values."""
    generator = torch.Generator().manual_seed(2)
    file = {}
    for name, value in built.swin.state_dict().items():
        shape = (value.shape[0], 1, *value.shape[2:]) if name == "patch_embed.proj.weight" else value.shape
        told = name.replace("mlp.linear1", "mlp.fc1").replace("mlp.linear2", "mlp.fc2")
        random = torch.randn(shape, generator=generator)
        file[prefix + told] = random if value.is_floating_point() else value
    return file | {prefix + head: torch.zeros(4) for head in HEADS}


def test_published_weights_give_what_monai_gives(tmp_path: Path) -> None:
    """The published layout at its real size; MONAI's own loader is the reference."""
    from monai.networks.nets import SwinUNETR

    ours = model("swin3d_tiny.i-32x32x32_c-1")
    file = published(ours)
    assert len(file) == 126 + 8  # as the published file has
    assert {
        "module.patch_embed.proj.weight", "module.layers1.0.blocks.0.attn.relative_position_index",
        "module.layers4.0.blocks.1.mlp.fc2.bias", "module.layers2.0.downsample.reduction.weight",
        "module.norm.weight", "module.rotation_head.bias", "module.convTrans3d.weight",
    } <= set(file)  # fmt: skip
    torch.save({"state_dict": file}, tmp_path / "model_swinvit.pt")
    left = load_swinvit(ours, tmp_path / "model_swinvit.pt")
    assert sorted(left) == sorted(f"module.{head}" for head in HEADS)
    whole = SwinUNETR(1, 1, feature_size=48)
    whole.load_from({"state_dict": file})
    theirs = whole.swinViT.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.swin.state_dict().items())


def test_one_channel_starts_several(tmp_path: Path) -> None:
    one, two = model("swin3d_tiny.i-32x32x64_c-1_w-12"), model()
    torch.save(published(one, prefix=""), tmp_path / "file.pt")
    for built in (one, two):
        load_swinvit(built, tmp_path / "file.pt")
    x = volumes(32, 32, 64)[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(one(x), two(x.expand(-1, 2, -1, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.pop("module.layers3.0.blocks.1.attn.qkv.bias"), "1 are not in it, first layers3.0.blocks.1.attn"),
        (lambda f: f.update({"module.layers5.0.x": torch.zeros(1)}), "1 are not in the tower, first layers5.0.x"),
        (
            lambda f: f.update({"module.patch_embed.proj.bias": torch.zeros(3)}),
            "1 have another shape, first patch",
        ),
        (lambda f: f.clear(), "holds no dict of tensors"),
    ],
)
def test_every_key_is_accounted_for(tmp_path: Path, change: Callable[..., Any], said: str) -> None:
    built = model()
    file = published(built)
    change(file)
    torch.save({"state_dict": file}, tmp_path / "file.pt")
    before = {name: value.clone() for name, value in built.state_dict().items()}
    with pytest.raises(ReleaseError, match=said):
        load_swinvit(built, tmp_path / "file.pt")
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Path("x")}, tmp_path / "file.pt")
    with pytest.raises(ReleaseError, match="cannot be read as tensors"):
        load_swinvit(model(), tmp_path / "file.pt")


@pytest.mark.full
def test_monai_is_imported_for_its_own_tower_alone() -> None:
    code = (
        "import encoders, timm, sys; timm.create_model('voxvit_tiny.p-4x8x8_i-8x16x16_l-1');"
        "assert 'monai' not in sys.modules; timm.create_model('swin3d_tiny.w-12_l-1'); assert 'monai' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_layers_groups_and_decay_name_real_parameters() -> None:
    from timm.models import group_parameters

    built = model()
    names = {n for n, _ in built.named_parameters()}
    groups = group_parameters(built, built.group_matcher())
    assert sorted(name for group in groups.values() for name in group) == sorted(names)
    assert len(groups) == 1 + 8 + 4  # stem, blocks, mergings
    assert built.no_weight_decay() <= names and len(built.no_weight_decay()) == 8


def test_classifier_and_refusals() -> None:
    built = model(num_classes=5)
    assert built(volumes(32, 32, 64)).shape == (2, 5)
    with pytest.raises(ValueError, match="pooling 'max'"):
        built.reset_classifier(0, global_pool="max")
    with pytest.raises(TypeError, match="its geometry is in its name"):
        model(in_chans=3)
    with pytest.raises(RuntimeError, match="pretrained_file"):
        model(pretrained=True)


def test_sizes_on_the_meta_device() -> None:
    with torch.device("meta"):
        built = timm.create_model("swin3d_small.i-96x96x96_c-1")
    assert sum(p.numel() for p in built.parameters()) == 22_853_112  # MONAI's own with these depths and heads
