"""The pass `image:crops`: several crops of every image whose places are known, for 2D self-supervision.

Two large crops and, where asked for, small ones (multi-crop, arXiv 2006.09882 §3.2): a random part of the image,
resized, mirrored, with another brightness and contrast, blurred. Every choice comes from torch's default generators and
is made in the pass, so that the two passes of `train.chunk` see the same crops.

Legend: b studies of a part, v crops of each, n = v·b rows (all first crops, then all second ones, ...), C channels,
H, W pixels, P cells of a map, F its channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.passes import Part, Pass, Rows, image_rows

if TYPE_CHECKING:
    from encoders.dual import DualEncoder
    from pretrain.schema_objectives import CropOptions

NAME, LARGE = "image:crops", 2
FIELDS = ("trunk", "maps", "places")
RATIO = (3 / 4, 4 / 3)  # aspect ratios of a crop, as in torchvision's RandomResizedCrop
BLUR = (0.1, 2.0)  # deviation of the blur at 224 pixels


@dataclass(frozen=True)
class Boxes:
    """Where crops lie in their images, as shares of these: `top`, `left`, `height`, `width` and whether they are
    mirrored, [n] each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    mirrored: Tensor

    def places(self, grid: tuple[int, int]) -> Tensor:
        """Centres of the cells of a map of a crop as shares of the image: y and x, [n, P, 2]."""
        rows, columns = grid
        y = (torch.arange(rows, device=self.top.device) + 0.5) / rows
        x = (torch.arange(columns, device=self.top.device) + 0.5) / columns
        x_nW = torch.where(self.mirrored[:, None], 1.0 - x, x)
        y_nP = (self.top[:, None] + self.height[:, None] * y).repeat_interleave(columns, 1)
        x_nP = (self.left[:, None] + self.width[:, None] * x_nW).repeat(1, rows)
        return torch.stack([y_nP, x_nP], -1)


@torch.no_grad()
def draw_boxes(n: int, scale: tuple[float, float], flip: float, device: torch.device) -> Boxes:
    """Areas uniform in `scale`, logarithms of aspect ratios uniform; a side is at most the image's."""
    draws = torch.rand(5, n)
    area = scale[0] + (scale[1] - scale[0]) * draws[0]
    aspect = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * draws[1])
    width, height = (area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0)
    boxes = (draws[2] * (1 - height), draws[3] * (1 - width), height, width, draws[4] < flip)
    return Boxes(*(one.to(device) for one in boxes))


@torch.no_grad()
def cut(images: Tensor, boxes: Boxes, size: tuple[int, int]) -> Tensor:
    """The boxes of images [n, C, H, W], one an image, bilinearly resized: [n, C, *size]."""
    zero = torch.zeros_like(boxes.top)
    side = torch.where(boxes.mirrored, -1.0, 1.0)
    x = torch.stack([side * boxes.width, zero, 2 * boxes.left + boxes.width - 1], 1)
    y = torch.stack([zero, boxes.height, 2 * boxes.top + boxes.height - 1], 1)
    grid = F.affine_grid(torch.stack([x, y], 1).to(images.dtype), [*images.shape[:2], *size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def jittered(images: Tensor, strength: float, blur: float) -> Tensor:
    """Another contrast and brightness for each image (in its own deviations) and another weight for each of its
    channels, up to `strength`; a share `blur` of images is blurred."""
    n, channels = images.shape[:2]
    draws = (2 * torch.rand(n, 2 + channels) - 1).to(images.device, images.dtype) * strength
    deviation, mean = torch.std_mean(images, (1, 2, 3), keepdim=True)
    gain = (1 + draws[:, 0]).view(-1, 1, 1, 1) * (1 + 0.25 * draws[:, 2:]).view(n, channels, 1, 1)
    out = (images - mean) * gain + mean + draws[:, 1].view(-1, 1, 1, 1) * deviation
    chosen, sigmas = torch.rand(2, n)
    for i in (chosen < blur).nonzero()[:, 0].tolist():
        sigma = (BLUR[0] + (BLUR[1] - BLUR[0]) * float(sigmas[i])) * images.shape[-1] / 224
        out[i] = _blurred(out[i], sigma)
    return out


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of C,H,W; axis by axis, edges repeated."""
    reach = min(max(1, math.ceil(3 * sigma)), min(image.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.softmax(-(at**2) / (2 * max(sigma, 1e-3) ** 2), 0)
    x = F.pad(image[:, None], (reach, reach, 0, 0), mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, 1, -1))
    x = F.pad(x, (0, 0, reach, reach), mode="replicate")
    return F.conv2d(x, kernel.view(1, 1, -1, 1))[:, 0]


def images_of(part: Part, told: CropOptions) -> Iterator[tuple[Tensor, Tensor, Boxes]]:
    """The large crops of a part's images, then the small ones: [n, C, H, W], whose each is, and where it lies."""
    images, (height, width) = part.images, part.images.shape[-2:]
    kinds = [(LARGE, told.scale, (height, width))]
    if told.small:
        small = (told.small_size, told.small_size) if told.small_size else (height, width)
        kinds.append((told.small, told.small_scale, small))
    for count, scale, size in kinds:
        owner = part.study_b.repeat(count)
        boxes = draw_boxes(len(owner), scale, told.flip, images.device)
        yield jittered(cut(images.repeat(count, 1, 1, 1), boxes, size), told.jitter, told.blur), owner, boxes


@dataclass(frozen=True)
class Crops:
    """Pass: `trunk` [n, F] of every crop, `maps` [n, P, F] its feature map (averaged to at most `cells` rows and
    columns), `places` [n, P, 2] where the map's cells lie in the image. Equal settings are one pass."""

    options: CropOptions

    def __call__(self, dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
        found: dict[str, list[Tensor]] = {field: [] for field in sorted(fields)}
        owners = []
        for crops, owner, boxes in images_of(part, self.options):
            wanted = frozenset({"trunk"} & fields) | ({"tokens"} if fields & {"maps", "places"} else frozenset())
            rows = image_rows(dual, crops, owner, wanted)
            if "trunk" in fields:
                found["trunk"].append(rows["trunk"].values)
            if fields & {"maps", "places"}:
                maps, grid = averaged(rows["tokens"], self.options.cells)
                if "maps" in fields:
                    found["maps"].append(maps)
                if "places" in fields:
                    found["places"].append(boxes.places(grid))
            owners.append(owner)
        return {field: Rows(torch.cat(values), torch.cat(owners)) for field, values in found.items()}


def averaged(tokens: Rows, cells: int) -> tuple[Tensor, tuple[int, int]]:
    """Maps [n, N, F] of a grid as maps of `cells` rows and columns: [n, P, F]. One size for crops of every size."""
    if tokens.grid is None or len(tokens.grid) != 2:
        raise ValueError(
            "the tokens of a crop do not cover its image\n"
            "  why: where a token lies in the image would not be known\n"
            "  fix: use a tower of images without token dropout"
        )
    n, _, channels = tokens.values.shape
    maps = tokens.values.transpose(1, 2).reshape(n, channels, *tokens.grid)
    return F.adaptive_avg_pool2d(maps, cells).flatten(2).transpose(1, 2), (cells, cells)


@torch.no_grad()
def try_small(trunk: nn.Module, told: CropOptions, objective: str) -> None:
    """One small crop of zeros through a tower in evaluation mode, which draws and changes nothing.

    Raises:
        ConfigError: the tower takes no images of that size.
    """
    if not told.small or told.small_size is None:
        return
    modes = [(module, module.training) for module in trunk.modules()]
    channels = next(module.in_channels for module in trunk.modules() if isinstance(module, nn.Conv2d))
    like = next(trunk.parameters())
    trunk.eval()
    try:
        cast(Any, trunk).forward_features(like.new_zeros(1, channels, told.small_size, told.small_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"objective {objective}: crops.small_size: this tower takes no images of {told.small_size} pixels: {error}",
            why="the run would end at its first step",
            fix="leave small_size out, or use a tower that takes several sizes (a ResNet)",
        ) from error
    finally:
        for module, training in modes:
            module.training = training


def offered(options: CropOptions) -> Mapping[str, tuple[Pass, tuple[str, ...]]]:
    """What an objective on crops returns from `passes`."""
    return {NAME: (Crops(options), FIELDS)}


def by_view(rows: Rows) -> Tensor:
    """Rows of several crops (or views) of each study to [v, B, ...], studies in their order, whatever the parts and
    ranks that they came from."""
    order = torch.argsort(rows.owner, stable=True)
    studies = int(rows.owner.max()) + 1
    ordered: Any = rows.values[order]
    return ordered.reshape(studies, -1, *ordered.shape[1:]).transpose(0, 1)


def pairs_of_views(views: int) -> list[tuple[int, int]]:
    """Which views of an image are compared: the two large ones, and every small one with both."""
    return [(0, 1), *((large, small) for small in range(LARGE, views) for large in range(LARGE))]
