"""Text towers over packed units: no padding is computed, and the numbers are those of the padded tower.

Legend: T tokens of all units, U units, C width, H heads, D output width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.attention import Packing, attend, bucketed_tokens, unpack


def is_packable(tower: nn.Module) -> bool:
    """Whether `encode_packed` reproduces this tower: open_clip's causal transformer, plain blocks, EOT pooling."""
    return (
        isinstance(tower, TextTransformer)
        and tower.attn_mask is not None
        and tower.cls_emb is None
        and tower.pool_type == "argmax"
        and all(type(block) is ResidualAttentionBlock for block in tower.transformer.resblocks)
    )


def encode_packed(
    tower: TextTransformer, tokens_T: Tensor, packing: Packing, backend: str = "auto", projected: bool = True
) -> Tensor:
    """Run open_clip's text transformer, its own parameters, over packed units [T] to [U, D], or without its projection.

    Every unit ends in its end-of-text token; the causal mask makes right padding invisible, so packed and padded agree
    (1e-6 in fp32, 2e-3 in bf16).

    Raises:
        ValueError: a unit longer than the tower's context.
    """
    if max(packing.lengths) > tower.context_length:
        raise ValueError(
            f"a text of {max(packing.lengths)} tokens exceeds the context of {tower.context_length}\n"
            "  why: positions past the context do not exist\n"
            "  fix: tokenise with the release's own tokenizer, which truncates"
        )
    x = tower.token_embedding(tokens_T) + tower.positional_embedding[packing.positions]
    for block in tower.transformer.resblocks:
        if tower.transformer.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(_block, block, x, packing, backend, use_reentrant=False)
        else:
            x = _block(block, x, packing, backend)
    pooled = tower.ln_final(x.index_select(0, packing.last))
    return project(tower, pooled) if projected else pooled


def computed_tokens(tower: nn.Module, lengths: tuple[int, ...]) -> int:
    """Tokens that a tower runs over for texts of these lengths, padding included: none in a packed tower, the length
    buckets of a foreign one, all of the context in an open_clip tower whose numbers depend on its padding."""
    if is_packable(tower):
        return sum(lengths)
    return len(lengths) * tower.context_length if isinstance(tower, TextTransformer) else bucketed_tokens(lengths)


def project(tower: nn.Module, pooled_UC: Tensor) -> Tensor:
    """The text tower's last layer: pooled features [U, C] into the joint space [U, D]."""
    projection: Any = tower.text_projection if hasattr(tower, "text_projection") else getattr(tower, "proj", None)
    if projection is None:
        return pooled_UC
    return projection(pooled_UC) if isinstance(projection, nn.Module) else pooled_UC @ projection


@contextmanager
def without_projection(tower: nn.Module) -> Iterator[None]:
    """Inside, a Hugging Face tower of open_clip ends before its projection."""
    kept, tower.proj = tower.proj, nn.Identity()
    try:
        yield
    finally:
        tower.proj = kept


def _block(block: ResidualAttentionBlock, x_TC: Tensor, packing: Packing, backend: str) -> Tensor:
    attn = block.attn
    y = block.ln_1(x_TC)
    qkv = F.linear(y, attn.in_proj_weight, attn.in_proj_bias).view(len(y), 3, attn.num_heads, -1)
    y = attend(qkv, packing, causal=True, backend=backend).reshape(len(y), -1)
    x_TC = x_TC + block.ls_1(attn.out_proj(y))
    return x_TC + block.ls_2(block.mlp(block.ln_2(x_TC)))


def encode_foreign(tower: nn.Module, tokens_T: Tensor, packing: Packing, pad_id: int) -> Tensor:
    """Any other tower (Hugging Face, bidirectional): unpack into length buckets, run it, put rows back in order."""
    out: list[Tensor] = []
    first = (torch.cumsum(torch.tensor(packing.lengths), 0) - torch.tensor(packing.lengths)).tolist()
    unit_of_start = {start: unit for unit, start in enumerate(first)}
    order: list[int] = []
    for (block, tokens, slots), (_, _, count, longest, lengths) in zip(
        unpack(tokens_T, packing), packing.buckets, strict=True
    ):
        inside = torch.arange(longest, device=lengths.device) < lengths[:, None]
        padded = torch.where(inside, block, pad_id)
        if isinstance(tower, TextTransformer):
            # open_clip's own towers do not mask padding, so it is part of their numbers: always the whole context.
            padded = F.pad(padded, (0, tower.context_length - longest), value=pad_id)
        out.append(tower(padded))
        starts = tokens[(slots % longest) == 0].tolist()
        order += [unit_of_start[s] for s in starts]
        assert len(starts) == count
    rows = torch.cat(out)
    return rows[torch.argsort(torch.tensor(order, device=rows.device))]
