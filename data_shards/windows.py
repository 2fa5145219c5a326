"""Windows as a training step makes them on its device, of values that the stream hands over as they are.

Three windows of one scan are three times its voxels in float32: of 256 volumes of 112 x 336 x 336 they fill 39 GB, the
values themselves in float16 6.5 GB. float16 holds HU to 0.06 around soft tissue and to 1 at 1,024, and windows that it
cannot tell into 512 steps stay what they were. The arithmetic is that of data_shards.resampling in float32, on a GPU to
rounding.

Shapes: B studies, S scans of a study, W windows, C = S·W channels, D,H,W voxels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_shards.geometry import AnyGeometry, Geometry

STEPS = 512  # of a window, as many as bf16 has near its ends


class Windows(NamedTuple):
    """(low, high) of each window in the scan's unit, and `Geometry.levels`."""

    bounds: tuple[tuple[float, float], ...]
    levels: int | None

    @classmethod
    def of(cls, geometry: AnyGeometry) -> Windows | None:
        """None for images, for windows in percentiles, which every scan has others of, and for those that float16 does
        not reach or is too coarse for."""
        if not isinstance(geometry, Geometry) or geometry.windows_in != "unit":
            return None
        for low, high in geometry.windows:
            with np.errstate(over="ignore", invalid="ignore"):
                spacing = float(np.spacing(np.float16(max(abs(low), abs(high)))))
            if not spacing * STEPS <= high - low:  # not a number beyond its range
                return None
        return cls(geometry.windows, geometry.levels)

    @torch.no_grad()
    def __call__(self, values_BSDHW: Tensor) -> Tensor:
        """[B, S, D, H, W] values, -inf where a scan is absent, to [B, S·W, D, H, W] float32 in [-1, 1]."""
        out_BSWDHW = values_BSDHW.new_empty(
            (*values_BSDHW.shape[:2], len(self.bounds), *values_BSDHW.shape[2:]), dtype=torch.float32
        )
        with torch.autocast(values_BSDHW.device.type, enabled=False):
            for number, (low, high) in enumerate(self.bounds):
                one = out_BSWDHW[:, :, number]
                one.copy_(values_BSDHW).sub_(low).mul_(2.0 / (high - low)).sub_(1.0).clamp_(-1.0, 1.0)
            if self.levels is not None:
                half = (self.levels - 1) / 2
                out_BSWDHW.add_(1.0).mul_(half).round_().div_(half).sub_(1.0)
        return out_BSWDHW.flatten(1, 2)
