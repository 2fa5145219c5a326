"""The transformer block of `voxvit`, over volumes by themselves or the volumes of studies, and rotary positions.

Legend: B volumes, N tokens, C width, G groups of L tokens that attend to each other, R rows (encoders.study_tokens).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.attention import Packing, attend
from encoders.pooling import MLP_RATIO
from encoders.study_tokens import StudyTokens
from encoders.tag_fields import Size3

NORM_EPS = 1e-6  # that of timm's ViTs: their weights mean the same here (encoders.inflate_vit)


def rope_tables(grid: Size3, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, head_width/2] of axial rotary positions (arXiv 2104.09864, one third of the pairs an axis).

    Pairs left over when the head width is not a multiple of six are not rotated.
    """
    pairs = head_width // 2
    each = pairs // 3
    frequency = 100.0 ** (-torch.arange(each, device=device, dtype=torch.float32) / max(each, 1))
    axes = torch.meshgrid(*(torch.arange(g, device=device, dtype=torch.float32) for g in grid), indexing="ij")
    angle = torch.cat([a.reshape(-1, 1) * frequency for a in axes], dim=1)
    angle = F.pad(angle, (0, pairs - angle.shape[1]))
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (first half, second half) of x [..., heads, head_width] by tables [..., head_width/2]."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class Block(nn.Module):
    """Pre-norm transformer block over tokens [B, N, C]; attention inside groups of consecutive tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))

    def attention(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, packing: Packing | None = None) -> Tensor:
        """Groups [G, L, C], or rows [R, C] in the sequences of `packing`."""
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        qkv = self.qkv(x).view(rows, 3, self.heads, width // self.heads)
        if rope is not None:
            cos, sin = (t.reshape(rows, -1) for t in rope)
            q, k, v = qkv.unbind(1)
            qkv = torch.stack([rotate(q, cos, sin), rotate(k, cos, sin), v], dim=1)
        out = attend(qkv, packing or Packing.uniform(x.shape[0], x.shape[1], x.device))
        return self.proj(out.reshape(x.shape))

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, slices: int, study: StudyTokens | None = None
    ) -> Tensor:
        """Tokens [B, N, C], of which `slices` groups attend by themselves; or with `study` rows [R, C] as it lays them
        out, where `slices` groups of every volume do, or for 0 all tokens of a study."""
        y = self.norm1(x)
        if study is not None:
            x = x + self._of_studies(y, rope, slices, study)
        elif slices == 1:
            x = x + self.attention(y, rope)
        else:
            x = x + self._by_slice(y, rope, slices)
        return x + self.mlp(self.norm2(x))

    def _of_studies(self, y_RC: Tensor, rope: tuple[Tensor, Tensor] | None, slices: int, study: StudyTokens) -> Tensor:
        if slices == 0:
            if rope is not None:
                rope = study.packed(rope[0]), study.packed(rope[1])
            return study.unpacked(self.attention(study.packed(y_RC), rope, study.packing))
        if rope is not None:
            rope = study.grouped(rope[0], slices), study.grouped(rope[1], slices)
        return study.ungrouped(self.attention(study.grouped(y_RC, slices), rope), slices)

    def _by_slice(self, y_BNC: Tensor, rope: tuple[Tensor, Tensor] | None, slices: int) -> Tensor:
        """Attention inside each slice. A leading CLS token joins every slice and leaves as the mean of its copies."""
        batch, tokens, width = y_BNC.shape
        lead = tokens % slices
        cls, body = y_BNC[:, :lead], y_BNC[:, lead:]
        groups = body.reshape(batch * slices, -1, width)
        if rope is not None:
            rope = tuple(_with_lead(t, lead, batch, slices) for t in rope)  # type: ignore[assignment]
        if lead:
            groups = torch.cat([cls.repeat_interleave(slices, 0), groups], dim=1)
        out = self.attention(groups, rope)
        body = out[:, lead:].reshape(batch, tokens - lead, width)
        return torch.cat([out[:, :lead].view(batch, slices, lead, width).mean(1), body], dim=1) if lead else body


def _with_lead(table_BNP: Tensor, lead: int, batch: int, slices: int) -> Tensor:
    body = table_BNP[:, lead:].reshape(batch * slices, -1, table_BNP.shape[-1])
    return torch.cat([table_BNP[:, :lead].repeat_interleave(slices, 0), body], dim=1)
