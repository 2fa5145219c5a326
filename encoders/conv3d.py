"""`nn.Conv3d` whose gradient is right on CPUs too.

In bf16 on a CPU, torch's (oneDNN's) gradient of a 3D kernel is garbage where the input is shallower than the kernel is
deep, but deeper than one (measured, torch 2.14, AVX-512: hundreds of times too large or NaN at a depth of 2 under a
kernel of 3; it writes outside its memory under one of 7): the last stage of a ResNet on a small view. Such maps are
tiny, so they are convolved in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """[B, C, D, H, W] to [B, C', D', H', W'], as `torch.nn.Conv3d`, in the precision that autocast asks for."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not 1 < x.shape[2] < self.kernel_size[0]:
            return super().forward(x)
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if kind != torch.bfloat16:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(x.float(), self.weight.float(), bias).to(kind)
