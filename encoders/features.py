"""What encoders return, and how it is brought together over ranks (contract 3).

Legend: B studies, S scans, U text units (each distinct text once), P sample-unit pairs, T tokens, D width, N cells of
a map, C its channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Level(NamedTuple):
    """One map of an image tower as rows, and its grid (D, H, W) or (H, W); None where tokens were dropped."""

    cells_SNC: Tensor
    grid: tuple[int, ...] | None


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a batch of studies.

    `pooled_SD` has one row a scan, `study_S` says the study of each scan, `study_BD` has one row a study.
    `tokens_SND` are the tower's patch tokens, `grid` their (D, H, W) or (H, W); `trunk_SC` are the tower's pooled
    features before the projection into the joint space; `kept_SN` are the places in `grid` that token dropout left, in
    order (all of them where nothing is dropped). None where not asked for. `levels` are the tower's maps that were
    asked for by number, 0 the finest.
    """

    pooled_SD: Tensor
    study_S: Tensor
    study_BD: Tensor
    tokens_SND: Tensor | None = None
    grid: tuple[int, ...] | None = None
    trunk_SC: Tensor | None = None
    levels: Mapping[int, Level] = field(default_factory=dict)
    kept_SN: Tensor | None = None


@dataclass(frozen=True)
class TextFeatures:
    """Features of the distinct texts of a batch and which sample each belongs to.

    `units_UD` one row a distinct text; `kind_U` its kind; `hash64_U` its identity; pair p says that sample
    `pair_sample_P[p]` has text `pair_unit_P[p]`. A text that several samples share is one row with several pairs.
    """

    units_UD: Tensor
    kind_U: Tensor
    hash64_U: Tensor
    pair_sample_P: Tensor
    pair_unit_P: Tensor

    def only(self, kinds: set[int]) -> TextFeatures:
        """The units of some kinds, pairs renumbered."""
        keep_U = torch.zeros_like(self.kind_U, dtype=torch.bool)
        for kind in kinds:
            keep_U |= self.kind_U == kind
        if bool(keep_U.all()):
            return self
        number_U = torch.cumsum(keep_U, 0) - 1
        keep_P = keep_U[self.pair_unit_P]
        return TextFeatures(
            self.units_UD[keep_U],
            self.kind_U[keep_U],
            self.hash64_U[keep_U],
            self.pair_sample_P[keep_P],
            number_U[self.pair_unit_P[keep_P]],
        )


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherRagged(torch.autograd.Function):
    """Rows of all ranks, in rank order. Counts differ, so ranks pad to the maximum and trim: all_gather with uneven
    rows aborts or returns wrong shapes. Backward adds up what every rank's loss says about the rows this rank sent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: x.shape[0]] = x
        out = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(out, padded)
        return torch.cat([o[:c] for o, c in zip(out, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous()
        dist.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]], None


def gather_rows(x: Tensor) -> tuple[Tensor, list[int]]:
    """Rows [n, ...] of every rank one after another, with gradient, and how many came from each rank."""
    if world_size() == 1:
        return x, [x.shape[0]]
    count = torch.tensor([x.shape[0]], device=x.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    return _GatherRagged.apply(x, sizes), sizes


def gather_text(text: TextFeatures, samples: int) -> TextFeatures:
    """Text features of the global batch: duplicates merged by hash, samples numbered over ranks.

    A text that several ranks encoded becomes the mean of its copies (they are equal unless dropout or word dropout is
    on), so that each copy receives its share of the gradient and the sum is that of one process.

    Args:
        text: this rank's units.
        samples: studies in this rank's batch.
    """
    if world_size() == 1:
        return text
    units, unit_counts = gather_rows(text.units_UD)
    hashes, _ = gather_rows(text.hash64_U)
    kinds, _ = gather_rows(text.kind_U)
    sample_counts = [int(c) for c in gather_rows(torch.tensor([samples], device=units.device))[0]]
    me = rank()
    pair_sample, _ = gather_rows(text.pair_sample_P + sum(sample_counts[:me]))
    pair_unit, _ = gather_rows(text.pair_unit_P + sum(unit_counts[:me]))
    # A kind is part of the identity: the same words as a report and as a sentence stay two units.
    distinct, inverse = torch.unique(torch.stack([hashes, kinds.to(hashes.dtype)], 1), dim=0, return_inverse=True)
    copies = torch.bincount(inverse, minlength=len(distinct)).to(units.dtype)
    merged = units.new_zeros(len(distinct), units.shape[1]).index_add(0, inverse, units) / copies[:, None]
    pairs = torch.unique(torch.stack([pair_sample, inverse[pair_unit]], 1), dim=0)
    return TextFeatures(merged, distinct[:, 1].to(kinds.dtype), distinct[:, 0], pairs[:, 0], pairs[:, 1])
