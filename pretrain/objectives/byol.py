"""A view predicts what a moving average of tower and head makes of another view (BYOL, arXiv 2006.07733, eq. 2).

    L = mean over pairs of views (a, b), a ≠ b, b large, of  2 - 2 cos( q(g_θ(h_a)), g_ξ(h'_b) )
    ξ ← τ ξ + (1 - τ) θ,   τ = 1 - (1 - τ₀) (cos(π k/K) + 1) / 2   in step k of K

h is the tower's pooled feature and h' that of its average, g a projector, q a predictor. The average of the tower is in
evaluation mode, with the student's running statistics, and that of the projector in training mode, with the batch's;
theirs are both in training mode.

Legend: B studies, v views of each, C trunk width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.dual import DualEncoder
from pretrain.crops import LARGE, by_view, images_of
from pretrain.objectives.base import GlobalBatch, Objective, Surroundings
from pretrain.objectives.distillation import Given, Teacher, keep_share
from pretrain.passes import Part, Pass, Rows, image_rows
from pretrain.schema_objectives import BYOLOptions
from pretrain.view_pairs import projector, width_of
from pretrain.views import trunk_of, two_views

ONLINE, TARGET = "image:byol.trunk", "image:byol.target"


class BYOL(Objective):
    """Cosine between a prediction and the projection of the average. Its pass makes views of its own, which both
    towers see."""

    reads = (ONLINE, TARGET)
    Options = BYOLOptions

    def attach(self, around: Surroundings) -> None:
        told, width = self.options, width_of(around.dual, self.options, "byol")
        self.teacher = Teacher(trunk_of(around.dual, "byol"))
        self.head = projector(width, told.hidden, told.dim, layers=2)
        self.predictor = projector(told.dim, told.hidden, told.dim, layers=2)
        self.target_head = copy.deepcopy(self.head).requires_grad_(False)
        self._given = Given()

    def passes(self) -> Mapping[str, tuple[Pass, tuple[str, ...]]]:
        return {ONLINE.partition(".")[0]: (self.look, ("trunk", "target"))}

    def look(self, dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
        """Features of the views by both towers; of a batch in parts the targets are needed the first time alone."""
        told = self.options
        self.teacher.copy_statistics(dual.clip.visual.trunk)
        if told.views == "crops":
            seen = [(images, owner) for images, owner, _ in images_of(part, told.crops)]
        else:
            seen = [(two_views(part.images, told.max_drop, told.block).images, part.study_b.repeat(2))]
        rows = [image_rows(dual, images, owner, frozenset({"trunk"}))["trunk"] for images, owner in seen]
        found = {"trunk": Rows(torch.cat([r.values for r in rows]), torch.cat([r.owner for r in rows]))}
        if not self._given.before(part):
            large, owner = seen[0]
            found["target"] = Rows(self.teacher(large), owner)
        return found

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        online, target = (by_view(batch.rows[name]).float() for name in self.reads)
        predicted = [F.normalize(self.predictor(self.head(view)), dim=-1) for view in online]
        with torch.no_grad():
            aimed = [F.normalize(self.target_head(view), dim=-1) for view in target]
        pairs = [(a, b) for a in range(len(predicted)) for b in range(LARGE) if a != b]
        cosine = torch.stack([(predicted[a] * aimed[b]).sum(-1).mean() for a, b in pairs]).mean()
        return 2.0 - 2.0 * cosine, {"cosine": cosine.detach()}

    def after_step(self, module: nn.Module) -> None:
        around = cast(Any, module)
        keep = keep_share(self.options.momentum, around.step_number / around.recipe.train.steps)
        self.teacher.follow(around.dual.clip.visual.trunk, keep)
        with torch.no_grad():
            for own, theirs in zip(self.target_head.parameters(), self.head.parameters(), strict=True):
                own.lerp_(theirs, 1.0 - keep)
