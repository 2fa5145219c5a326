"""Masked language modelling of reports (BERT, arXiv 1810.04805, §3.1), alone or with the image in view (ALBEF, arXiv
2107.07651, eq. 4; both terms of VELVET-Med, arXiv 2508.12108):

    L = - mean over hidden tokens of log p(token | the report without them[, the image])

15 % of a report's tokens are hidden (pretrain.masking). `condition: text` predicts from the layers that read the
report; `condition: image` sends them through the fusion layers, over the image tower's patch tokens, before. Two
entries of a recipe, one of each, share the prediction's layers, and the hidden tokens and their encoding unless
`own_mask` is set, as VELVET-Med has it: then each draws its own, and the reports are read once more.

Legend: T tokens of all reports of a part, M hidden ones, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.batch import Batch
from pretrain.masking import masked_counts
from pretrain.objectives.base import Objective, Surroundings
from pretrain.passes import Part, Rows
from pretrain.reports import reports_of
from pretrain.schema_objectives import MaskedLanguageOptions


class MaskedLanguage(Objective):
    """Cross-entropy of the hidden tokens; logs how many are guessed right."""

    coupling = "sample"
    Options = MaskedLanguageOptions

    def __init__(self, options: MaskedLanguageOptions) -> None:
        super().__init__(options)
        self.masked = f"report:masked_{options.condition}" if options.own_mask else "report:masked"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        own = (*(f"{self.masked}.{field}" for field in ("states", "places", "targets")), "report_vocabulary")
        return (*own, "image:global.tokens", "report_fusion") if self.options.condition == "image" else own

    def attach(self, around: Surroundings) -> None:
        self.around = around

    def terms(self, batch: Batch) -> Tensor:
        report = self.around.dual.report
        assert report is not None
        return masked_counts(reports_of(report, batch, slice(0, len(batch)))[0]).sum()

    def each(self, rows: Mapping[str, Rows], part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        states, owner = rows[f"{self.masked}.states"].values, rows[f"{self.masked}.states"].owner
        places, targets = (rows[f"{self.masked}.{field}"].values for field in ("places", "targets"))
        masked_M, weight = (targets >= 0).nonzero()[:, 0], 1.0
        if not len(masked_M):  # nothing is hidden here, and sharded layers want every rank
            states = states if len(states) else states.new_zeros(1, states.shape[1])
            places, targets, owner = (x if len(x) else x.new_zeros(1) for x in (places, targets, owner))
            owner = owner if len(rows[f"{self.masked}.states"].owner) else owner + part.studies.start
            masked_M, weight = torch.zeros(1, dtype=torch.int64, device=states.device), 0.0
        study_R, lengths = torch.unique_consecutive(owner, return_counts=True)
        image: tuple[Tensor, ...] = ()
        if self.options.condition == "image":
            image = (rows["image:global.tokens"].values, study_R - part.studies.start)
        logits_MV = self.around.dual.predict_masked(states.float(), masked_M, places, lengths.tolist(), *image).float()
        wanted = targets[masked_M].clamp(min=0)
        right = (logits_MV.argmax(1) == wanted).sum()
        return weight * F.cross_entropy(logits_MV, wanted, reduction="sum"), {"accuracy": weight * right}
