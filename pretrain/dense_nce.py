"""InfoNCE on a matrix of all logits, with several positives a row and pairs left out.

Legend: N rows, M columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_positive_nce(
    logits_NM: Tensor, positive_NM: Tensor, negative_NM: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over rows of the mean over their positives p of -log( e^{s_p} / (e^{s_p} + sum over negatives e^{s_n}) ).

    Other positives of the row stay out of the denominator (they are no mistakes), and so do pairs that are neither.
    With one positive a row and all else negative this is cross-entropy. Rows without a positive do not count. With
    `label_smoothing` e a row's target is 1 - e on its positives and e spread evenly over all its pairs, as in torch's
    cross_entropy.
    """
    against_N1 = logits_NM.masked_fill(~negative_NM, float("-inf")).logsumexp(1, keepdim=True)
    # softplus(lse - s) = log(1 + e^{lse - s}); a row without negatives has lse = -inf and loss 0, kept finite here.
    against_N1 = against_N1.clamp(min=torch.finfo(logits_NM.dtype).min / 2)
    loss_NM = F.softplus(against_N1 - logits_NM) * positive_NM
    positives_N = positive_NM.sum(1)
    rows = positives_N > 0
    loss_N = loss_NM.sum(1) / positives_N.clamp(min=1)
    if label_smoothing:
        taken_NM = positive_NM | negative_NM
        all_N = logits_NM.masked_fill(~taken_NM, float("-inf")).logsumexp(1)
        mean_N = (logits_NM * taken_NM).sum(1) / taken_NM.sum(1).clamp(min=1)
        loss_N = (1 - label_smoothing) * loss_N + label_smoothing * (all_N - mean_N)
    return loss_N[rows].mean()
