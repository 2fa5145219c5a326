from __future__ import annotations

import io
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards import DataError
from data_shards.preprocess import (
    Geometry,
    PlanarGeometry,
    View,
    apply_planar,
    apply_view,
    crop_starts,
    crops_of,
    geometry_from_dict,
    resampled_shape,
    view_crops,
)

WIDE = ((-2000.0, 2000.0),)
META = {"spacing_mm": (3.0, 1.0, 1.5), "slope": 1.0, "intercept": 0.0}


def volume(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def values(x_CDHW: np.ndarray) -> np.ndarray:
    """Undo the WIDE window."""
    return x_CDHW[0] * 2000


# ---- records


@pytest.mark.parametrize(
    "record", [Geometry(spacing_mm=(5, 5, 5)), PlanarGeometry(size=(64, 48)), View("random", (8, 8, 8))]
)
def test_json_round_trip_keeps_tuples_and_identity(record: Any) -> None:
    again = type(record).from_json(record.to_json())
    assert again == record
    assert again.identity == record.identity
    assert hash(again) == hash(record)


def test_identity_depends_on_meaning_not_on_how_numbers_are_written() -> None:
    assert Geometry(spacing_mm=(5, 5, 5)).identity == Geometry(spacing_mm=(5.0, 5.0, 5.0)).identity
    assert Geometry(spacing_mm=(5, 5, 5)).identity != Geometry(spacing_mm=(5, 5, 5.001)).identity
    assert Geometry().differences(Geometry(antialias=False)) == ["antialias: True against False"]


def test_identities_of_released_geometries_last() -> None:
    """A field that came later is not written at its default: releases made before it keep their identity."""
    assert Geometry().identity == "ad5d4657c1c071e0786070fda046b1ba51294ef4cdfde87ff1de2aa01ab5ab1c"
    assert Geometry(windows_in="unit").to_json() == Geometry().to_json()
    later = Geometry(windows=((0.5, 99.5),), windows_in="percentile")
    assert later.identity != Geometry(windows=((0.5, 99.5),)).identity
    assert Geometry.from_json(later.to_json()) == later
    assert "levels" not in Geometry(levels=None).to_json()
    assert Geometry(levels=256).differences(Geometry()) == ["levels: 256 against None"]
    assert Geometry.from_json(Geometry(levels=256).to_json()) == Geometry(levels=256)
    with pytest.raises(DataError, match=r"percentiles \[3.0\] are not stored with volumes"):
        Geometry(windows=((3, 99.5),), windows_in="percentile")


def test_unknown_and_impossible_fields_are_refused() -> None:
    with pytest.raises(DataError, match=r"no field \['spacing'\]"):
        geometry_from_dict({"kind": "volume", "spacing": [1, 1, 1]})
    with pytest.raises(DataError, match="use one of"):
        Geometry(interpolation="cubic")
    with pytest.raises(DataError, match="low < high"):
        Geometry(windows=((10, 0),))
    with pytest.raises(DataError, match="levels 1 is below 2"):
        Geometry(levels=1)


# ---- volumes


@pytest.mark.parametrize("levels", [256, 3, 2])
def test_levels_are_those_of_a_picture(levels: int) -> None:
    """Windows of odd width: no whole unit lies between two levels."""
    source, windows = volume((10, 12, 14)), ((-500.0, 501.0), (-77.0, 0.0))
    geometry = Geometry(spacing_mm=None, windows=windows, pad_hu=123.0, levels=levels)
    made = apply_view(source, {}, geometry, View("centre", (10, 12, 20)))
    hu = np.pad(source.astype(np.float64), ((0, 0), (0, 0), (3, 3)), constant_values=123)
    for channel, (low, high) in zip(made, windows, strict=True):
        picture = np.rint(np.clip((hu - low) / (high - low), 0, 1) * (levels - 1)).astype(np.float32)
        assert len(np.unique(picture)) >= min(levels, 30)
        np.testing.assert_array_equal(channel, picture / np.float32((levels - 1) / 2) - 1)


def test_levels_are_rounded_to_after_resampling() -> None:
    view, plain = View("centre", (6, 8, 9)), Geometry(spacing_mm=(5, 2, 2))
    smooth = apply_view(volume((10, 12, 14)), META, plain, view)
    made = apply_view(volume((10, 12, 14)), META, replace(plain, levels=256), view)
    np.testing.assert_array_equal(made, np.rint((smooth + 1) * np.float32(127.5)) / np.float32(127.5) - 1)
    assert 0 < np.abs(made - smooth).max() <= 1 / 255 + 1e-6


def test_windows_in_percentiles_fit_any_unit() -> None:
    source = volume((10, 12, 14))
    source[:2] = -1000  # air, which must not move the window
    geometry = Geometry(spacing_mm=None, windows=((0.5, 99.5), (25, 75)), windows_in="percentile")
    view = View("centre", (10, 12, 20))
    meta = {"percentiles": {"0.5": 100.0, "25": 200.0, "75": 300.0, "99.5": 900.0}}
    plain = Geometry(spacing_mm=None, windows=((100, 900), (200, 300)), pad_hu=0)
    np.testing.assert_array_equal(apply_view(source, meta, geometry, view), apply_view(source, {}, plain, view))
    with pytest.raises(DataError, match="no intensity percentiles"):
        apply_view(source, {}, geometry, view)
    # Another unit of the same scan gives the same picture.
    scaled = {"slope": 0.01, "intercept": 3.0, "percentiles": {k: v * 0.01 + 3 for k, v in meta["percentiles"].items()}}
    again = apply_view(source, scaled, geometry, view)
    np.testing.assert_allclose(again, apply_view(source, meta, geometry, view), atol=1e-5)
    same = {"percentiles": dict.fromkeys(meta["percentiles"], 5.0)}
    assert np.isfinite(apply_view(source, same, geometry, view)).all()


@pytest.mark.parametrize("spacing", [(5.0, 5.0, 5.0), (1.0, 0.6, 1.5), (3.0, 2.5, 1.1)])
def test_a_crop_has_the_bits_of_the_whole(spacing: tuple[float, float, float]) -> None:
    source, geometry = volume((20, 70, 50)), Geometry(spacing_mm=spacing)
    shape = resampled_shape(source.shape, META, geometry)
    whole = apply_view(source, META, geometry, View("centre", shape))
    size = tuple(max(1, n // 2) for n in shape)
    for start, crop in view_crops(source, META, geometry, View("sliding", size, overlap=0.5)):
        where = tuple(slice(s, s + m) for s, m in zip(start, size))
        np.testing.assert_array_equal(crop, whole[:, *where])


def test_equal_spacing_is_not_resampled() -> None:
    source = volume((6, 8, 10))
    geometry = Geometry(spacing_mm=(3.0001, 1.0, 1.5), windows=WIDE)
    np.testing.assert_allclose(
        values(apply_view(source, META, geometry, View("centre", (6, 8, 10)))), source, atol=1e-3
    )


@pytest.mark.parametrize("n", [5, 6])
@pytest.mark.parametrize("m", [5, 6])
def test_resampling_keeps_every_point_where_it_is(n: int, m: int) -> None:
    # A ramp along each axis in mm from the volume's centre must stay that ramp at the new positions.
    axes = [(np.arange(n) - (n - 1) / 2) * 4.0 * 10 for _ in range(3)]
    ramp = (axes[0][:, None, None] + 2 * axes[1][:, None] + 4 * axes[2]).astype(np.float16)
    geometry = Geometry(spacing_mm=(2.0, 2.0, 2.0), windows=WIDE)
    got = values(apply_view(ramp, {"spacing_mm": (4.0, 4.0, 4.0)}, geometry, View("centre", (m, m, m))))
    start = (2 * n - m) // 2
    at = (start + np.arange(m) - (2 * n - 1) / 2) * 2.0 * 10
    np.testing.assert_allclose(got, at[:, None, None] + 2 * at[:, None] + 4 * at, atol=0.6)


def test_antialiasing_removes_what_cannot_be_shown() -> None:
    stripes = np.resize(np.array([-1000, 1000], np.int16), 63)[None, None] * np.ones((4, 4, 1), np.int16)
    meta, view = {"spacing_mm": (1.0, 1.0, 1.0)}, View("centre", (4, 4, 12))
    smooth = values(apply_view(stripes, meta, Geometry(spacing_mm=(1, 1, 4), windows=WIDE), view))
    aliased = values(apply_view(stripes, meta, Geometry(spacing_mm=(1, 1, 3), windows=WIDE, antialias=False), view))
    assert np.abs(smooth).max() < 150
    assert np.abs(aliased).max() == pytest.approx(1000, abs=1e-3)


def test_a_constant_stays_constant_to_the_border() -> None:
    source = np.full((9, 11, 13), 40, np.int16)
    got = values(apply_view(source, META, Geometry(spacing_mm=(5, 2.2, 0.9), windows=WIDE), View("resize", (4, 7, 19))))
    np.testing.assert_allclose(got, 40, atol=1e-3)


def test_outside_the_volume_is_padding_and_the_volume_is_centred() -> None:
    source = np.zeros((4, 4, 4), np.int16)
    geometry = Geometry(spacing_mm=(1, 1, 1), windows=WIDE, pad_hu=-1000)
    got = values(apply_view(source, {"spacing_mm": (1, 1, 1)}, geometry, View("centre", (8, 4, 2))))
    np.testing.assert_allclose(got[:, 0, 0], [-1000] * 2 + [0] * 4 + [-1000] * 2, atol=1e-3)


def test_windows_are_channels_and_slope_is_applied() -> None:
    source = np.array([-500, 0, 25, 50, 100], np.int16) * np.ones((3, 3, 1), np.int16)
    meta = {"spacing_mm": (1, 1, 1), "slope": 2.0, "intercept": -50.0}
    got = apply_view(
        source, meta, Geometry(spacing_mm=(1, 1, 1), windows=((0, 100), (-50, 50))), View("centre", (3, 3, 5))
    )
    np.testing.assert_allclose(got[:, 0, 0], [[-1, -1, -1, 0, 1], [-1, -1, 0, 1, 1]], atol=1e-6)


def test_random_views_come_from_the_generator_and_stay_inside() -> None:
    source, geometry = volume((6, 40, 9)), Geometry(spacing_mm=(3, 1, 1.5), windows=WIDE)
    view = View("random", (12, 8, 9), jitter=2)
    starts = set()
    for seed in range(30):
        one = apply_view(source, META, geometry, view, np.random.default_rng(seed))
        np.testing.assert_array_equal(one, apply_view(source, META, geometry, view, np.random.default_rng(seed)))
        inside = np.flatnonzero((values(one) > -1010).any((1, 2)))
        assert len(inside) == 6  # the thin axis is never cut
        starts.add(int(inside[0]))
    assert starts == {1, 2, 3, 4, 5}
    with pytest.raises(DataError, match="needs rng"):
        apply_view(source, META, geometry, view)


def test_only_the_region_needed_is_read() -> None:
    class Spy:
        shape = (40, 200, 200)
        asked: Any = None

        def __getitem__(self, region: tuple[slice, ...]) -> np.ndarray:
            self.asked = region
            return np.zeros(tuple(s.stop - s.start for s in region), np.int16)

    spy = Spy()
    apply_view(spy, {"spacing_mm": (1, 1, 1)}, Geometry(spacing_mm=(2, 2, 1)), View("centre", (8, 10, 20)))
    d, h, w = (s.stop - s.start for s in spy.asked)
    assert (d, h, w) <= (8 * 2 + 2, 10 * 2 + 2, 20)


def test_sliding_covers_the_volume() -> None:
    geometry, view = Geometry(spacing_mm=None), View("sliding", (8, 8, 8), overlap=0.25)
    starts = crop_starts((20, 8, 5), {}, geometry, view)
    assert starts[0] == (0, 0, -2)
    assert starts[-1] == (12, 0, -2)
    first = sorted({d for d, _, _ in starts})
    assert max(b - a for a, b in itertools.pairwise(first)) <= 6


def test_several_crops_are_the_corners_and_the_middle() -> None:
    geometry, view = Geometry(spacing_mm=None), View("multi", (8, 8, 8))
    starts = crop_starts((20, 8, 5), {}, geometry, view)
    assert starts == [(0, 0, -2), (12, 0, -2), (6, 0, -2)]
    assert len(crop_starts((20, 20, 20), {}, geometry, view)) == 9
    assert crop_starts((8, 8, 8), {}, geometry, view) == [(0, 0, 0)]
    with pytest.raises(DataError, match="several crops"):
        apply_view(volume((20, 8, 5)), META, geometry, view)


def test_spacing_that_is_needed_and_missing() -> None:
    with pytest.raises(DataError, match="no spacing_mm"):
        apply_view(volume((5, 5, 5)), {}, Geometry(), View("centre", (4, 4, 4)))


# ---- images


def encoded(shape: tuple[int, int], mode: str = "RGB", kind: str = "PNG", seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_centre_view_equals_open_clip(resize_mode: str, interpolation: str, size: tuple[int, int]) -> None:
    from open_clip.transform import image_transform

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    geometry = PlanarGeometry(size=size, mean=mean, std=std, interpolation=interpolation, resize_mode=resize_mode)
    theirs = image_transform(
        size[0] if size[0] == size[1] else size, False, mean, std, resize_mode=resize_mode, interpolation=interpolation
    )
    for shape, mode in itertools.product([(100, 150), (151, 90), (30, 20), (64, 64)], ["L", "RGB", "P", "RGBA"]):
        data = encoded(shape, mode)
        want = theirs(Image.open(io.BytesIO(data)))
        assert torch.equal(torch.from_numpy(apply_planar(data, geometry, View())), want), (shape, mode)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(1000, 60000, 64 * 64).reshape(64, 64).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    geometry = PlanarGeometry(size=(64, 64), mean=(0, 0, 0), std=(1, 1, 1))
    got = apply_planar(buffer.getvalue(), geometry, View())
    assert got.min() == 0
    assert got.max() == 1
    assert np.abs(got[0] - np.clip((ramp.astype(float) - 1295) / 58410, 0, 1)).max() < 0.01


def test_random_planar_view() -> None:
    data, geometry, view = encoded((90, 120)), PlanarGeometry(size=(32, 32)), View("random", scale=(0.5, 0.8))
    one, same, other = (apply_planar(data, geometry, view, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_five_crops_of_an_image_are_torchvisions() -> None:
    from torchvision.transforms import v2

    geometry = PlanarGeometry(size=(56, 56), mean=(0, 0, 0), std=(1, 1, 1))
    data = encoded((90, 120))
    transform = v2.Compose([
        v2.Resize(64, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(64), v2.FiveCrop(56),
    ])  # fmt: skip
    want = np.stack([np.asarray(crop) for crop in transform(Image.open(io.BytesIO(data)))]).transpose(0, 3, 1, 2)
    got = crops_of(data, {}, geometry, View("multi"))
    np.testing.assert_array_equal(np.rint(255 * got), want)
    with pytest.raises(DataError, match="for volumes"):
        crops_of(data, {}, geometry, View("sliding"))


def test_an_unreadable_image_and_another_size() -> None:
    with pytest.raises(DataError, match="cannot be decoded"):
        apply_planar(encoded((64, 64))[:-200], PlanarGeometry(), View())
    with pytest.raises(DataError, match="is not the geometry's size"):
        apply_planar(encoded((64, 64)), PlanarGeometry(size=(32, 32)), View("centre", (64, 64)))
