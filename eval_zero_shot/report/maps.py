"""Where a map on the token grid is highest inside the patient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def peak_of(values: NDArray, grey: NDArray[np.uint8]) -> list[int]:
    """Place [d, h, w] on the token grid of the highest value. Cells that hold nothing but air in `grey` [D, H, W] are
    left out, so that a page opens on the patient."""
    return [int(i) for i in np.unravel_index(int(_inside(values, grey).argmax()), values.shape)]


def _inside(values: NDArray, grey: NDArray[np.uint8]) -> NDArray:
    if values.shape[0] == 1 or any(n % g for n, g in zip(grey.shape, values.shape, strict=True)):
        return values
    (d, h, w), (a, b, c) = values.shape, (n // g for n, g in zip(grey.shape, values.shape, strict=True))
    filled = (grey > 0).reshape(d, a, h, b, w, c).mean((1, 3, 5)) > 0.1
    return np.where(filled, values, -np.inf) if filled.any() else values
