"""2D ViTs in voxvit: the same features of volumes that do not change over depth, every tensor accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import encoders
from encoders.errors import ReleaseError
from encoders.inflate import inflate
from encoders.inflate_vit import over_depth, volumetric

assert encoders.load
SOURCE = "vit_tiny_patch16_224"


def flat(name: str = SOURCE, **kwargs: Any) -> Any:
    """A timm ViT with weights away from their start, so that no tensor is without effect."""
    torch.manual_seed(0)
    built = timm.create_model(name, num_classes=7, **kwargs).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return built


def file_of(model: Any, folder: Path) -> str:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "flat.safetensors")
    return str(folder / "flat.safetensors")


def tower(tag: str) -> Any:
    torch.manual_seed(1)
    return timm.create_model(f"voxvit_tiny.{tag}").eval()


def image(channels: int = 3, size: int = 224) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(2))


def deep(x: Tensor, depth: int) -> Tensor:
    """The image at every depth."""
    return x[:, :, None].expand(-1, -1, depth, -1, -1)


def test_one_slice_of_tokens_gives_the_features_of_the_2d_network(tmp_path: Path) -> None:
    source = flat()
    built = tower("p-4x16x16_i-4x224x224_c-3")
    told = inflate(built, file_of(source, tmp_path))
    x = image()
    with torch.no_grad():
        ours, theirs = built.forward_features(deep(x, 4)), source.forward_features(x)
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            built(deep(x, 4)), source.forward_head(theirs, pre_logits=True), rtol=1e-4, atol=1e-4
        )
        other = deep(x, 4) + torch.tensor([1.0, -1.0, 2.0, -2.0]).view(1, 1, 4, 1, 1)  # the same mean over depth
        torch.testing.assert_close(built(other), built(deep(x, 4)), rtol=1e-3, atol=1e-3)
    assert told.filled == len(built.state_dict()) and told.fresh == ()
    assert told.aside == ("head.bias", "head.weight")
    assert str(told) == f"{told.filled} tensors filled; left aside: head (2); still random: none"


@pytest.mark.parametrize("attention", ["", "_a-slice3"])
def test_without_cls_any_number_of_slices_gives_them(attention: str, tmp_path: Path) -> None:
    """Equal slices are seen with the weights of one: attention over copies is attention over the original."""
    source = flat(class_token=False, global_pool="avg", fc_norm=False, img_size=64)
    built = tower(f"p-2x16x16_i-6x64x64_c-3_o-mean{attention}")
    inflate(built, file_of(source, tmp_path))
    x = image(size=64)
    with torch.no_grad():
        want = source.forward_features(x)
        got = built.forward_features(deep(x, 6)).view(2, 3, 16, -1)
        torch.testing.assert_close(got, want[:, None].expand_as(got), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(built(deep(x, 6)), want.mean(1), rtol=1e-4, atol=1e-4)


def test_blocks_by_slice_read_each_slice_with_cls_as_the_2d_network_does(tmp_path: Path) -> None:
    source = flat(img_size=64, depth=2)
    built = tower("p-2x16x16_i-6x64x64_c-3_a-slice3_l-2")  # the third block would see three times the patches
    inflate(built, file_of(source, tmp_path))
    x = image(size=64)
    with torch.no_grad():
        torch.testing.assert_close(built(deep(x, 6)), source.forward_features(x)[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_equal_windows_look_like_a_grey_image(channels: int, tmp_path: Path) -> None:
    source = flat(img_size=64, depth=1)
    built = tower(f"p-2x16x16_i-2x64x64_c-{channels}_l-1")
    inflate(built, file_of(source, tmp_path))
    x = image(1, 64)
    with torch.no_grad():
        want = source.forward_features(x.expand(-1, 3, -1, -1))[:, 0]
        torch.testing.assert_close(built(deep(x.expand(-1, channels, -1, -1), 2)), want, rtol=1e-4, atol=1e-4)


def test_other_patches_say_the_same_of_a_resized_image() -> None:
    kernel = torch.randn(5, 3, 16, 16)
    patch = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), size=(16, 16), mode="bilinear")
    larger = torch.nn.functional.interpolate(patch, size=(24, 24), mode="bicubic", antialias=True)
    want = torch.nn.functional.conv2d(patch, kernel)
    got = torch.nn.functional.conv3d(deep(larger, 8), volumetric(kernel, (8, 24, 24)))
    torch.testing.assert_close(got[:, :, 0], want, rtol=1e-3, atol=1e-2)
    places = over_depth(torch.arange(16.0).view(1, 16, 1).expand(-1, -1, 4), (3, 8, 6))
    assert places.shape == (1, 4, 3, 8, 6)
    assert torch.equal(places[:, :, 0], places[:, :, 2])
    assert (places[0, 0, 0].diff(dim=0) > 0).all() and (places[0, 0, 0].diff(dim=1) > 0).all()


def test_layer_scale_is_folded(tmp_path: Path) -> None:
    source = flat(img_size=64, depth=2, init_values=0.3)
    built = tower("p-2x16x16_i-2x64x64_c-3_l-2")
    told = inflate(built, file_of(source, tmp_path))
    x = image(size=64)
    with torch.no_grad():
        torch.testing.assert_close(built(deep(x, 2)), source.forward_features(x)[:, 0], rtol=1e-4, atol=1e-4)
    assert told.aside == ("head.bias", "head.weight")


def test_towers_that_take_a_part_say_what_they_do_not(tmp_path: Path) -> None:
    state = flat(img_size=64, depth=1).state_dict()
    torch.save(
        {"model": {f"module.{k}": v for k, v in state.items()} | {"decoder.x": torch.zeros(1)}}, tmp_path / "a.pth"
    )
    built = tower("p-2x16x16_i-4x64x64_c-3_s-conv_e-rope_o-attn_l-1")
    before = {k: v.clone() for k, v in built.state_dict().items()}
    told = inflate(built, str(tmp_path / "a.pth"))
    changed = {k for k, v in built.state_dict().items() if not torch.equal(v, before[k])}
    assert changed | set(told.fresh) == set(before) and not changed & set(told.fresh)
    assert {name.partition(".")[0] for name in told.fresh} == {"patch_embed", "attn_pool"}
    assert {name.partition(".")[0] for name in told.aside} == {
        "patch_embed",
        "pos_embed",
        "cls_token",
        "head",
        "decoder",
    }
    assert told.filled + len(told.fresh) == len(before)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    state = flat(img_size=64, depth=2).state_dict()

    def refused(changed: dict[str, Tensor], says: str, tag: str = "p-2x16x16_i-4x64x64_c-3_l-2") -> None:
        torch.save(changed, tmp_path / "a.pth")
        built = tower(tag)
        before = {k: v.clone() for k, v in built.state_dict().items()}
        with pytest.raises(ReleaseError, match=says):
            inflate(built, str(tmp_path / "a.pth"))
        assert all(torch.equal(before[k], v) for k, v in built.state_dict().items())

    refused(state, "width 192 and 2 blocks, the tower has 192 and 3", "p-2x16x16_i-4x64x64_c-3_l-3")
    refused(flat("vit_small_patch16_224", depth=2).state_dict(), "width 384 and 2 blocks, the tower has 192 and 2")
    refused({k: v for k, v in state.items() if k != "blocks.1.attn.qkv.bias"}, r"blocks.1.attn.qkv.bias is missing")
    refused({**state, "blocks.0.attn.q_norm.weight": torch.ones(64)}, "q_norm.weight has no place")
    refused({**state, "norm_pre.weight": torch.ones(192)}, "norm_pre.weight has no place")
    refused({**state, "blocks.0.mlp.fc1.bias": torch.ones(5)}, r"blocks.0.mlp.0.bias would have shape \(5,\)")
    refused({k: v for k, v in state.items() if not k.startswith("patch_embed")}, "no 2D ViT")


def test_every_volume_of_a_study_gives_the_features_of_the_2d_network(tmp_path: Path) -> None:
    source = flat()
    built = tower("p-4x16x16_i-4x224x224_c-6_v-2_a-volume3_o-mean_l-12")
    told = inflate(built, file_of(source, tmp_path))
    assert "volume_embed" in told.fresh and "patch_embed.0.weight" not in told.fresh
    x = image()
    alone = torch.cat([deep(x, 4), torch.full((2, 3, 4, 224, 224), -1.0)], dim=1)
    both = torch.cat([deep(x, 4), deep(x, 4)], dim=1)  # as many equal tokens twice: attention's means are the same
    single = tower("p-4x16x16_i-4x224x224_c-3_o-mean")
    inflate(single, file_of(source, tmp_path))
    with torch.no_grad():
        wanted = single(deep(x, 4))
        for given in (alone, both):
            torch.testing.assert_close(built(given), wanted, rtol=1e-4, atol=1e-4)
