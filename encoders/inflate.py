"""2D weights as the start of a tower for volumes: `model.image.inflate`.

What becomes of a 2D kernel is each architecture's own business: a function in a file of its own, named in `BY_TOWER`.

Legend: O, I output and input channels, h, w sides of a kernel.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from encoders.errors import ReleaseError
from encoders.tensor_file import read_tensors

# Class of the tower -> "module:function" that fills it: (tower, 2D state dict) -> Inflation.
BY_TOWER = {
    "ResNet3D": "encoders.inflate_resnet:inflate_resnet",
    "VoxViT": "encoders.inflate_vit:inflate_vit",
}


@dataclass(frozen=True)
class Inflation:
    """What became of every tensor: how many of the tower were `filled`, which of the 2D network were left `aside`
    (classifiers, say), and which of the tower stay `fresh`, as they were made at random."""

    filled: int
    aside: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        """In a line; names are shortened to their first part, with how many there are."""
        return f"{self.filled} tensors filled; left aside: {_counted(self.aside)}; still random: {_counted(self.fresh)}"


def _counted(names: tuple[str, ...]) -> str:
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts.items()) or "none"


def inflate(tower: nn.Module, source: str) -> Inflation:
    """Fill a tower in place from 2D weights and say what became of every tensor.

    Args:
        source: a file (.safetensors, or a .pth that is read without executing it), or a timm name, whose published
            weights are downloaded.

    Raises:
        ReleaseError: no such file or name, a tower without a 2D counterpart, or weights of another architecture.
    """
    target = BY_TOWER.get(type(tower).__name__)
    if target is None:
        raise ReleaseError(
            f"{type(tower).__name__} cannot start from 2D weights",
            "there is no 2D network whose weights mean the same in it",
            f"use one of {', '.join(BY_TOWER)}, or leave model.image.inflate out",
        )
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(tower, weights_2d(source))


def weights_2d(source: str) -> Mapping[str, Tensor]:
    """State dict of a file or of a timm name. Raises ReleaseError."""
    path = Path(source).expanduser()
    fix = "a .safetensors or .pth file with a state dict, or a name from timm.list_pretrained() and a network"
    if path.is_file():
        return read_tensors(path, fix)
    import timm

    try:
        return timm.create_model(source, pretrained=True).state_dict()
    except Exception as error:  # whatever timm or a hub raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"no 2D weights at '{source}': {reason}"
        raise ReleaseError(what, "the tower would start at random", fix) from error


def for_channels(kernel_OIhw: Tensor, channels: int) -> Tensor:
    """A stem that reads red, green and blue for `channels` windows. Three windows take their places; any other number
    shares their sum, so equal windows look as a grey image does: one window is Merlin's, repeated three times."""
    if kernel_OIhw.shape[1] == channels:
        return kernel_OIhw
    return kernel_OIhw.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
