"""Two views of one image find each other among all views (NT-Xent: SimCLR, arXiv 2002.05709, eq. 1).

    z_i = unit length of g(h_i), h_i the tower's pooled feature of view i before the projection into the joint space
    l_i = -log( exp(z_i·z_p / τ) / ( exp(z_i·z_p / τ) + Σ_{n in N(i)} exp(z_i·z_n / τ) ) ),   L = mean of l_i

p is the other view of the same study; N(i) are the views of all studies of the global batch that are of another patient
and have another report. SwinUNETR's self-supervision, which VELVET-Med uses, takes a linear g of 512 and τ = 0.5; its
negatives are all other studies, of its own GPU alone: both can be switched back.

With small crops beside two large ones (pretrain.crops) every view of the study is a p of its own; l_i is their mean.

Legend: B studies, n = 2B views or more, C trunk width, D projection width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.dense_nce import multi_positive_nce
from pretrain.objectives.base import GlobalBatch, Surroundings
from pretrain.schema_objectives import SimCLROptions
from pretrain.view_pairs import OfViews, width_of

SAME_TEXT = ("report",)  # sentences and captions are shared by images that have little else in common


class SimCLR(OfViews):
    """NT-Xent over the views of the global batch, with a projection head of its own."""

    Options = SimCLROptions

    def attach(self, around: Surroundings) -> None:
        width, hidden = width_of(around.dual, self.options, "simclr"), self.options.hidden
        before = [nn.Linear(width, hidden), nn.ReLU()] if hidden else []
        self.head = nn.Sequential(*before, nn.Linear(hidden or width, self.options.dim))

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        views = batch.rows[self.reads[0]]
        z_nD = F.normalize(self.head(views.values.float()), dim=1)
        logits_nn = z_nD @ z_nD.T / self.options.temperature
        same_nn = views.owner[:, None] == views.owner[None, :]
        positive_nn = same_nn & ~torch.eye(len(z_nD), dtype=torch.bool, device=z_nD.device)
        negative_nn = ~same_nn
        if self.options.exclude_related:
            negative_nn = ~batch.related_BB(SAME_TEXT)[views.owner][:, views.owner]
        if not self.options.gather:
            rank_n = batch.rank_B[views.owner]
            negative_nn = negative_nn & (rank_n[:, None] == rank_n[None, :])
        with torch.no_grad():
            best_n = logits_nn.masked_fill(~(positive_nn | negative_nn), float("-inf")).argmax(1)
            found = positive_nn.gather(1, best_n[:, None]).float().mean()
        return multi_positive_nce(logits_nn, positive_nn, negative_nn), {"accuracy": found}
