"""The pass `image:views`: two augmented views of every image, one call of the tower for both.

The augmentation is that of SwinUNETR's self-supervision (arXiv 2111.14791; research-contributions,
SwinUNETR/Pretrain): a random turn in the plane, then blocks cut out and filled with noise. Every choice comes from
torch's default generators and is made in the pass, so that the two passes of `train.chunk` see the same views.

Where the plane is square an image is turned by 0°, 90°, 180° or 270°, elsewhere by 0° or 180°.

Legend: b studies of a part, n = 2b views (first views, then second ones), C channels, (D,) H, W voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.passes import FIELDS, Part, Pass, Rows, image_rows

if TYPE_CHECKING:
    from encoders.dual import DualEncoder
    from pretrain.schema_objectives import ViewOptions

NAME = "image:views"
LEAST = 0.05  # shortest side of a block, as a share of the image's


@dataclass(frozen=True)
class TwoViews:
    """`images` [n, C, (D,) H, W] with blocks cut out, `clean` the same before, `dropped` [n, 1, (D,) H, W] where they
    differ, `turns` [n] quarter turns from the second last axis to the last."""

    images: Tensor
    clean: Tensor
    dropped: Tensor
    turns: Tensor


@torch.no_grad()
def two_views(images: Tensor, max_drop: float, block: float) -> TwoViews:
    """Two random views of each of b images [b, C, (D,) H, W].

    Blocks are drawn until their volumes, overlaps counted twice, reach a share of the image that is uniform between 0
    and `max_drop`; sides are between 5 % and `block` of the image's. The noise has mean and deviation of its image and
    channel: theirs lies in [0, 1] as their images do.
    """
    size = tuple(images.shape[2:])
    square = size[-1] == size[-2]
    turns = torch.randint(4, (2 * len(images),)) if square else 2 * torch.randint(2, (2 * len(images),))
    twice = [*images, *images]
    clean = torch.stack([x.rot90(k, (-2, -1)) for x, k in zip(twice, turns.tolist(), strict=True)])
    dropped = torch.stack([_blocks(size, max_drop, block) for _ in twice])[:, None].to(images.device)
    places = tuple(range(2, clean.ndim))
    deviation, mean = torch.std_mean(clean, places, keepdim=True)
    noise = torch.randn(clean.shape, dtype=clean.dtype, device=clean.device) * deviation + mean
    return TwoViews(torch.where(dropped, noise, clean), clean, dropped, turns.to(images.device))


def _blocks(size: tuple[int, ...], max_drop: float, block: float) -> Tensor:
    """Where blocks lie in one image: bool [(D,) H, W], at least one voxel."""
    inside = torch.zeros(size, dtype=torch.bool)
    wanted, covered = max_drop * float(torch.rand(())) * math.prod(size), 0
    while covered < max(wanted, 1):
        place = []
        for side, (where, extent) in zip(size, torch.rand(len(size), 2).tolist(), strict=True):
            least = max(1, int(LEAST * side))
            most = max(least, int(block * side))
            start = int(where * (side - least + 1))
            place.append(slice(start, min(side, start + least + int(extent * (most - least + 1)))))
        inside[tuple(place)] = True
        covered += math.prod(s.stop - s.start for s in place)
    return inside


@dataclass(frozen=True)
class Views:
    """Pass: the fields of `image:global` for two views of every study, and `clean`, `dropped`, `turns` (TwoViews).
    Equal settings are one pass, whoever offers it."""

    max_drop: float
    block: float

    def __call__(self, dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
        made, owner = two_views(part.images, self.max_drop, self.block), part.study_b.repeat(2)
        found = {f: Rows(getattr(made, f), owner) for f in fields & OWN}
        return found | image_rows(dual, made.images, owner, fields - OWN) if fields - OWN else found


OWN = frozenset({"clean", "dropped", "turns"})


def offered(options: ViewOptions) -> Mapping[str, tuple[Pass, tuple[str, ...]]]:
    """What an objective on views returns from `passes`."""
    return {NAME: (Views(options.max_drop, options.block), (*FIELDS["image:global"], *sorted(OWN)))}


def trunk_of(dual: DualEncoder, objective: str) -> Any:
    """The timm module inside the image tower.

    Raises:
        ConfigError: open_clip's own tower, which gives its joint features alone.
    """
    trunk = getattr(dual.clip.visual, "trunk", None)
    if trunk is None:
        raise ConfigError(
            f"objective {objective}: this image tower gives neither features before its projection nor tokens",
            why="the objective would train the joint space in their place",
            fix="use a tower of ours or of timm (vit_base_patch16_224 in place of ViT-B-16)",
        )
    return trunk


def width_of(dual: DualEncoder, objective: str) -> int:
    """Width of the field `trunk`. Raises ConfigError as `trunk_of`."""
    trunk = trunk_of(dual, objective)
    return int(getattr(trunk, "head_hidden_size", None) or trunk.num_features)
