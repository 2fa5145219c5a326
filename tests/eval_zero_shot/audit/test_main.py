"""The command, on a real release of volumes: files, exit codes, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from data_shards.preprocess import Geometry, View
from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardWriter
from encoders.dual import build_dual
from encoders.release import write_release
from eval_zero_shot.audit.__main__ import main
from eval_zero_shot.outcome import read_results

from .conftest import NAMES, TASK, hashed, truth

TEST, TRAIN = 40, 50
GEOMETRY = Geometry(spacing_mm=(3.0, 2.0, 2.0), windows=((-1000.0, 1000.0),))


def volume(number: int) -> np.ndarray:
    coarse = np.random.default_rng(number).normal(0, 400, (4, 4, 4))
    return np.clip(zoom(coarse, (4, 5, 5), order=3) - 200, -1024, 2000).astype(np.int16)


def study(number: int, split: str, array: np.ndarray | None = None, spacing: tuple = (3.0, 2.0, 2.0)) -> Study:
    scan = Scan(array=volume(number) if array is None else array, spacing_mm=spacing)
    labels: dict[str, int | None] = dict(zip(NAMES, truth(number)))
    key, patient = hashed("study", number), hashed("patient", number)
    return Study(key, patient, split, (scan,), Texts(report=f"Report number {number}."), labels)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release, a task, a test set, and a training set that holds one in ten of the test volumes resampled."""
    root = tmp_path_factory.mktemp("audit")
    torch.manual_seed(0)
    vision = {"timm_model_name": "voxvit_tiny.p-2x4x4_i-4x8x8_c-1_l-1", "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": {**vision, "image_size": 8}, "text_cfg": text}
    release = root / "toy"
    write_release(release, build_dual(config).clip.state_dict(), config, GEOMETRY, View("centre", (4, 8, 8)))
    (root / "patterns.yaml").write_text(json.dumps(TASK.model_dump(mode="json")))
    with ShardWriter(root / "test") as writer:
        for i in range(TEST):
            writer.write(study(i, "test"))
    with ShardWriter(root / "train") as writer:
        for i in range(TRAIN):
            writer.write(study(1000 + i, "train"))
        for i in range(0, TEST, 10):
            resampled = zoom(volume(i).astype(np.float32), (0.75, 0.8, 0.8), order=1).astype(np.int16)
            writer.write(study(2000 + i, "train", resampled, (4.0, 2.5, 2.5)))
    return root


def words(world: Path, *more: str) -> list[str]:
    args = ["--model", str(world / "toy"), "--data", str(world / "test"), "--task", str(world / "patterns.yaml")]
    return [*args, "--device", "cpu", "--resamples", "100", "--cache", str(world / "cache"), *more]


def test_the_command_finds_resampled_volumes_and_writes_what_it_found(world: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(words(world, "--train", str(world / "train"), "--out", str(out), "--strict")) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "Do not report these scores as they are" in said and "near-identical images" in said
    assert sorted(path.name for path in out.iterdir()) == ["pairs.csv", "results.json", "scores.parquet"]
    (outcome,) = read_results(out)
    assert (outcome.protocol, outcome.studies, outcome.task) == ("audit", TEST, "patterns")
    assert outcome.main.value is not None
    found = {m.of: m for m in outcome.metrics if m.name == "check"}
    assert found["near-identical images"].at["severity"] == "fail"
    assert found["near-identical images"].value == pytest.approx(0.1)
    assert found["identical images"].at["severity"] == "ok"
    with (out / "pairs.csv").open(newline="") as file:
        pairs = [row for row in csv.DictReader(file) if row["kind"] == "perceptual"]
    expected = {(hashed("study", i), hashed("study", 2000 + i)) for i in range(0, TEST, 10)}
    assert {(row["test_key"], row["train_key"]) for row in pairs} == expected


def test_without_strict_and_without_training_it_ends_well(world: Path, capsys: Any) -> None:
    assert main(words(world)) == 0
    assert "no training set was named" in " ".join(capsys.readouterr().out.split())


def test_a_part_of_training_is_said_to_be_a_part(world: Path, capsys: Any) -> None:
    assert main(words(world, "--train", str(world / "train"), "--max-train", "30", "--no-cache")) == 0
    assert f"only 30 of {TRAIN + 4} training studies" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        (("--split", "validation"), "no study in split 'validation'"),
        (("--train", "{world}/train", "--train-split", "nought"), "no sample in split 'nought'"),
        (("--resamples", "0"), "--resamples 0"),
        (("--train", "{world}/nowhere"), "no folder or file 'nowhere'"),
    ],
)
def test_what_cannot_be_audited_is_refused(world: Path, more: tuple[str, ...], wrong: str, capsys: Any) -> None:
    assert main(words(world, *(part.format(world=world) for part in more))) == 1
    said = capsys.readouterr().err
    assert wrong in said and str(world) not in said
