"""Real scans down the same road: a table, shards, batches."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.build import main
from data_shards.preprocess import Geometry, PlanarGeometry, View, apply_planar, apply_view
from data_shards.shard_set import ShardSet
from data_shards.stream import Stream, ordered_pass
from data_shards.units import UnitPolicy
from data_shards.volume import read_image, read_volume


def tokenize(text: str) -> list[int]:
    return [1, *text.encode()[:50], 2]


def _some(source: Path, out: Path, n: int) -> list[dict[str, str]]:
    with source.open(newline="") as file:
        records = list(csv.DictReader(file))[:n]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return records


def test_head_and_neck_ct(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLIP_SALT", "test")
    records = _some(shared_data / "openkbp_ct" / "pairs.csv", tmp_path / "some.csv", 6)
    arguments = ["--source", str(tmp_path / "some.csv"), "--root", str(shared_data / "openkbp_ct")]
    arguments += ["--image-template", "ct/{volume}.nii.gz", "--id-column", "volume", "--patient-column", "volume"]
    arguments += ["--text-columns", "findings_visible", "--label-columns", "lungs=included"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    shards = ShardSet.open(tmp_path / "out")
    assert shards.labels().ravel().tolist() == [float(r["lungs"] == "included") for r in records]
    # Air above and in front of the head, tissue in the middle: the orientation is what it says.
    array = shards.scan(1)[0][:].astype(np.float32)
    middle = array[:, array.shape[1] // 2, array.shape[2] // 2]
    assert (middle > -300).mean() > 0.6
    stream = Stream(
        shards, shards.rows("train"), Geometry(spacing_mm=(5, 5, 5)), View("random", (32, 40, 48)), tokenize,
        UnitPolicy(sentences=True), batch_size=3, seed=0, steps=3, label_names=shards.label_names,
    )  # fmt: skip
    batches = list(stream)
    assert [b.images_BCDHW.shape for b in batches] == [(3, 3, 32, 40, 48)] * 3
    assert all(torch.isfinite(b.images_BCDHW).all() and b.images_BCDHW.std() > 0.1 for b in batches)


def test_a_file_and_its_shard_give_the_same_view(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXCLIP_SALT", "test")
    records = _some(shared_data / "openkbp_ct" / "pairs.csv", tmp_path / "some.csv", 2)
    root = shared_data / "openkbp_ct"
    arguments = ["--source", str(tmp_path / "some.csv"), "--root", str(root), "--image-template", "ct/{volume}.nii.gz"]
    arguments += ["--patient-column", "volume", "--text-columns", "findings_visible"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    geometry, view = Geometry(spacing_mm=(4, 4, 4)), View("centre", (40, 48, 48))
    shards = ShardSet.open(tmp_path / "out")
    (batch,) = ordered_pass(shards, shards.rows(), geometry, view, tokenize, UnitPolicy(), batch_size=2)
    for image, record in zip(batch.images_BCDHW, records, strict=True):
        scan = read_volume(root / "ct" / f"{record['volume']}.nii.gz")
        assert torch.equal(torch.from_numpy(apply_view(scan.array, scan.to_json(), geometry, view)), image)


def test_chest_radiographs(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLIP_SALT", "test")
    records = _some(shared_data / "hannover_cxr" / "pairs.csv", tmp_path / "some.csv", 12)
    root = shared_data / "hannover_cxr"
    arguments = ["--source", str(tmp_path / "some.csv"), "--root", str(root), "--image-template", "images/{image}"]
    arguments += ["--text-columns", "text_templated", "--label-columns", "projection=pa,in_icu"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    shards = ShardSet.open(tmp_path / "out")
    geometry = PlanarGeometry(size=(64, 64))
    (batch,) = ordered_pass(shards, shards.rows(), geometry, View(), tokenize, UnitPolicy(), batch_size=12)
    assert batch.images_BCDHW.shape == (12, 3, 64, 64)
    data = read_image(root / "images" / records[7]["image"]).image
    assert data is not None
    assert torch.equal(batch.images_BCDHW[7], torch.from_numpy(apply_planar(data, geometry, View())))
