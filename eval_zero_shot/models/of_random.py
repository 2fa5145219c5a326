"""Controls: what an architecture without training reaches, and what the pixels themselves reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from data_shards.geometry import Geometry, PlanarGeometry, View
from eval_zero_shot.errors import EvalError
from eval_zero_shot.models import of_open_clip, of_timm
from eval_zero_shot.models.adapter import building, loaded

if TYPE_CHECKING:
    from encoders.loading import Loaded

GRIDS: dict[str, tuple[int, ...]] = {"image": (16, 16), "ct": (8, 8, 8), "volume": (8, 8, 8)}


class Pixels(nn.Module):
    """The study itself, averaged to a small grid, its first channel."""

    def __init__(self, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(grid) if len(grid) == 2 else nn.AdaptiveAvgPool3d(grid)
        self.unused = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells callers the device

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(images[:, :1]).flatten(1)


def load(kind: str, rest: str, device: str) -> Loaded:
    """`random:ARCH` or `pixels:image|ct|volume`. Raises EvalError for a name that nobody knows."""
    return _pixels(rest, device) if kind == "pixels" else _random(rest, device)


def _random(name: str, device: str) -> Loaded:
    import open_clip
    import timm

    fix = "a name of open_clip.list_models() (with a text tower) or timm.list_models() (images alone)"
    with building(f"the random control {name}", fix):
        if name in open_clip.list_models():
            cfg = open_clip.get_model_config(name)
            model = open_clip.create_model(name, precision="fp32", pretrained_image=False, pretrained_text=False)
            return of_open_clip.of_model(model, cfg, open_clip.get_tokenizer(name), device)
        return of_timm.of_model(timm.create_model(name, pretrained=False, num_classes=0), device)


def _pixels(what: str, device: str) -> Loaded:
    if what not in GRIDS:
        raise EvalError(
            f"pixels:{what}",
            why="studies are images or volumes",
            fix="pixels:image, pixels:ct or pixels:volume (percentiles)",
        )
    geometry: Geometry | PlanarGeometry
    if what == "image":
        geometry, view = PlanarGeometry(mean=(0.5,), std=(0.5,), mode="L", resize_mode="squash"), View("centre")
    else:
        windows_in, window = ("unit", (-1000.0, 1000.0)) if what == "ct" else ("percentile", (0.5, 99.5))
        geometry = Geometry(spacing_mm=None, windows=(window,), windows_in=windows_in)
        view = View("resize", (64, 64, 64))
    about = {"package": "pixels", "grid": GRIDS[what]}
    return loaded(Pixels(GRIDS[what]), geometry, view, None, about, device)
