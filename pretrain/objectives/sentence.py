"""Every report sentence is a unit: one image against all distinct sentences of the global batch.

A report names a dozen facts; as one vector they drown each other, as sentences each is a label of its own. Sentences
repeat over reports, so identical ones are one unit with several positive images (merged by hash). The loss is the
multi-positive pairwise sigmoid (SigLIP, arXiv 2303.15343, eq. 1, with a positive wherever the report holds the
sentence); its scale and bias are its own, because sentences are shared by many images and reports are not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pretrain.objectives.base import GlobalBatch, Objective, pairs_of
from pretrain.schema_objectives import SentenceOptions
from pretrain.tiled_loss import pairwise_sigmoid


class Sentence(Objective):
    """Multi-positive sigmoid between images and distinct sentences."""

    Options = SentenceOptions

    def __init__(self, options: SentenceOptions) -> None:
        super().__init__(options)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(float(options.init_bias)))

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        units_UD, pairs = pairs_of(batch, self.options.units)
        loss = pairwise_sigmoid(batch.images_BD, units_UD, self.logit_scale.exp(), self.logit_bias, pairs)
        return loss, {
            "units": torch.tensor(float(len(units_UD))),
            "positives": torch.tensor(len(pairs.row_P) / len(batch.images_BD)),
            "scale": self.logit_scale.detach().exp(),
        }
