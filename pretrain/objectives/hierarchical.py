"""Contrast of the parts of texts with the places of images: L_local of VELVET-Med (arXiv 2508.12108), after GLoRIA
(ICCV 2021). With s(image, text) the similarity of pretrain.local_similarity, temperatures 4 and 5 in it,

    L = (CE over texts of 10 s(image, ·) + CE over images of 10 s(·, text)) / 2

Levels of it are entries of a recipe: sentences over a coarse map of the image, words over a finer one. As published,
negatives are those of one GPU, and every other study is one; here they are those of all ranks, and studies of one
patient or with one text are left out of each other's sums. Both can be switched back.

Legend: B studies, S images, R studies with a text, T units of all texts, U distinct ones, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.heads.local import LocalProjections
from pretrain.dense_nce import multi_positive_nce
from pretrain.errors import ConfigError
from pretrain.local_similarity import local_similarity
from pretrain.objectives.base import GlobalBatch, NoUnits, Objective, Surroundings, texts_of
from pretrain.passes import Rows
from pretrain.schema_objectives import HierarchicalOptions

UNITS, IDENTITY = "text:units.units", "report:units.identity"


class Hierarchical(Objective):
    """Local contrast of one level. Its projections are released: they draw heat maps.

    Each rank and each part compares its own images with the texts of all, and only similarities are kept and gathered.
    """

    coupling = "pair"
    Options = HierarchicalOptions

    def __init__(self, options: HierarchicalOptions) -> None:
        super().__init__(options)
        self.place = "tokens" if options.level is None else f"level{options.level}"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        image = f"image:global.{self.place}"
        if self.options.text == "units":
            return image, UNITS
        return image, f"report:units.{self.options.text}", *((IDENTITY,) if self.options.exclude_related else ())

    def attach(self, around: Surroundings) -> None:
        dual, level = around.dual, self.options.level
        trunk = getattr(dual.clip.visual, "trunk", None)
        if trunk is None:
            raise ConfigError(
                "objectives: hierarchical needs places of the image, and this image tower gives none",
                why="there would be nothing to compare the parts of a text with",
                fix="use a timm tower (a voxvit), or leave the objective out",
            )
        widths = getattr(dual, "level_widths", ()) if level is not None else (trunk.num_features,)
        if level is not None and level >= len(widths):
            raise ConfigError(
                f"objectives: hierarchical asks for level {level} of an image tower that has {len(widths)}",
                why="there would be nothing to compare the parts of a text with",
                fix="use a tower with a pyramid (a swin3d), or leave `level` out for the tower's tokens",
            )
        width = int(dual.model_cfg["embed_dim"])
        self.projections = LocalProjections(int(widths[level or 0]), width, self.options.width)

    def released(self) -> dict[str, torch.nn.Module]:
        return {f"local_{self.place}_{self.options.text}": self.projections}

    def scores(self, rows: Mapping[str, Rows], batch: GlobalBatch) -> Rows:
        """s(image, text) [S, R]; with negatives of one GPU 0 where the text is another's."""
        images, (units_TD, study_R, lengths_R) = rows[f"image:global.{self.place}"], self._texts(batch)
        cells_SVD, units_TD = self.projections.cells(images.values.float()), self.projections.units(units_TD)
        temperatures = (self.options.attention_temperature, self.options.pooling_temperature)
        if self.options.gather:
            return Rows(local_similarity(cells_SVD, units_TD, lengths_R.tolist(), *temperatures), images.owner)
        rank, rank_R = batch.rank_B[images.owner[0] + batch.first], batch.rank_B[study_R]
        mine, before, begin = lengths_R[rank_R == rank], int((rank_R < rank).sum()), int(lengths_R[rank_R < rank].sum())
        units_TD = units_TD[begin : begin + int(mine.sum())]
        found = local_similarity(cells_SVD, units_TD, mine.tolist(), *temperatures)
        return Rows(F.pad(found, (before, len(study_R) - before - len(mine))), images.owner)

    def of_scores(self, scores: Rows, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        options, (_, study_R, lengths_R) = self.options, self._texts(batch)
        own_SR = scores.owner[:, None] == study_R[None]
        negative_SR = ~own_SR
        if not options.gather:
            negative_SR = negative_SR & (batch.rank_B[scores.owner][:, None] == batch.rank_B[study_R][None])
        if options.exclude_related:
            negative_SR = negative_SR & ~self._related(batch)[scores.owner][:, study_R]
        logits_SR = options.temperature * scores.values
        to_text = multi_positive_nce(logits_SR, own_SR, negative_SR)
        to_image = multi_positive_nce(logits_SR.T, own_SR.T, negative_SR.T)
        return (to_text + to_image) / 2, {"units": lengths_R.float().mean()}

    def _texts(self, batch: GlobalBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Units of all texts [T, D], those of a study one after another, the studies [R], ascending, and how many units
        each has [R]."""
        if self.options.text == "units":
            text = texts_of(batch, self.options.units)
            units_TD, owner_T = text.units_UD[text.pair_unit_P], text.pair_sample_P
        else:
            rows = batch.rows[f"report:units.{self.options.text}"]
            units_TD, owner_T = rows.values, rows.owner
        if not len(owner_T):
            raise NoUnits(
                f"no study of this batch has {self.options.text}\n"
                "  why: the objective would train nothing, in silence\n"
                "  fix: leave out studies without a report (data_shards.select)"
            )
        owner_T, order_T = torch.sort(owner_T, stable=True)
        return units_TD[order_T], *torch.unique_consecutive(owner_T, return_counts=True)

    def _related(self, batch: GlobalBatch) -> Tensor:
        """Studies of one patient or one text [B, B]: one report, or the same units in any order."""
        patient_BB = batch.patient_B[:, None] == batch.patient_B[None]
        if self.options.text != "units":
            identity = batch.rows[IDENTITY]
            same_RR = (identity.values[:, None] == identity.values[None]).any(-1)
            same_BB = torch.zeros_like(patient_BB)
            same_BB[identity.owner[:, None], identity.owner[None]] = same_RR
            return patient_BB | same_BB
        text = texts_of(batch, self.options.units)
        has_BU = torch.zeros(len(patient_BB), len(text.units_UD), device=patient_BB.device)
        has_BU[text.pair_sample_P, text.pair_unit_P] = 1
        count_B, common_BB = has_BU.sum(1), has_BU @ has_BU.T
        return batch.related_BB(("report",)) | ((common_BB == count_B[:, None]) & (common_BB == count_B[None]))
