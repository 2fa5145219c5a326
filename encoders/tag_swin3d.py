"""The tag of `swin3d_SIZE` after the dot of its name: `swin3d_small.i-96x96x96_c-1`.

Fields are `key-value` joined by `_`, as in `encoders.tag`; pure Python, so that recipes are checked before torch is
imported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from encoders.tag_fields import Field, Size3, count_field, join, read_name, size_field

# size -> width of the patches, blocks and heads of the four stages. tiny is SwinUNETR's (arXiv 2201.01266), small and
# base are VELVET-Med's (arXiv 2508.12108), whose base is small at twice the width.
SWINS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "tiny": (48, (2, 2, 2, 2), (3, 6, 12, 24)),
    "small": (48, (2, 8, 8, 8), (4, 8, 16, 32)),
    "base": (96, (2, 8, 8, 8), (4, 8, 16, 32)),
}
STRIDES = (4, 8, 16, 32)  # voxels a cell of the four maps, in every direction
MULTIPLE = STRIDES[-1]


@dataclass(frozen=True)
class SwinTag:
    """Geometry of one `swin3d`. Sizes are (depth, height, width) in voxels.

    `width`: of the patches, the four maps have 2, 4, 8 and 16 times as many channels; None keeps the size's own.
    `layers`: blocks of each stage; None keeps the size's own.
    """

    size: str = "tiny"
    grid: Size3 = (96, 96, 96)
    channels: int = 1
    width: int | None = None
    layers: int | None = None

    @property
    def patch(self) -> Size3:
        """What sides of a volume must be multiples of, or cells of the coarsest map would be cut."""
        return (MULTIPLE, MULTIPLE, MULTIPLE)

    @property
    def tokens(self) -> Size3:
        """Cells (D, H, W) of the coarsest map at the native size."""
        return tuple(g // MULTIPLE for g in self.grid)  # type: ignore[return-value]

    @property
    def embed(self) -> int:
        return SWINS[self.size][0] if self.width is None else self.width

    @property
    def depths(self) -> tuple[int, ...]:
        return SWINS[self.size][1] if self.layers is None else (self.layers,) * len(STRIDES)

    @property
    def heads(self) -> tuple[int, ...]:
        return SWINS[self.size][2]

    @property
    def name(self) -> str:
        """Canonical model name: fields in fixed order, width and layers left out where they are the size's own."""
        parts = [f"i-{join(self.grid)}", f"c-{self.channels}"]
        parts += [] if self.width is None else [f"w-{self.width}"]
        parts += [] if self.layers is None else [f"l-{self.layers}"]
        return f"swin3d_{self.size}." + "_".join(parts)


_FIELDS = {
    "i": size_field("grid", "i-96x96x96"),
    "c": count_field("channels"),
    "w": Field("width", r"[1-9]\d{0,3}", "an integer from 1 to 9999", int),
    "l": count_field("layers"),
}


def parse_swin_tag(name: str) -> SwinTag:
    """Read `swin3d_SIZE[.TAG]`.

    Raises:
        ValueError: unknown size, unknown or repeated field, a value that its field does not take, a size that is no
            multiple of 32, a width that the heads do not divide.
    """
    size, values = read_name(name, "swin3d_", SWINS, _FIELDS)
    width, depths, heads = SWINS[size]
    if values.get("width") == width:  # one geometry, one name
        del values["width"]
    if depths == (values.get("layers"),) * len(depths):
        del values["layers"]
    tag = replace(SwinTag(size=size), **values)  # type: ignore[arg-type]
    if any(g % MULTIPLE for g in tag.grid):
        raise ValueError(f"grid {join(tag.grid)} is not a multiple of {MULTIPLE} in every direction")
    if tag.embed % heads[0]:
        raise ValueError(f"field 'w-{tag.embed}': the {heads[0]} heads of the first stage do not divide it")
    return tag
