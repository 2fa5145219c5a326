"""Dimensions agree with themselves in the other view and with no other one (Barlow Twins, arXiv 2103.03230, eq. 1).

    L = Σ_d (1 - C_dd)² + λ Σ_{d≠e} C_de²,    C = Aᵀ B / B

A and B are projections of the global batch in two views, every dimension with mean 0 and variance 1 over the batch.

Legend: B studies, D projection width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.objectives.base import GlobalBatch, Surroundings
from pretrain.schema_objectives import BarlowTwinsOptions
from pretrain.view_pairs import OfViews, compared, projector, width_of

EPSILON = 1e-5  # of BatchNorm, by which they normalise


class BarlowTwins(OfViews):
    """The cross-correlation of two views is the identity."""

    Options = BarlowTwinsOptions

    def attach(self, around: Surroundings) -> None:
        told, width = self.options, width_of(around.dual, self.options, "barlow_twins")
        self.head = projector(width, told.hidden, told.dim, layers=3)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses, agreements = [], []
        for a_BD, b_BD in compared(batch.rows[self.reads[0]], self.head):
            c_DD = _standard(a_BD).T @ _standard(b_BD) / len(a_BD)
            own_D = c_DD.diagonal()
            others = (c_DD**2).sum() - (own_D**2).sum()
            losses.append(((1.0 - own_D) ** 2).sum() + self.options.redundancy * others)
            agreements.append(own_D.mean())
        return torch.stack(losses).mean(), {"agreement": torch.stack(agreements).mean().detach()}


def _standard(z_BD: Tensor) -> Tensor:
    centred_BD = z_BD - z_BD.mean(0)
    return centred_BD * ((centred_BD**2).mean(0) + EPSILON).rsqrt()
