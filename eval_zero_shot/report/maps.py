"""A map on the token grid as a page takes it: scaled by what is inside the patient, and where it is highest there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHARE, ATTENTION, SIMILARITY = "share of the score", "attention of the text", "token–text similarity"
SAYS = {  # of a map, what a reader sees
    ATTENTION: "where the released head “attended”, which was trained to find what an image shows of a text, looks for "
    "it. Orange: more than at the study's median token; blue: less. The plain cosine does not read this head.",
    SHARE: "gradient of the score times what sets a token apart from the same place in ordinary studies. Orange adds "
    "to the score, blue takes from it. No head was trained for it.",
    SIMILARITY: "orange tokens are nearer to the text than the study's median token, blue ones farther. No head was "
    "trained for it.",
}


def as_int8(values: NDArray, grey: NDArray[np.uint8]) -> bytes:
    """Values [d, h, w] scaled so that 127 is the largest magnitude where `grey` [D, H, W] holds more than air."""
    inside = np.abs(values)[_filled(values, grey)]
    return np.clip(np.rint(127 * values / (inside.max() or 1.0)), -127, 127).astype(np.int8).tobytes()


def peak_of(values: NDArray, grey: NDArray[np.uint8]) -> list[int]:
    """Place [d, h, w] on the token grid of the highest value. Cells that hold nothing but air in `grey` [D, H, W] are
    left out, so that a page opens on the patient."""
    inside = np.where(_filled(values, grey), values, -np.inf)
    return [int(i) for i in np.unravel_index(int(inside.argmax()), values.shape)]


def _filled(values: NDArray, grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Cells with something in them; all, where that cannot be told."""
    everywhere = np.ones(values.shape, np.bool_)
    if values.shape[0] == 1 or any(n % g for n, g in zip(grey.shape, values.shape, strict=True)):
        return everywhere
    (d, h, w), (a, b, c) = values.shape, (n // g for n, g in zip(grey.shape, values.shape, strict=True))
    filled = (grey > 0).reshape(d, a, h, b, w, c).mean((1, 3, 5)) > 0.1
    return filled if filled.any() else everywhere
