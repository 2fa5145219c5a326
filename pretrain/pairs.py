"""Which image goes with which text, as lists: a mask of all pairs would be as large as the logits it is for.

Legend: B images (rows), U units (columns), P positive pairs, G patients, K pairs of a patient and a unit, R, C sides of
a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Positives, and what is no negative.

    Image `row_P[p]` has unit `column_P[p]`, each pair once. Image b is of patient `patient_B[b]` (0 to G - 1), and
    patient `patient_K[k]` has unit `column_K[k]`, each once and by patient, ascending: an image and a unit of its
    patient are no negatives, and all others are.
    """

    row_P: Tensor
    column_P: Tensor
    patient_B: Tensor
    patient_K: Tensor
    column_K: Tensor
    columns: int

    @classmethod
    def of(cls, sample_P: Tensor, unit_P: Tensor, patient_B: Tensor, units: int) -> Pairs:
        """A study has a unit; `patient_B` is any identity. Units of a patient's other studies are left out."""
        positive = torch.unique(sample_P * units + unit_P)
        row_P, column_P = positive // units, positive % units
        number_B = torch.unique(patient_B, return_inverse=True)[1]
        kin = torch.unique(number_B[row_P] * units + column_P)
        return cls(row_P, column_P, number_B, kin // units, kin % units, units)

    @property
    def taken_B(self) -> Tensor:
        """Positives and negatives of each image."""
        of_patient = torch.bincount(self.patient_K, minlength=self._patients)
        return self.columns - of_patient[self.patient_B] + torch.bincount(self.row_P, minlength=len(self.patient_B))

    @property
    def taken_U(self) -> Tensor:
        """Positives and negatives of each unit."""
        images_G = torch.bincount(self.patient_B, minlength=self._patients)
        kin_U = torch.zeros_like(self.column_K[:1]).expand(self.columns).clone()
        kin_U.index_add_(0, self.column_K, images_G[self.patient_K])
        return len(self.patient_B) - kin_U + torch.bincount(self.column_P, minlength=self.columns)

    @property
    def _patients(self) -> int:
        return len(self.patient_B)  # as many at most; asking for the number would wait for the device

    def dense(self) -> tuple[Tensor, Tensor]:
        """Positives and negatives as masks [B, U]: for small batches and objectives that need every pair."""
        positive = torch.zeros(len(self.patient_B), self.columns, dtype=torch.bool, device=self.row_P.device)
        kin_GU = torch.zeros_like(positive)
        positive[self.row_P, self.column_P] = True
        kin_GU[self.patient_K, self.column_K] = True
        return positive, ~(kin_GU[self.patient_B] | positive)

    def in_tiles(self, tile: int) -> PairsInTiles:
        """The same pairs sorted by square tiles of this side."""
        across = -(-self.columns // tile)
        of_P, order_P = torch.sort(self.row_P // tile * across + self.column_P // tile, stable=True)
        tiles = -(-len(self.patient_B) // tile) * across
        bounds = torch.searchsorted(of_P, torch.arange(tiles + 1, device=of_P.device)).tolist()
        first_B = torch.searchsorted(self.patient_K, self.patient_B)
        count_B = torch.searchsorted(self.patient_K, self.patient_B, right=True) - first_B
        return PairsInTiles(
            tile, across, self.row_P[order_P], self.column_P[order_P], bounds, first_B, count_B, self.column_K
        )


@dataclass(frozen=True)
class PairsInTiles:
    """Pairs in the order of the tiles [R, C] that they are in, row of tiles by row of tiles; units of the patient of
    image b are `column_K[first_B[b] : first_B[b] + count_B[b]]`."""

    tile: int
    across: int
    row_P: Tensor
    column_P: Tensor
    bounds: list[int]
    first_B: Tensor
    count_B: Tensor
    column_K: Tensor

    def positives(self, i: int, j: int, width: int) -> tuple[slice, Tensor]:
        """Pairs in tile (i, j), and their places in it, row by row of `width`."""
        number = i * self.across + j
        here = slice(self.bounds[number], self.bounds[number + 1])
        return here, (self.row_P[here] - i * self.tile) * width + self.column_P[here] - j * self.tile

    def kin(self, i: int) -> list[tuple[Tensor, Tensor]]:
        """Rows and columns, counted within each tile of row i of tiles, where an image meets a unit of its patient."""
        first_R, count_R = (x[i * self.tile : (i + 1) * self.tile] for x in (self.first_B, self.count_B))
        row = torch.repeat_interleave(torch.arange(len(first_R), device=first_R.device), count_R)
        k = torch.arange(len(row), device=row.device) + (first_R - torch.cumsum(count_R, 0) + count_R)[row]
        column = self.column_K[k]
        of, order = torch.sort(column // self.tile, stable=True)
        counts = torch.bincount(of, minlength=self.across).tolist()
        return list(zip(row[order].split(counts), (column % self.tile)[order].split(counts), strict=True))
