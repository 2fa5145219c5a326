"""Pairwise sigmoid loss (SigLIP, arXiv 2303.15343, eq. 1) between images and texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.objectives.base import GlobalBatch, Objective, Pairing, pairing
from pretrain.schema_objectives import SigmoidOptions


def pairwise_sigmoid(logits_BU: Tensor, pairs: Pairing) -> Tensor:
    """Sum over pairs of -log sigmoid(z·logit), z = +1 for positives and -1 for negatives, divided by the number of
    images."""
    loss_BU = F.softplus(torch.where(pairs.positive_BU, -logits_BU, logits_BU))
    return (loss_BU * (pairs.positive_BU | pairs.negative_BU)).sum() / len(logits_BU)


class Sigmoid(Objective):
    """Pairwise sigmoid over the global batch with the released logit scale and bias."""

    reads = ("image:global.pooled", "text:units.units", "logit_scale", "logit_bias")
    Options = SigmoidOptions

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = pairing(batch, self.options.units)
        logits_BU = batch.logit_scale.exp() * batch.images_BD @ pairs.units_UD.T
        if batch.logit_bias is not None:
            logits_BU = logits_BU + batch.logit_bias
        return pairwise_sigmoid(logits_BU, pairs), {"units": torch.tensor(float(len(pairs.units_UD)))}
