"""Parameters -> voxels: the order in which the phantom is drawn."""

from __future__ import annotations

import numpy as np

from .abdomen import abdomen
from .body import Scene, trunk
from .canvas import correlated_noise
from .chest import effusions, heart, lungs, nodules, vessels
from .parameters import Parameters


def render(p: Parameters) -> tuple[np.ndarray, Scene]:
    """int16 HU in steps of 2, D,H,W, and what was drawn (sizes, sides) for the report."""
    scene = trunk(p)
    lungs(scene)
    heart(scene)
    effusions(scene)
    nodules(scene)
    abdomen(scene)
    vessels(scene)
    hu = scene.canvas.hu
    hu += correlated_noise(p.rng("noise"), p.shape, p.nuisance["noise_hu"])
    # Steps of 2 HU compress better and hide the last float bit, should a CPU round it differently.
    return (np.rint(np.clip(hu, -1024, 3000) * np.float32(0.5)) * 2).astype(np.int16), scene
