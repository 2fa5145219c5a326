"""Public images of several kinds, built from the real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import real_images
from data_shards.captions import load_templates
from data_shards.shard_set import ShardSet
from eval_zero_shot.tasks import load_task


@pytest.mark.full
def test_sets_whose_labels_have_captions_and_prompts(shared_data: Path, tmp_path: Path) -> None:
    assert real_images.main(["--data", str(shared_data), "--out", str(tmp_path), "--workers", "1"]) == 0
    labels: list[str] = []
    for name, least in (("xray", 200), ("pneumonia", 3000), ("slices", 1900)):
        shards = ShardSet.open(tmp_path / name)
        assert len(shards) >= least
        labels += shards.label_names
    framed = load_templates(str(Path(real_images.__file__).with_name("real_images_captions.yaml")))
    assert set(labels) == set(load_templates("public_images").classes) == set(framed.classes)
    assert set(labels) == set(load_task("public_images").names)
    slices = ShardSet.open(tmp_path / "slices")
    patches = ShardSet.open(tmp_path / "patches")
    assert len(patches) >= 3000 and set(patches.label_names) == set(
        load_task(str(Path(real_images.__file__).with_name("ct_patches.yaml"))).names
    )
    for row in range(0, len(patches), 100):
        told_of = patches.json(row)
        (organ,) = (name for name, value in told_of["labels"].items() if value == 1)
        assert organ.replace("_", " ") in told_of["texts"]["report"]
    told = [slices.json(row)["labels"] for row in range(len(slices))]
    assert {label["brainstem"] for label in told} >= {0, 1} and None in {label["larynx"] for label in told}
