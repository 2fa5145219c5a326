"""The losses of pretrain.tiled_loss on a matrix of all logits and masks of all pairs: slow, obvious, the reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.objectives.base import Pairing


def multi_positive_nce(
    logits_NM: Tensor, positive_NM: Tensor, negative_NM: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """InfoNCE of rows over columns, as `pretrain.tiled_loss.nce` defines it."""
    against_N1 = logits_NM.masked_fill(~negative_NM, float("-inf")).logsumexp(1, keepdim=True)
    against_N1 = against_N1.clamp(min=torch.finfo(logits_NM.dtype).min / 2)
    loss_NM = F.softplus(against_N1 - logits_NM) * positive_NM
    positives_N = positive_NM.sum(1)
    loss_N = loss_NM.sum(1) / positives_N.clamp(min=1)
    if label_smoothing:
        taken_NM = positive_NM | negative_NM
        all_N = logits_NM.masked_fill(~taken_NM, float("-inf")).logsumexp(1)
        mean_N = (logits_NM * taken_NM).sum(1) / taken_NM.sum(1).clamp(min=1)
        loss_N = (1 - label_smoothing) * loss_N + label_smoothing * (all_N - mean_N)
    return loss_N[positives_N > 0].mean()


def pairwise_sigmoid(logits_BU: Tensor, pairs: Pairing) -> Tensor:
    """Softplus of every logit with its sign, over the number of images."""
    loss_BU = F.softplus(torch.where(pairs.positive_BU, -logits_BU, logits_BU))
    return (loss_BU * (pairs.positive_BU | pairs.negative_BU)).sum() / len(logits_BU)
