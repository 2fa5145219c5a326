"""Which quarter turn an image was given (RotNet, arXiv 1803.07728, eq. 2; SwinUNETR, arXiv 2111.14791, eq. 2).

    L = -(1/B) Σ_studies (1/2) Σ_{v = 1, 2} log softmax(W h_v + b)[k_v],   k_v in {0, 1, 2, 3} quarter turns of view v

h_v is the tower's pooled feature of the view before the projection into the joint space. Needs a square plane: recipes
are refused otherwise.

Legend: b studies of a part, n = 2b views.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.objectives.base import Objective, Surroundings
from pretrain.passes import Part, Pass, Rows
from pretrain.schema_objectives import RotationOptions
from pretrain.views import offered, width_of

TURNS = 4


class Rotation(Objective):
    """Classification of the turn of both views by a linear head."""

    reads = ("image:views.trunk", "image:views.turns")
    coupling = "sample"
    Options = RotationOptions

    def passes(self) -> Mapping[str, tuple[Pass, tuple[str, ...]]]:
        return offered(self.options)

    def attach(self, around: Surroundings) -> None:
        self.head = nn.Linear(width_of(around.dual, "rotation"), TURNS)

    def each(self, rows: Mapping[str, Rows], part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        logits_n4, turns_n = self.head(rows["image:views.trunk"].values).float(), rows["image:views.turns"].values
        right = (logits_n4.argmax(1) == turns_n).sum() / 2
        return F.cross_entropy(logits_n4, turns_n, reduction="sum") / 2, {"accuracy": right.float()}
