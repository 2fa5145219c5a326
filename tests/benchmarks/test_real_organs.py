"""Cubes around organs, built from the real scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import real_organs
from data_shards.shard_set import ShardSet
from eval_zero_shot.tasks import load_task


def test_a_cube_is_turned_about_what_it_is_of() -> None:
    """A bright spot stays within the shift of the middle, in mm, on whatever grid, and turns to every side."""
    scan = np.full((60, 50, 70), -1000.0, np.float32)
    scan[29:32, 24:27, 34:37] = 1000
    centre, spacing = np.array([30, 25, 35]), np.array([4.0, 5.0, 2.5])
    cubes = [real_organs.turned_cube(scan, centre, spacing, np.random.default_rng(seed)) for seed in range(16)]
    places = np.array([np.argwhere(cube > 0).mean(0) - 15.5 for cube in cubes])
    millimetres = real_organs.SIDE / real_organs.VOXELS
    assert (np.linalg.norm(places, axis=1) * 0.8 * millimetres <= (real_organs.SHIFT + 1) * 3**0.5).all()
    assert (places.max(0) > 0).all() and (places.min(0) < 0).all()


def test_a_cube_is_turned_and_not_bent() -> None:
    """Two spots 30 mm apart stay so far apart, up to the scale, and lie on every side of each other."""
    spacing, centre = np.array([4.0, 5.0, 2.5]), np.array([30, 25, 35])
    apart = []
    for seed in range(24):
        found = []
        for aside in ((0, 0, 0), (0, 6, 0)):  # voxels; 30 mm along the second axis
            scan = np.full((60, 50, 70), -1000.0, np.float32)
            low = centre + aside - 1
            scan[tuple(slice(n, n + 3) for n in low)] = 1000
            cube = real_organs.turned_cube(scan, centre, spacing, np.random.default_rng(seed)) + 1000
            found.append(np.stack(np.nonzero(cube)) @ cube[cube != 0] / cube.sum())
        apart.append((found[1] - found[0]) * real_organs.SIDE / real_organs.VOXELS)
    length = np.linalg.norm(apart, axis=1)
    assert (length > 30 / 1.25 - 2).all() and (length < 30 / 0.8 + 2).all()
    assert (np.max(apart, axis=0) > 10).all() and (np.min(apart, axis=0) < -10).all()


@pytest.mark.full
def test_every_cube_has_one_organ_and_a_report_of_it(shared_data: Path, tmp_path: Path) -> None:
    assert real_organs.main(["--data", str(shared_data), "--out", str(tmp_path / "organs"), "--workers", "1"]) == 0
    shards = ShardSet.open(tmp_path / "organs")
    task = load_task(str(Path(real_organs.__file__).with_name("ct_patches.yaml")))
    assert len(shards) >= 3000 and set(shards.label_names) == set(task.names)
    assert set(shards.manifest["splits"]) == {"train", "val", "test"}
    for row in range(0, len(shards), 100):
        told_of = shards.json(row)
        (organ,) = (name for name, value in told_of["labels"].items() if value == 1)
        assert organ.replace("_", " ") in told_of["texts"]["report"]
        source, _ = shards.scan(row, 0)
        assert source[:].shape == (real_organs.VOXELS,) * 3
