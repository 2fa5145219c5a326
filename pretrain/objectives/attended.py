"""Every text looks at the image by itself: text-conditioned pooling of image tokens against the text.

For image b and unit u (a sentence, a section, a caption) v_bu is what attention with query u finds among the tokens of
b, and the loss is the multi-positive pairwise sigmoid of exp(s) · cos(v_bu, t_u) + bias over all pairs (FLAIR, arXiv
2412.03561, eq. 4-6, there with sampled negatives; SigLIP, arXiv 2303.15343, eq. 1). A pooled vector has to say all that
a report may mention; here a sentence asks for its own. The head is released, and evaluators draw its attention.

Legend: B studies, b those of a block, U units, N tokens, C trunk width, D joint width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.heads.attended import AttendedPooling
from pretrain.objectives.base import GlobalBatch, Objective, Surroundings, pairing
from pretrain.passes import Part, Rows
from pretrain.schema_objectives import AttendedOptions

BLOCK = 1 << 25  # floats of pooled features, [b, U, D], that are there at once


class Attended(Objective):
    """Text-conditioned pooling against all units of the global batch.

    A sum over images: each rank and each part scores its own against the units of all, and no tokens are kept.
    """

    reads = ("text:units.units", "image:global.tokens")
    coupling = "image"
    Options = AttendedOptions

    def __init__(self, options: AttendedOptions) -> None:
        super().__init__(options)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(float(options.init_bias)))

    def attach(self, around: Surroundings) -> None:
        self.head = AttendedPooling(around.trunk_width, around.embed_dim, self.options.heads)

    def of_images(self, rows: Mapping[str, Rows], part: Part, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = rows["image:global.tokens"]
        pairs, study_b = pairing(batch, self.options.units), tokens.owner + batch.first
        positive_BU, negative_BU = pairs.positive_BU[study_b], pairs.negative_BU[study_b]
        images, units = len(tokens.values), pairs.units_UD
        size = max(1, BLOCK // units.numel())
        total = torch.zeros((), device=units.device)
        for start in range(0, images, size):
            block = slice(start, start + size)
            given = (tokens.values[block].float(), units, positive_BU[block], negative_BU[block])
            # Pooled features of all blocks would fill memory: made again in the backward pass rather than kept.
            total = total + (
                checkpoint(self._block, *given, use_reentrant=False) if images > size else self._block(*given)
            )
        scale = self.logit_scale.detach().exp()
        return total, {"units": torch.tensor(float(images * len(units))), "scale": images * scale}

    def _block(self, tokens_bNC: Tensor, units_UD: Tensor, positive_bU: Tensor, negative_bU: Tensor) -> Tensor:
        pooled = F.normalize(self.head(tokens_bNC, units_UD), dim=-1)
        logits = self.logit_scale.exp() * torch.einsum("bud,ud->bu", pooled, units_UD) + self.logit_bias
        loss = F.softplus(torch.where(positive_bU, -logits, logits))
        return (loss * (positive_bU | negative_bU)).sum()

    def released(self) -> dict[str, nn.Module]:
        return {"attended": self.head}
