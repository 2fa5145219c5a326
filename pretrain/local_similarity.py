"""How alike images and texts are place by place: every unit of a text looks at an image, and is compared with what it
sees (GLoRIA, ICCV 2021, eq. 1 to 5; as VELVET-Med has it, arXiv 2508.12108). Of all pairs, in blocks of them.

For units w_1..T of a text and cells x_1..V of an image, all of unit length:

    p_tv = softmax over the units of the text of <w_t, x_v>        a_tv = softmax over the cells of temperature · p_tv
    c_t = sum_v a_tv x_v                                           cosine_t = cos(c_t, w_t)

What is computed per pair is a cosine a unit; attention is forgotten and made again for the gradient, block by block (of
a batch that is one block it is kept). Three things make a block cheap. Texts are packed one after another, so no unit
is padding; sums over the units of a text are products with the matrix that says which unit is whose. All numbers under
an exponential are at most 1 or temperature, so none needs its maximum taken off. And a cosine does not see the length
of c_t, so a softmax over cells is never divided by its sum, and where an image has fewer cells than features, |c_t|²
comes from the products of its cells and no c_t is made.

Legend: S images, V cells, T units of all texts, G texts of a block, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 23  # numbers of a block's attention, 32 MiB; about six such buffers are alive at once
MOST_TEXTS, MOST_UNITS = 32, 1024  # of a block: products with the matrix of whose unit is whose stay small beside D
LEAST = 1e-8  # of |c_t|²


def local_similarity(
    cells_SVD: Tensor, units_TD: Tensor, lengths: Sequence[int], attention: float = 4.0, pooling: float = 5.0,
    block: int = BLOCK,
) -> Tensor:  # fmt: skip
    """Similarity [S, R] of every image with every text: log of the sum over its units of e^{pooling · cosine_t}.

    Args:
        cells_SVD, units_TD: of unit length; units of one text are neighbours.
        lengths: units of each of the R texts, at least 1; their sum is T. R may be 0.
        attention, pooling: temperatures of the softmax over cells and of the sum over units.
        block: numbers of attention that are made at once, where one image and one text have no more.
    """
    if not lengths:
        return cells_SVD.new_zeros(len(cells_SVD), 0)
    blocks = list(_blocks(cells_SVD, lengths, block))
    cosine_ST = _Cosines.apply(cells_SVD, units_TD, attention, blocks)
    each_ST = (pooling * cosine_ST).exp()
    return torch.cat([each_ST[:, texts.units] @ texts.member_GT.T for texts in blocks[0][1]], 1).log()


@dataclass(frozen=True)
class _Texts:
    """Neighbouring texts: their units, and `member_GT`, 1 where unit t is of text g."""

    units: slice
    member_GT: Tensor


def _blocks(cells_SVD: Tensor, lengths: Sequence[int], block: int) -> Iterator[tuple[slice, list[_Texts]]]:
    """Groups of images, each with all groups of texts."""
    images, cells, _ = cells_SVD.shape
    groups: list[list[int]] = [[]]
    for length in lengths:
        units = sum(groups[-1]) + length
        if groups[-1] and (len(groups[-1]) == MOST_TEXTS or units > MOST_UNITS or units * cells > block):
            groups.append([])
        groups[-1].append(length)
    texts = []
    for first, group in zip(accumulate(map(sum, groups), initial=0), groups, strict=False):
        number_T = torch.repeat_interleave(torch.arange(len(group)), torch.tensor(group, dtype=torch.int64))
        member = torch.zeros(len(group), len(number_T), dtype=cells_SVD.dtype)
        member[number_T, torch.arange(len(number_T))] = 1
        texts.append(_Texts(slice(first, first + len(number_T)), member.to(cells_SVD.device)))
    most = max(1, block // (cells * max(len(t.member_GT[0]) for t in texts)))
    count = -(-images // most)
    for start, stop in pairwise(images * i // count for i in range(count + 1)):
        yield slice(start, stop), texts


class _Cosines(torch.autograd.Function):
    """cosine_t of every image and unit, [S, T]."""

    @staticmethod
    def forward(
        ctx: Any, cells_SVD: Tensor, units_TD: Tensor, attention: float, blocks: list[tuple[slice, list[_Texts]]]
    ) -> Tensor:
        ctx.save_for_backward(cells_SVD, units_TD)
        ctx.attention, ctx.blocks, ctx.kept = attention, blocks, None
        cosine_ST = cells_SVD.new_empty(len(cells_SVD), len(units_TD))
        with torch.autocast(cells_SVD.device.type, enabled=False):
            for images, every in blocks:
                cells = _Cells(cells_SVD[images])
                for texts in every:
                    seen = _Seen(cells, units_TD[texts.units], texts.member_GT, attention)
                    cosine_ST[images, texts.units] = seen.along_BT / seen.length_BT
        if any(ctx.needs_input_grad) and len(blocks) == 1 and len(blocks[0][1]) == 1:
            ctx.kept = seen
        return cosine_ST

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_ST: Tensor) -> tuple[Tensor | None, ...]:
        cells_SVD, units_TD = ctx.saved_tensors
        of_cells, of_units = torch.zeros_like(cells_SVD), torch.zeros_like(units_TD)
        with torch.autocast(cells_SVD.device.type, enabled=False):
            for images, every in ctx.blocks:
                cells = _Cells(cells_SVD[images]) if ctx.kept is None else ctx.kept.cells
                for texts in every:
                    seen = ctx.kept or _Seen(cells, units_TD[texts.units], texts.member_GT, ctx.attention)
                    ctx.kept = None  # it is used up: a second backward pass makes it again
                    seen.backward(slope_ST[images, texts.units], of_units[texts.units])
                of_cells[images] = cells.gradient()
        return of_cells, of_units, None, None


class _Cells:
    """Images of a block, and what is known of the gradient of their cells."""

    def __init__(self, cells_BVD: Tensor) -> None:
        self.cells_BVD = cells_BVD
        self.flat_ND = cells_BVD.flatten(0, 1)
        few = cells_BVD.shape[1] <= cells_BVD.shape[2]
        self.products_BVV = torch.bmm(cells_BVD, cells_BVD.transpose(1, 2)) if few else None
        self.of_flat_ND: Tensor | None = None
        self.of_products_BVV: Tensor | None = None

    def add(self, slope_NT: Tensor, units_TD: Tensor) -> None:
        if self.of_flat_ND is None:
            self.of_flat_ND = slope_NT @ units_TD
        else:
            self.of_flat_ND.addmm_(slope_NT, units_TD)

    def gradient(self) -> Tensor:
        assert self.of_flat_ND is not None
        of_cells_BVD = self.of_flat_ND.view_as(self.cells_BVD)
        if self.of_products_BVV is not None:  # symmetric, as the products are
            of_cells_BVD.baddbmm_(self.of_products_BVV, self.cells_BVD, alpha=2.0)
        return of_cells_BVD


class _Seen:
    """What the units of some texts see in some images: <c_t, w_t> and |c_t| of c_t without the softmax's divisor."""

    def __init__(self, cells: _Cells, units_TD: Tensor, member_GT: Tensor, attention: float) -> None:
        self.cells, self.units_TD, self.member_GT, self.attention = cells, units_TD, member_GT, attention
        b, v, _ = cells.cells_BVD.shape
        self.product_BVT = (cells.flat_ND @ units_TD.T).view(b, v, -1)
        share_NT = self.product_BVT.flatten(0, 1).exp()  # attention · p_tv
        share_NT.mul_((share_NT @ member_GT.T).reciprocal_().mul_(attention) @ member_GT)
        self.share_BVT = share_NT.view(b, v, -1)
        self.weight_BVT = self.share_BVT.exp()
        self.along_BT = (self.weight_BVT * self.product_BVT).sum(1)
        if cells.products_BVV is not None:
            self.seen = torch.bmm(cells.products_BVV, self.weight_BVT)  # <x_v, c_t> [B, V, T]
            square_BT = (self.seen * self.weight_BVT).sum(1)
        else:
            self.seen = torch.bmm(self.weight_BVT.transpose(1, 2), cells.cells_BVD)  # c_t [B, T, D]
            square_BT = self.seen.square().sum(2)
        self.length_BT = square_BT.clamp(min=LEAST).sqrt()

    def backward(self, slope_BT: Tensor, of_units_TD: Tensor) -> None:
        """Add the gradient of cells and units, given that of the cosines. Overwrites what was seen."""
        cells, weight_BVT = self.cells, self.weight_BVT
        of_along_BT = slope_BT / self.length_BT
        of_square_BT = -of_along_BT * self.along_BT / (2 * self.length_BT.square())
        if cells.products_BVV is not None:
            of_weight_BVT = self.seen.mul_(2 * of_square_BT[:, None])
            slope_BVV = torch.bmm(weight_BVT * of_square_BT[:, None], weight_BVT.transpose(1, 2))
            known = cells.of_products_BVV
            cells.of_products_BVV = slope_BVV if known is None else known.add_(slope_BVV)
        else:
            of_seen_BTD = self.seen.mul_(2 * of_square_BT[..., None])
            of_weight_BVT = torch.bmm(cells.cells_BVD, of_seen_BTD.transpose(1, 2))
            through_BVD = torch.bmm(weight_BVT, of_seen_BTD).flatten(0, 1)
            cells.of_flat_ND = through_BVD if cells.of_flat_ND is None else cells.of_flat_ND.add_(through_BVD)
        of_weight_BVT.addcmul_(self.product_BVT, of_along_BT[:, None])
        # through the exponential, then through the softmax over units
        through_NT = of_weight_BVT.mul_(weight_BVT).mul_(self.share_BVT).flatten(0, 1)
        sums_NT = (through_NT @ self.member_GT.T) @ self.member_GT
        through_NT.addcmul_(self.share_BVT.flatten(0, 1), sums_NT, value=-1 / self.attention)
        of_product_NT = through_NT.view_as(weight_BVT).addcmul_(weight_BVT, of_along_BT[:, None]).flatten(0, 1)
        cells.add(of_product_NT, self.units_TD)
        of_units_TD.addmm_(of_product_NT.T, cells.flat_ND)
