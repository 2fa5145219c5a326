"""Planar images: the steps of `open_clip.transform.image_transform(is_train=False)`, bit for bit, without torch."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from data_shards.errors import DataError, UndecodableError
from data_shards.geometry import PlanarGeometry, View

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

RATIO = (3 / 4, 4 / 3)  # aspect ratios a random crop may have, as in torchvision's RandomResizedCrop


def apply_planar(
    image_bytes: bytes, geometry: PlanarGeometry, view: View, rng: np.random.Generator | None = None
) -> np.ndarray:
    """One view of an encoded image: C,H,W float32, normalised by mean and std.

    "centre" equals open_clip's evaluation transform. "random" takes a crop of `view.scale` of the area, like
    torchvision's RandomResizedCrop, drawn from `rng`. No flips: they would swap the patient's left and right.
    Raises DataError for bytes that are no image, or a view size other than the geometry's.
    """
    from PIL import Image as pil

    if view.size and tuple(view.size) != geometry.size:
        raise DataError(
            f"the view's size {view.size} is not the geometry's size {geometry.size}",
            "the encoder would see another scale than the release says",
            "leave the view's size empty for images",
        )
    image = decode_image(image_bytes, geometry.deep_percentiles)
    how = pil.Resampling.BILINEAR if geometry.interpolation == "bilinear" else pil.Resampling.BICUBIC
    height, width = geometry.size
    if view.kind == "random":
        if rng is None:
            raise DataError("a random view needs rng", fix="pass a numpy Generator seeded by the sample")
        top, left, h, w = _random_box(image.size[1], image.size[0], view.scale, rng)
        image = image.crop((left, top, left + w, top + h)).resize((width, height), pil.Resampling.BICUBIC)
    elif view.kind == "resize" or geometry.resize_mode == "squash":
        image = _resized(image, height, width, how)
    elif view.kind == "centre":
        image = _fit(image, geometry, how)
    else:
        raise DataError(f"a {view.kind!r} view does not give one crop of an image", fix="use centre or resize")
    return _normalised(image, geometry)


def planar_crops(image_bytes: bytes, geometry: PlanarGeometry) -> Iterator[np.ndarray]:
    """The five crops of a "multi" view, C,H,W float32 as `apply_planar`: the corners, then the middle.

    The image is first fitted (by `geometry.resize_mode`) to 8/7 of the geometry's size, 256 for 224, as for
    torchvision's FiveCrop. Raises DataError for bytes that are no image.
    """
    from PIL import Image as pil

    image = decode_image(image_bytes, geometry.deep_percentiles)
    how = pil.Resampling.BILINEAR if geometry.interpolation == "bilinear" else pil.Resampling.BICUBIC
    height, width = geometry.size
    larger = replace(geometry, size=(round(height * 8 / 7), round(width * 8 / 7)))
    whole = _resized(image, *larger.size, how) if geometry.resize_mode == "squash" else _fit(image, larger, how)
    down, right = larger.size[0] - height, larger.size[1] - width
    for top, left in ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)):
        yield _normalised(whole.crop((left, top, left + width, top + height)), geometry)


def _normalised(image: Image, geometry: PlanarGeometry) -> np.ndarray:
    x_HWC = np.asarray(image.convert(geometry.mode)).reshape(*geometry.size, geometry.channels)
    x_CHW = np.ascontiguousarray(x_HWC.transpose(2, 0, 1)).astype(np.float32)
    x_CHW /= np.float32(255)
    x_CHW -= np.array(geometry.mean, np.float32)[:, None, None]
    x_CHW /= np.array(geometry.std, np.float32)[:, None, None]
    return x_CHW


def decode_image(image_bytes: bytes, deep_percentiles: tuple[float, float] = (0.5, 99.5)) -> Image:
    """Encoded bytes -> a PIL image of 8 bits a channel; deeper greys are scaled between their percentiles.

    Raises UndecodableError (a DataError) for bytes that do not decode whole, or to numbers.
    """
    from PIL import Image as pil

    try:
        image = pil.open(io.BytesIO(image_bytes))
        image.load()
    except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
        raise UndecodableError(
            f"the image cannot be decoded ({type(error).__name__})",
            "half an image would be trained on as if it were whole",
            "export it again",
        ) from None
    if not image.mode.startswith(("I", "F")):
        return image
    grey = np.asarray(image).astype(np.float64)
    if not np.isfinite(grey).all():
        raise UndecodableError("the image holds NaN or infinite pixels", "one of them turns the loss into NaN")
    low, high = np.percentile(grey, deep_percentiles)
    scaled = np.clip((grey - low) / max(high - low, 1e-12), 0, 1) * 255
    return pil.fromarray(np.rint(scaled).astype(np.uint8))


def _fit(image: Image, geometry: PlanarGeometry, how: Resampling) -> Image:
    """Resize by the shortest side and crop, or by the longest side and pad, as open_clip and torchvision do."""
    from PIL import Image as pil

    height, width = geometry.size
    w, h = image.size
    if geometry.resize_mode == "longest":
        ratio = max(h / height, w / width)
        image = _resized(image, round(h / ratio), round(w / ratio), how)
    elif height == width:
        short, long = min(w, h), max(w, h)
        new = int(height * long / short)
        image = _resized(image, *((new, height) if w <= h else (height, new)), how)
    else:  # open_clip's ResizeKeepRatio is bicubic here whatever is asked for
        ratio = min(h / height, w / width)
        image = _resized(image, round(h / ratio), round(w / ratio), pil.Resampling.BICUBIC)
    return _centre(image, height, width)


def _resized(image: Image, height: int, width: int, how: Resampling) -> Image:
    return image if image.size == (width, height) else image.resize((width, height), how)


def _centre(image: Image, height: int, width: int) -> Image:
    from PIL import ImageOps

    w, h = image.size
    if width > w or height > h:
        dx, dy = max(width - w, 0), max(height - h, 0)
        image = ImageOps.expand(image, border=(dx // 2, dy // 2, (dx + 1) // 2, (dy + 1) // 2), fill=0)
        w, h = image.size
    top, left = round((h - height) / 2.0), round((w - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def _random_box(h: int, w: int, scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """top, left, height, width of a crop: area uniform in `scale`, log aspect ratio uniform; the whole if none fits."""
    for _ in range(10):
        area = h * w * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        cw, ch = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < cw <= w and 0 < ch <= h:
            return int(rng.integers(0, h - ch + 1)), int(rng.integers(0, w - cw + 1)), ch, cw
    return 0, 0, h, w
