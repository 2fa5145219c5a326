"""Stems: patches as a matrix product; what the statistics of `extremes` keep, what is left, how channels are scaled."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.stem import LINES, Extremes, ExtremesStem, PatchStem, Standardise, blobs


def slow_blobs(x_DHW: Tensor) -> Tensor:
    """Voxel minus the best, over directions, of the largest minimum of any line that holds it: the definition."""
    shape = x_DHW.shape
    out = torch.empty_like(x_DHW)
    for place in itertools.product(*map(range, shape)):
        best = -torch.inf
        for direction, length in LINES:
            for back in range(length):
                line = [tuple(p + d * (k - back) for p, d in zip(place, direction, strict=True)) for k in range(length)]
                if all(0 <= i < n for q in line for i, n in zip(q, shape, strict=True)):
                    best = max(best, min(float(x_DHW[q]) for q in line))
        out[place] = x_DHW[place] - best
    return out


def test_blobs_are_the_definition() -> None:
    x = torch.randint(-8, 9, (1, 1, 6, 7, 8), generator=torch.Generator().manual_seed(0)) / 8  # exact in bf16
    found = blobs(x)
    assert float(found.min()) >= 0
    assert torch.equal(found[0, 0].float(), slow_blobs(x[0, 0]))


def test_every_direction_is_seen_alike() -> None:
    x = torch.rand(1, 1, 6, 7, 8).bfloat16()
    for axes in ((2,), (3,), (4,), (2, 3, 4)):
        assert torch.equal(blobs(x.flip(axes)), blobs(x).flip(axes))
    assert torch.equal(blobs(x[..., :3, :3, :3]), torch.zeros(1, 1, 3, 3, 3).bfloat16())  # no line fits


def test_a_ball_stays_and_a_tube_goes() -> None:
    def response(paint: tuple[slice, slice, slice]) -> float:
        x = torch.full((1, 1, 16, 24, 24), -1.0)
        x[(0, 0, *paint)] = 0.5
        return float(blobs(x).max())

    middle = slice(11, 14)
    assert response((slice(7, 9), middle, middle)) == 1.5  # a nodule: 2 x 3 x 3 voxels
    along = slice(3, 20)
    for tube in ((slice(None), middle, middle), (slice(7, 9), along, middle), (slice(7, 9), middle, along)):
        assert response(tube) == 0.0


def test_extremes_of_a_block() -> None:
    x = torch.rand(2, 3, 8, 4, 4)
    found = Extremes((4, 4, 4))(x)
    assert found.shape == (2, 13, 2, 1, 1)
    block = x[1, 2, 4:]
    for channel, value in ((2, block.mean()), (5, block.amax()), (8, block.amin())):
        torch.testing.assert_close(found[1, channel, 1, 0, 0], value)


def test_channels_are_scaled_by_the_first_training_batch_and_never_again() -> None:
    layer = Standardise(2)
    first, second = (torch.randn(4, 2, 3, 3, 3) * torch.tensor([0.05, 3.0]).view(2, 1, 1, 1) + 7 for _ in range(2))
    assert torch.equal(layer.eval()(first), first)  # identity before
    out = layer.train()(first)
    torch.testing.assert_close(out.mean((0, 2, 3, 4)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3, 4)), torch.ones(2), atol=0.03, rtol=0)
    trained = layer(second)
    assert torch.equal(layer.eval()(second), trained)
    silent = Standardise(2).train()
    silent(torch.zeros(1, 2, 2, 2, 2))  # a window in which the first batch shows nothing
    assert float(silent(torch.ones(1, 2, 2, 2, 2)).max()) <= 50.0
    copy = Standardise(2)
    copy.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(copy.train()(second), trained)


def test_a_dark_ball_is_found_in_its_own_window() -> None:
    x = torch.full((1, 2, 16, 32, 32), 0.5)
    x[0, 1, 4:10, 12:18, 12:18] = 0.0  # a cyst of 6 voxels, in the second window
    dark = Extremes((4, 4, 4))(x)[0, 7:]
    assert float(dark[0].abs().max()) == 0.0
    assert float(dark[1].max()) == 0.5


@pytest.mark.parametrize("patch", [(8, 8, 8), (4, 8, 16), (2, 4, 4)])
def test_the_stem_meets_the_patch(patch: tuple[int, int, int]) -> None:
    size = (16, 16, 32)
    out = ExtremesStem(2, 24, patch)(torch.rand(1, 2, *size))
    assert out.shape == (1, 24, *(s // p for s, p in zip(size, patch, strict=True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_stem_runs_in_the_precision_it_is_cast_to(dtype: torch.dtype) -> None:
    stem = ExtremesStem(2, 24, (8, 8, 8)).to(dtype)
    assert stem(torch.rand(1, 2, 8, 8, 16, dtype=dtype)).dtype == dtype


def test_the_patch_stem_is_a_strided_convolution_of_all_patches_or_some() -> None:
    torch.manual_seed(0)
    stem, x = PatchStem(2, 24, (4, 8, 6)), torch.randn(3, 2, 8, 16, 12, requires_grad=True)
    want = F.conv3d(x, stem[0].weight, stem[0].bias, stride=(4, 8, 6))
    torch.testing.assert_close(stem(x), want, rtol=1e-4, atol=1e-5)
    keep = torch.tensor([[0, 3, 5], [1, 2, 7], [4, 5, 6]])
    some = want.flatten(2).transpose(1, 2).gather(1, keep[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(stem.some(x, keep), some, rtol=1e-4, atol=1e-5)
    wrt = (x, stem[0].weight, stem[0].bias)
    ours, theirs = (torch.autograd.grad(y.square().sum(), wrt) for y in (stem.some(x, keep), some))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
