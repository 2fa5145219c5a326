"""`voxvit`: any size, token dropout, attention by slice, rotary positions, checkpointing, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import encoders
from encoders.block import rope_tables, rotate

assert encoders.load  # importing the package is what registers the names
GRID = "p-4x8x8_i-16x32x24_c-2"


def model(tag: str = "", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    built = timm.create_model(f"voxvit_tiny.{GRID}{tag}", **kwargs)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return built.eval()


def volumes(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tag", ["_l-1", "_l-1_e-rope_o-mean", "_l-1_s-conv_o-attn_a-slice3"])
def test_any_multiple_of_the_patch(tag: str) -> None:
    built = model(tag)
    for size in ((16, 32, 24), (4, 8, 8), (24, 8, 40)):
        tokens = built.forward_features(volumes(*size))
        places = (size[0] // 4) * (size[1] // 8) * (size[2] // 8)
        assert tokens.shape == (2, places + (built.cls_token is not None), 192)
        assert built(volumes(*size)).shape == (2, 192)


@pytest.mark.parametrize("size", [(16, 32, 20), (15, 32, 24), (2, 32, 24)])
def test_other_sizes_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="patches of 4x8x8"):
        model("_l-1")(volumes(*size))


@pytest.mark.parametrize("attention", ["", "_a-slice3"])
def test_token_dropout_leaves_every_slice_equally_many(attention: str) -> None:
    built = model(f"_l-1_o-mean{attention}", patch_drop_rate=0.5)
    places = built.tag.tokens
    with torch.no_grad():  # tokens that carry nothing but their own number
        for parameter in built.patch_embed.parameters():
            parameter.zero_()
        built.pos_embed.copy_(torch.arange(48).view(1, 1, *places).expand_as(built.pos_embed))
    seen: list[Tensor] = []
    built.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 0]))
    built.train()(volumes(16, 32, 24))
    built.eval()(volumes(16, 32, 24))
    for row in seen[0]:
        assert torch.bincount(row.long() // 12).tolist() == [6, 6, 6, 6]  # of 12 in each of 4 slices
        assert torch.equal(row, row.unique())  # none twice, in order
    assert seen[1].shape[1] == 48


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_with_token_dropout_slice_attention_stays_in_its_slice(pool: str) -> None:
    built, x = model(f"_l-1_o-{pool}_a-slice3", patch_drop_rate=0.5).train(), volumes(16, 32, 24)
    changed = x.clone()
    changed[:, :, 4:8] += 1.0  # the second of four slices of tokens
    found = []
    with torch.no_grad():
        for each in (x, changed):
            torch.manual_seed(5)
            found.append(built.forward_kept(each))
        block = built.blocks[0]
    (a, kept), (b, same) = found
    assert torch.equal(kept, same) and (kept // 12).tolist() == [[s for s in range(4) for _ in range(6)]] * 2
    difference = (a - b).abs().amax((0, 2))[int(pool == "cls") :].view(4, 6).amax(1)
    assert difference[1] > 1e-3 and difference[[0, 2, 3]].max() == 0
    # Slice by slice, each with a copy of CLS, by the block's own full attention.
    with torch.no_grad():
        y = (built.patch_embed(x) + built.pos_embed).flatten(2).transpose(1, 2)
        y = y.gather(1, kept[..., None].expand(-1, -1, 192)).view(2, 4, 6, 192)
        if pool == "mean":
            want = torch.cat([block(y[:, s], None, 1) for s in range(4)], 1)
        else:
            cls = built.cls_token.expand(2, 1, 192)
            slices = [torch.cat([cls, y[:, s]], 1) for s in range(4)]
            seen = [z + block.attention(block.norm1(z), None) for z in slices]
            joined = torch.cat([torch.stack([z[:, :1] for z in seen]).mean(0), *(z[:, 1:] for z in seen)], 1)
            want = joined + block.mlp(block.norm2(joined))
        torch.testing.assert_close(a, built.norm(want), rtol=1e-4, atol=1e-5)


def test_without_dropout_every_place_is_kept() -> None:
    built = model("_l-1", patch_drop_rate=0.5)
    tokens, kept = built.forward_kept(volumes(16, 32, 24))
    assert tokens.shape[1] == 49 and torch.equal(kept, torch.arange(48).expand(2, -1))


def test_token_dropout_differs_between_volumes_and_steps() -> None:
    built = model("_l-1_e-rope", patch_drop_rate=0.5).train()
    x = volumes(16, 32, 24)[:1].expand(2, -1, -1, -1, -1)
    first, second = built(x), built(x)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_slice_attention_stays_in_its_slice(pool: str) -> None:
    x = volumes(16, 32, 24)
    changed = x.clone()
    changed[:, :, 4:8] += 1.0  # the second of four slices of tokens
    lead = int(pool == "cls")

    def difference(tag: str) -> Tensor:
        built = model(f"{tag}_o-{pool}_a-slice3")
        with torch.no_grad():
            return (built.forward_features(x) - built.forward_features(changed)).abs().amax((0, 2))

    per_token = difference("_l-1")
    by_slice = per_token[lead:].view(4, 12).amax(1)
    assert by_slice[1] > 1e-3
    assert by_slice[[0, 2, 3]].max() == 0
    if lead:
        assert per_token[0] > 1e-5  # CLS has been in every slice
    if not lead:  # a second block by slice changes nothing; CLS would have carried news between them
        assert difference("_l-2").view(4, 12)[[0, 2, 3]].max() == 0
    everywhere = difference("_l-3")[lead:].view(4, 12).amax(1)  # every third block sees the whole volume
    assert everywhere.min() > 1e-6


def test_grid_pool_puts_every_token_in_its_place() -> None:
    built = model("_l-1_o-grid", patch_drop_rate=0.5)
    with torch.no_grad():
        for size in ((16, 32, 24), (24, 8, 40)):
            tokens = built.forward_features(volumes(*size))
            assert tokens.shape == (2, 48, 192)  # of the native grid, whatever the size
            assert built.features_grid(size) == built.tag.tokens
            assert built(volumes(*size)).shape == (2, 192)
        tokens = built.train().forward_features(volumes(16, 32, 24))
    kept = (tokens != 0).any(-1)
    assert kept.view(2, 4, 12).sum(-1).tolist() == [[6] * 4] * 2
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pools_without_weights(pool: str) -> None:
    built, x = model(f"_l-1_o-{pool}"), volumes(16, 32, 24)
    tokens = built.forward_features(x)
    assert torch.equal(built(x), tokens.mean(1) if pool == "mean" else tokens.amax(1))


def test_slice_attention_of_one_slice_is_full_attention() -> None:
    x = volumes(4, 32, 24)
    full, sliced = model("_l-2_e-rope"), model("_l-2_e-rope_a-slice3")
    sliced.load_state_dict(full.state_dict())
    assert torch.equal(full(x), sliced(x))


def test_rotary_scores_depend_on_distance_alone() -> None:
    grid, width = (4, 6, 5), 64
    cos, sin = rope_tables(grid, width, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, width, dtype=torch.float32)

    def score(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        place = [(p[0] * grid[1] + p[1]) * grid[2] + p[2] for p in (a, b)]
        q_a, k_b = (rotate(v, cos[[i]], sin[[i]]) for v, i in zip((q, k), place, strict=True))
        return float((q_a * k_b).sum())

    expected = score((0, 0, 0), (1, 3, 2))
    for shift in ((1, 1, 1), (2, 0, 2), (0, 2, 1)):
        moved = tuple(p + s for p, s in zip((1, 3, 2), shift, strict=True))
        assert score(shift, moved) == pytest.approx(expected, abs=1e-4)
    for other in ((0, 3, 2), (1, 0, 2), (1, 3, 0)):
        assert abs(score((0, 0, 0), other) - expected) > 1e-2


def test_rotary_towers_have_no_position_weights_and_know_order() -> None:
    built = model("_l-1_e-rope_o-mean")
    assert built.pos_embed is None
    x = volumes(16, 32, 24)
    assert not torch.allclose(built(x), built(x.flip(2)), atol=1e-5)


def test_grad_checkpointing_changes_nothing() -> None:
    x, grads = volumes(16, 32, 24), []
    for enabled in (False, True):
        built = model("_l-3_a-slice3", patch_drop_rate=0.3).train()
        built.set_grad_checkpointing(enabled)
        torch.manual_seed(2)
        built(x).square().sum().backward()
        grads.append({n: p.grad for n, p in built.named_parameters()})
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def test_classifier() -> None:
    built = model("_l-1", num_classes=5)
    assert built(volumes(16, 32, 24)).shape == (2, 5)
    built.reset_classifier(0)
    assert built(volumes(16, 32, 24)).shape == (2, 192)
    with pytest.raises(ValueError, match="pooling 'mean'"):
        built.reset_classifier(0, global_pool="mean")


@pytest.mark.parametrize(
    "kwargs", [{"in_chans": 3}, {"img_size": 224}, {"drop_path_rate": 0.1}, {"global_pool": "mean"}, {"patch_size": 8}]
)
def test_arguments_it_would_have_to_ignore_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="its geometry is in its name"):
        model("_l-1", **kwargs)


def test_arguments_that_repeat_the_name_are_taken() -> None:
    assert model("_l-1", in_chans=2, img_size=(16, 32, 24), global_pool="cls").tag.channels == 2


def test_there_is_nothing_to_download() -> None:
    with pytest.raises(RuntimeError, match="no weights to download"):
        timm.create_model("voxvit_tiny", pretrained=True)


def test_no_decay_and_layer_groups_name_real_parameters() -> None:
    from timm.models import group_parameters

    built = model("_l-2_o-attn")
    names = {n for n, _ in built.named_parameters()}
    assert built.no_weight_decay() & names == {"pos_embed", "attn_pool.query"}
    groups = group_parameters(built, built.group_matcher())
    assert sorted(name for group in groups.values() for name in group) == sorted(names)
    assert "pos_embed" in groups[0]
