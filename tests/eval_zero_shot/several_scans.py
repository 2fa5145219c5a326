"""Studies of one, two and three scans, and the commands that score them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardWriter
from eval_zero_shot import classify, embed
from eval_zero_shot.cases import Scans
from eval_zero_shot.outcome import Outcome, read_results

from .conftest import TASK
from .toy_release import write_toy_release

CHOICES: tuple[Scans, ...] = ("first", "mean", "every")
TRAIN, VAL, STUDIES = 24, 32, 56  # two studies a patient, of 1, 2, 3 scans in turn
TESTED = range(VAL, STUDIES)


def scans_of(i: int) -> int:
    return 1 + i % 3


def key(i: int) -> str:
    return f"{i:016x}"


SCANS = [f"{key(i)}.{j:02d}" for i in TESTED for j in range(scans_of(i))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in which every scan is another picture, two releases and a task."""
    folder = tmp_path_factory.mktemp("several")
    with ShardWriter(folder / "shards") as writer:
        for i in range(STUDIES):
            rng, bright = np.random.default_rng(i), i // 2 % 2
            shapes, mean = [(5 + 4 * j, 9, 9) for j in range(scans_of(i))], 150 if bright else -150
            arrays = [rng.normal(mean, 400, shape).astype(np.int16) for shape in shapes]
            writer.write(
                Study(
                    key(i), f"{1000 + i // 2:016x}", "train" if i < TRAIN else "val" if i < VAL else "test",
                    tuple(Scan(array=array, spacing_mm=(3.0, 2.0, 2.0)) for array in arrays),
                    Texts(report=f"scan number{i}"), {"bright": bright, "dark": i % 2},
                )
            )  # fmt: skip
    for seed, name in enumerate(("ours", "theirs")):
        write_toy_release(folder / name, seed=seed)
    (folder / "toy.yaml").write_text(json.dumps(TASK.model_dump(mode="json")))
    return folder


def given(world: Path, model: str = "ours", cache: bool = True) -> list[str]:
    kept = ["--cache", str(world / "cache")] if cache else ["--no-cache"]
    return ["--model", str(world / model), "--data", str(world / "shards"), "--device", "cpu", *kept]


def classified(world: Path, out: Path, *words: str, **how: Any) -> Outcome:
    task = ["--task", str(world / "toy.yaml"), "--resamples", "50", "--out", str(out)]
    assert classify.main([*given(world, **how), *task, *words]) == 0
    return read_results(out)[0]


def embedded(world: Path, out: Path, scans: Scans, view: str) -> tuple[list[str], np.ndarray, Any]:
    words = ["--model", str(world / "ours"), "--input", str(world / "shards"), "--device", "cpu", "--split", "test"]
    assert embed.main([*words, "--scans", scans, "--view", view, "--out", str(out)]) == 0
    table = pq.read_table(out)
    return table["key"].to_pylist(), np.stack(table["features"].to_pylist()), table
