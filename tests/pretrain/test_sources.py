"""Recipes on other people's tars, alone and mixed, and on a selection of a shard set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from data_shards.opening import holds_studies, open_studies
from data_shards.select import main as select
from data_shards.shard_set import ShardSet
from eval_zero_shot import embed
from pretrain import fit, studies
from pretrain.config import ConfigError, load_recipe
from tests.data_shards.foreign_tars import unimed


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    unimed(tmp_path / "tars" / "00000.tar", 12)
    unimed(tmp_path / "tars" / "00001.tar", 9, separator="_openi_")
    return tmp_path / "tars"


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """recipe(source): a small recipe for images with captions."""

    def write(source: dict[str, Any]) -> Path:
        found = yaml.safe_load((Path(fit.__file__).parents[1] / "configs" / "xray2d.yaml").read_text())
        found["data"] |= {"source": source, "units": {"report": False, "captions": True}, "cache": str(tmp_path / "c")}
        found["data"] |= {"geometry": {"kind": "image", "size": [32, 32]}, "workers": 0}
        found["data"]["train_view"]["size"] = found["data"]["eval_view"]["size"] = [32, 32]
        found["model"]["image"] = {"name": "resnet10t", "image_size": 32}
        found["objectives"] = [{"name": "contrastive", "units": ["caption"]}]
        found["evaluate"] = {"task": None}
        path = tmp_path / "trial.yaml"
        path.write_text(yaml.safe_dump(found))
        return path

    return write


def test_a_recipe_trains_on_published_tars(
    recipe: Any, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = recipe({"kind": "tars", "path": str(tars), "val_fraction": 0.2})
    runs = ["--output.root", str(tmp_path / "runs"), "--output.run", "r"]
    assert fit.main(["--config", str(path), "--smoke", *runs]) == 0
    assert (tmp_path / "runs" / "r" / "release" / "open_clip_model.safetensors").is_file()
    data = studies.build_data(load_recipe(str(path), []))
    assert len(data.shards) == 21 and len(data.train_rows) and len(data.select_rows)
    out = tmp_path / "features.parquet"
    release = str(tmp_path / "runs" / "r" / "release")
    assert embed.main(["--model", release, "--input", str(tars), "--out", str(out), "--device", "cpu"]) == 0
    assert pq.read_table(out).column("key").to_pylist() == [data.shards.key(row) for row in range(21)]
    assert sorted(p.name for p in tars.iterdir()) == ["00000.tar", "00001.tar"], "their folder is not written"


def test_tars_and_shards_are_mixed(recipe: Any, tars: Path, radiographs: Path) -> None:
    sources = [
        {"name": "theirs", "path": str(tars), "layout": "unimed", "weight": 1},
        {"name": "ours", "path": str(radiographs), "weight": 1},
    ]
    data = studies.build_data(load_recipe(str(recipe({"kind": "mixture", "sources": sources})), []))
    ours = ShardSet.open(radiographs)
    assert len(data.shards) == 21 + len(ours) and len(data.train_rows) == 21 + len(ours.rows("train"))


def test_a_selection_of_tars_fits_the_recipe_that_splits_them_alike(recipe: Any, tars: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.json"
    assert select([str(tars), "--val-fraction", "0.2", "--where", "split = 'train'", "--out", str(chosen)]) == 0
    source = {"kind": "tars", "path": str(tars), "val_fraction": 0.2, "selection": str(chosen)}
    data = studies.build_data(load_recipe(str(recipe(source)), []))
    assert len(data.train_rows) and not len(data.select_rows)


def test_what_is_not_there_is_said_at_once(recipe: Any, tars: Path) -> None:
    for source, words in (
        ({"kind": "tars", "path": str(tars / "absent*.tar")}, "no folder or tar"),
        ({"kind": "tars", "path": str(tars), "layout": "uni"}, "not one of auto, unimed"),
        ({"kind": "shards", "path": str(tars)}, "kind: tars"),
        ({"kind": "tars", "path": str(tars), "selection": "none.parquet"}, "no file 'none.parquet'"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_recipe(str(recipe(source)), [])


def test_a_selection_is_all_that_is_trained_on(tiny: Any, shards: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.parquet"
    assert select([str(shards), "--where", "nodule = 1", "--out", str(chosen)]) == 0
    source = {"kind": "shards", "path": str(shards), "selection": str(chosen)}
    whole = yaml.safe_load(Path(tiny.recipe).read_text())
    whole["data"]["source"] = source
    path = tmp_path / "chosen.yaml"
    path.write_text(yaml.safe_dump(whole))
    data = studies.build_data(load_recipe(str(path), []))
    opened = ShardSet.open(shards)
    sick = np.flatnonzero(opened.labels(("nodule",))[:, 0] == 1)
    assert 0 < len(data.train_rows) < len(opened.rows("train"))
    np.testing.assert_array_equal(data.train_rows, np.intersect1d(opened.rows("train"), sick))
    assert select([str(shards), "--where", "split = 'test'", "--out", str(chosen)]) == 0
    with pytest.raises(ConfigError, match="holds no study of split 'train'"):
        studies.build_data(load_recipe(str(path), []))


def test_one_door_opens_both(tars: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_studies(shards)) == len(ShardSet.open(shards))
    assert len(open_studies(tars)) == 21 and len(open_studies(tars / "00000.tar")) == 12
    assert len(open_studies(f"file://{shards}")) == len(ShardSet.open(shards))
    (scans := tmp_path / "scans").mkdir()
    (scans / "a.nii.gz").write_bytes(b"")
    unimed(scans / "old" / "backup.tar", 2)
    assert holds_studies(tars) and holds_studies(shards) and not holds_studies(scans)
    (shards_without := tmp_path / "half").mkdir()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        open_studies(shards_without)
