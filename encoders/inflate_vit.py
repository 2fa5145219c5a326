"""timm's 2D ViTs (and the files of MAE, DINO and DINOv2, which have its names) inflated to `voxvit`.

A volume that does not change over depth then looks like the image it consists of: a voxvit with one slice of tokens
gives the 2D network's features, and so does one with several slices that pools by mean (a CLS token would be one among
more patches than it was).

Legend: O, I output and input channels, h, w sides of a patch, C width, N tokens of the 2D network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from encoders.errors import ReleaseError
from encoders.inflate import Inflation, for_channels
from encoders.stem import PatchStem
from encoders.tag_fields import Size3
from encoders.voxvit import VoxViT

PATCH = "patch_embed.proj.weight"
PARTS = {
    "attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", "norm1": "norm1", "norm2": "norm2",
}  # fmt: skip
SCALES = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}  # LayerScale of a branch, by the layer it comes after
# What may be left aside. Any other tensor without a place is a sign of another architecture.
ASIDE = {
    "head", "head_dist", "fc_norm", "attn_pool", "reg_token", "register_tokens", "mask_token",
    "patch_embed", "pos_embed", "cls_token",
}  # fmt: skip


def inflate_vit(tower: VoxViT, stored: Mapping[str, Tensor]) -> Inflation:
    """Fill a voxvit from a 2D ViT of the same width and number of blocks.

    Patch embedding: resampled to the tower's patch in plane, then shared out over depth (`volumetric`). Positions:
    resampled in plane, the same in every slice (HLIP, arXiv 2505.21862). CLS takes its position with it, as voxvit's
    has none. LayerScale is folded into the layer before it. A stem other than `patch`, rotary positions and pools with
    weights of their own stay as they are.

    Raises:
        ReleaseError: no 2D ViT, one of another width or depth, or tensors that have no place.
    """
    flat, prefix = _names(tower, stored)
    found: dict[str, Tensor] = {}
    used: set[str] = set()

    def take(name: str) -> Tensor:
        if name not in flat:
            raise _unfit(tower, f"{name} is missing")
        used.add(name)
        return flat[name].float()

    for i in range(len(tower.blocks)):
        for theirs, ours in PARTS.items():
            scale = f"blocks.{i}.{SCALES.get(theirs, '')}"
            gamma = take(scale) if scale in flat else None
            for kind in ("weight", "bias"):
                value = take(f"blocks.{i}.{theirs}.{kind}")
                if gamma is not None:
                    value = value * (gamma[:, None] if value.ndim == 2 else gamma)
                found[f"blocks.{i}.{ours}.{kind}"] = value
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = take(f"norm.{kind}")
    if isinstance(tower.patch_embed, PatchStem):
        found["patch_embed.0.weight"] = volumetric(for_channels(take(PATCH), tower.tag.channels_each), tower.tag.patch)
        found["patch_embed.0.bias"] = take("patch_embed.proj.bias")
    leading = _leading(flat)
    if tower.cls_token is not None and "cls_token" in flat:
        found["cls_token"] = take("cls_token") + (take("pos_embed")[:, :1] if leading else 0.0)
    if tower.pos_embed is not None and "pos_embed" in flat:
        found["pos_embed"] = over_depth(take("pos_embed")[:, leading:], tower.tag.tokens)
    return _fill(tower, found, sorted(set(flat) - used), [name for name in stored if not name.startswith(prefix)])


def volumetric(kernel_OIhw: Tensor, patch: Size3) -> Tensor:
    """[O, I, *patch]: resampled in plane by the pseudo-inverse that keeps what the embedding says of a resized image
    (FlexiViT, arXiv 2212.08013, eq. 4), then repeated over depth and divided by it, so that of what is constant over
    depth it says the same."""
    size = list(patch[1:])
    if list(kernel_OIhw.shape[2:]) != size:
        kernel_OIhw = resample_patch_embed(kernel_OIhw, size)
    return kernel_OIhw[:, :, None].expand(-1, -1, patch[0], -1, -1) / patch[0]


def over_depth(places_1NC: Tensor, grid: Size3) -> Tensor:
    """[1, C, D, H, W]: square 2D positions resampled (bicubic) to H x W, the same at every depth."""
    side = math.isqrt(places_1NC.shape[1])
    if (side, side) != grid[1:]:
        places_1NC = resample_abs_pos_embed(places_1NC, list(grid[1:]), [side, side], num_prefix_tokens=0)
    plane = places_1NC.transpose(1, 2).reshape(1, -1, 1, *grid[1:])
    return plane.expand(-1, -1, grid[0], -1, -1)


def _names(tower: VoxViT, stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The ViT's tensors by timm's names, and what stood before these (module., visual.trunk. ...)."""
    stems = [key for key in stored if key.endswith(PATCH)]
    if len(stems) != 1:
        raise _unfit(tower, f"{len(stems)} tensors called {PATCH} instead of one: no 2D ViT")
    prefix = stems[0].removesuffix(PATCH)
    flat = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    width = flat[PATCH].shape[0]
    numbers = {int(key.split(".")[1]) for key in flat if key.startswith("blocks.") and key.split(".")[1].isdigit()}
    blocks = 1 + max(numbers, default=-1)
    if flat[PATCH].ndim != 4 or (width, blocks) != (tower.embed_dim, len(tower.blocks)):
        what = f"width {width} and {blocks} blocks, the tower has {tower.embed_dim} and {len(tower.blocks)}"
        raise _unfit(tower, what if flat[PATCH].ndim == 4 else f"{PATCH} has shape {tuple(flat[PATCH].shape)}")
    return flat, prefix


def _leading(flat: Mapping[str, Tensor]) -> int:
    """Positions before those of the patches, which are a square."""
    if "pos_embed" not in flat:
        return 0
    count = flat["pos_embed"].shape[1]
    return count - math.isqrt(count) ** 2


def _fill(tower: VoxViT, found: Mapping[str, Tensor], rest: list[str], outside: list[str]) -> Inflation:
    own = tower.state_dict()
    for name, value in found.items():
        if own[name].shape != value.shape:
            what = f"{name} would have shape {tuple(value.shape)}, the tower's has {tuple(own[name].shape)}"
            raise _unfit(tower, what)
    if strange := [name for name in rest if name.partition(".")[0] not in ASIDE]:
        raise _unfit(tower, f"{strange[0]} has no place in it")
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
    return Inflation(len(found), (*rest, *outside), tuple(name for name in own if name not in found))


def _unfit(tower: VoxViT, what: str) -> ReleaseError:
    return ReleaseError(
        f"these 2D weights do not fit {tower.tag.name}: {what}",
        "a tower that is half random would pass for a pretrained one",
        "a plain timm ViT of this width and number of blocks, such as vit_base_patch16_224 for voxvit_base",
    )
