"""Image–text matching with hard negatives through the fusion layers of the report transformer: ALBEF, arXiv 2107.07651,
eq. 3, with the 1 : 2 ratio and the binary cross-entropy of VELVET-Med (arXiv 2508.12108),

    L = mean over (image, text, y) of BCE(m(image, text), y)

Each study gives three pairs: its image and its text (y = 1); its image and a hard text, its text and a hard image
(y = 0), drawn in proportion to exp(cosine / τ), τ that of `report_contrastive`, among the studies that are no
relatives: other text, other patient. A study without any is left out altogether: its positive alone would teach to
answer yes. The cosines are those of `report_contrastive` and have no gradient here: without that objective in the
recipe hard negatives are random ones.

What is gathered over ranks: the image tower's patch tokens [B, N, F], and every token of every report [T, C] (in
autocast's dtype). Each rank sends a share of the pairs through the fusion layers, not all of them: its loss is that
share times the number of ranks, and DDP's mean over ranks is the gradient of one process. `train.cache_gib` bounds what
`train.chunk` keeps; a tower with thousands of tokens wants a small global batch here.

Legend: B studies of the global batch, R those with a report, T tokens of their reports, P pairs of this rank.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from encoders.features import rank, world_size
from pretrain.objectives.base import GlobalBatch, Objective, Surroundings
from pretrain.objectives.report_contrastive import READS, ReportContrastive, image_report_pairs
from pretrain.schema_objectives import MatchingOptions


class Matching(Objective):
    """Binary cross-entropy of matching; logs how often the answer is right."""

    reads: ClassVar[tuple[str, ...]] = (
        *READS, "image:global.tokens", "report:units.states", "report:units.places", "report:units.draws",
        "report_fusion", "report_matching",
    )  # fmt: skip
    Options = MatchingOptions

    def attach(self, around: Surroundings) -> None:
        self.around = around

    def temperature(self) -> float | Tensor:
        """Of the draw of hard negatives: the recipe's, else the one that `report_contrastive` learns, else 0.07."""
        if self.options.temperature is not None:
            return float(self.options.temperature)
        for other in self.around.objectives:
            if isinstance(other, ReportContrastive):
                return torch.exp(-other.logit_scale.detach().double())
        return 0.07

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        cosine_RR, _, negative_RR, study_R = image_report_pairs(batch, self.options)
        draws_R2 = batch.rows["report:units.draws"].values
        sharp_RR = cosine_RR.detach().double() / self.temperature()
        text_R = drawn(sharp_RR, negative_RR, draws_R2[:, 0])
        image_R = drawn(sharp_RR.T, negative_RR.T, draws_R2[:, 1])
        taken = negative_RR.any(1).nonzero()[:, 0]
        states = batch.rows["report:units.states"].values
        if not len(taken):
            nothing = (states * 0.0).sum()
            return nothing, {"studies": nothing.detach()}
        mine = taken[rank() :: world_size()]
        weight = 1.0
        if not len(mine):  # sharded layers want every rank
            mine, weight = taken[:1], 0.0
        images, texts = torch.cat([mine, mine, image_R[mine]]), torch.cat([mine, text_R[mine], mine])
        answer_P = torch.zeros(len(images), device=states.device)
        answer_P[: len(mine)] = 1.0
        logits_P = self._logits(batch, study_R, texts, images)
        loss = weight * F.binary_cross_entropy_with_logits(logits_P, answer_P, reduction="sum")
        right = weight * ((logits_P > 0) == answer_P.bool()).sum()
        whole = torch.stack([loss.detach(), right.detach().to(loss.dtype)])
        if world_size() > 1:
            dist.all_reduce(whole)
        whole = whole / (3 * len(taken))
        share = loss * world_size() / (3 * len(taken))
        studies = torch.tensor(float(len(taken)))
        return share + (whole[0] - share).detach(), {"accuracy": whole[1], "studies": studies}

    def _logits(self, batch: GlobalBatch, study_R: Tensor, texts: Tensor, images: Tensor) -> Tensor:
        """Of pairs of a report and an image, each a row of R: [P]."""
        states, places = (batch.rows[f"report:units.{field}"].values for field in ("states", "places"))
        lengths_R = torch.bincount(batch.rows["report:units.states"].owner, minlength=len(batch.patient_B))[study_R]
        starts_R = lengths_R.cumsum(0) - lengths_R
        lengths = lengths_R[texts]
        first = torch.repeat_interleave(starts_R[texts] - (lengths.cumsum(0) - lengths), lengths)
        tokens = first + torch.arange(len(first), device=first.device)
        shown, which = torch.unique(study_R[images], return_inverse=True)
        narrow = states.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(states.device.type, states.dtype if narrow else torch.bfloat16, enabled=narrow):
            logits = self.around.dual.match_reports(
                states.index_select(0, tokens).float(), places[tokens], lengths.tolist(),
                batch.rows["image:global.tokens"].values.index_select(0, shown).float(), which,
            )  # fmt: skip
        return logits.float()


def drawn(sharp_RR: Tensor, allowed_RR: Tensor, draw_R: Tensor) -> Tensor:
    """For each row one allowed column, with probability softmax of the row over the allowed: the column where the
    cumulated probability passes `draw_R` in [0, 1). Of a row without any, column 0."""
    weights = (sharp_RR - sharp_RR.masked_fill(~allowed_RR, float("-inf")).amax(1, keepdim=True).clamp(min=-1e9)).exp()
    cumulated = (weights * allowed_RR).cumsum(1)
    reached = cumulated > draw_R.double()[:, None] * cumulated[:, -1:]
    return reached.int().argmax(1)
