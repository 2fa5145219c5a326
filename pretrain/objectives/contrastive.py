"""InfoNCE between images and texts (CLIP, arXiv 2103.00020, eq. in fig. 3), with several positives a row.

Legend: B studies, U distinct units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.dense_nce import multi_positive_nce
from pretrain.objectives.base import GlobalBatch, Objective, pairing
from pretrain.schema_objectives import ContrastiveOptions


class Contrastive(Objective):
    """InfoNCE over the global batch with the released logit scale: (to_text · L_image→text + L_text→image) /
    (to_text + 1), symmetric for to_text = 1.

    Sentences want a small `to_text`. Asked which sentences an image has, a softmax over sentences must also say how a
    reader phrased them and how common each phrase is, which no image shows, and it sets synonyms of one finding against
    each other; asked which images have a sentence, its frequency cancels.
    """

    reads = ("image:global.pooled", "text:units.units", "logit_scale")
    Options = ContrastiveOptions

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = pairing(batch, self.options.units)
        logits_BU = batch.logit_scale.exp() * batch.images_BD @ pairs.units_UD.T
        smoothing = self.options.label_smoothing
        to_text = multi_positive_nce(logits_BU, pairs.positive_BU, pairs.negative_BU, smoothing)
        to_image = multi_positive_nce(logits_BU.T, pairs.positive_BU.T, pairs.negative_BU.T, smoothing)
        share = self.options.to_text
        return (share * to_text + to_image) / (share + 1), {"units": torch.tensor(float(len(pairs.units_UD)))}
