"""The tag after the dot: a volumetric encoder's whole geometry in its name.

open_clip 3.3 hands a timm tower nothing but its name, so `voxvit_tiny.p-8x16x16_i-96x192x192_c-3` has to say all of
it. Fields are `key-value` joined by `_`; the canonical form leaves out every field that has its default. Pure Python:
recipes are checked against it before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from encoders.tag_fields import Size3, choice_field, count_field, join, read_name, size_field

SIZES: dict[str, tuple[int, int, int]] = {  # name -> width, depth, heads (ViT-Ti/S/B/L of arXiv 2010.11929, 2012.12877)
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
STEMS = ("patch", "conv", "extremes")
POSITIONS = ("learned", "rope")
POOLS = ("cls", "mean", "attn", "max", "grid")
ATTENTIONS = ("full", "slice3", "volume3")


@dataclass(frozen=True)
class Tag:
    """Geometry of one `voxvit`. Sizes are (depth, height, width) in voxels.

    `stem`: `patch` is one strided convolution; `conv` is a pyramid of strided 3x3x3 convolutions with GroupNorm
        (arXiv 2106.14881); `extremes` convolves over fixed statistics of small blocks (encoders.stem).
    `channels`: of all volumes together.
    `volumes`: how many volumes a study has, one after another on the channel axis; one it lacks is -1 everywhere.
    `attention`: `slice3` attends inside a slice of tokens, every third block over the whole study; `volume3` inside a
        volume, every third block over the study (HLIP, arXiv 2505.21862).
    `pool`: `grid` reads every place of the token grid by itself, for scans that show the same region each time.
    `layers`: None keeps the size's own depth; 0 pools the stem's tokens as they are.
    """

    size: str = "tiny"
    patch: Size3 = (8, 16, 16)
    grid: Size3 = (96, 192, 192)
    channels: int = 1
    stem: str = "patch"
    positions: str = "learned"
    pool: str = "cls"
    attention: str = "full"
    layers: int | None = None
    volumes: int = 1

    @property
    def channels_each(self) -> int:
        """Channels of one volume."""
        return self.channels // self.volumes

    @property
    def tokens(self) -> Size3:
        """Token grid (D, H, W) of one volume at the native size."""
        return tuple(g // p for g, p in zip(self.grid, self.patch, strict=True))  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """Canonical model name: fields in fixed order, defaults of the optional ones left out."""
        parts = [f"p-{join(self.patch)}", f"i-{join(self.grid)}", f"c-{self.channels}"]
        if self.volumes != 1:
            parts.append(f"v-{self.volumes}")
        default = Tag()
        for key, (attribute, _) in _CHOICES.items():
            value = getattr(self, attribute)
            if value != getattr(default, attribute):
                parts.append(f"{key}-{value}")
        if self.layers is not None:
            parts.append(f"l-{self.layers}")
        return f"voxvit_{self.size}." + "_".join(parts)


_CHOICES = {"s": ("stem", STEMS), "e": ("positions", POSITIONS), "o": ("pool", POOLS), "a": ("attention", ATTENTIONS)}
_FIELDS = {
    "p": size_field("patch", "p-8x16x16"),
    "i": size_field("grid", "i-96x192x192"),
    "c": count_field("channels"),
    "v": count_field("volumes"),
    "l": count_field("layers", least=0),
    **{key: choice_field(*choice) for key, choice in _CHOICES.items()},
}


def parse_tag(name: str) -> Tag:
    """Read `voxvit_SIZE[.TAG]` into a `Tag`.

    Raises:
        ValueError: unknown size, unknown or repeated field, value outside its choices, grid the patch does not divide,
            channels the volumes do not divide.
    """
    size, values = read_name(name, "voxvit_", SIZES, _FIELDS)
    tag = replace(Tag(size=size), **values)  # type: ignore[arg-type]
    if any(g % p for g, p in zip(tag.grid, tag.patch, strict=True)):
        raise ValueError(f"grid {join(tag.grid)} is not a multiple of patch {join(tag.patch)}")
    if tag.channels % tag.volumes:
        raise ValueError(
            f"v-{tag.volumes} does not divide c-{tag.channels}: c- counts the channels of all volumes together, "
            "as many in each"
        )
    if tag.attention == "volume3" and tag.volumes == 1:
        raise ValueError("a-volume3 attends inside each volume of a study: name their number, v-2 or more")
    if tag.layers == 0 and (tag.pool == "cls" or tag.positions == "rope" or tag.attention != "full"):
        raise ValueError("l-0 has no attention: o-cls, e-rope, a-slice3 and a-volume3 would do nothing, in silence")
    if tag.stem != "patch" and any(p & (p - 1) for p in tag.patch):
        raise ValueError(f"stem {tag.stem} halves step by step: patch {join(tag.patch)} must be powers of two")
    return tag
