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

from pretrain.objectives.base import GlobalBatch, Objective, pairing
from pretrain.objectives.sigmoid import pairwise_sigmoid
from pretrain.schema_objectives import SentenceOptions


class Sentence(Objective):
    """Multi-positive sigmoid between images and distinct sentences."""

    Options = SentenceOptions

    def __init__(self, options: SentenceOptions) -> None:
        super().__init__(options)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(float(options.init_bias)))

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = pairing(batch, self.options.units)
        logits_BU = self.logit_scale.exp() * batch.images_BD @ pairs.units_UD.T + self.logit_bias
        positives = pairs.positive_BU.sum() / len(pairs.positive_BU)
        return pairwise_sigmoid(logits_BU, pairs), {
            "units": torch.tensor(float(len(pairs.units_UD))),
            "positives": positives,
            "scale": self.logit_scale.detach().exp(),
        }
