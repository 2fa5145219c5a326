"""Image studies that are bright or dark, and one scoring by command line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardWriter
from eval_zero_shot.report.__main__ import main as report
from eval_zero_shot.run import main as run

TASK = {
    "name": "toy",
    "classes": {"bright": {"positive": ["a bright scan"], "negative": ["a dark scan"]}},
}


def png(grey: int, size: tuple[int, int] = (40, 56), seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    Image.fromarray(np.clip(rng.normal(grey, 40, (*size, 3)), 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def image_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "shards"
    with ShardWriter(folder) as writer:
        for i in range(12):
            scan = Scan(image=png(180 if i % 2 else 70, seed=i), modality="OT", ext="png", unit="arbitrary")
            texts = Texts(report=f"a {'bright' if i % 2 else 'dark'} scan, number {i}")
            labels = {"bright": i % 2}
            writer.write(Study(f"{i:016x}", f"{i + 100:016x}", "test", (scan,), texts, labels))
    return folder


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps(TASK))
    return path


@pytest.fixture
def score(task: Path, tmp_path: Path) -> Callable[[str, Path], dict[str, Any]]:
    """`score(model, shards)`: results.json of a whole evaluation from the command line, and its page."""

    def scored(model: str, shards: Path) -> dict[str, Any]:
        out = tmp_path / "out"
        words = ["--model", model, "--data", str(shards), "--task", str(task), "--out", str(out), "--resamples", "20"]
        assert run([*words, "--pool", "4", "--cache", str(tmp_path / "cache"), "--device", "cpu"]) == 0
        page = ["--results", str(out), "--model", model, "--data", str(shards), "--task", str(task)]
        assert report([*page, "--out", str(tmp_path / "report.html")]) == 0
        return json.loads((out / "results.json").read_text())

    return scored
