"""Text towers over packed units: no padding is computed, and the numbers are those of the padded tower.

Legend: T tokens of all units, U units, C width, H heads, D output width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from encoders.attention import Packing, bucketed_tokens, unpack
from encoders.open_clip_blocks import is_plain, run_pooled


def is_packable(tower: nn.Module) -> bool:
    """Whether `encode_packed` reproduces this tower: open_clip's causal transformer, plain blocks, EOT pooling."""
    return (
        isinstance(tower, TextTransformer)
        and tower.attn_mask is not None
        and tower.cls_emb is None
        and tower.pool_type == "argmax"
        and is_plain(tower.transformer)
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
    pooled = tower.ln_final(run_pooled(tower.transformer, x, packing, packing.last, causal=True, backend=backend))
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


def encode_foreign(tower: nn.Module, tokens_T: Tensor, packing: Packing, pad_id: int) -> Tensor:
    """Any other tower (Hugging Face, bidirectional): unpack into length buckets, run it, put rows back in order."""
    out = []
    for block, bucket in unpack(tokens_T, packing):
        padded = torch.where(bucket.inside, block, pad_id)
        if isinstance(tower, TextTransformer):
            # open_clip's own towers do not mask padding, so it is part of their numbers: always the whole context.
            padded = F.pad(padded, (0, tower.context_length - bucket.longest), value=pad_id)
        out.append(tower(padded))
    order = torch.cat([bucket.units for bucket in packing.buckets])
    return torch.cat(out)[torch.argsort(order)]
