"""timm's 2D ViTs (also MAE's, DINOv2's and DINO's files, which have its names) inflated to `voxvit`.

A volume that does not change over depth then looks like the image it consists of: a voxvit of one slice of tokens gives
the 2D network's features, and so does one of several slices up to the weight of the one CLS token among more patches.

Legend: O, I output and input channels, h, w sides of a patch, C width, N tokens of the 2D network, (D, H, W) token grid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from encoders.errors import ReleaseError
from encoders.inflate import Inflation, for_channels
from encoders.stem import PatchStem

PATCH = "patch_embed.proj.weight"
PARTS = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", "norm1": "norm1", "norm2": "norm2"}
SCALES = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}  # LayerScale of a branch, by the layer that ends it
# What a tower for volumes has no use for. Anything else that has no place is a sign of another architecture.
ASIDE = ("head", "head_dist", "fc_norm", "attn_pool", "reg_token", "register_tokens", "mask_token")


def inflate_vit(tower: Any, stored: Mapping[str, Tensor]) -> Inflation:
    """Fill a `VoxViT` from the weights of a 2D ViT of the same width and number of blocks.

    Patch embedding: resampled to the tower's patch in plane (FlexiViT's pseudo-inverse, arXiv 2212.08013 eq. 5), then
    repeated over depth and divided by it (HLIP, arXiv 2505.21862): on what is constant over depth it gives what the 2D
    one gives. Positions: resampled in plane (bicubic), the same for every slice. CLS takes its position with it, as
    voxvit's has none. LayerScale is folded into the layer before it. Only a `patch` stem and learned positions can be
    filled; other towers keep their own.

    Raises:
        ReleaseError: no 2D ViT, of another width or depth, or with tensors that have no place.
    """
    flat = _stripped(tower, stored)
    own = tower.state_dict()
    found: dict[str, Tensor] = {}
    used: set[str] = set()

    def take(name: str) -> Tensor:
        if name not in flat:
            raise _unfit(tower, f"{name} is missing")
        used.add(name)
        return flat[name].float()

    _check_size(tower, flat)
    for i in range(len(tower.blocks)):
        for theirs, ours in PARTS.items():
            scale = SCALES.get(theirs, "")
            gamma = take(f"blocks.{i}.{scale}") if f"blocks.{i}.{scale}" in flat else None
            for kind in ("weight", "bias"):
                value = take(f"blocks.{i}.{theirs}.{kind}")
                if gamma is not None:
                    value = value * (gamma[:, None] if value.ndim == 2 else gamma)
                found[f"blocks.{i}.{ours}.{kind}"] = value
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = take(f"norm.{kind}")
    if isinstance(tower.patch_embed, PatchStem):
        found["patch_embed.0.weight"] = _volumetric(take(PATCH), tower.tag.patch, tower.tag.channels)
        found["patch_embed.0.bias"] = take("patch_embed.proj.bias")
    positions = take("pos_embed") if "pos_embed" in flat else None
    cls = flat.get("cls_token")
    leading = _leading(tower, positions)
    if tower.cls_token is not None and cls is not None:
        at = positions[:, :1] if positions is not None and leading else 0.0
        found["cls_token"] = take("cls_token") + at
    if tower.pos_embed is not None and positions is not None:
        found["pos_embed"] = _over_depth(positions[:, leading:], tower.tag.tokens)
    elif "pos_embed" not in found:
        used.discard("pos_embed")
    for name, value in found.items():
        if own[name].shape != value.shape:
            raise _unfit(tower, f"{name} would have shape {tuple(value.shape)}, the tower's is {tuple(own[name].shape)}")
    rest = set(flat) - used
    kept_out = {*ASIDE, "pos_embed", "cls_token", "patch_embed"}
    if strange := sorted(name for name in rest if name.partition(".")[0] not in kept_out):
        raise _unfit(tower, f"{strange[0]} has no place in it")
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
    outside = len(stored) - len(flat)
    aside = [*sorted(rest), *[name for name in stored if name not in _names(stored)][:outside]]
    return Inflation(len(found), tuple(aside), tuple(name for name in own if name not in found))
