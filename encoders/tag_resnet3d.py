"""The tag of `i3d_resnetN`, an inflated ResNet, after the dot of its name: `i3d_resnet152.i-160x224x224_c-1`.

Fields are `key-value` joined by `_`, as in `encoders.tag`; pure Python, so that recipes are checked before torch is
imported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from encoders.tag_fields import Size3, choice_field, count_field, join, read_name, size_field

# name -> bottleneck blocks of its four stages (arXiv 1512.03385, table 1; 26 is timm's: two blocks each)
DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "resnet26": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
NORMS = ("batch", "group")
STRIDE: Size3 = (16, 32, 32)  # voxels a cell of the last map


@dataclass(frozen=True)
class ResNetTag:
    """Geometry of one `i3d_resnetN`. Sizes are (depth, height, width) in voxels.

    `width`: channels of the stem; the last map has 32 times as many. 2D weights exist for 64 alone.
    `norm`: `group` has GroupNorm where the ResNet has BatchNorm.
    """

    size: str = "resnet152"
    grid: Size3 = (160, 224, 224)
    channels: int = 1
    width: int = 64
    norm: str = "batch"

    @property
    def patch(self) -> Size3:
        """What sides of a volume must be multiples of: convolutions pad, so any size goes through."""
        return (1, 1, 1)

    @property
    def tokens(self) -> Size3:
        """Cells (D, H, W) of the last map at the native size."""
        return tuple(-(-g // s) for g, s in zip(self.grid, STRIDE, strict=True))  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """Canonical model name: fields in fixed order, width and norm left out where they are the ResNet's own."""
        parts = [f"i-{join(self.grid)}", f"c-{self.channels}"]
        parts += [f"w-{self.width}"] if self.width != 64 else []
        parts += [f"n-{self.norm}"] if self.norm != "batch" else []
        return f"i3d_{self.size}." + "_".join(parts)


_FIELDS = {
    "i": size_field("grid", "i-160x224x224"),
    "c": count_field("channels"),
    "w": choice_field("width", ("8", "16", "24", "32", "48", "64", "96", "128"), int),
    "n": choice_field("norm", NORMS),
}


def parse_resnet_tag(name: str) -> ResNetTag:
    """Read `i3d_resnetN[.TAG]`. Raises ValueError as `tag_fields.read_name`."""
    size, values = read_name(name, "i3d_", DEPTHS, _FIELDS)
    return replace(ResNetTag(size=size), **values)  # type: ignore[arg-type]
