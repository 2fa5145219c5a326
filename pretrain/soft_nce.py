"""Cross-entropy of images and texts with targets over all pairs, in memory that grows with the batch: by tiles, as
pretrain.tiled_loss.

Forward keeps of every row and column what the loss needs: the log-sum-exp of its logits (streaming), the sum of its
weights, and the means of its logits, weighted and plain. Backward makes logits and weights again.

Legend: N rows (images), M columns (texts), D width, R, C sides of a tile; s the logit of a pair, w its weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain import tiled_loss
from pretrain.targets import Targets
from pretrain.tiled_loss import Gradient, stream, without_autocast


def soft_nce(
    rows_ND: Tensor, columns_MD: Tensor, scale: Tensor, targets: Targets, label_smoothing: float = 0.0,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Cross-entropy of rows over columns and of columns over rows: the mean, over rows of some weight, of

        log sum_j e^{s_ij} - sum_j w_ij s_ij / sum_j w_ij,   s = scale · rows · columnsᵀ

    where j runs over all pairs but those that are neither (`Targets.tile`). With weights of 0 and 1 this is UniCL's
    loss (arXiv 2204.03610, eq. 3 and 4), and with one positive a row CLIP's. With `label_smoothing` e the target is
    1 - e of that and e spread evenly, as in torch's cross_entropy.
    """
    lse_N, lse_M, told_N, told_M, even_N, even_M, weigh_N, weigh_M = _Sums.apply(
        rows_ND, columns_MD, scale, targets, tile or tiled_loss.TILE
    )
    smooth = label_smoothing
    to_columns, to_rows = (
        (lse - (1 - smooth) * told - smooth * even)[weigh > 0].mean()
        for lse, told, even, weigh in ((lse_N, told_N, even_N, weigh_N), (lse_M, told_M, even_M, weigh_M))
    )
    return to_columns, to_rows


class _Tile(NamedTuple):
    """Logits and room for as many numbers: the next tile overwrites both. Weights of its pairs, and which of them are
    neither."""

    rows: slice
    columns: slice
    logits_RC: Tensor
    work_RC: Tensor
    weight_RC: Tensor
    neither_RC: Tensor


def _each(rows_ND: Tensor, columns_MD: Tensor, scale: Tensor, targets: Targets, side: int) -> Iterator[_Tile]:
    n, m = len(rows_ND), len(columns_MD)
    buffers = rows_ND.new_empty(2, min(side, n) * min(side, m))
    for i in range(0, n, side):
        rows = slice(i, min(n, i + side))
        scaled_RD = rows_ND[rows] * scale
        for j in range(0, m, side):
            columns = slice(j, min(m, j + side))
            height, width = rows.stop - rows.start, columns.stop - columns.start
            logits_RC, work_RC = buffers[:, : height * width].view(2, height, width)
            torch.mm(scaled_RD, columns_MD[columns].T, out=logits_RC)
            yield _Tile(rows, columns, logits_RC, work_RC, *targets.tile(rows, columns, logits_RC.dtype))


class _Sums(torch.autograd.Function):
    """Of each row and column: log-sum-exp of its logits, their mean by weight, their mean, the sum of the weights."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, rows_ND: Tensor, columns_MD: Tensor, scale: Tensor, targets: Targets, side: int
    ) -> tuple[Tensor, ...]:
        least = torch.finfo(rows_ND.dtype).min / 2
        sides = rows_ND, columns_MD
        top_N, top_M = (x.new_full((len(x),), least) for x in sides)
        exp_N, exp_M, told_N, told_M, even_N, even_M, weigh_N, weigh_M, pairs_N, pairs_M = (
            x.new_zeros(len(x)) for x in sides * 5
        )
        for tile in _each(rows_ND, columns_MD, scale, targets, side):
            s_RC, w_RC = tile.logits_RC, tile.weight_RC
            s_RC.masked_fill_(tile.neither_RC, 0.0)
            torch.mul(s_RC, w_RC, out=tile.work_RC)
            taken_RC = ~tile.neither_RC
            for dim, at, told, even, weigh, pairs in (
                (1, tile.rows, told_N, even_N, weigh_N, pairs_N),
                (0, tile.columns, told_M, even_M, weigh_M, pairs_M),
            ):
                told[at] += tile.work_RC.sum(dim)
                even[at] += s_RC.sum(dim)
                weigh[at] += w_RC.sum(dim)
                pairs[at] += taken_RC.sum(dim)
            s_RC.masked_fill_(tile.neither_RC, float("-inf"))
            stream(s_RC, tile.work_RC, 1, top_N[tile.rows], exp_N[tile.rows])
            stream(s_RC, tile.work_RC, 0, top_M[tile.columns], exp_M[tile.columns])
        lse_N, lse_M = (top_N + exp_N.log()).clamp(min=least), (top_M + exp_M.log()).clamp(min=least)
        # Where nothing weighs, the numerator is 0 as well, and the row does not count.
        share_N, share_M, part_N, part_M = (
            1 / torch.where(x > 0, x, torch.ones_like(x)) for x in (weigh_N, weigh_M, pairs_N, pairs_M)
        )
        ctx.targets, ctx.side = targets, side
        ctx.save_for_backward(rows_ND, columns_MD, scale, lse_N, lse_M, share_N, share_M, part_N, part_M)
        ctx.mark_non_differentiable(weigh_N, weigh_M)
        means = told_N * share_N, told_M * share_M, even_N * part_N, even_M * part_M
        return lse_N, lse_M, *means, weigh_N, weigh_M

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows_ND, columns_MD, scale, lse_N, lse_M, share_N, share_M, part_N, part_M = ctx.saved_tensors
        of_N, of_M, of_told_N, of_told_M, of_even_N, of_even_M, _, _ = slopes
        told_N, told_M, even_N, even_M = (
            of_told_N * share_N,
            of_told_M * share_M,
            of_even_N * part_N,
            of_even_M * part_M,
        )
        gradient = Gradient(rows_ND, columns_MD, scale, ctx.needs_input_grad)
        for tile in _each(rows_ND, columns_MD, scale, ctx.targets, ctx.side):
            rows, columns, s_RC, slope_RC = tile.rows, tile.columns, tile.logits_RC, tile.work_RC
            torch.sub(s_RC, lse_N[rows, None], out=slope_RC)
            slope_RC.exp_().mul_(of_N[rows, None])
            s_RC.sub_(lse_M[columns]).exp_()
            slope_RC.addcmul_(s_RC, of_M[columns])
            slope_RC.addcmul_(tile.weight_RC, told_N[rows, None]).addcmul_(tile.weight_RC, told_M[columns])
            slope_RC.add_(even_N[rows, None]).add_(even_M[columns])
            slope_RC.masked_fill_(tile.neither_RC, 0.0)
            gradient.add(rows, columns, slope_RC)
        return *gradient.finish(), None, None
