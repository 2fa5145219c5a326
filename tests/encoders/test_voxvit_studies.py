"""`voxvit` over studies of several volumes: absent ones count for nothing, volumes meet where the tag says so."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import encoders
from encoders.study_tokens import present_volumes
from encoders.tag import parse_tag

assert encoders.load  # importing the package is what registers the names
GRID = "p-4x8x8_i-8x16x24"
K, C = 3, 2
EXACT = 1e-5  # fp32: sums over other numbers of rows differ in their last bits


def model(tag: str = "", volumes: int = K, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    several = f"_v-{volumes}" if volumes > 1 else ""
    built: Any = timm.create_model(f"voxvit_tiny.{GRID}_c-{C * volumes}{several}{tag}", **kwargs)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name != "volume_embed":
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return built.eval()


def study(*there: int, size: tuple[int, int, int] = (8, 16, 24), batch: int = 2) -> Tensor:
    """[B, K * C, D, H, W], -1 but for some volumes."""
    x = torch.rand(batch, K, C, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x[:, [k for k in range(K) if k not in there]] = -1.0
    return x.flatten(1, 2)


POOLS = ["_o-cls", "_o-mean", "_o-max", "_o-attn", "_o-grid"]
KINDS = ["", "_a-slice3", "_a-volume3", "_a-slice3_e-rope", "_s-conv", "_s-extremes_e-rope"]


@pytest.mark.parametrize("tag", [f"{kind}{pool}_l-3" for kind in KINDS for pool in POOLS] + ["_o-mean_l-0"])
def test_a_study_of_one_volume_is_that_volume(tag: str) -> None:
    tower, alone = model(tag), model(tag.replace("_a-volume3", ""), volumes=1)
    weights = {name: value for name, value in tower.state_dict().items() if name != "volume_embed"}
    alone.load_state_dict(weights)  # embeddings of the volumes' numbers are zero here
    for size in ((8, 16, 24), (4, 8, 16)):
        for k in range(K):
            x = study(k, size=size)
            volume = x[:, C * k : C * (k + 1)]
            assert torch.allclose(tower(x), alone(volume), atol=EXACT, rtol=EXACT)
            tokens, wanted = tower.forward_features(x), alone.forward_features(volume)
            n = tokens.shape[1] // K
            there = tokens[:, -K * n :].unflatten(1, (K, n))[:, k]
            assert torch.allclose(there, wanted[:, -n:], atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("tag", ["_a-slice3_l-3", "_a-volume3_o-mean_l-3", "_o-attn_l-2_e-rope", "_o-grid_l-1"])
def test_a_batch_of_studies_is_each_by_itself(tag: str) -> None:
    tower = model(tag)
    with torch.no_grad():
        tower.volume_embed.normal_()
    each = [study(0, batch=1), study(1, 2, batch=1), study(0, 1, 2, batch=1), study(2, batch=1)]
    together = tower(torch.cat(each))
    assert torch.allclose(together, torch.cat([tower(x) for x in each]), atol=EXACT, rtol=EXACT)
    for a, b in pairwise(together):
        assert (a - b).abs().max() > 1e-2  # which volumes are there is heard


@pytest.mark.parametrize("pool", ["cls", "mean", "attn"])
def test_what_an_absent_volume_would_be_called_is_not_heard(pool: str) -> None:
    tower, x = model(f"_o-{pool}_l-2"), study(1)
    before = tower(x)
    with torch.no_grad():
        tower.volume_embed[[0, 2]] += 100.0
    assert torch.equal(tower(x), before)
    with torch.no_grad():
        tower.volume_embed[1] += torch.linspace(-1, 1, 192)
    assert (tower(x) - before).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["slice3", "volume3"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_volumes_meet_in_every_third_block_alone(attention: str, pool: str) -> None:
    x = study(0, 1, 2)
    changed = x.clone()
    changed[:, C : 2 * C, 4:] += 0.5  # the second slice of tokens of the second volume
    for blocks, meet in ((2, False), (3, True)):
        tower = model(f"_a-{attention}_o-{pool}_l-{blocks}")
        difference = (tower.forward_features(x) - tower.forward_features(changed)).abs().amax((0, 2))
        volumes = difference[int(pool == "cls") :].view(K, 2, -1).amax(2)  # of each slice
        assert volumes[1, 1] > 1e-3
        others = volumes[[0, 2]]
        if pool == "cls" and not meet:  # it went through all slices of the study
            assert difference[0] > 1e-4
        elif not meet:
            assert others.max() == 0
            assert (volumes[1, 0] > 1e-4) == (attention == "volume3")
        if meet:
            assert others.min() > 1e-5


def test_gradients_reach_present_volumes_and_no_others() -> None:
    tower = model("_a-slice3_l-3", patch_drop_rate=0.5).train()
    x = study(0, 2).requires_grad_()
    tower(x).square().sum().backward()
    assert x.grad is not None
    reached = x.grad.unflatten(1, (K, C)).abs().amax((0, 2, 3, 4, 5))
    assert reached[0] > 0 and reached[2] > 0 and reached[1] == 0
    assert [row.abs().max() > 0 for row in tower.volume_embed.grad] == [True, False, True]
    assert all(p.grad is not None for p in tower.parameters())


@pytest.mark.parametrize("tag", ["_a-slice3_l-3", "_a-slice3_l-3_o-mean_s-conv_e-rope", "_l-1_o-grid"])
def test_token_dropout_takes_as_many_from_every_slice_of_every_volume(tag: str) -> None:
    tower, x = model(tag, patch_drop_rate=0.5).train(), study(0, 2)
    lead = int(tower.cls_token is not None)
    assert tower.token_grid((8, 16, 24)) == tower.features_grid((8, 16, 24)) == (K * 2, 2, 3)
    torch.manual_seed(5)
    tokens, kept = tower.forward_kept(x)
    assert (kept // 6).tolist() == [[s for s in range(2 * K) for _ in range(3)]] * 2
    assert kept.diff(dim=1).min() > 0
    if tower.grid_pool is None:
        assert tokens.shape == (2, lead + 2 * K * 3, 192)
    of_each = tokens[:, lead:].unflatten(1, (K, -1))
    assert (of_each[:, 1] == 0).all() and (of_each[:, [0, 2]].abs().amax(-1) > 0).float().mean() > 0.4
    torch.manual_seed(5)  # the draw knows nothing of what is there
    assert torch.equal(tower.forward_kept(study(1))[1], kept)


@pytest.mark.parametrize("tag", ["_a-slice3_l-3", "_e-rope_o-attn_l-2"])
def test_checkpointing_changes_nothing(tag: str) -> None:
    found = []
    for enable in (False, True):
        tower = model(tag).train()
        tower.set_grad_checkpointing(enable)
        tower(study(0, 2)).square().sum().backward()
        found.append([p.grad.clone() for p in tower.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_study_without_any_volume_has_features() -> None:
    for pool in POOLS:
        found = model(f"{pool}_l-1")(torch.full((1, K * C, 8, 16, 24), -1.0))
        assert found.isfinite().all()


def test_a_volume_is_absent_where_every_channel_is_padding() -> None:
    x = study(0, 1, 2)
    x[0, C] = -1.0  # one window of the second volume shows nothing, the other does
    x[1, C : 2 * C] = -1.0
    assert present_volumes(x, K).tolist() == [[True, True, True], [True, False, True]]


def test_windows_as_volumes() -> None:
    name = "voxvit_tiny.p-4x8x8_i-8x16x24_c-3_v-3_l-1"
    assert parse_tag(name).name == name and parse_tag(name).channels_each == 1
    tower: Any = timm.create_model(name)
    assert tower.patch_embed[0].weight.shape == (192, 1, 4, 8, 8)
    assert "volume_embed" in tower.no_weight_decay()
