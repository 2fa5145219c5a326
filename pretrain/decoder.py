"""Tokens back to an image: a light decoder for reconstruction losses. It is trained with the tower and not released.

Legend: n images, N tokens, C token width, c channels of the image, (D,) H, W voxels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pretrain.errors import ConfigError

NARROWEST = 8  # channels


def token_stride(trunk: Any) -> tuple[int, ...]:
    """Voxels between tokens, (D, H, W) or (H, W).

    Raises:
        ConfigError: the tower does not say.
    """
    own = getattr(trunk, "token_stride", None)
    if own is not None:
        return tuple(own)
    info = getattr(trunk, "feature_info", None) or []  # timm: a list of dicts, or a FeatureInfo of them
    reduction = list(info)[-1]["reduction"] if len(list(info)) else None
    if reduction is None:
        raise ConfigError(
            "objective inpainting: this image tower does not say how many voxels its tokens stand for",
            why="the decoder could not be made",
            fix="use a voxvit, a swin3d, or a timm tower that has feature_info",
        )
    return (int(reduction),) * 2


def steps_of(stride: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Factors whose product is the stride, axis by axis: twos first, then what is left."""
    rest, found = stride, []
    while any(r % 2 == 0 for r in rest):
        step = tuple(2 if r % 2 == 0 else 1 for r in rest)
        found.append(step)
        rest = tuple(r // s for r, s in zip(rest, step, strict=True))
    return [*found, rest] if not found or any(r > 1 for r in rest) else found


class Decoder(nn.Module):
    """Transposed convolutions without overlap, each with half the channels of the one before (VELVET-Med's `deconv`,
    here with a GELU between them).

    Args:
        width: of the tokens. channels: of the image. stride: voxels a token, (D, H, W) or (H, W).
    """

    def __init__(self, width: int, channels: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride
        convolution = nn.ConvTranspose3d if len(stride) == 3 else nn.ConvTranspose2d
        layers: list[nn.Module] = []
        steps = steps_of(stride)
        for i, step in enumerate(steps):
            narrower = channels if i == len(steps) - 1 else max(NARROWEST, width // 2)
            layers += [convolution(width, narrower, step, step), nn.GELU()]  # type: ignore[arg-type]
            width = narrower
        self.layers = nn.Sequential(*layers[:-1])

    def size_of(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Voxels of the image that tokens on a grid become; () where the grid has other axes."""
        return tuple(g * s for g, s in zip(grid, self.stride, strict=True)) if len(grid) == len(self.stride) else ()

    def forward(self, tokens_nNC: Tensor, grid: tuple[int, ...]) -> Tensor:
        """[n, N, C] on a grid to images [n, c, (D,) H, W]."""
        count, _, width = tokens_nNC.shape
        return self.layers(tokens_nNC.transpose(1, 2).reshape(count, width, *grid))
