"""Features before the projection: what they are, of several crops and scans, and that nothing takes them for others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import encoders
from data_shards.preprocess import View, crops_of
from data_shards.shard_set import ShardSet
from encoders.release import write_timm_release
from eval_zero_shot import EvalError, embed
from eval_zero_shot.feature_cache import FeatureCache
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.models.adapter import Adapter

from .conftest import GEOMETRY, VIEW
from .several_scans import given, world  # noqa: F401
from .toy_release import write_toy_release


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    return encoders.load(write_toy_release(tmp_path / "toy"))


def of_scan(loaded: Any, shards: Any, row: int, scan: int = 0, view: View = VIEW) -> np.ndarray:
    """The mean over the crops of one scan, asked of the model itself."""
    crops = crops_of(*shards.scan(row, scan), GEOMETRY, view)
    with torch.no_grad():
        return loaded.model.encode_image(torch.from_numpy(crops), trunk=True).trunk_SC.mean(0).numpy()


def test_as_the_trunk_gives_them(loaded: Any, toy_shards: ShardSet, tmp_path: Path) -> None:
    sliding = View("sliding", (4, 8, 8), overlap=0.5)
    for view in (VIEW, sliding):
        inputs = Inputs("toy", replace(loaded, view=view), toy_shards, FeatureCache(tmp_path / "cache"))
        trunk = replace(inputs, vectors="trunk")
        expected = np.stack([of_scan(loaded, toy_shards, row, view=view) for row in (3, 1, 4)])
        for _ in range(2):  # then out of the cache
            assert np.allclose(trunk.features([3, 1, 4]).features_ND, expected, atol=1e-6)
            projected = inputs.features([3, 1, 4]).features_ND
            assert projected.shape == (3, 8) and np.allclose(np.linalg.norm(projected, axis=1), 1)
        assert expected.shape[1] > 8 and not np.allclose(np.linalg.norm(expected, axis=1), 1, atol=0.05)


def test_the_mean_of_the_scans_of_a_study(world: Path, tmp_path: Path) -> None:  # noqa: F811
    out, shards = tmp_path / "f.parquet", ShardSet.open(world / "shards")
    words = ["--model", str(world / "ours"), "--input", str(world / "shards"), "--device", "cpu", "--split", "val"]
    assert embed.main([*words, "--features", "trunk", "--scans", "mean", "--out", str(out)]) == 0
    table = pq.read_table(out)
    assert table.schema.metadata[b"voxclip.features"] == b"trunk"
    loaded = encoders.load(world / "ours")
    expected = [
        np.mean([of_scan(loaded, shards, row, scan) for scan in range(len(shards.members(row)) - 1)], axis=0)
        for row in shards.rows("val")
    ]
    assert np.allclose(np.stack(table["features"].to_pylist()), expected, atol=1e-6)


def test_an_image_tower_alone_gives_its_own(loaded: Any, toy_shards: ShardSet, tmp_path: Path) -> None:
    trunk = loaded.model.clip.visual.trunk
    name = trunk.default_cfg["architecture"]
    alone = encoders.load(write_timm_release(tmp_path / "alone", trunk.state_dict(), name, GEOMETRY, VIEW))
    both = [Inputs("toy", one, toy_shards, None, vectors="trunk").features([0, 1]) for one in (loaded, alone)]
    assert np.allclose(both[0].features_ND, both[1].features_ND, atol=1e-6)


def test_towers_without_them_and_values_that_are_none(loaded: Any, toy_shards: ShardSet) -> None:
    class Foreign(Adapter):
        def images(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    foreign = replace(loaded, model=Foreign(0.0))
    assert Inputs("toy", foreign, toy_shards, None).features([0]).features_ND.shape == (1, 256)
    with pytest.raises(EvalError, match="gives no features before its projection: trunk features are available"):
        Inputs("toy", foreign, toy_shards, None, vectors="trunk").features([0])
    with torch.no_grad():
        next(loaded.model.clip.visual.trunk.parameters()).fill_(float("nan"))
    with pytest.raises(EvalError, match="1 of 1 feature vectors are not finite"):
        Inputs("toy", loaded, toy_shards, None, vectors="trunk").features([0])
