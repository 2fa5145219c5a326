"""open_clip's vision transformer through our attention seam: the numbers of its own forward pass, in less time.

Legend: B images, L tokens of an image, C width, D output width.
"""

from __future__ import annotations

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from encoders.attention import Packing
from encoders.open_clip_blocks import is_plain, run_pooled


def is_plain_vit(tower: nn.Module) -> bool:
    """Whether `encode_vit` reproduces this tower: plain blocks, the class token read after them."""
    return (
        isinstance(tower, VisionTransformer)
        and tower.attn_pool is None
        and tower.pool_type == "tok"
        and not tower.output_tokens
        and is_plain(tower.transformer)
    )


def encode_vit(tower: VisionTransformer, images: Tensor, backend: str = "auto") -> Tensor:
    """Images [B, 3, H, W] to [B, D]."""
    x = tower._embeds(images)
    count, length, width = x.shape
    packing = Packing.uniform(count, length, x.device)
    first = torch.arange(count, device=x.device) * length
    pooled = run_pooled(tower.transformer, x.reshape(-1, width), packing, first, causal=False, backend=backend)
    pooled = tower.ln_post(pooled)
    return pooled if tower.proj is None else pooled @ tower.proj
