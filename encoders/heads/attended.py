"""Pooling of an image's tokens by a text: what the image shows of that text, and where (FLAIR, arXiv 2412.03561).

Legend: B images, N tokens, C width of the image tower, U texts, D joint width, H attention heads, E = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.heads import register_head


@register_head("attended")
class AttendedPooling(nn.Module):
    """Every text attends over the tokens of every image: queries are texts, keys and values are tokens.

    One empty token stands beside those of the image, with key and value zero, so that a text of which an image shows
    nothing need not look anywhere.

    Args (its `options`):
        image_width: C. width: D, of texts and of what is pooled. heads: H, must divide D.
    """

    def __init__(self, image_width: int, width: int, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise TypeError(f"{heads} heads do not divide width {width}")
        self.options = {"image_width": image_width, "width": width, "heads": heads}
        self.heads = heads
        self.norm = nn.LayerNorm(image_width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(image_width, width, bias=False)
        self.value = nn.Linear(image_width, width, bias=False)
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        """[..., L, D] -> [..., H, L, E]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def _keys(self, tokens_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised tokens, and their keys with the empty token's after them: [B, H, N + 1, E]."""
        x = self.norm(tokens_BNC)
        return x, self._split(F.pad(self.key(x), (0, 0, 0, 1)))

    def forward(self, tokens_BNC: Tensor, text_UD: Tensor) -> Tensor:
        """What every image shows of every text, [B, U, D]."""
        x, keys = self._keys(tokens_BNC)
        values = self._split(F.pad(self.value(x), (0, 0, 0, 1)))
        queries = self._split(self.query(text_UD)).expand(len(tokens_BNC), -1, -1, -1)
        pooled = F.scaled_dot_product_attention(queries, keys, values)
        return self.out(pooled.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def maps(self, tokens_BNC: Tensor, text_UD: Tensor) -> Tensor:
        """Attention of every text on every token, the mean over heads, [B, U, N]; what is missing to 1 is on the empty
        token."""
        _, keys = self._keys(tokens_BNC)
        queries = self._split(self.query(text_UD))
        weights = torch.einsum("hue,bhne->bhun", queries, keys) * queries.shape[-1] ** -0.5
        return weights.softmax(-1).mean(1)[..., :-1]
