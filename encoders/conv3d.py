"""`nn.Conv3d` without those kernels of torch (oneDNN) whose gradients are garbage.

In bf16 on a CPU, the gradient of a 3D kernel is garbage where the input is shallower than the kernel is deep, but not
of one plane, and for large kernels on narrow maps too (torch 2.14, AVX-512; benchmarks.cpu_conv3d measures kernels of
3; with one of 7 it also writes outside its memory): the last stage of a ResNet on a small view. Maps that are shorter
than the kernel along any axis are tiny, so they are convolved in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """[B, C, D, H, W] to [B, C', D', H', W'], as `torch.nn.Conv3d`, in the precision that autocast asks for."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or all(n >= k for n, k in zip(x.shape[2:], self.kernel_size)):
            return super().forward(x)
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if kind != torch.bfloat16:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(x.float(), self.weight.float(), bias).to(kind)
