"""What stood in the patches that token dropout took (MAE, arXiv 2111.06377, §3 and "reconstruction target").

    L = (1/B) Σ_studies (1/M) Σ_{m dropped} (1/V) || f(kept tokens)_m - x̂_m ||²

f is a light transformer over all places: the kept tokens of the same forward pass that the other losses read, mapped to
its width, one learned token everywhere else, and fixed positions. x̂_m are the V voxels of patch m in all windows, each
window of a patch to mean 0 and variance 1 (with `normalise: false` as they are). Nothing is encoded twice: what this
costs is the decoder. In steps that drop no token (`model.image.token_dropout_finish`) the loss is 0. Of a tower that
takes several volumes all are places of one grid, one volume after another; patches of absent ones are not predicted.
The stem must be `patch`: the others look across patches before any is dropped.

Legend: b studies of a part, N places, K of them kept, M = N - K dropped, C tower width, E decoder width, V voxels of a
patch times windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from encoders.block import Block
from encoders.study_tokens import present_volumes
from encoders.tag_fields import Size3
from encoders.voxvit import VoxViT
from pretrain.errors import ConfigError
from pretrain.grad_cache import touch
from pretrain.objectives.base import Objective, Surroundings
from pretrain.passes import Part, Rows
from pretrain.schema_objectives import MaskedImageOptions

HEAD_WIDTH = 32
# Variance under which a window of a patch counts as flat, in windows of [-1, 1]: 2 HU of a window of 400. Air would
# otherwise be noise of variance 1, to be predicted from nothing.
FLAT = 1e-4


class MaskedImage(Objective):
    """Mean squared error of the dropped patches, predicted from the kept ones."""

    reads = ("image:global.tokens", "image:global.kept")
    coupling = "sample"
    Options = MaskedImageOptions

    def attach(self, around: Surroundings) -> None:
        trunk = getattr(around.dual.clip.visual, "trunk", None)
        if not isinstance(trunk, VoxViT) or trunk.grid_pool is not None:
            raise ConfigError(
                "objective masked_image: this image tower does not give the tokens that token dropout leaves",
                why="there would be nothing to predict the dropped patches from",
                fix="use a voxvit whose pooling is not o-grid, or leave masked_image out",
            )
        if trunk.tag.stem != "patch":
            raise ConfigError(
                f"objective masked_image: s-{trunk.tag.stem} works over the whole volume before tokens are dropped",
                why="every kept token has seen the patches that it should predict",
                fix="use the patch stem (no s- in model.image.name), or leave masked_image out",
            )
        self.patch, self.volumes, tag = trunk.tag.patch, trunk.tag.volumes, trunk.tag
        voxels = tag.channels_each * tag.patch[0] * tag.patch[1] * tag.patch[2]
        self.decoder = Decoder(trunk.num_features, self.options.width, self.options.blocks, voxels)

    def each(self, rows: Mapping[str, Rows], part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        tokens_bKC, kept_bK = rows["image:global.tokens"].values, rows["image:global.kept"].values
        images = part.images if self.volumes == 1 else in_depth(part.images, self.volumes)
        grid = cast(Size3, tuple(s // p for s, p in zip(images.shape[2:], self.patch, strict=True)))
        dropped_bM = others(kept_bK, grid[0] * grid[1] * grid[2])
        if dropped_bM.shape[1] == 0:  # the decoder takes part all the same: ranks wait for it
            return tokens_bKC.sum() * 0.0 + touch(self.decoder.parameters()).to(tokens_bKC.device), {}
        predicted_bMV = self.decoder(tokens_bKC, kept_bK, dropped_bM, grid).float()
        wanted_bMV = at(patches(images.float(), self.patch, self.options.normalise), dropped_bM)
        squared_bMV = (predicted_bMV - wanted_bMV).square()
        if self.volumes == 1:
            return squared_bMV.mean((1, 2)).sum(), {}
        volume_bM = dropped_bM // (grid[0] * grid[1] * grid[2] // self.volumes)
        there_bM = present_volumes(part.images, self.volumes).gather(1, volume_bM)
        return ((squared_bMV.mean(2) * there_bM).sum(1) / there_bM.sum(1)).sum(), {}


class Decoder(nn.Module):
    """Kept tokens to the voxels of the dropped places.

    Args:
        tower: width of the tokens.
        width: of the decoder.
        blocks: transformer blocks, of full attention over all places.
        voxels: numbers of a patch.
    """

    def __init__(self, tower: int, width: int, blocks: int, voxels: int) -> None:
        super().__init__()
        self.enter = nn.Linear(tower, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, width // HEAD_WIDTH) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, voxels)

    def forward(self, tokens_bKC: Tensor, kept_bK: Tensor, dropped_bM: Tensor, grid: Size3) -> Tensor:
        """Tokens [b, K, C] at places `kept_bK` to voxels [b, M, V] at places `dropped_bM` of a grid."""
        entered_bKE = self.enter(tokens_bKC)
        batch, places, width = len(entered_bKE), grid[0] * grid[1] * grid[2], entered_bKE.shape[2]
        hidden = self.mask_token.to(entered_bKE.dtype).expand(batch, places, -1)
        x_bNE = hidden.scatter(1, kept_bK[..., None].expand(-1, -1, width), entered_bKE)
        x_bNE = x_bNE + positions(grid, width, x_bNE.device)
        for block in self.blocks:
            x_bNE = block(x_bNE, None, 1)
        return self.leave(self.norm(at(x_bNE, dropped_bM)))


def positions(grid: Size3, width: int, device: torch.device) -> Tensor:
    """Fixed sines and cosines [1, N, width] (arXiv 1706.03762, §3.5), a third of the width an axis."""
    each = width // 6
    frequency = 10_000.0 ** (-torch.arange(each, device=device) / each)
    axes = torch.meshgrid(*(torch.arange(g, device=device, dtype=torch.float32) for g in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in axes]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)[None]


def in_depth(images: Tensor, volumes: int) -> Tensor:
    """Studies [b, volumes * c, D, H, W] with their volumes one above another, [b, c, volumes * D, H, W]."""
    return images.unflatten(1, (volumes, -1)).transpose(1, 2).flatten(2, 3)


def patches(images_bcDHW: Tensor, patch: Size3, normalise: bool) -> Tensor:
    """Voxels of every patch [b, N, V], windows one after another."""
    x: Any = images_bcDHW
    for axis, size in zip((2, 4, 6), patch, strict=True):
        x = x.unflatten(axis, (-1, size))  # b, c, D, d, H, h, W, w
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3).flatten(3)
    if normalise:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + FLAT).sqrt()
    return x.flatten(2)


def others(kept_bK: Tensor, places: int) -> Tensor:
    """The places that are not kept [b, M], in order; every study keeps as many."""
    free = torch.ones(len(kept_bK), places, dtype=torch.bool, device=kept_bK.device).scatter(1, kept_bK, False)
    return free.nonzero()[:, 1].view(len(kept_bK), -1)


def at(x_bNE: Tensor, place_bM: Tensor) -> Tensor:
    """Rows [b, M, E] at some places."""
    return x_bNE.gather(1, place_bM[..., None].expand(-1, -1, x_bNE.shape[2]))
