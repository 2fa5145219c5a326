"""The gradient of a 3D kernel in bf16 on a CPU, torch's and ours, over few planes: `python -m benchmarks.cpu_conv3d`.

Sixteen maps of 128 channels and 5 x 5 cells, kernels of 3 x 3 x 3, padded by one. The error is that of the worst entry
over the largest entry of the gradient in fp32 of the same rounded numbers, in the worst of eight draws.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.machine import machine
from encoders.conv3d import Conv3d

DRAWS, CHANNELS, STUDIES = 8, 128, 16


def error(kind: type[nn.Conv3d], planes: int) -> float:
    """Of the worst draw; infinite where an entry is not finite."""
    worst = 0.0
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        conv = kind(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        x = torch.randn(STUDIES, CHANNELS, planes, 5, 5).bfloat16().float()
        conv.weight.data.copy_(conv.weight.data.bfloat16().float())
        low, right = (gradient(conv, x, dtype) for dtype in (torch.bfloat16, torch.float32))
        found = float((low - right).abs().max() / right.abs().max())
        worst = max(worst, found if math.isfinite(found) else math.inf)
    return worst


def gradient(conv: nn.Conv3d, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        conv(x).float().square().sum().backward()
    assert conv.weight.grad is not None
    return conv.weight.grad.clone()


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_conv3d", description="Gradients of 3D kernels in bf16 on a CPU."
    ).parse_args(argv)
    print(machine())
    print("\n| planes | torch, error | ours, error |\n|---|---|---|")
    for planes in (1, 2, 3, 4, 8):
        theirs, ours = (error(kind, planes) for kind in (nn.Conv3d, Conv3d))
        print(f"| {planes} | {theirs:.3g} | {ours:.3g} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
