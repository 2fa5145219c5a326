"""open_clip's transformer, its own parameters, over packed sequences.

The last block is computed for the tokens that are read alone: nothing looks at the others after it.

Legend: T tokens of all sequences, U sequences, C width.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.checkpoint import checkpoint

from encoders.attention import Packing, attend, attend_from
from encoders.cpu_linear import linear


def is_plain(transformer: Transformer) -> bool:
    """Whether these blocks are the ones that `run_pooled` reproduces."""
    return len(transformer.resblocks) > 0 and all(map(_is_plain_block, transformer.resblocks))


def _is_plain_block(block: Any) -> bool:
    """Whether these are open_clip's own parts: an adapter or a quantised layer in their place has a forward pass of its
    own, which reading weights would pass by."""
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attn, mlp = block.attn, block.mlp
    linear_ones = (mlp.c_fc, mlp.c_proj, attn.out_proj)
    return (
        type(attn) is nn.MultiheadAttention
        and attn.in_proj_bias is not None
        and all(
            type(one) in (nn.Linear, NonDynamicallyQuantizableLinear) and one.bias is not None for one in linear_ones
        )
    )


def run_pooled(
    transformer: Transformer, x_TC: Tensor, packing: Packing, read_U: Tensor, causal: bool, backend: str = "auto"
) -> Tensor:
    """Run all blocks over packed tokens; what stands then in row `read_U` of each sequence, [U, C].

    With `causal`, `read_U` must be the last rows: they alone see their whole sequence.
    """
    *blocks, last = transformer.resblocks
    for block in blocks:
        if transformer.grad_checkpointing and torch.is_grad_enabled():
            x_TC = checkpoint(_block, block, x_TC, packing, causal, backend, use_reentrant=False)
        else:
            x_TC = _block(block, x_TC, packing, causal, backend)
    return _last_block(last, x_TC, packing, read_U, backend)


def _block(block: ResidualAttentionBlock, x_TC: Tensor, packing: Packing, causal: bool, backend: str) -> Tensor:
    attn = block.attn
    y = block.ln_1(x_TC)
    qkv = linear(y, attn.in_proj_weight, attn.in_proj_bias).view(len(y), 3, attn.num_heads, -1)
    y = attend(qkv, packing, causal=causal, backend=backend).reshape(len(y), -1)
    return _after_attention(block, x_TC, y)


def _last_block(block: ResidualAttentionBlock, x_TC: Tensor, packing: Packing, read_U: Tensor, backend: str) -> Tensor:
    attn, width = block.attn, x_TC.shape[1]
    y, x_UC = block.ln_1(x_TC), x_TC.index_select(0, read_U)
    (w_q, w_kv), (b_q, b_kv) = (one.split((width, 2 * width)) for one in (attn.in_proj_weight, attn.in_proj_bias))
    q = linear(y.index_select(0, read_U), w_q, b_q).view(len(read_U), attn.num_heads, -1)
    kv = linear(y, w_kv, b_kv).view(len(y), 2, attn.num_heads, -1)
    return _after_attention(block, x_UC, attend_from(q, kv, packing, backend).reshape(len(read_U), -1))


def _after_attention(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    out, mlp = block.attn.out_proj, block.mlp
    x = x + block.ls_1(linear(attended, out.weight, out.bias))
    y = mlp.gelu(linear(block.ln_2(x), mlp.c_fc.weight, mlp.c_fc.bias))
    return x + block.ls_2(linear(y, mlp.c_proj.weight, mlp.c_proj.bias))
