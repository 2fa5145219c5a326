"""Tokens of studies of several volumes in rows; those of volumes that a study lacks are not among them.

Legend: B studies, K volumes a study has room for, P volumes that are there, N tokens a volume, S tokens a slice, C
width, R rows: the CLS tokens of all studies (where the tower has one), then the tokens of volume after volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from encoders.attention import Packing, moved

ABSENT = -1.0  # what padding is in every window (data_shards.preprocess)


def present_volumes(images: Tensor, volumes: int) -> Tensor:
    """Which volumes of studies [B, K * channels, D, H, W] are there: bool [B, K].

    A volume that is -1 everywhere is absent. A study with none is an empty first volume, so that it has features.
    """
    if images.is_meta:  # has no values
        return torch.ones(len(images), volumes, dtype=torch.bool, device=images.device)
    present_BK = images.detach().unflatten(1, (volumes, -1)).flatten(2).amax(2) > ABSENT
    present_BK[:, 0] |= ~present_BK.any(1)
    return present_BK


@dataclass(frozen=True)
class StudyTokens:
    """Where the tokens of a batch of studies stand in rows.

    `place_P` numbers the volumes that are there among all B * K; `counts` says how many every study has.
    """

    place_P: Tensor
    counts: tuple[int, ...]
    volumes: int
    tokens: int
    lead: int

    @classmethod
    def of(cls, present_BK: Tensor, tokens: int, lead: int) -> StudyTokens:
        """`tokens` N of every volume; `lead` 1 where studies have a CLS token, else 0."""
        studies, volumes = present_BK.shape
        if present_BK.is_meta:
            place, counts = torch.arange(studies * volumes, device=present_BK.device), [volumes] * studies
        else:
            place, counts = present_BK.flatten().nonzero()[:, 0], present_BK.sum(1).tolist()
        return cls(place, tuple(counts), volumes, tokens, lead)

    @property
    def _cls(self) -> int:
        """Rows that are CLS tokens."""
        return self.lead * len(self.counts)

    def present(self, x: Tensor) -> Tensor:
        """Rows [P, ...] of [B * K, ...]: of the volumes that are there."""
        return x if len(self.place_P) == len(x) else x.index_select(0, self.place_P)

    def each(self, x_BX: Tensor) -> Tensor:
        """[B, ...] or [1, ...] repeated for the volumes that are there: [P, ...]."""
        studies, rest = len(self.counts), x_BX.shape[1:]
        return self.present(x_BX[:, None].expand(studies, self.volumes, *rest).reshape(-1, *rest))

    def everywhere(self, x_PX: Tensor) -> Tensor:
        """[P, ...] at their places among B * K, zeros where a volume is absent."""
        places = len(self.counts) * self.volumes
        if len(x_PX) == places:
            return x_PX
        return x_PX.new_zeros(places, *x_PX.shape[1:]).index_copy(0, self.place_P, x_PX)

    @cached_property
    def packing(self) -> Packing:
        """A sequence a study."""
        return Packing(tuple(self.lead + count * self.tokens for count in self.counts), self.place_P.device)

    @cached_property
    def _order(self) -> tuple[Tensor, Tensor]:
        """Row of each token of the packed studies, and 0 ... R - 1."""
        device, first, parts = self.place_P.device, self._cls, []
        for study, count in enumerate(self.counts):
            parts += [torch.tensor([study]), torch.arange(first, first + count * self.tokens)]
            first += count * self.tokens
        return torch.cat(parts).to(device), torch.arange(first, device=device)

    def packed(self, rows_RC: Tensor) -> Tensor:
        """Rows in the order of `packing`, each CLS token before its study's."""
        if not self.lead:
            return rows_RC
        order, numbers = self._order
        return moved(rows_RC, order, numbers, len(numbers))

    def unpacked(self, packed_RC: Tensor) -> Tensor:
        """`packed` undone."""
        if not self.lead:
            return packed_RC
        order, numbers = self._order
        return moved(packed_RC, numbers, order, len(numbers))

    def grouped(self, rows_RC: Tensor, slices: int) -> Tensor:
        """[P * slices, (1+)S, C]: the slices of all volumes, a copy of its study's CLS token before each."""
        width = rows_RC.shape[1]
        groups = rows_RC[self._cls :].reshape(len(self.place_P) * slices, -1, width)
        if not self.lead:
            return groups
        copies = self.each(rows_RC[: self._cls])[:, None].expand(-1, slices, -1)
        return torch.cat([copies.reshape(-1, 1, width), groups], dim=1)

    def ungrouped(self, groups: Tensor, slices: int) -> Tensor:
        """Rows again; a study's CLS token is the mean of its copies."""
        width = groups.shape[2]
        body = groups[:, self.lead :].reshape(-1, width)
        if not self.lead:
            return body
        copies_PC = groups[:, 0].reshape(-1, slices, width).mean(1)
        count_B = torch.tensor(self.counts, dtype=copies_PC.dtype).to(copies_PC.device)
        cls_BC = self.everywhere(copies_PC).view(-1, self.volumes, width).sum(1) / count_B[:, None]
        return torch.cat([cls_BC, body])

    def dense(self, rows_RC: Tensor) -> Tensor:
        """[B, (1+)K * N, C]: the CLS token, then all volumes, zeros for one that is absent."""
        width = rows_RC.shape[1]
        body = self.everywhere(rows_RC[self._cls :].reshape(len(self.place_P), -1, width))
        body = body.reshape(len(self.counts), -1, width)
        return torch.cat([rows_RC[: self._cls, None], body], dim=1) if self.lead else body


def seen(tokens_BNC: Tensor) -> Tensor:
    """Which of the tokens that `StudyTokens.dense` gives are of a volume that is there: bool [B, N]."""
    return (tokens_BNC != 0).any(-1)
