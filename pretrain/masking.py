"""Which tokens of a report are hidden for masked language modelling (BERT, arXiv 1810.04805, §3.1).

Legend: T tokens of all reports, M masked ones, R reports.
"""

from __future__ import annotations

import torch
from torch import Tensor

from encoders.report_layout import MASK, Reports

SHARE = 0.15
AS_MASK, AS_OTHER = 0.8, 0.1  # of the hidden: [MASK], any other token; the rest stays, and is predicted all the same


def masked_counts(reports: Reports) -> Tensor:
    """Tokens to hide of each report, [R]: 15 % of its pieces, rounded half up. Of the report alone, so that the number
    of a batch is known before any choice."""
    pieces = torch.bincount(reports.report_T[reports.place_T > 0], minlength=len(reports.lengths))
    return torch.floor(SHARE * pieces + 0.5).long()


def mask_tokens(reports: Reports, special_V: Tensor) -> tuple[Tensor, Tensor]:
    """Ids to read [T] and ids to predict [T], -1 where nothing is hidden. Draws from torch's default generator."""
    device = reports.ids_T.device
    pieces = (reports.place_T > 0).nonzero()[:, 0]
    report = reports.report_T[pieces]
    # Pieces in random order within their report; the first of each are hidden.
    order = torch.argsort(report + torch.rand(len(pieces), dtype=torch.float64, device=device), stable=True)
    starts = torch.searchsorted(report, torch.arange(len(reports.lengths), device=device))
    rank = torch.arange(len(pieces), device=device) - starts[report]
    hidden = pieces[order[rank < masked_counts(reports)[report]]].sort().values
    fate = torch.rand(len(hidden), device=device)
    words = (~special_V).nonzero()[:, 0]
    others = words[torch.randint(len(words), (len(hidden),), device=device)]
    own = reports.ids_T[hidden]
    shown = torch.where(fate < AS_MASK, len(special_V) + MASK, torch.where(fate < AS_MASK + AS_OTHER, others, own))
    targets = torch.full_like(reports.ids_T, -1).index_copy(0, hidden, own)
    return reports.ids_T.index_copy(0, hidden, shown), targets
