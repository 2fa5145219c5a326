"""Slices of volumes: against plain indexing, in every plane, as evaluation and users of a release see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.geometry import SliceGeometry, View, geometry_from_dict
from data_shards.preprocess import apply_slice, crops_of
from data_shards.slices import places
from encoders.preprocessing import Preprocess

SHAPE, META = (10, 12, 14), {"spacing_mm": [2.0, 2.0, 2.0]}
HU = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
SQUARE = {"axial": (12, 14), "coronal": (10, 14), "sagittal": (10, 12)}


def geometry(plane: str, **changes: Any) -> SliceGeometry:
    settings: dict[str, Any] = {"size": SQUARE[plane], "spacing_mm": 2.0, "windows": ((-1000.0, 1000.0),)}
    return SliceGeometry(plane=plane, **settings | changes)


@pytest.mark.parametrize("plane", SQUARE)
def test_a_slice_is_a_stored_one_as_radiologists_see_it(plane: str) -> None:
    axis = list(SQUARE).index(plane)
    made = apply_slice(HU, META, geometry(plane), View("centre"))
    want = np.take(HU, SHAPE[axis] // 2, axis)[::-1, ::-1].astype(np.float64) / 1000
    assert made.shape == (3, *SQUARE[plane]) and made.dtype == np.float32 and made.flags.c_contiguous
    for channel in made:
        np.testing.assert_allclose(channel, want, atol=1e-6)


def test_windows_are_channels_and_normalised_like_photographs() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    windows = ((-1000.0, 200.0), (-160.0, 240.0), (-450.0, 1050.0))
    made = apply_slice(HU, META, geometry("axial", windows=windows, mean=mean, std=std), View("centre"))
    hu = HU[5, ::-1, ::-1].astype(np.float64)
    for channel, (low, high), m, s in zip(made, windows, mean, std, strict=True):
        np.testing.assert_allclose(channel, (np.clip((hu - low) / (high - low), 0, 1) - m) / s, atol=2e-6)


def test_a_whole_slice_keeps_its_proportions_and_is_padded_with_air() -> None:
    flat = np.full((4, 20, 20), 300, np.int16)
    meta = {"spacing_mm": [5.0, 1.0, 2.0]}  # 20 mm by 20 mm by 40 mm
    made = apply_slice(flat, meta, geometry("axial", size=(40, 40), spacing_mm=None), View("centre"))[0]
    assert (made[10:30] > 0.29).all() and (made[:9] == -1).all() and (made[31:] == -1).all()
    made = apply_slice(flat, meta, geometry("coronal", size=(40, 40), spacing_mm=None), View("centre"))[0]
    assert (made[10:30] > 0.29).all() and (made[:9] == -1).all()
    squashed = apply_slice(flat, meta, geometry("axial", size=(40, 40), spacing_mm=None), View("resize"))[0]
    assert (squashed > 0.29).all()
    with pytest.raises(DataError, match="no spacing_mm"):
        apply_slice(flat, {}, geometry("axial", size=(40, 40), spacing_mm=None), View("centre"))


def test_training_draws_slice_and_crop_from_the_generator() -> None:
    numbered = np.broadcast_to(np.arange(20, dtype=np.int16)[:, None, None] * 10, (20, 12, 14))
    cut = geometry("axial", span=(0.25, 0.75))
    seen = set()
    for seed in range(200):
        one, two = (
            apply_slice(numbered, META, cut, View("random", scale=(0.3, 0.6)), np.random.default_rng(seed))
            for _ in range(2)
        )
        assert np.array_equal(one, two) and np.ptp(one) < 1e-6
        seen.add(round(float(one[0, 0, 0]) * 100))
    assert seen == set(range(5, 15))
    with pytest.raises(DataError, match="a random view needs rng"):
        apply_slice(numbered, META, cut, View("random"))


def test_a_random_crop_shows_as_much_as_it_says() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.int16) * 10, (3, 64, 64))
    cut = SliceGeometry(size=(32, 32), windows=((0.0, 640.0),))
    shares = []
    for seed in range(100):
        x = apply_slice(ramp, META, cut, View("random", scale=(0.25, 0.25)), np.random.default_rng(seed))
        shares.append(float(np.ptp(x[0, 0])) / 2)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)  # half of each side


@pytest.mark.parametrize(
    ("n", "span", "count", "want"),
    [(10, (0.0, 1.0), 1, [5]), (9, (0.0, 1.0), 1, [4]), (10, (0.0, 1.0), 5, [1, 3, 5, 7, 9]),
     (10, (0.5, 1.0), 2, [6, 8]), (3, (0.0, 1.0), 9, [0, 1, 2]), (1, (0.0, 0.2), 1, [0])],
)  # fmt: skip
def test_evaluation_sees_evenly_spaced_slices(n: int, span: Any, count: int, want: list[int]) -> None:
    assert places(n, geometry("axial", span=span), count) == want


def test_several_slices_are_crops() -> None:
    made = crops_of(HU, META, geometry("coronal"), View("slices", slices=3))
    each = [HU[:, y, :][::-1, ::-1] / 1000 for y in (2, 6, 10)]
    np.testing.assert_allclose(made[:, 0], each, atol=1e-6)
    one = crops_of(HU, META, geometry("coronal"), View("centre"))
    assert one.shape == (1, 3, 10, 14) and np.array_equal(one[0], made[1])
    for kind in ("sliding", "multi"):
        with pytest.raises(DataError, match="does not give one slice"):
            crops_of(HU, META, geometry("coronal"), View(kind))
    with pytest.raises(DataError, match="is not the geometry's size"):
        crops_of(HU, META, geometry("coronal"), View("centre", (3, 3)))


def test_percentiles_of_each_volume_are_windows_too() -> None:
    stored = META | {"percentiles": {"1": -500.0, "99": 500.0}}
    cut = geometry("axial", windows=((1.0, 99.0),), windows_in="percentile")
    made = apply_slice(HU, stored, cut, View("centre"))[0]
    np.testing.assert_allclose(made, np.clip(HU[5, ::-1, ::-1] / 500.0, -1, 1), atol=1e-6)


def test_slices_have_levels_too() -> None:
    made = apply_slice(HU, META, geometry("axial", windows=((-500.0, 501.0),), levels=256), View("centre"))
    picture = np.rint(np.clip((HU[5, ::-1, ::-1] + 500.0) / 1001, 0, 1) * 255)
    np.testing.assert_allclose(made[0], picture / 127.5 - 1, atol=2e-7)
    assert "levels" not in geometry("axial").to_json() and geometry("axial", levels=2) != geometry("axial")


def test_a_geometry_survives_its_json() -> None:
    cut = geometry("sagittal", windows=((-1, 1), (0, 2), (3, 4)), span=(0.1, 0.9), levels=256)
    assert geometry_from_dict(json.loads(cut.to_json())) == cut
    assert View.from_json(View("centre").to_json()) == View("centre") and "slices" not in View("centre").to_json()


@pytest.mark.parametrize(
    ("change", "says"),
    [({"windows": ((0, 1), (0, 1))}, "2 windows"), ({"plane": "oblique"}, "oblique"), ({"spacing_mm": 0.0}, "positive"),
     ({"span": (0.5, 0.5)}, "rising"), ({"std": (1.0, 1.0, 0.0)}, "std above 0"),
     ({"windows": ((1, 0),)}, "low < high"),
     ({"windows": ((3, 4),), "windows_in": "percentile"}, "not stored"), ({"size": (0, 4)}, "height, width"),
     ({"levels": 1}, "levels 1 is below 2")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        SliceGeometry(**change)


def test_a_file_is_prepared_as_its_shard_was(tmp_path: Path) -> None:
    """From NIfTI, in the orientation it is stored in."""
    array = np.ascontiguousarray(HU.transpose(2, 1, 0))
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "ct.nii.gz")
    prepared = Preprocess(geometry("axial"), View("slices", slices=2)).crops(str(tmp_path / "ct.nii.gz")).numpy()
    from data_shards.volume import read_volume

    scan = read_volume(tmp_path / "ct.nii.gz")
    assert np.array_equal(prepared, crops_of(scan.array, scan.to_json(), geometry("axial"), View("slices", slices=2)))
