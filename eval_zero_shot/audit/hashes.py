"""Hashes of one scan: exact, of every stored voxel; perceptual, of what is left of it at low resolution.

Perceptual bits of a picture: 64 of a difference hash (dHash: is a cell brighter than its left neighbour, 8 x 9 cells)
and 64 of a cosine hash (pHash: the 8 x 8 lowest frequencies of 32 x 32 cells against their median; the constant one
says nothing and is 0). Neither depends on the scale of grey values, and both survive another encoding, size or window.
A volume gives the bits of its mean along each of its three axes, in canonical orientation: 3 x 128.

Legend: D,H,W voxels, W of `bits_W` words of 64 bits.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS = {"image": 2, "volume": 6}  # of 64 bits
HU = (-1000.0, 1000.0)  # outside it lie padding and metal, which differ between exports of one scan
TOO_FLAT = 0.01  # of the range of values: below it, the order of grey values is noise


@dataclass(frozen=True)
class Pixels:
    """One scan, decoded. values_DHW: an image is one slice. span: (low, high) that its values are clipped to."""

    stored: NDArray[Any]
    values_DHW: NDArray[Any]
    span: tuple[float, float]


def pixels_of(source: Any, meta: dict[str, Any]) -> Pixels:
    """A scan as a ShardSet gives it (bytes of an image, or a D,H,W array that decodes what is sliced), decoded once.

    Raises DataError where it does not decode.
    """
    if isinstance(source, bytes):
        from data_shards.planar import decode_image

        image = decode_image(source)
        stored = np.asarray(image if image.mode != "P" else image.convert("RGB"))
        if stored.ndim == 3 and (stored[..., :1] == stored[..., :3]).all():
            stored = stored[..., 0]  # grey written as colour is the same picture
        return Pixels(stored, np.asarray(image.convert("L"))[None], (0.0, 255.0))
    stored = np.asarray(source[:])
    if meta.get("unit") == "HU":
        slope, intercept = float(meta.get("slope", 1.0)), float(meta.get("intercept", 0.0))
        low, high = sorted((hu - intercept) / slope for hu in HU)
    else:
        sample = stored[:: max(1, len(stored) // 16), ::4, ::4]
        low, high = (float(v) for v in np.percentile(sample.astype(np.float32), (0.5, 99.5)))
    return Pixels(stored, stored, (low, high))


def exact_hash(stored: NDArray[Any]) -> bytes:
    """16 bytes of BLAKE2b over shape, type and values; zeros for an array of one value, which identifies nobody."""
    if stored.size == 0 or (stored == stored.flat[0]).all():
        return bytes(16)
    digest = hashlib.blake2b(json.dumps([stored.shape, str(stored.dtype)]).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(stored).data)
    return digest.digest()


def perceptual_bits(pixels: Pixels) -> NDArray[np.uint64] | None:
    """bits_W of a picture (2 words) or a volume (6 words); None where there is too little contrast to tell it by."""
    low, high = pixels.span
    x_DHW = pixels.values_DHW
    axes = (0,) if len(x_DHW) == 1 else (0, 1, 2)
    kinds = np.iinfo(x_DHW.dtype) if x_DHW.dtype.kind in "iu" else np.finfo(x_DHW.dtype)
    bounds = (x_DHW.dtype.type(v) for v in (max(low, kinds.min), min(high, kinds.max)))
    clipped = np.clip(x_DHW, *bounds)
    means = [clipped.mean(axis=axis, dtype=np.float32) for axis in axes]
    if max(float(_cells(mean, 32, 32).std()) for mean in means) < TOO_FLAT * max(high - low, 1e-12):
        return None
    bits = np.concatenate([_bits(mean) for mean in means])
    return np.packbits(bits).view(np.uint64)


def _bits(picture_HW: NDArray[np.float32]) -> NDArray[np.bool_]:
    from scipy.fft import dctn

    cells = _cells(picture_HW, 8, 9)
    waves = dctn(_cells(picture_HW, 32, 32), norm="ortho")[:8, :8].ravel()[1:]
    return np.concatenate([(cells[:, 1:] > cells[:, :-1]).ravel(), waves > np.median(waves), [False]])


def _cells(picture_HW: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    from PIL import Image

    return np.asarray(Image.fromarray(picture_HW).resize((width, height), Image.Resampling.BILINEAR))
