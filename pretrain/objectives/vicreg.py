"""Views of an image alike, every dimension used, no two dimensions alike (VICReg, arXiv 2105.04906, §4).

    L = λ s(Z, Z') + μ (v(Z) + v(Z')) / 2 + ν (c(Z) + c(Z'))
    s = (1/BD) Σ_i |z_i - z'_i|²                                 invariance
    v = (1/D) Σ_d max(0, 1 - √(Var(z_d) + 1e-4))                 variance, eq. 1
    c = (1/D) Σ_{d≠e} Cov(Z)_de²                                 covariance, eq. 4

Z are projections of the global batch in one view. As in their code, for which λ = μ = 25 were chosen, s is divided by D
and v is the mean of both views; in eq. 5 and 6 neither is.

Legend: B studies, D projection width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.objectives.base import GlobalBatch, Surroundings
from pretrain.schema_objectives import VICRegOptions
from pretrain.view_pairs import OfViews, compared, projector, width_of

EPSILON = 1e-4


class VICReg(OfViews):
    """Variance, invariance, covariance of the projections of two views."""

    Options = VICRegOptions

    def attach(self, around: Surroundings) -> None:
        told, width = self.options, width_of(around.dual, self.options, "vicreg")
        self.head = projector(width, told.hidden, told.dim, layers=3)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        told, pairs = self.options, compared(batch.rows[self.reads[0]], self.head)
        parts = torch.stack([torch.stack(_terms(a_BD, b_BD)) for a_BD, b_BD in pairs]).mean(0)
        invariance, variance, covariance = parts
        loss = told.invariance * invariance + told.variance * variance + told.covariance * covariance
        logs = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return loss, {name: value.detach() for name, value in logs.items()}


def _terms(a_BD: Tensor, b_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    variance, covariance = a_BD.new_zeros(()), a_BD.new_zeros(())
    for z_BD in (a_BD, b_BD):
        centred_BD = z_BD - z_BD.mean(0)
        shared_DD = centred_BD.T @ centred_BD / max(len(z_BD) - 1, 1)
        own_D = shared_DD.diagonal()
        variance = variance + 0.5 * F.relu(1.0 - (own_D + EPSILON).sqrt()).mean()
        covariance = covariance + ((shared_DD**2).sum() - (own_D**2).sum()) / z_BD.shape[1]
    return F.mse_loss(a_BD, b_BD), variance, covariance
