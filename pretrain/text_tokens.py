"""Tokens of the texts of a batch: how many there are, how many the text tower runs over, and how many it would run over
if every text were padded to the context, as open_clip does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist

from encoders.dual import DualEncoder
from encoders.features import world_size
from encoders.text import computed_tokens
from pretrain.passes import Part


@dataclass(frozen=True)
class Tokens:
    """Sums over distinct texts. computed: with the padding that is left. padded: texts times the context. cut: texts
    that fill the context, so that what follows is not read (BMC-LongCLIP, arXiv 2510.03978)."""

    texts: int = 0
    real: int = 0
    computed: int = 0
    padded: int = 0
    cut: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def over_ranks(self, device: torch.device) -> Tokens:
        """Of the global batch; a text that several ranks read counts for each of them."""
        if world_size() == 1:
            return self
        sums = torch.tensor(astuple(self), device=device)
        dist.all_reduce(sums)
        return Tokens(*sums.tolist())

    def shares(self) -> dict[str, float]:
        """For metrics.csv: text/wasted and text/wasted_if_padded, shares of what is (would be) computed; text/cut."""
        if not self.texts:
            return {}
        return {
            "text/tokens": float(self.real),
            "text/wasted": 1 - self.real / self.computed,
            "text/wasted_if_padded": 1 - self.real / self.padded,
            "text/cut": self.cut / self.texts,
        }

    def __str__(self) -> str:
        shares = self.shares()
        each, context = self.real / self.texts, self.padded // self.texts
        return (
            f"{each:.1f} tokens a text of at most {context}: {100 * shares['text/wasted']:.1f} % of what was computed "
            f"was padding, {100 * shares['text/wasted_if_padded']:.1f} % if texts were padded to the context; "
            f"{100 * shares['text/cut']:.1f} % of texts were cut"
        )


def tokens_of(dual: DualEncoder, parts: Sequence[Part], context: int) -> Tokens:
    """Of a batch that is encoded in these parts."""
    total = Tokens()
    for part in parts:
        lengths = tuple(part.batch.texts.lengths[part.units])
        if lengths:
            computed, cut = computed_tokens(dual.clip.text, lengths), sum(n >= context for n in lengths)
            total += Tokens(len(lengths), sum(lengths), computed, len(lengths) * context, cut)
    return total
