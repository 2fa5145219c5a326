"""`i3d_resnetN`: Merlin's numbers from the same 2D weights, any size, tokens, checkpointing, GroupNorm, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import encoders
from encoders.dual import DualEncoder
from encoders.inflate_resnet import inflate_resnet
from encoders.tag_resnet3d import parse_resnet_tag

assert encoders.load  # importing the package is what registers the names
SMALL = "i3d_resnet26.i-16x64x48_c-2_w-8"


def model(name: str = SMALL, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    built = timm.create_model(name, **kwargs)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return built.eval()


def volumes(*size: int, batch: int = 2, channels: int = 2) -> Tensor:
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def lively(net: nn.Module) -> nn.Module:
    """Statistics and affine parameters of BatchNorm as training leaves them: none is zero or one."""
    generator = torch.Generator().manual_seed(2)
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.running_mean = 0.1 * torch.randn(size, generator=generator)
            module.running_var = 0.5 + torch.rand(size, generator=generator)
            module.weight.data = 0.5 + torch.rand(size, generator=generator)
            if name.endswith("bn3"):  # the sum of many blocks stays a number that fp32 has digits for
                module.weight.data *= 0.1
            module.bias.data = 0.1 * torch.randn(size, generator=generator)
    return net


@pytest.mark.parametrize(
    "depth", ["resnet50", *(pytest.param(deep, marks=pytest.mark.full) for deep in ("resnet101", "resnet152"))]
)
def test_same_2d_weights_give_merlins_numbers(depth: str) -> None:
    i3res = pytest.importorskip("merlin.models.i3res", reason="merlin-vlm is not installed (extra merlin)")
    import torchvision

    torch.manual_seed(0)
    flat = lively(getattr(torchvision.models, depth)(weights=None))
    theirs = i3res.I3ResNet(copy.deepcopy(flat), class_nb=1692, conv_class=True).eval()
    ours = timm.create_model(f"i3d_{depth}.i-32x64x64_c-1").eval()
    found = inflate_resnet(ours, flat.state_dict())
    assert (found.aside, found.fresh) == (("fc.bias", "fc.weight"), ())
    unit_BCHWD = torch.rand(2, 1, 64, 64, 32)  # Merlin's scale and axes
    with torch.no_grad():
        contrastive, phenotypes = theirs(unit_BCHWD)
        features = ours(unit_BCHWD.permute(0, 1, 4, 2, 3) * 2 - 1)
        for wanted, conv in ((contrastive, theirs.contrastive_head), (phenotypes, theirs.classifier)):
            found = F.linear(features, conv.weight.flatten(1), conv.bias)
            assert found.shape == wanted.shape
            assert 0.1 < float(wanted.std()) < 100
            assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-5)
    assert (contrastive.shape[1], phenotypes.shape[1]) == (512, 1692)


def test_names() -> None:
    tag = parse_resnet_tag("i3d_resnet50.n-group_c-3_w-16_i-64x96x96")
    assert tag.name == "i3d_resnet50.i-64x96x96_c-3_w-16_n-group"
    assert parse_resnet_tag("i3d_resnet152").name == "i3d_resnet152.i-160x224x224_c-1"
    assert parse_resnet_tag("i3d_resnet152").tokens == (10, 7, 7)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("i3d_resnet34", "known: i3d_resnet26"),
        ("i3d_resnet50.p-8x16x16", "field 'p-8x16x16' is unknown"),
        ("i3d_resnet50.c-0", "an integer from 1 to 99"),
        ("i3d_resnet50.c-1_c-1", "given twice"),
        ("i3d_resnet50.i-64x64", "three positive integers"),
        ("i3d_resnet50.w-20", "one of 8, 16"),
        ("i3d_resnet50.n-layer", "one of batch, group"),
    ],
)
def test_names_that_are_refused(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_resnet_tag(name)


@pytest.mark.parametrize("size", [(16, 64, 48), (8, 16, 16), (17, 33, 70)])
def test_any_size_goes_through(size: tuple[int, int, int]) -> None:
    built = model()
    cells = tuple(-(-n // s) for n, s in zip(size, (16, 32, 32), strict=True))
    features = built.forward_features(volumes(*size))
    assert features.shape == (2, 256, *cells)
    assert torch.allclose(built(volumes(*size)), features.mean((2, 3, 4)))


def test_outside_of_the_volume_is_air() -> None:
    """A border of the window's lower end changes nothing in the stem: it is what convolutions pad with."""
    built = model()
    x = volumes(8, 16, 16)
    stem = built.conv1((x + 1) / 2)
    padded = built.conv1((F.pad(x, (2, 2, 2, 2, 1, 1), value=-1.0) + 1) / 2)
    assert torch.allclose(padded[:, :, 1:-1, 1:-1, 1:-1], stem, atol=1e-6)


def test_cells_of_the_last_map_are_tokens(make_dual: Callable[..., DualEncoder]) -> None:
    dual = make_dual("i3d_resnet26.i-32x64x96_c-2_w-8")
    x = volumes(32, 64, 96)
    with torch.no_grad():
        found = dual.encode_image(x, tokens=True, trunk=True)
        cells = dual.clip.visual.trunk.forward_features(x)
    assert found.grid == cells.shape[2:] == (2, 2, 3)
    assert found.tokens_SND is not None
    assert found.trunk_SC is not None
    assert torch.equal(found.tokens_SND[:, 1 * 6 + 0 * 3 + 2], cells[:, :, 1, 0, 2])
    assert torch.allclose(found.tokens_SND.mean(1), found.trunk_SC, atol=1e-6)
    assert torch.equal(found.study_BD, dual.encode_image(x).study_BD)


def test_grad_checkpointing_changes_nothing_and_computes_blocks_twice() -> None:
    x, left = volumes(16, 64, 48), []
    for enabled in (False, True):
        built = model().train()
        built.set_grad_checkpointing(enabled)
        calls: list[int] = []
        for block in built.blocks:
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        built(x).square().sum().backward()
        left.append({n: p.grad for n, p in built.named_parameters()} | dict(built.named_buffers()))
        assert len(calls) == 8 * (1 + enabled)
    assert all(torch.equal(left[0][n], left[1][n]) for n in left[0])
    assert int(left[1]["layer4.1.bn3.num_batches_tracked"]) == 1


def test_group_norm_needs_no_batch() -> None:
    built = model(f"{SMALL}_n-group").train()
    assert not [n for n, _ in built.named_buffers()]
    x = volumes(16, 64, 48)
    assert torch.allclose(built(x)[:1], built(x[:1]), atol=1e-5)


def test_classifier() -> None:
    built = model(num_classes=5)
    assert built(volumes(16, 64, 48)).shape == (2, 5)
    assert built.get_classifier().out_features == 5
    assert built.forward_head(built.forward_features(volumes(16, 64, 48)), pre_logits=True).shape == (2, 256)
    built.reset_classifier(0)
    assert built(volumes(16, 64, 48)).shape == (2, 256)
    with pytest.raises(ValueError, match="pooling 'max'"):
        built.reset_classifier(0, global_pool="max")


@pytest.mark.parametrize("kwargs", [{"in_chans": 3}, {"img_size": 224}, {"drop_path_rate": 0.1}])
def test_arguments_it_would_have_to_ignore_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="its geometry is in its name"):
        model(**kwargs)


def test_there_is_nothing_to_download() -> None:
    with pytest.raises(RuntimeError, match="no weights to download"):
        timm.create_model("i3d_resnet50", pretrained=True)


def test_layer_groups_name_every_parameter() -> None:
    from timm.models import group_parameters

    built = model()
    groups = group_parameters(built, built.group_matcher())
    names = {n for n, _ in built.named_parameters()}
    assert sorted(name for group in groups.values() for name in group) == sorted(names)
    assert "conv1.weight" in groups[0]
    assert len(groups) == 9
