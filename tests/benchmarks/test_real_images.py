"""Public images of several kinds, built from the real files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import real_images
from data_shards.captions import load_templates
from data_shards.shard_set import ShardSet
from eval_zero_shot.tasks import load_task


def test_a_patch_is_turned_about_what_it_is_of() -> None:
    """A bright spot stays within the shift of the middle, in mm, on whatever grid."""
    plane = np.full((80, 60), -1000.0, np.float32)
    plane[30:32, 40:42] = 1000
    patches = [
        real_images.turned(plane, np.array([30.5, 40.5]), (2.0, 3.0), np.random.default_rng(seed)) for seed in range(8)
    ]
    places = [np.argwhere(patch > 0).mean(0) - 31.5 for patch in patches]
    millimetres = real_images.SIDE / real_images.PIXELS
    assert all(np.abs(place).max() * 0.8 * millimetres <= real_images.SHIFT * 2**0.5 for place in places)
    assert len({tuple(place.round()) for place in places}) == 8


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
