"""What can be known of a scan without its anatomy: its corners and border, and how it was acquired.

Legend: D,H,W voxels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.audit.hashes import Pixels

CORNER = 8  # a corner is a side's 1/8, a strip its 1/16
STRIP = 16
SEGMENTS = 4


def border_features(pixels: Pixels) -> NDArray[np.float32]:
    """36 numbers: mean, spread, least and greatest value of the four corners of the plane (through all slices), means
    of four segments of each side's strip, and mean and spread of a volume's first and last slice (0 for an image, of
    which that is everything); scaled by the scan's span."""
    x_DHW = pixels.values_DHW
    low, high = pixels.span
    _, height, width = x_DHW.shape
    h, w = max(1, round(height / CORNER)), max(1, round(width / CORNER))
    corners = [x_DHW[:, rows, cols] for rows in (slice(h), slice(-h, None)) for cols in (slice(w), slice(-w, None))]
    found = [stat for part in corners for stat in (part.mean(), part.std(), part.min(), part.max())]
    h, w = max(1, round(height / STRIP)), max(1, round(width / STRIP))
    for strip, axis in ((x_DHW[:, :h], 2), (x_DHW[:, -h:], 2), (x_DHW[:, :, :w], 1), (x_DHW[:, :, -w:], 1)):
        found += [part.mean() if part.size else strip.mean() for part in np.array_split(strip, SEGMENTS, axis=axis)]
    found += [stat for part in (x_DHW[0], x_DHW[-1]) for stat in (part.mean(), part.std())]
    scaled = (np.asarray(found, dtype=np.float64) - low) / max(high - low, 1e-12)
    if len(x_DHW) == 1:
        scaled[-4:] = 0
    return np.clip(scaled, -10, 10).astype(np.float32)


def acquisition_facts(pixels: Pixels, source: Any, meta: dict[str, Any]) -> NDArray[np.float32]:
    """9 numbers: logarithms of the shape, of the spacing (0 where unknown, and whether it is) and of an image's bytes
    (0 for a volume: how well it compresses is in its spread), mean and spread of its intensities."""
    x_DHW = pixels.values_DHW
    spacing = meta.get("spacing_mm") or ()
    facts = [math.log(n) for n in x_DHW.shape]
    facts += [math.log(s) for s in spacing] if len(spacing) == 3 else [0.0, 0.0, 0.0]
    facts += [math.log(len(source)) if isinstance(source, bytes) else 0.0]
    low, high = pixels.span
    part = x_DHW[:: max(1, len(x_DHW) // 32)].astype(np.float32)
    facts += [(float(part.mean()) - low) / max(high - low, 1e-12), float(part.std()) / max(high - low, 1e-12)]
    return np.asarray(facts, dtype=np.float32)
