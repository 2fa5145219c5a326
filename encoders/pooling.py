"""Pools of `voxvit`: tokens to one vector a volume, with weights of their own.

Legend: B volumes, N tokens, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MLP_RATIO = 4
GRID_NUMBERS = 8  # numbers a place keeps in GridPool


class AttentionPool(nn.Module):
    """One learned query over all tokens, then a residual MLP (the MAP head of arXiv 2106.04560)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))

    def forward(self, x_BNC: Tensor, seen_BN: Tensor | None = None) -> Tensor:
        """[B, C]; of the tokens `seen_BN` alone, where that is given."""
        batch, tokens, width = x_BNC.shape
        q = self.q(self.query).view(1, 1, self.heads, -1).expand(batch, -1, -1, -1).transpose(1, 2)
        k, v = self.kv(x_BNC).view(batch, tokens, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if seen_BN is None else seen_BN[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(batch, width)
        out = self.proj(out)
        return out + self.mlp(self.norm(out))


class GridPool(nn.Module):
    """Each place of the native token grid by itself, plus the maximum over places.

    A token is reduced to a few numbers, those of all places are joined, normalised and mapped back to the width. Where
    scans show the same region each time, a stone in the left kidney is a number at one place; averages and attention
    must first learn where to look.
    """

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, GRID_NUMBERS)
        self.norm = nn.LayerNorm(GRID_NUMBERS * places)
        self.join = nn.Linear(GRID_NUMBERS * places, width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.join(self.norm(self.reduce(x_BNC).flatten(1))) + x_BNC.amax(1)
