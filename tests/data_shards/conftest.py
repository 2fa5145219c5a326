"""Small studies and shard sets, written through the public doors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_shards import Caption, Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from tests.data_shards import foreign_tars as tars


def _study(i: int, split: str = "train", shape: tuple[int, int, int] = (10, 14, 18)) -> Study:
    rng = np.random.default_rng(i)
    array = rng.integers(-1000, 1000, shape).astype(np.int16)
    texts = Texts(
        findings=f"The lungs are clear. Nodule number {i}. The heart is normal.",
        impression="No acute disease." if i % 2 else f"Nodule {i}.",
        captions=(Caption(f"caption {i}"), Caption("a chest CT", 0.5)),
    )
    labels = {"nodule": 1, "effusion": i % 2 if i % 3 else None}
    scan = Scan(array=array, spacing_mm=(3.0, 2.0, 2.0))
    return Study(f"study{i}", f"patient{i // 2}", split, (scan,), texts, labels, "made up", "CC0-1.0")


@pytest.fixture(scope="session")
def study() -> Callable[..., Study]:
    """study(i, split, shape): the i-th made-up study; two follow each other per patient."""
    return _study


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 14 volumes in shards of 5: 10 train, 4 val. Do not change it; copy it."""
    out = tmp_path_factory.mktemp("shards") / "set"
    with ShardWriter(out, max_samples=5) as writer:
        for i in range(14):
            writer.write(_study(i, "train" if i < 10 else "val", (10 + i % 3, 14, 18)))
    return out


@pytest.fixture
def shards(shard_folder: Path) -> ShardSet:
    return ShardSet.open(shard_folder)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the four layouts. Do not change them; copy them."""
    root = tmp_path_factory.mktemp("published")
    tars.unimed(root / "unimed" / "dataset-000001.tar")
    tars.unimed(root / "unimed" / "dataset-000002.tar", 4, "_chexpert_")
    tars.biomedica(root / "biomedica" / "commercial" / "000000.tar")
    tars.biomedica(root / "biomedica" / "noncommercial" / "000000.tar", 4)  # of the same name
    tars.clip_benchmark(root / "clip_benchmark")
    tars.img2dataset(root / "img2dataset")
    return {name: root / name for name in tars.LAYOUTS}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
