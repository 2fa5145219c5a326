from __future__ import annotations

import numpy as np
import pytest

from data_shards import DataError, Scan
from data_shards.preprocess import Geometry, View, apply_view
from data_shards.resample import resampled


def scan(seed: int = 0, **more: object) -> Scan:
    array = np.random.default_rng(seed).integers(-1000, 1000, (12, 20, 18)).astype(np.int16)
    return Scan(array=array, spacing_mm=(2.0, 0.8, 0.7), **more)  # type: ignore[arg-type]


def test_shards_at_a_spacing_hold_what_the_geometry_computes() -> None:
    native, spacing = scan(), (3.0, 1.5, 1.5)
    geometry, view = Geometry(spacing_mm=spacing, rounding="nearest"), View("centre", (8, 10, 9))
    stored = resampled(native, spacing)
    assert stored.array is not None
    assert native.array is not None
    assert (stored.array.shape, stored.array.dtype, stored.spacing_mm) == ((8, 11, 8), np.int16, spacing)
    np.testing.assert_array_equal(
        apply_view(stored.array, stored.to_json(), geometry, view),
        apply_view(native.array, native.to_json(), geometry, view),
    )


def test_shrinking_is_anti_aliased_and_order_0_is_not() -> None:
    stripes = np.where(np.arange(60) % 2, 1000, -1000).astype(np.int16)
    array = np.broadcast_to(stripes, (5, 6, 60)).copy()
    fine = Scan(array=array, spacing_mm=(1.0, 1.0, 1.0))
    linear, nearest = resampled(fine, (1, 1, 4)), resampled(fine, (1, 1, 4), order=0)
    assert linear.array is not None
    assert nearest.array is not None
    assert np.abs(linear.array[:, :, 1:-1]).max() < 150
    assert set(np.unique(nearest.array)) <= {-1000, 1000}


def test_other_units_keep_slope_and_intercept() -> None:
    mr = scan(modality="MR", unit="arbitrary", slope=0.5, intercept=7.0, percentiles={"0.5": 1.0, "99.5": 2.0})
    got = resampled(mr, (2.0, 1.6, 1.4))
    assert (got.slope, got.intercept, got.percentiles) == (0.5, 7.0, mr.percentiles)
    assert mr.array is not None
    assert got.array is not None
    assert got.array.mean() == pytest.approx(mr.array.mean(), abs=15)


def test_nothing_changes_at_the_same_spacing_and_for_images() -> None:
    same = resampled(scan(), (2.0, 0.8, 0.7))
    np.testing.assert_array_equal(same.array, scan().array)
    image = Scan(image=b"x", ext="png")
    assert resampled(image, (1, 1, 1)) is image


@pytest.mark.parametrize(("spacing", "order"), [((1, 1), 1), ((1, 1, 0), 1), ((1, 1, 1), 3)])
def test_what_is_no_spacing_or_order(spacing: tuple[float, ...], order: int) -> None:
    with pytest.raises(DataError):
        resampled(scan(), spacing, order)
