"""Pairwise sigmoid loss (SigLIP, arXiv 2303.15343, eq. 1) between images and texts."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.objectives.base import GlobalBatch, Objective, pairs_of
from pretrain.schema_objectives import SigmoidOptions
from pretrain.tiled_loss import pairwise_sigmoid


class Sigmoid(Objective):
    """Pairwise sigmoid over the global batch with the released logit scale and bias."""

    reads = ("image:global.pooled", "text:units.units", "logit_scale", "logit_bias")
    Options = SigmoidOptions

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        units_UD, pairs = pairs_of(batch, self.options.units)
        loss = pairwise_sigmoid(batch.images_BD, units_UD, batch.logit_scale.exp(), batch.logit_bias, pairs)
        return loss, {"units": torch.tensor(float(len(units_UD)))}
