"""InfoNCE and pairwise sigmoid in memory that grows with the batch, not with its square.

Logits are made tile by tile and forgotten. Forward keeps of them what the losses need: the log-sum-exp over the
negatives of each row and column (streaming: maximum and sum so far, as FlashAttention, arXiv 2205.14135, and for
contrastive losses Inf-CL, arXiv 2410.17243) and the logits of the positives. Backward makes each tile again. Every rank
has the whole global batch, so any number of ranks computes the same.

Legend: N rows (images), M columns (units), P positive pairs, D width, R, C sides of a tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.pairs import Pairs, PairsInTiles

Method = TypeVar("Method", bound=Callable[..., Any])
TILE = 3072  # a side, 36 MiB: enough work for a kernel, or for threads that wait for each other after every operation


def nce(
    rows_ND: Tensor, columns_MD: Tensor, scale: Tensor, pairs: Pairs, label_smoothing: float = 0.0,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """InfoNCE with several positives, of rows over columns and of columns over rows.

    Each is the mean over rows of the mean over their positives p of -log( e^{s_p} / (e^{s_p} + sum over negatives
    e^{s_n}) ), s = scale · rows · columnsᵀ (for one positive that of arXiv 2103.00020, fig. 3). Other positives of the
    row stay out of the denominator (they are no mistakes), and so do pairs that are neither. Rows without a positive do
    not count. With `label_smoothing` e a row's target is 1 - e on its positives and e spread evenly over all its pairs,
    as in torch's cross_entropy.
    """
    tiles = pairs.in_tiles(tile or TILE)
    lse_N, lse_M, positive_P, sum_N, sum_M = _Negatives.apply(rows_ND, columns_MD, scale, tiles, bool(label_smoothing))
    smooth = label_smoothing
    to_columns = _direction(lse_N, positive_P, tiles.row_P, smooth, sum_N, pairs.taken_B if smooth else None)
    to_rows = _direction(lse_M, positive_P, tiles.column_P, smooth, sum_M, pairs.taken_U if smooth else None)
    return to_columns, to_rows


def _direction(
    lse_N: Tensor, positive_P: Tensor, row_P: Tensor, smoothing: float, sum_N: Tensor, taken_N: Tensor | None
) -> Tensor:
    """The loss of rows from the log-sum-exp of their negatives, their positives' logits and (for smoothing) sums."""
    zero_N, positives_N = torch.zeros_like(lse_N), torch.bincount(row_P, minlength=len(lse_N))
    # softplus(lse - s) = log(1 + e^{lse - s})
    loss_N = zero_N.index_add(0, row_P, F.softplus(lse_N[row_P] - positive_P)) / positives_N.clamp(min=1)
    if taken_N is not None:
        top_N = lse_N.detach().scatter_reduce(0, row_P, positive_P.detach(), "amax")
        summed_N = (lse_N - top_N).exp().index_add(0, row_P, (positive_P - top_N[row_P]).exp())
        mean_N = sum_N.index_add(0, row_P, positive_P) / taken_N.clamp(min=1)
        loss_N = (1 - smoothing) * loss_N + smoothing * (top_N + summed_N.log() - mean_N)
    return loss_N[positives_N > 0].mean()


def pairwise_sigmoid(
    rows_ND: Tensor, columns_MD: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, tile: int | None = None
) -> Tensor:
    """Sum over pairs of -log sigmoid(±s), + for positives and - for negatives, divided by the number of rows (SigLIP,
    arXiv 2303.15343, eq. 1); s = scale · rows · columnsᵀ + bias."""
    tiles = pairs.in_tiles(tile or TILE)
    bias = torch.zeros_like(scale) if bias is None else bias
    negative, positive_P = _Sigmoid.apply(rows_ND, columns_MD, scale, bias, tiles)
    return (negative + F.softplus(-positive_P).sum()) / len(rows_ND)


def without_autocast(method: Method) -> Method:
    """A backward pass that starts inside autocast would run in half precision."""

    @functools.wraps(method)
    def exact(ctx: Any, first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *others)

    return cast(Method, exact)


class _Tile(NamedTuple):
    """`logits_RC`, and room for as many numbers in `work_RC`: the next tile overwrites both. `positive` are its pairs,
    which lie at the places `at`; at those of `kin` an image meets a unit of its patient."""

    rows: slice
    columns: slice
    logits_RC: Tensor
    work_RC: Tensor
    positive: slice
    at: Tensor
    kin: Tensor


def _each(rows_ND: Tensor, columns_MD: Tensor, scale: Tensor, pairs: PairsInTiles) -> Iterator[_Tile]:
    """All tiles, row of tiles by row of tiles."""
    side, (n, m) = pairs.tile, (len(rows_ND), len(columns_MD))
    buffers = rows_ND.new_empty(2, min(side, n) * min(side, m))
    for i in range(-(-n // side)):
        rows = slice(i * side, min(n, (i + 1) * side))
        scaled_RD, kin = rows_ND[rows] * scale, pairs.kin(i)
        for j in range(-(-m // side)):
            columns = slice(j * side, min(m, (j + 1) * side))
            height, width = rows.stop - rows.start, columns.stop - columns.start
            logits_RC, work_RC = buffers[:, : height * width].view(2, height, width)
            torch.mm(scaled_RD, columns_MD[columns].T, out=logits_RC)
            here, at = pairs.positives(i, j, width)
            yield _Tile(rows, columns, logits_RC, work_RC, here, at, kin[j][0] * width + kin[j][1])


class Gradient:
    """Adds up gradients of rows, columns and scale from those of tiles of logits."""

    def __init__(self, rows_ND: Tensor, columns_MD: Tensor, scale: Tensor, needed: tuple[bool, ...]) -> None:
        self.inputs = rows_ND, columns_MD, scale
        self.rows_ND = torch.zeros_like(rows_ND)
        self.columns_MD = torch.zeros_like(columns_MD) if needed[1] else None

    def add(self, rows: slice, columns: slice, slope_RC: Tensor) -> None:
        rows_ND, columns_MD, _ = self.inputs
        self.rows_ND[rows].addmm_(slope_RC, columns_MD[columns])
        if self.columns_MD is not None:
            self.columns_MD[columns].addmm_(slope_RC.T, rows_ND[rows])

    def finish(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gradients of the inputs: the sum over pairs of slope · cosine is that of the scale."""
        rows_ND, _, scale = self.inputs
        of_scale = torch.linalg.vecdot(self.rows_ND, rows_ND).sum()
        self.rows_ND.mul_(scale)
        if self.columns_MD is not None:
            self.columns_MD.mul_(scale)
        return self.rows_ND, self.columns_MD, of_scale


class _Negatives(torch.autograd.Function):
    """Log-sum-exp over the negatives of each row and column, logits of the positives, and sums over negatives.

    A row without negatives has the least number there is, halved: finite, and its exponential is 0.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, rows_ND: Tensor, columns_MD: Tensor, scale: Tensor, pairs: PairsInTiles, with_sums: bool
    ) -> tuple[Tensor, ...]:
        least = torch.finfo(rows_ND.dtype).min / 2
        top_N, top_M = (x.new_full((len(x),), least) for x in (rows_ND, columns_MD))
        exp_N, exp_M, sum_N, sum_M = (x.new_zeros(len(x)) for x in (rows_ND, columns_MD) * 2)
        positive_P = rows_ND.new_empty(len(pairs.row_P))
        for tile in _each(rows_ND, columns_MD, scale, pairs):
            s_RC, flat = tile.logits_RC, tile.logits_RC.view(-1)
            positive_P[tile.positive] = flat[tile.at]
            if with_sums:
                flat.index_fill_(0, tile.kin, 0.0)
                sum_N[tile.rows] += s_RC.sum(1)
                sum_M[tile.columns] += s_RC.sum(0)
            flat.index_fill_(0, tile.kin, float("-inf"))
            stream(s_RC, tile.work_RC, 1, top_N[tile.rows], exp_N[tile.rows])
            stream(s_RC, tile.work_RC, 0, top_M[tile.columns], exp_M[tile.columns])
        lse_N, lse_M = (top_N + exp_N.log()).clamp(min=least), (top_M + exp_M.log()).clamp(min=least)
        ctx.pairs, ctx.with_sums = pairs, with_sums
        ctx.save_for_backward(rows_ND, columns_MD, scale, lse_N, lse_M)
        return lse_N, lse_M, positive_P, sum_N, sum_M

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows_ND, columns_MD, scale, lse_N, lse_M = ctx.saved_tensors
        of_N, of_M, of_P, of_sum_N, of_sum_M = slopes
        gradient = Gradient(rows_ND, columns_MD, scale, ctx.needs_input_grad)
        for tile in _each(rows_ND, columns_MD, scale, ctx.pairs):
            s_RC, slope_RC, flat = tile.logits_RC, tile.work_RC, tile.work_RC.view(-1)
            s_RC.view(-1).index_fill_(0, tile.kin, float("-inf"))
            torch.sub(s_RC, lse_N[tile.rows, None], out=slope_RC)
            slope_RC.exp_().mul_(of_N[tile.rows, None])
            s_RC.sub_(lse_M[tile.columns]).exp_()
            slope_RC.addcmul_(s_RC, of_M[tile.columns])
            if ctx.with_sums:
                slope_RC.add_(of_sum_N[tile.rows, None]).add_(of_sum_M[tile.columns])
                flat.index_fill_(0, tile.kin, 0.0)
            flat[tile.at] = of_P[tile.positive]
            gradient.add(tile.rows, tile.columns, slope_RC)
        return *gradient.finish(), None, None


def stream(s_RC: Tensor, work_RC: Tensor, dim: int, top: Tensor, total: Tensor) -> None:
    """Take the exponentials along `dim` into a running sum, relative to a running maximum; both change in place."""
    higher = torch.maximum(top, s_RC.amax(dim))
    torch.sub(s_RC, higher.unsqueeze(dim), out=work_RC)
    total.mul_((top - higher).exp_()).add_(work_RC.exp_().sum(dim))
    top.copy_(higher)


class _Sigmoid(torch.autograd.Function):
    """Sum of softplus over the negatives, and logits of the positives."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, rows_ND: Tensor, columns_MD: Tensor, scale: Tensor, bias: Tensor, pairs: PairsInTiles
    ) -> tuple[Tensor, Tensor]:
        sum_N, positive_P = rows_ND.new_zeros(len(rows_ND)), rows_ND.new_empty(len(pairs.row_P))
        for tile in _each(rows_ND, columns_MD, scale, pairs):
            s_RC, flat = tile.logits_RC.add_(bias), tile.logits_RC.view(-1)
            positive_P[tile.positive] = flat[tile.at]
            flat.index_fill_(0, tile.kin, float("-inf"))
            torch.ops.aten.softplus.out(s_RC, out=tile.work_RC)
            sum_N[tile.rows] += tile.work_RC.sum(1)
        ctx.pairs = pairs
        ctx.save_for_backward(rows_ND, columns_MD, scale, bias)
        return sum_N.sum(), positive_P

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, of_sum: Tensor, of_P: Tensor) -> tuple[Tensor | None, ...]:
        rows_ND, columns_MD, scale, bias = ctx.saved_tensors
        gradient = Gradient(rows_ND, columns_MD, scale, ctx.needs_input_grad)
        bias_N = rows_ND.new_zeros(len(rows_ND))
        for tile in _each(rows_ND, columns_MD, scale, ctx.pairs):
            slope_RC, flat = tile.logits_RC.add_(bias), tile.logits_RC.view(-1)
            flat.index_fill_(0, tile.kin, float("-inf"))
            slope_RC.sigmoid_().mul_(of_sum)
            flat[tile.at] = of_P[tile.positive]
            bias_N[tile.rows] += slope_RC.sum(1)
            gradient.add(tile.rows, tile.columns, slope_RC)
        return *gradient.finish(), bias_N.sum(), None
