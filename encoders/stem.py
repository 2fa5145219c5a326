"""Stems of `voxvit`: a volume to one vector a patch.

Legend: C channels or width, D, H, W voxels before and tokens after.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from encoders.tag import Size3

STEM_MIN_WIDTH = 24


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
    """Strided 3x3x3 convolutions that halve each axis until the patch size is reached (arXiv 2106.14881).

    Small bright or dark things survive here that a linear map of an 8x16x16 patch averages away. Each stage after the
    first, which works at almost full resolution, has a residual convolution.
    """

    def __init__(self, channels: int, width: int, patch: Size3) -> None:
        halvings = [int(math.log2(p)) for p in patch]
        stages = max(halvings)
        layers: list[nn.Module] = []
        previous = channels
        for stage in range(stages):
            out = width if stage == stages - 1 else max(STEM_MIN_WIDTH, width >> (stages - 1 - stage))
            stride: Size3 = tuple(2 if stage < h else 1 for h in halvings)  # type: ignore[assignment]
            layers += [nn.Conv3d(previous, out, 3, stride=stride, padding=1)]
            if stage > 0:
                layers += [ConvResidual(out)]
            layers += [_norm(out), nn.GELU()]
            previous = out
        super().__init__(*layers, nn.Conv3d(width, width, 1))
