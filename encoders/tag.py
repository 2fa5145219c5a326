"""The tag after the dot: a volumetric encoder's whole geometry in its name.

open_clip 3.3 hands a timm tower nothing but its name, so `voxvit_tiny.p-8x16x16_i-96x192x192_c-3` has to say all of
it. Fields are `key-value` joined by `_`; the canonical form leaves out every field that has its default. Pure Python:
recipes are checked against it before torch is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

Size3 = tuple[int, int, int]

SIZES: dict[str, tuple[int, int, int]] = {  # name -> width, depth, heads (ViT-Ti/S/B/L of arXiv 2010.11929, 2012.12877)
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
STEMS = ("patch", "conv", "extremes")
POSITIONS = ("learned", "rope")
POOLS = ("cls", "mean", "attn", "max", "grid")
ATTENTIONS = ("full", "slice3")


@dataclass(frozen=True)
class Tag:
    """Geometry of one `voxvit`. Sizes are (depth, height, width) in voxels.

    `stem`: `patch` is one strided convolution; `conv` is a pyramid of strided 3x3x3 convolutions with GroupNorm
        (arXiv 2106.14881); `extremes` convolves over fixed statistics of small blocks (encoders.stem).
    `attention`: `slice3` attends inside a slice of tokens, every third block over the whole volume
        (HLIP, arXiv 2505.21862).
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

    @property
    def tokens(self) -> Size3:
        """Token grid (D, H, W) at the native size."""
        return tuple(g // p for g, p in zip(self.grid, self.patch, strict=True))  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """Canonical model name: fields in fixed order, defaults of the optional ones left out."""
        parts = [f"p-{_join(self.patch)}", f"i-{_join(self.grid)}", f"c-{self.channels}"]
        default = Tag()
        for key, (attribute, _) in _CHOICES.items():
            value = getattr(self, attribute)
            if value != getattr(default, attribute):
                parts.append(f"{key}-{value}")
        if self.layers is not None:
            parts.append(f"l-{self.layers}")
        return f"voxvit_{self.size}." + "_".join(parts)


_CHOICES = {"s": ("stem", STEMS), "e": ("positions", POSITIONS), "o": ("pool", POOLS), "a": ("attention", ATTENTIONS)}
_KEYS = {"p": "patch", "i": "grid", "c": "channels", "l": "layers"} | {k: v[0] for k, v in _CHOICES.items()}


def _join(size: Size3) -> str:
    return "x".join(str(s) for s in size)


def _size(key: str, value: str) -> Size3:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", value):
        raise ValueError(f"field '{key}-{value}': expected three positive integers as in '{key}-8x16x16'")
    return tuple(int(v) for v in value.split("x"))  # type: ignore[return-value]


def parse_tag(name: str) -> Tag:
    """Read `voxvit_SIZE[.TAG]` into a `Tag`.

    Raises:
        ValueError: unknown size, unknown or repeated field, value outside its choices, grid the patch does not divide.
    """
    base, _, text = name.partition(".")
    size = base.removeprefix("voxvit_")
    if not base.startswith("voxvit_") or size not in SIZES:
        raise ValueError(f"'{base}' is no voxvit; known sizes: {', '.join('voxvit_' + s for s in SIZES)}")
    values: dict[str, object] = {}
    for part in text.split("_") if text else []:
        key, dash, value = part.partition("-")
        if not dash or key not in _KEYS:
            raise ValueError(f"field '{part}' is unknown; fields are {', '.join(k + '-…' for k in _KEYS)}")
        attribute = _KEYS[key]
        if attribute in values:
            raise ValueError(f"field '{key}-' is given twice")
        if key in "pi":
            values[attribute] = _size(key, value)
        elif key in "cl":
            least = 1 if key == "c" else 0
            if not re.fullmatch(r"0|[1-9]\d?", value) or int(value) < least:
                raise ValueError(f"field '{part}': expected an integer from {least} to 99")
            values[attribute] = int(value)
        else:
            if value not in _CHOICES[key][1]:
                raise ValueError(f"field '{part}': expected one of {', '.join(_CHOICES[key][1])}")
            values[attribute] = value
    tag = replace(Tag(size=size), **values)  # type: ignore[arg-type]
    if any(g % p for g, p in zip(tag.grid, tag.patch, strict=True)):
        raise ValueError(f"grid {_join(tag.grid)} is not a multiple of patch {_join(tag.patch)}")
    if tag.layers == 0 and (tag.pool == "cls" or tag.positions == "rope" or tag.attention != "full"):
        raise ValueError("l-0 has no attention: o-cls, e-rope and a-slice3 would do nothing, in silence")
    if tag.stem != "patch" and any(p & (p - 1) for p in tag.patch):
        raise ValueError(f"stem {tag.stem} halves step by step: patch {_join(tag.patch)} must be powers of two")
    return tag


assert {f.name for f in fields(Tag)} >= set(_KEYS.values())
