"""Which names are towers for volumes, and what their tags say. No torch: recipes are checked with it."""

from __future__ import annotations

from collections.abc import Callable

from encoders.tag import SIZES, Tag, parse_tag
from encoders.tag_resnet3d import DEPTHS, ResNetTag, parse_resnet_tag
from encoders.tag_swin3d import SWINS, SwinTag, parse_swin_tag

VolumeTag = Tag | ResNetTag | SwinTag

FAMILIES: dict[str, Callable[[str], VolumeTag]] = {
    "voxvit": parse_tag,
    "i3d": parse_resnet_tag,
    "swin3d": parse_swin_tag,
}
NAMES = (
    *(f"voxvit_{size}" for size in SIZES),
    *(f"i3d_{depth}" for depth in DEPTHS),
    *(f"swin3d_{size}" for size in SWINS),
)


def is_volumetric(name: str) -> bool:
    return name.partition("_")[0].partition(".")[0] in FAMILIES


def parse(name: str) -> VolumeTag:
    """The tag of a tower for volumes. Raises ValueError where it cannot be read, KeyError for another kind of name."""
    return FAMILIES[name.partition("_")[0].partition(".")[0]](name)
