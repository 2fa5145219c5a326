"""Volumes handed over as values, windows made of them where they are looked at: what a GPU trains on."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards import DataError
from data_shards import workers as workers_module
from data_shards.preprocess import Geometry, View, stacked
from data_shards.shard_set import ShardSet
from data_shards.windows import Windows
from data_shards.workers import fitting
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
    raw = stacked([(array, {"slope": 100.0, "intercept": 0.0})], geometry, View("centre", (1, 1, 4)), raw=True)
    assert np.isinf(raw).sum() == 3
    assert Windows(geometry.windows, None)(torch.from_numpy(raw)[None]).flatten().tolist() == [-1, -1, 1, 1]


def test_windows_in_percentiles_and_images_come_as_ever() -> None:
    assert Windows.of(replace(AS_STORED, windows=((5.0, 95.0),), windows_in="percentile")) is None
    assert Windows.of(Geometry()) is not None


def test_no_more_workers_than_shared_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(workers_module, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(workers_module.shutil, "disk_usage", lambda path: usage(64e9, 0, int(64e9)))
    assert fitting(12, int(1e9), 1) == 12 and not capsys.readouterr().err
    assert fitting(12, int(6.5e9), 1) == 7
    assert "data.workers 12 -> 7: each holds a batch of 6.5 GB" in capsys.readouterr().err
    assert fitting(0, int(6.5e10), 1) == 0
    with pytest.raises(DataError, match=r"65 GB.*64 GB free(.|\n)*--data.workers 0"):
        fitting(12, int(6.5e10), 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert fitting(12, int(1e9), 8) == 6, "ranks of one machine share it"
    assert fitting(12, int(1e9), 1) == 12


def test_an_unknown_folder_of_shared_memory_limits_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workers_module, "SHARED_MEMORY", tmp_path / "none")
    assert fitting(12, int(6.5e12), 1) == 12


def test_training_on_values_is_training_on_windows(shards: ShardSet) -> None:
    """The part of a batch that a tower is given."""
    from pretrain.passes import split

    batches = [next(iter(stream(shards, geometry=AS_STORED, raw=told))) for told in (False, True)]
    plain, raw = ([part.images for part in split(batch, 3)] for batch in batches)
    assert len(plain) == 2 and all(torch.equal(a, b) for a, b in zip(plain, raw, strict=True))
