"""InfoNCE between images and whole reports as the report transformer reads them: L_report of VELVET-Med (arXiv
2508.12108),

    L = (CE(v tᵀ / τ) + CE(t vᵀ / τ)) / 2

with v the image's joint feature, t the report's ([CLS], projected), both of unit length, τ learnt from 0.07, label
smoothing 0.1. As published, negatives are those of one GPU and every other study is one; here they are those of all
ranks, reports of one text are positives of each other, and studies of one patient are neither. Both can be switched
back.

Legend: B studies of the global batch, R those with a report, D joint width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.dense_nce import multi_positive_nce
from pretrain.objectives.base import GlobalBatch, NoUnits, Objective
from pretrain.schema_objectives import MatchingOptions, ReportContrastiveOptions

READS = ("image:global.pooled", "report:units.report", "report:units.identity")
MAX_LOGIT_SCALE = math.log(100.0)


def image_report_pairs(
    batch: GlobalBatch, options: ReportContrastiveOptions | MatchingOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosines [R, R] of image r and report s, which are positives and which negatives (bool), and the study of each.

    Raises:
        NoUnits: no study of the batch has a sentence.
    """
    reports = batch.rows["report:units.report"]
    study_R = reports.owner
    if not len(study_R):
        raise NoUnits(
            "no study of this batch has a sentence\n"
            "  why: the objective would train nothing, in silence\n"
            "  fix: leave out studies without a report (data_shards.select)"
        )
    cosine_RR = batch.images_BD[study_R] @ F.normalize(reports.values.float(), dim=-1).T
    own = torch.eye(len(study_R), dtype=torch.bool, device=study_R.device)
    positive, related = own, own
    if options.exclude_related:
        identity, patient = batch.rows["report:units.identity"].values, batch.patient_B[study_R]
        positive = (identity[:, None] == identity[None]).any(-1)
        related = positive | (patient[:, None] == patient[None])
    if not options.gather:
        rank = batch.rank_B[study_R]
        near = rank[:, None] == rank[None]
        return cosine_RR, positive & near, ~related & near, study_R
    return cosine_RR, positive, ~related, study_R


class ReportContrastive(Objective):
    """Symmetric InfoNCE of images and reports, with a temperature of its own."""

    reads: ClassVar[tuple[str, ...]] = READS
    Options = ReportContrastiveOptions

    def __init__(self, options: ReportContrastiveOptions) -> None:
        super().__init__(options)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(options.init_temperature)))

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        cosine_RR, positive_RR, negative_RR, _ = image_report_pairs(batch, self.options)
        scale = self.logit_scale.exp()
        smoothing = self.options.label_smoothing
        to_text = multi_positive_nce(scale * cosine_RR, positive_RR, negative_RR, smoothing)
        to_image = multi_positive_nce(scale * cosine_RR.T, positive_RR.T, negative_RR.T, smoothing)
        return (to_text + to_image) / 2, {"scale": scale.detach()}

    def after_step(self, module: nn.Module) -> None:
        with torch.no_grad():  # not in forward: beyond the bound it would have no gradient that leads back
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
