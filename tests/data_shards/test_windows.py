"""Volumes handed over as values, windows made of them where they are looked at: what a GPU trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards import Study
from data_shards.preprocess import Geometry, PlanarGeometry, SliceGeometry, View, stacked
from data_shards.shard_set import ShardSet, ShardWriter
from data_shards.windows import Windows
from tests.data_shards.test_stream import GEOMETRY, stream

AS_STORED = replace(GEOMETRY, spacing_mm=None)
LARGER = View("random", (12, 15, 20), jitter=2)  # than the scans: padded


@pytest.mark.parametrize("geometry", [AS_STORED, replace(AS_STORED, levels=256)], ids=["plain", "levels"])
def test_of_whole_hu_the_windows_are_the_same_bits(shards: ShardSet, geometry: Geometry) -> None:
    for view in (View("random", (8, 9, 10), jitter=2), LARGER):
        plain, raw = (list(stream(shards, geometry=geometry, view=view, raw=told)) for told in (False, True))
        for a, b in zip(plain, raw, strict=True):
            assert b.images_BCDHW.dtype == torch.float16 and b.images_BCDHW.shape[1] == 1
            assert torch.equal(a.images(), b.images())
            assert torch.equal(a.images(slice(1, 3)), b.images(slice(1, 3)))


def test_of_resampled_hu_they_are_off_by_the_rounding_to_float16(shards: ShardSet) -> None:
    for a, b in zip(stream(shards), stream(shards, raw=True), strict=True):
        for channel, (low, high) in enumerate(GEOMETRY.windows):
            bound = 2 / (high - low) * max(abs(low), abs(high)) * 2**-11 + 1e-6
            difference = (a.images()[:, channel] - b.images()[:, channel]).abs().max()
            assert 0 < difference <= bound


def test_workers_hand_them_over_unchanged(shards: ShardSet) -> None:
    for a, b in zip(stream(shards, raw=True), stream(shards, raw=True, workers=2), strict=True):
        assert torch.equal(a.images_BCDHW, b.images_BCDHW) and b.windows == Windows(GEOMETRY.windows, None)


def test_a_scan_that_a_study_lacks_is_absent_in_every_window() -> None:
    geometry = Geometry(spacing_mm=None, windows=((-1000, 0), (0, 1000)), scans_per_study=3)
    array = np.random.default_rng(0).integers(-1200, 1200, (6, 7, 8)).astype(np.int16)
    scans = [(array, {}), (array[::-1], {})]
    view = View("centre", (5, 8, 8))
    plain, raw = stacked(scans, geometry, view), stacked(scans, geometry, view, raw=True)
    windows = Windows.of(geometry)
    assert windows is not None and raw.shape == (3, 5, 8, 8)
    got = windows(torch.from_numpy(raw)[None])[0]
    assert torch.equal(got, torch.from_numpy(plain)) and (got[4:] == -1).all()


def test_values_beyond_float16_are_the_windows_ends() -> None:
    geometry = Geometry(spacing_mm=None, windows=((0, 1000),))
    array = np.array([-30000, 0, 1000, 30000], np.int16).reshape(1, 1, 4)
    scans, view = [(array, {"slope": 100.0, "intercept": 0.0})], View("centre", (1, 1, 4))
    raw = torch.from_numpy(stacked(scans, geometry, view, raw=True))
    assert torch.isinf(raw).sum() == 3
    assert Windows(geometry.windows, None)(raw[None]).flatten().tolist() == [-1, -1, 1, 1]
    assert stacked(scans, geometry, view).flatten().tolist() == [-1, -1, 1, 1]


@pytest.mark.parametrize("window", [(0, 1e5), (40000, 40100), (0, 1e-6), (0, 1e-8), (1024, 1500)])
def test_windows_that_float16_cannot_tell_come_as_ever(window: tuple[float, float]) -> None:
    assert Windows.of(replace(AS_STORED, windows=(window,))) is None
    assert Windows.of(replace(AS_STORED, windows=((-1000, 1000), window))) is None


@pytest.mark.parametrize("window", [(-1150, 350), (-160, 240), (100, 1100), (200, 1200), (-1000, 1000), (0, 5)])
def test_windows_of_ct_come_as_values(window: tuple[float, float]) -> None:
    assert Windows.of(replace(AS_STORED, windows=(window,))) == Windows((window,), None)


def test_percentiles_slices_and_images_come_as_ever(shards: ShardSet) -> None:
    percentiles = replace(AS_STORED, windows=((1.0, 99.0),), windows_in="percentile")
    assert Windows.of(percentiles) is None and Windows.of(PlanarGeometry(size=(8, 8))) is None
    slices, view = SliceGeometry(size=(8, 8)), View("random", (8, 8))
    plain, raw = (list(stream(shards, geometry=slices, view=view, raw=told)) for told in (False, True))
    assert all(b.windows is None and torch.equal(a.images(), b.images()) for a, b in zip(plain, raw, strict=True))


def test_studies_of_several_scans(tmp_path: Path, study: Callable[..., Study]) -> None:
    with ShardWriter(tmp_path / "set") as writer:
        for i in range(4):
            one = study(i)
            writer.write(replace(one, scans=one.scans * (1 + i % 2)))
    shards = ShardSet.open(tmp_path / "set")
    geometry = replace(AS_STORED, scans_per_study=2, levels=256)
    plain, raw = (next(iter(stream(shards, geometry=geometry, raw=told, steps=1))) for told in (False, True))
    assert raw.images_BCDHW.shape[1] == 2 and torch.isinf(raw.images_BCDHW).any()
    assert torch.equal(plain.images(), raw.images()) and plain.images().shape[1] == 4
