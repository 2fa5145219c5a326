"""Unit vectors by blocks, float32 similarities of a block, and exact ones of chosen pairs.

Legend: N vectors, D embedding, R rows and C columns of a block, P pairs.
float32 sorts the many that are clearly above or below; float64 decides the few that are near (`Vectors.dots`), so what
is counted does not depend on block sizes, threads or the BLAS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.errors import EvalError

ROWS, COLUMNS, PAIRS = 1024, 4096, 2048  # of a block: 16 MB of similarities; pairs decided together


class Vectors:
    """Rows of a feature matrix, scaled to length 1 as they are taken: the matrix itself is never copied."""

    def __init__(self, features_ND: ArrayLike, what: str, rows: NDArray[np.intp] | None = None) -> None:
        """rows: take these rows of the matrix as 0, 1, ... Raises EvalError naming `what` on a row that is zero or not
        finite."""
        self.array = np.asarray(features_ND)
        self.rows = rows
        n = len(self.array)
        length_N = np.concatenate(
            [np.linalg.norm(self.array[s : s + ROWS].astype(np.float64), axis=1) for s in range(0, n, ROWS)] or [[]]
        )
        bad = ~(np.isfinite(length_N) & (length_N > 1e-12))
        if bad.any():
            raise EvalError(
                f"{what}: {int(bad.sum())} of {n} feature vectors are zero or not finite",
                why="a cosine with them is not a number, and any rank of it would be noise",
                fix="look at the training run: a non-finite weight, or an encoder that returns nothing for these",
            )
        self.inverse_N = 1 / length_N

    def __len__(self) -> int:
        return len(self.array if self.rows is None else self.rows)

    def take(self, index: Any) -> NDArray[np.float32]:
        """Unit vectors of an index array or slice, float32."""
        at = index if self.rows is None else self.rows[index]
        return (self.array[at].astype(np.float64) * self.inverse_N[at][:, None]).astype(np.float32)

    def dots(self, other: Vectors, mine_P: NDArray, theirs_P: NDArray) -> NDArray[np.float64]:
        """Cosines of pairs, summed in float64 over the float32 unit vectors."""
        out = np.empty(len(mine_P))
        for s in range(0, len(mine_P), PAIRS):
            a, b = self.take(mine_P[s : s + PAIRS]), other.take(theirs_P[s : s + PAIRS])
            out[s : s + PAIRS] = np.einsum("pd,pd->p", a, b, dtype=np.float64)
        return out


def spans(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n)."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def doubt(width: int) -> float:
    """Half the width of the band around a threshold in which a float32 cosine decides nothing: about ten times the
    largest error that was measured (1.5e-7 at D = 512), growing as the square root of the width."""
    return 1e-7 * max(10.0, float(np.sqrt(width)))


class NumpyBlocks:
    """Similarities on the CPU."""

    def load(self, vectors_CD: NDArray[np.float32]) -> Any:
        return vectors_CD

    def similarities(self, rows: Any, columns: Any) -> Any:
        return rows @ columns.T

    def columns(self, block: Any, which: NDArray) -> Any:
        return block[:, which]

    def above(self, block: Any, threshold: NDArray[np.float32], axis: int, weights: NDArray | None) -> NDArray:
        """Weight of the entries of each row (axis 1) or column (axis 0) over its own threshold, int64."""
        mask = block > (threshold[:, None] if axis == 1 else threshold[None, :])
        if weights is not None:
            weighted = mask.astype(np.float32)
            return (weighted @ weights if axis == 1 else weights @ weighted).astype(np.int64)
        if axis == 1:
            return mask.view(np.uint8).sum(axis=1, dtype=np.uint32).astype(np.int64)
        out = np.zeros(block.shape[1], dtype=np.int64)
        for part in spans(len(mask), 255):  # sums of bytes that fit a byte: one pass of the vector unit
            out += mask[part].view(np.uint8).sum(axis=0, dtype=np.uint8)
        return out

    def lines(self, block: Any, which: NDArray, axis: int) -> NDArray[np.float32]:
        """Some rows (axis 1) or columns (axis 0), as rows."""
        return block[which] if axis == 1 else block[:, which].T


class TorchBlocks(NumpyBlocks):
    """The same on a GPU; what is near a threshold is decided on the CPU."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch, self.device = torch, torch.device(device)

    def load(self, vectors_CD: NDArray[np.float32]) -> Any:
        return self.torch.from_numpy(vectors_CD).to(self.device)

    def similarities(self, rows: Any, columns: Any) -> Any:
        before = self.torch.get_float32_matmul_precision()
        self.torch.set_float32_matmul_precision("highest")  # TF32 errs by 1e-3, far outside the band of doubt
        try:
            return rows @ columns.T
        finally:
            self.torch.set_float32_matmul_precision(before)

    def columns(self, block: Any, which: NDArray) -> Any:
        return block[:, self.torch.from_numpy(which).to(self.device)]

    def above(self, block: Any, threshold: NDArray[np.float32], axis: int, weights: NDArray | None) -> NDArray:
        edge = self.torch.from_numpy(threshold).to(self.device)
        mask = block > (edge[:, None] if axis == 1 else edge[None, :])
        if weights is None:
            return mask.sum(dim=axis).cpu().numpy()
        heavy = self.torch.from_numpy(weights).to(self.device).double()
        return ((mask.double() @ heavy) if axis == 1 else (heavy @ mask.double())).long().cpu().numpy()

    def lines(self, block: Any, which: NDArray, axis: int) -> NDArray[np.float32]:
        index = self.torch.from_numpy(which).to(self.device)
        return (block[index] if axis == 1 else block[:, index].T).cpu().numpy()


def blocks_on(device: str) -> NumpyBlocks:
    """numpy on "cpu", torch on "cuda" or "cuda:N"."""
    return NumpyBlocks() if device == "cpu" else TorchBlocks(device)
