"""InfoNCE between images and texts (CLIP, arXiv 2103.00020, eq. in fig. 3), with several positives a row.

Legend: N, M sides of a matrix of logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.objectives.base import GlobalBatch, Objective, pairs_of
from pretrain.schema_objectives import ContrastiveOptions
from pretrain.tiled_loss import nce


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
        units_UD, pairs = pairs_of(batch, self.options.units)
        to_text, to_image = nce(batch.images_BD, units_UD, batch.logit_scale.exp(), pairs, self.options.label_smoothing)
        share = self.options.to_text
        return (share * to_text + to_image) / (share + 1), {"units": torch.tensor(float(len(units_UD)))}
