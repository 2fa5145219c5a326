"""Linear layers in bf16 on a CPU: torch's own copies the bias over the output before it multiplies; here the product's
kernel adds it.

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
    given: tuple[Tensor, ...] = (x_NI, weight_OI, bias_O)
    if x_NI.device.type != "cpu" or not has_products():
        return F.linear(x_NI, weight_OI, bias_O)
    if torch.is_autocast_enabled("cpu") and all(one.dtype in (torch.float32, torch.bfloat16) for one in given):
        given = tuple(one.to(torch.get_autocast_dtype("cpu")) for one in given)
    if any(one.dtype != torch.bfloat16 for one in given):
        return F.linear(x_NI, weight_OI, bias_O)
    return _Linear.apply(*given)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        return (
            None if weight is None else grad @ weight,
            None if x is None else grad.t() @ x,
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )
