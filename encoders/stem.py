"""Stems of `voxvit`: a volume to one vector a patch.

Legend: C channels or width, D, H, W voxels before and tokens after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.conv3d import Conv3d
from encoders.features import world_size
from encoders.tag_fields import Size3
from encoders.unlearnt import once

STEM_WIDTH = 16  # channels at half resolution, doubled with each stage
EXTREMES_BLOCK = 4
LEAST_SPREAD = 0.02  # a channel that is constant in the first batch must not be blown up when it no longer is


class PatchStem(nn.Sequential):
    """One strided convolution: a linear map of every patch (arXiv 2010.11929).

    Computed as the matrix product that it is: with large patches the gradient of a convolution's kernel takes a CPU
    longer than several transformer blocks.
    """

    def __init__(self, channels: int, width: int, patch: Size3) -> None:
        super().__init__(Conv3d(channels, width, patch, stride=patch))
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, D, H, W] voxels to [B, C, D, H, W] tokens."""
        patches_BDHWV = self._patches(x)
        return self._linear(patches_BDHWV).permute(0, 4, 1, 2, 3)

    def some(self, x: Tensor, keep_BK: Tensor) -> Tensor:
        """Tokens [B, K, C] of the patches at some places of the grid alone."""
        patches_BNV = self._patches(x).flatten(1, 3)
        batch, places, voxels = patches_BNV.shape
        row_BK = keep_BK + torch.arange(batch, device=x.device)[:, None] * places
        rows = patches_BNV.view(-1, voxels).index_select(0, row_BK.flatten())
        return self._linear(rows.view(batch, -1, voxels))

    def _patches(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))  # before voxels are moved: half the traffic
        for axis, size in zip((2, 4, 6), self.patch, strict=True):
            x = x.unflatten(axis, (-1, size))  # b, c, D, d, H, h, W, w
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    def _linear(self, patches: Tensor) -> Tensor:
        kernel: Any = self[0]
        return F.linear(patches, kernel.weight.flatten(1), kernel.bias)


def _norm(width: int) -> nn.GroupNorm:
    # GroupNorm, not BatchNorm: batches of volumes are small and differ between ranks.
    return nn.GroupNorm(math.gcd(8, width), width)


class ConvResidual(nn.Module):
    """x + conv(gelu(norm(x))), the second half of one stem stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.conv = Conv3d(width, width, 3, padding=1)

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
                layers += [Conv3d(previous, out, 3, stride=factor, padding=1)]
            else:
                layers += [nn.MaxPool3d(factor)]
            if 0 < stage < stages:
                layers += [Conv3d(previous, out, 3, padding=1)]
            if stage < stages:
                layers += [ConvResidual(out), _norm(out), nn.GELU()]
                previous = out
        super().__init__(*layers, Conv3d(previous, width, 1))


class ExtremesStem(nn.Sequential):
    """Fixed statistics of blocks of 4x4x4 voxels (`Extremes`), then convolutions with max pooling between.

    A stone of two voxels is the maximum of its block in the bone window wherever it lies, and no filter has to be
    learnt for it; convolutions run on blocks. Axes of the patch under 4 voxels are pooled by what is there.
    """

    def __init__(self, channels: int, width: int, patch: Size3) -> None:
        block: Size3 = tuple(min(EXTREMES_BLOCK, p) for p in patch)  # type: ignore[assignment]
        rest = tuple(p // b for p, b in zip(patch, block, strict=True))
        previous, out = 4 * channels + 1, max(2 * STEM_WIDTH, width // 6)
        layers: list[nn.Module] = [Extremes(block), Standardise(previous)]
        while True:
            layers += [Conv3d(previous, out, 3, padding=1), ConvResidual(out), _norm(out), nn.GELU()]
            if max(rest) == 1:
                break
            factor: Size3 = tuple(2 if r > 1 else 1 for r in rest)  # type: ignore[assignment]
            layers += [nn.MaxPool3d(factor)]
            rest = tuple(r // f for r, f in zip(rest, factor, strict=True))
            previous, out = out, 2 * out
        super().__init__(*layers, Conv3d(out, width, 1))


class Extremes(nn.Module):
    """[B, C, D, H, W] to [B, 4C + 1, D/d, H/h, W/w]: what blocks of (d, h, w) voxels hold.

    Mean, maximum and minimum of each window; the brightest small blob (nodules, stones) of the mean of the windows; and
    the darkest blob of each window at half resolution, where noise is averaged and lines reach twice as far (cysts).
    Nothing is learnt here, and no gradient passes.
    """

    def __init__(self, block: Size3) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return once(lambda: self._computed(x))

    @torch.no_grad()
    def _computed(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self._statistics(x)
        # A few volumes at a time stay in the CPU's cache between the passes over them: same bits, a quarter faster.
        return torch.cat([self._statistics(few) for few in x.split(4)])

    def _statistics(self, x: Tensor) -> Tensor:
        block = self.block
        half: Size3 = tuple(min(2, b) for b in block)  # type: ignore[assignment]
        rest: Size3 = tuple(b // h for b, h in zip(block, half, strict=True))  # type: ignore[assignment]
        parts = [
            _over(x, block, torch.mean),
            _over(x, block, torch.amax),
            _over(x, block, torch.amin),
            _over(blobs(x.mean(1, keepdim=True)), block, torch.amax),
            _over(blobs(-_over(x, half, torch.mean)), rest, torch.amax),
        ]
        return torch.cat([part.to(x.dtype) for part in parts], dim=1)


def _over(x: Tensor, block: Size3, reduce: Callable[..., Tensor]) -> Tensor:
    """`reduce` over blocks, the outermost axis first: whole rows at a time, which a CPU does faster than
    torch's pooling. Voxels that fill no block are left out, as pooling does."""
    for axis, size in zip((2, 3, 4), block, strict=True):
        blocks = x.shape[axis] // size
        x = reduce(x.narrow(axis, 0, blocks * size).unflatten(axis, (blocks, size)), dim=axis + 1)
    return x


# Directions (z, y, x) and lengths in voxels of the lines that `blobs` opens along.
LINES: tuple[tuple[Size3, int], ...] = (
    ((0, 0, 1), 5), ((0, 1, 0), 5), ((1, 0, 0), 4), ((0, 1, 1), 4), ((0, 1, -1), 4),
)  # fmt: skip


def blobs(x: Tensor) -> Tensor:
    """How much brighter a voxel is than every straight line through it: [B, C, D, H, W] to the same shape, bf16, >= 0.

    The white top-hat by line segments (Soille, Morphological Image Analysis, 2nd ed., ch. 4 and 9): opening along a
    line keeps what is at least as long as the line in its direction. Vessels and walls are kept by one direction or
    another and vanish from the difference, nodules and stones stay. Lines lie inside the volume.
    """
    x = x.to(torch.bfloat16)  # compared, hardly computed with: half the memory traffic
    kept = torch.full_like(x, -torch.inf)
    for direction, length in LINES:
        if all(n >= length or d == 0 for n, d in zip(x.shape[2:], direction, strict=True)):
            torch.maximum(kept, _opened(x, direction, length), out=kept)
    return torch.where(kept.isinf(), 0.0, x - kept)  # no line fits through a voxel only where all axes are too short


def _opened(x: Tensor, direction: Size3, length: int) -> Tensor:
    """The largest minimum of any whole line through each voxel; -inf where none fits."""
    minima = _eroded(x, direction, length)
    starts, _ = _pair(direction, length - 1)
    whole = torch.full_like(minima, -torch.inf)
    whole[starts] = minima[starts]
    return _dilated(whole, direction, length)


def _eroded(x: Tensor, direction: Size3, length: int) -> Tensor:
    """Minimum over the `length` voxels from each voxel on along a direction; beyond the border there is nothing."""
    done = 1
    while done < length:  # the minimum of two overlapping minima
        step = min(done, length - done)
        here, there = _pair(direction, step)
        shorter, x = x, x.clone()
        torch.minimum(shorter[here], shorter[there], out=x[here])
        done += step
    return x


def _dilated(x: Tensor, direction: Size3, length: int) -> Tensor:
    """Maximum over the same voxels seen from their other end."""
    backward: Size3 = tuple(-d for d in direction)  # type: ignore[assignment]
    return -_eroded(-x, backward, length)


def _pair(direction: Size3, step: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Index of the voxels that have a voxel `step` further on, and of those further voxels."""
    shifts = [0, 0, *(d * step for d in direction)]
    here = tuple(slice(max(0, -s), -s if s > 0 else None) for s in shifts)
    there = tuple(slice(max(0, s), s if s < 0 else None) for s in shifts)
    return here, there


class Standardise(nn.Module):
    """Each channel minus its mean, over its standard deviation, both taken from the first batch of training.

    Data-dependent initialisation (ActNorm, arXiv 1807.03039 §3.1) without parameters: a stone moves the mean of its
    channel by hundredths, and unscaled it would not be heard. What stands before it is fixed, so one batch of volumes
    is statistics enough; training and evaluation compute the same, and ranks share the sums of their batches.
    Identity until then.
    """

    mean_C: Tensor
    inverse_C: Tensor
    known: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("inverse_C", torch.ones(channels))
        self.register_buffer("known", torch.tensor(False))

    @torch.no_grad()
    def sums(self, x: Tensor) -> Tensor:
        """[3, C] of [B, C, D, H, W], float64: how many, their sum, the sum of their squares."""
        x_CN = x.transpose(0, 1).flatten(1).double()
        return torch.stack([torch.full_like(x_CN[:, 0], x_CN.shape[1]), x_CN.sum(1), x_CN.square().sum(1)])

    @torch.no_grad()
    def settle(self, sums: Tensor) -> None:
        """The statistics of what this rank has seen and all others have."""
        if world_size() > 1:
            dist.all_reduce(sums)
        mean = sums[1] / sums[0]
        spread = (sums[2] / sums[0] - mean.square()).clamp(min=0).sqrt()
        self.mean_C.copy_(mean)
        self.inverse_C.copy_(1 / spread.clamp(min=LEAST_SPREAD))
        self.known.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.known:
            self.settle(self.sums(x))
        return (x - self.mean_C.view(-1, 1, 1, 1)) * self.inverse_C.view(-1, 1, 1, 1)


def measure(model: nn.Module, passes: Sequence[Callable[[], object]]) -> None:
    """Statistics of every `Standardise` that has none yet, of a batch that goes through the model in several passes: of
    the first volumes that each shows it, together. They are those that the whole batch would have given at once.
    """
    waiting = [m for m in model.modules() if isinstance(m, Standardise) and m.training and not m.known]
    if not waiting:
        return
    found: dict[Standardise, list[Tensor]] = {m: [] for m in waiting}
    for number, run in enumerate(passes):

        def look(module: nn.Module, given: tuple[Tensor, ...], number: int = number) -> None:
            sums = found[cast(Standardise, module)]
            if len(sums) == number:
                sums.append(cast(Standardise, module).sums(given[0]))

        hooks = [m.register_forward_pre_hook(look) for m in waiting]
        for m in waiting:
            m.known.fill_(True)  # the identity meanwhile
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
            for m in waiting:
                m.known.fill_(False)
    for m, sums in found.items():
        if sums:
            m.settle(torch.stack(sums).sum(0))
