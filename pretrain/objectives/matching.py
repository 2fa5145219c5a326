"""Image–text matching with hard negatives through the fusion layers of the report transformer: ALBEF, arXiv 2107.07651,
eq. 3, with the 1 : 2 ratio and the binary cross-entropy of VELVET-Med (arXiv 2508.12108),

    L = mean over (image, text, y) of BCE(m(image, text), y)

Each study gives three pairs: its image and its text (y = 1); its image and a hard text, its text and a hard image
(y = 0), drawn in proportion to exp(cosine / τ), τ that of `report_contrastive`, among the studies that are no
relatives: other text, other patient. A study without any is left out altogether: its positive alone would teach to
answer yes. The cosines are those of `report_contrastive` and have no gradient here: without that objective in the
recipe hard negatives are random ones.

A pair is computed where its image is: on its rank and, with `train.chunk`, with its part, whose tokens nobody keeps or
gathers. Every token of every report is kept and gathered [T, C] (in autocast's dtype), and so are pooled features, by
which negatives are drawn. An image that is hard for many texts brings their pairs into its part.

Legend: B studies of the global batch, R those with a report, T tokens of their reports, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.batch import Batch
from encoders.features import world_size
from pretrain.objectives.base import GlobalBatch, Objective, Surroundings
from pretrain.objectives.report_contrastive import READS, ReportContrastive, image_report_pairs
from pretrain.passes import Part, Rows
from pretrain.schema_objectives import MatchingOptions


class Matching(Objective):
    """Binary cross-entropy of matching; logs how often the answer is right."""

    coupling = "image"
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

    def terms(self, batch: Batch) -> Tensor:
        """How many pairs there are is known with the reports of all ranks: `of_images` takes the mean."""
        return torch.ones(())

    def of_images(self, rows: Mapping[str, Rows], part: Part, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The pairs of these images, over how many there are in the global batch, times the number of ranks."""
        tokens, states = rows["image:global.tokens"], batch.rows["report:units.states"].values
        study_P, text_P, answer_P = batch.once(self, lambda: self._pairs(batch))
        if not len(study_P):
            nothing = (states * 0.0).sum()
            return nothing, {"studies": nothing.detach()}
        share = world_size() / len(study_P)
        place_B = torch.full((len(batch.patient_B),), -1, device=study_P.device)
        place_B[tokens.owner + batch.first] = torch.arange(len(tokens.owner), device=study_P.device)
        mine, weight = (place_B[study_P] >= 0).nonzero()[:, 0], 1.0
        image_P = place_B[study_P[mine]]
        if not len(mine):  # sharded layers want every rank
            mine, weight, image_P = torch.zeros_like(study_P[:1]), 0.0, torch.zeros_like(study_P[:1])
        logits_P = self._logits(batch, text_P[mine], tokens.values, image_P)
        answer_P = answer_P[mine]
        loss = weight * F.binary_cross_entropy_with_logits(logits_P, answer_P.to(logits_P.dtype), reduction="sum")
        right = weight * ((logits_P > 0) == answer_P).sum()
        studies = torch.tensor(len(study_P) / 3 * world_size() * len(tokens.owner) / len(batch.patient_B))
        return share * loss, {"accuracy": share * right, "studies": studies}

    def _pairs(self, batch: GlobalBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Study of the image, number of the report, whether they belong together: three of each study that has a
        negative, [P] each."""
        with torch.no_grad():
            cosine_RR, _, negative_RR, study_R = image_report_pairs(batch, self.options)
            draws_R2 = batch.rows["report:units.draws"].values
            sharp_RR = cosine_RR.double() / self.temperature()
            text_R = drawn(sharp_RR, negative_RR, draws_R2[:, 0])
            image_R = drawn(sharp_RR.T, negative_RR.T, draws_R2[:, 1])
        taken = negative_RR.any(1).nonzero()[:, 0]
        images, texts = torch.cat([taken, taken, image_R[taken]]), torch.cat([taken, text_R[taken], taken])
        return study_R[images], texts, torch.arange(len(images), device=taken.device) < len(taken)

    def _logits(self, batch: GlobalBatch, texts: Tensor, tokens_SNF: Tensor, images: Tensor) -> Tensor:
        """Of pairs of a report, by its number, and an image, by its row of `tokens_SNF`: [P]."""
        states, places = (batch.rows[f"report:units.{field}"].values for field in ("states", "places"))
        lengths_B = torch.bincount(batch.rows["report:units.states"].owner, minlength=len(batch.patient_B))
        lengths_R = lengths_B[batch.rows["report:units.report"].owner]
        starts_R = lengths_R.cumsum(0) - lengths_R
        lengths = lengths_R[texts]
        first = torch.repeat_interleave(starts_R[texts] - (lengths.cumsum(0) - lengths), lengths)
        words = first + torch.arange(len(first), device=first.device)
        shown, which = torch.unique(images, return_inverse=True)
        narrow = states.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(states.device.type, states.dtype if narrow else torch.bfloat16, enabled=narrow):
            logits = self.around.dual.match_reports(
                states.index_select(0, words).float(), places[words], lengths.tolist(),
                tokens_SNF.index_select(0, shown).float(), which,
            )  # fmt: skip
        return logits.float()


def drawn(sharp_RR: Tensor, allowed_RR: Tensor, draw_R: Tensor) -> Tensor:
    """For each row one allowed column, with probability softmax of the row over the allowed: the column where the
    cumulated probability passes `draw_R` in [0, 1). Of a row without any, column 0."""
    weights = (sharp_RR - sharp_RR.masked_fill(~allowed_RR, float("-inf")).amax(1, keepdim=True).clamp(min=-1e9)).exp()
    cumulated = (weights * allowed_RR).cumsum(1)
    reached = cumulated > draw_R.double()[:, None] * cumulated[:, -1:]
    return reached.int().argmax(1)
