"""Linear layers in bf16 on a CPU: torch's own copies the bias over the output before it multiplies, which takes a tenth
of the forward pass of a ViT's layers; here the product's kernel adds it.

Legend: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from encoders.cpu_attention import has_products


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """x W^T + b, [N, O], in the precision that autocast asks for."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_NI.dtype
    if x_NI.device.type != "cpu" or dtype != torch.bfloat16 or not has_products():
        return F.linear(x_NI, weight_OI, bias_O)
    return _Linear.apply(*(one.to(dtype) for one in (x_NI, weight_OI, bias_O)))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        asked = ctx.needs_input_grad
        return (
            grad @ weight if asked[0] else None,
            grad.t() @ x if asked[1] else None,
            grad.sum(0) if asked[2] else None,
        )
