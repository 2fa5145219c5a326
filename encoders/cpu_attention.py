"""Attention in bf16 on a CPU, where torch's own flash kernel spends most of a step in its backward pass.

Forward and backward together ours is 1.7 to 5 times as fast for up to 512 tokens on a CPU with avx512_bf16
(benchmarks.cpu_attention, RESULTS.md).

Legend: N sequences x heads, Q queries, L keys, D head width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 512  # keys: beyond it the probabilities, which are kept for the backward pass, outweigh all else
TILE = 2 << 20  # bytes of scores at a time: they stay in the cache


@cache
def has_products() -> bool:
    """Whether this processor has matrix products in bf16; without them torch's kernel is the faster one."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_faster(q_NQD: Tensor, k_NLD: Tensor, v_NLD: Tensor) -> bool:
    """Whether `attention` can take these and is the better kernel for them; leading dimensions may be more."""
    return (
        q_NQD.device.type == "cpu"
        and q_NQD.dtype == k_NLD.dtype == v_NLD.dtype == torch.bfloat16
        and k_NLD.shape[-2] <= LONGEST
        and has_products()
    )


def attention(q_NQD: Tensor, k_NLD: Tensor, v_NLD: Tensor, seen: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, [N, Q, D]. `seen`: bool, broadcast to [N, Q, L], True where a query sees a key; each
    must see one. Scores and softmax in fp32, sums over keys in bf16's own kernels, so that errors are those of torch's
    kernel."""
    with torch.autocast("cpu", enabled=False):  # or the scores would be in bf16
        return _Attention.apply(q_NQD, k_NLD, v_NLD, seen)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        queries, keys = q.shape[1], k.shape[1]
        p = q.new_empty(len(q), queries, keys)
        if seen is not None:
            seen = seen.expand(p.shape)
        step = max(1, TILE // (4 * queries * keys))
        scale = q.shape[2] ** -0.5
        for first in range(0, len(q), step):
            part = slice(first, first + step)
            scores = torch.bmm(q[part].float() * scale, k[part].float().transpose(1, 2))
            if seen is not None:
                scores.masked_fill_(~seen[part], -torch.inf)
            p[part] = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, p = ctx.saved_tensors
        grad = grads[0]
        scale = q.shape[2] ** -0.5
        of_p = torch.bmm(grad, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_p, p, -1, p.dtype)
        of_q = torch.bmm(of_scores, k).mul_(scale)
        of_k = torch.bmm(of_scores.transpose(1, 2), q).mul_(scale)
        return of_q, of_k, torch.bmm(p.transpose(1, 2), grad), None
