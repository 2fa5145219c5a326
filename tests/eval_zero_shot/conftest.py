"""A toy world: studies that are bright or dark, and an encoder that can tell."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from data_shards.preprocess import Geometry, View
from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from encoders.features import ImageFeatures, TextFeatures
from eval_zero_shot import Finding, Task

GEOMETRY = Geometry(spacing_mm=None, windows=((-1000.0, 1000.0),))
VIEW = View("centre", (4, 8, 8))
WORDS = {"bright": 0, "dark": 1, "no": 2, "scan": 3}


def finding(positive: str, negative: str, like_positive: str, like_negative: str) -> Finding:
    """Main prompts and synonyms."""
    synonyms = {"positive": [like_positive], "negative": [like_negative]}
    return Finding(positive=[positive], negative=[negative], prompts={"synonyms": synonyms})


TASK = Task(
    name="toy",
    classes={
        "bright": finding("bright scan", "dark scan", "bright", "dark"),
        "dark": finding("dark scan", "bright scan", "dark", "bright"),
        "absent_from_the_shards": finding("scan", "no scan", "dark no scan", "bright no scan"),
    },
)


def tokenize(text: str) -> list[int]:
    return [WORDS.get(word, 4 + hashlib.blake2b(word.encode()).digest()[0] % 60) for word in text.split()]


class ToyEncoder(nn.Module):
    """Brightness against darkness, with dropout and batch statistics that an evaluation must not touch."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(2, affine=False)
        self.frozen = nn.Dropout(0.5).eval()
        self.table = nn.Embedding(64, 2)
        self.images_seen = 0
        self.texts_seen: list[int] = []
        nn.init.zeros_(self.table.weight)
        with torch.no_grad():
            self.table.weight[0, 0] = self.table.weight[1, 1] = self.table.weight[2, 0] = 1.0
            self.table.weight[3:] = 0.1

    def encode_image(self, images: Tensor) -> ImageFeatures:
        self.images_seen += len(images)
        mean = images.flatten(1).mean(1)
        x = self.frozen(self.dropout(self.norm(torch.stack([mean + 2, 2 - mean], 1))))
        return ImageFeatures(x, torch.arange(len(x)), x)

    def encode_text(self, batch: Any) -> TextFeatures:
        self.texts_seen += batch.hash64_U.tolist()
        parts = torch.split(self.table(batch.tokens_T), list(batch.lengths))
        units = self.dropout(torch.stack([part.sum(0) for part in parts]))
        return TextFeatures(units, batch.kind_U, batch.hash64_U, batch.pair_sample_P, batch.pair_unit_P)


def study(i: int, split: str = "test") -> Study:
    rng = np.random.default_rng(i)
    bright = i % 2
    array = rng.normal(300 if bright else -300, 500, size=(5, 9, 9)).astype(np.int16)
    word = "bright" if bright else "dark"
    return Study(
        key=f"{i:016x}",
        patient=f"{i // 2 + 1000:016x}",
        split=split,
        scans=(Scan(array=array, spacing_mm=(3.0, 2.0, 2.0)),),
        texts=Texts(report=f"{word} scan" if i % 3 else f"{word} scan number{i}"),
        labels={"bright": None if i % 7 == 0 else bright, "dark": 1 - bright},
    )


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "shards"
    with ShardWriter(folder) as writer:
        for i in range(24):
            writer.write(study(i))
        writer.write(study(24, "val"))
    return folder


@pytest.fixture
def toy_shards(toy_folder: Path) -> ShardSet:
    return ShardSet.open(toy_folder)


@pytest.fixture
def toy_encoder() -> ToyEncoder:
    return ToyEncoder()


@pytest.fixture
def suite(toy_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(TASK.model_dump_json())
    body = {
        "name": "toys",
        "data": str(toy_folder),
        "entries": [
            {"protocol": "classification", "task": "toy.yaml", "resamples": 200},
            {"protocol": "retrieval", "pools": [8, "full"], "ks": [1, 5], "repeats": 5, "resamples": 200},
        ],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(body))
    return tmp_path / "suite.yaml"
