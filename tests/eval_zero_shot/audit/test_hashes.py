"""Hashes of pictures and volumes: equal for copies, far apart for others."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import zoom

from eval_zero_shot.audit.borders import border_features
from eval_zero_shot.audit.duplicates import MOST_BITS
from eval_zero_shot.audit.hashes import exact_hash, perceptual_bits, pixels_of
from eval_zero_shot.audit.nearest import hamming

from .conftest import encoded, picture

CT = {"unit": "HU", "slope": 1.0, "intercept": 0.0}


def volume(seed: int) -> np.ndarray:
    """Smooth blobs in air, D,H,W int16."""
    coarse = np.random.default_rng(seed).normal(0, 400, (4, 6, 6))
    return np.clip(zoom(coarse, (8, 8, 8), order=3) - 200, -1024, 2000).astype(np.int16)


def bits(source: object, meta: dict | None = None) -> np.ndarray:
    found = perceptual_bits(pixels_of(source, meta or {}))
    assert found is not None
    return found


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """Share of bits."""
    return float(hamming(a[None], b[None])[0, 0]) / (64 * len(a))


def test_the_same_pixels_have_one_hash_whatever_file_holds_them() -> None:
    x = picture(1, (1, 0, 1))
    stored = [encoded(x), encoded(x, "TIFF"), encoded(x, "WEBP", lossless=True), encoded(np.stack([x] * 3, -1))]
    assert len({exact_hash(pixels_of(data, {}).stored) for data in stored}) == 1
    other = x.copy()
    other[0, 0] ^= 1
    assert exact_hash(pixels_of(encoded(other), {}).stored) != exact_hash(pixels_of(stored[0], {}).stored)


def test_one_value_identifies_nobody() -> None:
    blank = np.full((20, 30), 7, np.uint8)
    assert exact_hash(blank) == bytes(16)
    assert perceptual_bits(pixels_of(encoded(blank), {})) is None


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_picture_stay_within_the_threshold(seed: int) -> None:
    x = picture(seed, (0, 1, 0))
    own = bits(encoded(x))
    larger = np.asarray(Image.fromarray(x).resize((97, 120), Image.Resampling.BICUBIC))
    brighter = np.clip(x * 1.2 + 5, 0, 255).astype(np.uint8)
    for copy in (encoded(x, "JPEG", quality=60), encoded(larger), encoded(brighter), encoded(np.stack([x] * 3, -1))):
        assert differ(own, bits(copy)) <= MOST_BITS
    assert differ(own, bits(encoded(picture(seed + 100, (0, 1, 0))))) > 2 * MOST_BITS


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_a_volume_stay_within_the_threshold(seed: int) -> None:
    x = volume(seed)
    own = bits(x, CT)
    assert own.shape == (6,)
    resampled = zoom(x.astype(np.float32), (0.6, 0.75, 0.75), order=1).astype(np.int16)
    assert differ(own, bits(resampled, CT)) <= MOST_BITS
    padded = np.where(x <= -1024, -2000, x).astype(np.int16)
    assert differ(own, bits(padded, CT)) <= MOST_BITS
    shifted = (x + 1024).astype(np.int16)
    assert differ(own, bits(shifted, {**CT, "intercept": -1024.0})) <= MOST_BITS
    assert differ(own, bits((x.astype(np.float16)), {"unit": "arbitrary"})) <= MOST_BITS
    assert differ(own, bits(volume(seed + 100), CT)) > 2 * MOST_BITS


def test_a_mark_in_the_corner_is_in_the_border_numbers_and_the_middle_is_not() -> None:
    x = np.full((3, 64, 64), 100, np.int16)
    marked, inner = x.copy(), x.copy()
    marked[:, :3, -3:] = 900
    inner[:, 20:40, 20:40] = 900
    plain, corner, middle = (border_features(pixels_of(a, CT)) for a in (x, marked, inner))
    assert (plain != corner).any()
    same_ends = slice(0, -4)  # the last four are of the first and last slice, which the middle of a slab is in
    np.testing.assert_array_equal(plain[same_ends], middle[same_ends])
