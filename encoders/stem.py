"""Stems of `voxvit`: a volume to one vector a patch.

Legend: C channels or width, D, H, W voxels before and tokens after.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.tag import Size3

STEM_WIDTH = 16  # channels at half resolution, doubled with each stage
EXTREMES_BLOCK = 4


class PatchStem(nn.Sequential):
    """One strided convolution: a linear map of every patch (arXiv 2010.11929)."""

    def __init__(self, channels: int, width: int, patch: Size3) -> None:
        super().__init__(nn.Conv3d(channels, width, patch, stride=patch))


def _norm(width: int) -> nn.GroupNorm:
    # GroupNorm, not BatchNorm: batches of volumes are small and differ between ranks.
    return nn.GroupNorm(math.gcd(8, width), width)


class ConvResidual(nn.Module):
    """x + conv(gelu(norm(x))), the second half of one stem stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.conv = nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.gelu(self.norm(x)))


class ConvStem(nn.Sequential):
    """3x3x3 convolutions at falling resolution until the patch size is reached (early convolutions: arXiv 2106.14881).

    Only the first halves by stride, all later stages by max pooling before they convolve: a nodule of two voxels is
    kept wherever it lies, while strides see it differently at every offset and a linear map of an 8x16x16 patch
    averages it away. A last pooling leads to the token grid.
    """

    def __init__(self, channels: int, width: int, patch: Size3) -> None:
        halvings = [int(math.log2(p)) for p in patch]
        stages = max(1, max(halvings) - 1)  # the last halving is the pooling that leads to the tokens
        layers: list[nn.Module] = []
        previous = channels
        for stage in range(max(halvings)):
            factor: Size3 = tuple(2 if stage < h else 1 for h in halvings)  # type: ignore[assignment]
            out = max(STEM_WIDTH, width // 12) << stage
            if stage == 0:
                layers += [nn.Conv3d(previous, out, 3, stride=factor, padding=1)]
            else:
                layers += [nn.MaxPool3d(factor)]
            if 0 < stage < stages:
                layers += [nn.Conv3d(previous, out, 3, padding=1)]
            if stage < stages:
                layers += [ConvResidual(out), _norm(out), nn.GELU()]
                previous = out
        super().__init__(*layers, nn.Conv3d(previous, width, 1))


class ExtremesStem(nn.Sequential):
    """Mean, maximum and minimum of each window over blocks of 4x4x4 voxels, then convolutions with max pooling between.

    A stone of two voxels is the maximum of its block in the bone window wherever it lies, and no filter has to be
    learnt for it; no convolution runs at full resolution. Axes of the patch under 4 voxels are pooled by what is there.
    """

    def __init__(self, channels: int, width: int, patch: Size3) -> None:
        block: Size3 = tuple(min(EXTREMES_BLOCK, p) for p in patch)  # type: ignore[assignment]
        rest = tuple(p // b for p, b in zip(patch, block, strict=True))
        layers: list[nn.Module] = [Extremes(block)]
        previous, out = 3 * channels, max(2 * STEM_WIDTH, width // 6)
        while True:
            layers += [nn.Conv3d(previous, out, 3, padding=1), ConvResidual(out), _norm(out), nn.GELU()]
            if max(rest) == 1:
                break
            factor: Size3 = tuple(2 if r > 1 else 1 for r in rest)  # type: ignore[assignment]
            layers += [nn.MaxPool3d(factor)]
            rest = tuple(r // f for r, f in zip(rest, factor, strict=True))
            previous, out = out, 2 * out
        super().__init__(*layers, nn.Conv3d(out, width, 1))


class Extremes(nn.Module):
    """[B, C, D, H, W] to [B, 3C, D/d, H/h, W/w]: mean, maximum and minimum over blocks of (d, h, w)."""

    def __init__(self, block: Size3) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        return torch.cat([F.avg_pool3d(x, block), F.max_pool3d(x, block), -F.max_pool3d(-x, block)], dim=1)
